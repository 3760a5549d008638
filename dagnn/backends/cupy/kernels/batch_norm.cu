// Batch normalisation. Maps are (outer, channels, inner): with channels last inner is 1. Sums are made by
// blocks, of `lanes` neighbouring channels and a slice of their elements each; then a warp per channel adds
// up the slices' sums and makes of them what a last pass over the maps needs.

#define THREADS 256
#define TERMS 16  // are added up in ACC, which rounds; then in double

struct Maps {
    INDEX channels;
    RECIPROCAL by_channels;
    INDEX inner;
    RECIPROCAL by_inner;

    // Where element e of channel c is.
    __device__ INDEX at(INDEX e, INDEX c) const {
        INDEX outer = quotient(e, inner, by_inner);
        return (outer * channels + c) * inner + (e - outer * inner);
    }
    __device__ INDEX channel(INDEX i) const {
        INDEX line = quotient(i, inner, by_inner);
        return line - quotient(line, channels, by_channels) * channels;
    }
};

// As parameters of a kernel, and as one argument.
#define MAPS INDEX channels, RECIPROCAL by_channels, INDEX inner, RECIPROCAL by_inner
#define THE_MAPS Maps{channels, by_channels, inner, by_inner}

// The sums of all threads of a block whose channel is this one's, in its first `lanes` threads.
__device__ inline double over_block(double sum, int lanes) {
    __shared__ double sums[THREADS];
    __syncthreads();
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half >= lanes; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[threadIdx.x];
}

__device__ inline double over_warp(double sum) {
    for (int lane = 16; lane; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    return sum;
}

__device__ inline INDEX channel_of_thread(int lanes) { return (INDEX)blockIdx.x * lanes + threadIdx.x % lanes; }

// Of `terms` sums per channel, `sums` gets (terms, channels, slices). `read` returns what is at an element, and
// `add` adds what follows from it to the sums.
template <int terms, class Read, class Add>
__device__ void sum_slices(double* sums, const Maps& maps, INDEX elements, INDEX slice, int lanes, Read read,
                           Add add) {
    INDEX c = channel_of_thread(lanes), step = THREADS / lanes;
    INDEX e = (INDEX)blockIdx.y * slice + threadIdx.x / lanes;
    INDEX stop = min(((INDEX)blockIdx.y + 1) * slice, elements);
    double total[terms] = {};
    while (c < maps.channels && e < stop) {
        ACC few[terms] = {};
        if (e + (TERMS - 1) * step < stop) {
            decltype(read(e)) values[TERMS];  // all under way before the first is waited for
#pragma unroll
            for (int k = 0; k < TERMS; k++) values[k] = read(maps.at(e + k * step, c));
#pragma unroll
            for (int k = 0; k < TERMS; k++) add(values[k], few);
        } else {
            for (INDEX k = e; k < stop; k += step) add(read(maps.at(k, c)), few);
        }
        for (int t = 0; t < terms; t++) total[t] += few[t];
        e += TERMS * step;
    }
    for (int t = 0; t < terms; t++) {
        double sum = over_block(total[t], lanes);
        if (threadIdx.x < lanes && c < maps.channels)
            sums[((INDEX)t * maps.channels + c) * gridDim.y + blockIdx.y] = sum;
    }
}

// The sum t of channel c over all slices, in every thread of a warp.
__device__ inline double sum_of(const double* sums, int t, INDEX c, INDEX channels, INDEX slices) {
    const double* own = sums + (t * channels + c) * slices;
    double sum = 0;
    for (INDEX k = threadIdx.x % 32; k < slices; k += 32) sum += own[k];
    for (int lane = 16; lane; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    return sum;
}

// Sums of x and x^2, both around the channel's first element: no digits are lost where the mean is large.
extern "C" __global__ void batch_norm_sums(const REAL* x, double* sums, MAPS, INDEX elements, INDEX slice,
                                           INDEX lanes) {
    INDEX c = channel_of_thread(lanes);
    ACC centre = c < channels && elements ? ACC(x[c * inner]) : ACC(0);
    sum_slices<2>(
        sums, THE_MAPS, elements, slice, lanes, [=](INDEX i) { return x[i]; },
        [=](REAL value, ACC* sum) {
            ACC centred = ACC(value) - centre;
            sum[0] += centred;
            sum[1] += centred * centred;
        });
}

// A warp a channel: its moments, and y = (x - centre) scale + shift as (3, channels) factors. What rounding
// takes from the mean is in the shift.
extern "C" __global__ void batch_norm_moments(const REAL* x, const double* sums, const ACC* multipliers,
                                              const ACC* biases, ACC* moments, ACC* factors, INDEX channels,
                                              INDEX inner, INDEX elements, INDEX slices, ACC epsilon) {
    INDEX c = (INDEX)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (c >= channels) return;
    double count = elements ? elements : 1;
    double rest = sum_of(sums, 0, c, channels, slices) / count;
    double variance = sum_of(sums, 1, c, channels, slices) / count - rest * rest;
    if (threadIdx.x % 32) return;
    double mean = rest + (elements ? ACC(x[c * inner]) : ACC(0));
    double sigma = sqrt((variance < 0 ? 0 : variance) + epsilon), scale = multipliers[c] / sigma;
    moments[2 * c] = ACC(mean);
    moments[2 * c + 1] = ACC(sigma);
    factors[c] = ACC(mean);
    factors[channels + c] = ACC(scale);
    factors[2 * channels + c] = ACC(biases[c] - scale * (mean - ACC(mean)));
}

// The same factors from moments that are given.
extern "C" __global__ void batch_norm_given(INDEX channels, const ACC* multipliers, const ACC* biases,
                                            const ACC* moments, ACC* factors) {
    EACH(c, channels) {
        factors[c] = moments[2 * c];
        factors[channels + c] = multipliers[c] / moments[2 * c + 1];
        factors[2 * channels + c] = biases[c];
    }
}

struct Pair {
    REAL der, value;
};

// Sums of dzdy, dzdy (x - mean) and x - mean, which is what rounding took from the mean.
extern "C" __global__ void batch_norm_ders_sums(const REAL* dzdy, const REAL* x, const ACC* moments, double* sums,
                                                MAPS, INDEX elements, INDEX slice, INDEX lanes) {
    INDEX c = channel_of_thread(lanes);
    ACC mean = c < channels ? moments[2 * c] : ACC(0);
    sum_slices<3>(
        sums, THE_MAPS, elements, slice, lanes, [=](INDEX i) { return Pair{dzdy[i], x[i]}; },
        [=](Pair pair, ACC* sum) {
            ACC der = ACC(pair.der), value = ACC(pair.value) - mean;
            sum[0] += der;
            sum[1] += der * value;
            sum[2] += value;
        });
}

// A warp a channel: derivatives of the parameters, (2, channels), and dzdx = dzdy scale + (x - centre) slope +
// shift as (4, channels) factors.
extern "C" __global__ void batch_norm_ders_factors(const double* sums, const ACC* multipliers, const ACC* moments,
                                                   ACC* ders, ACC* factors, INDEX channels, INDEX elements,
                                                   INDEX slices, INDEX given) {
    INDEX c = (INDEX)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (c >= channels) return;
    double count = elements ? elements : 1, sigma = moments[2 * c + 1], scale = multipliers[c] / sigma;
    double dzdb = sum_of(sums, 0, c, channels, slices), along = sum_of(sums, 1, c, channels, slices);
    double rest = sum_of(sums, 2, c, channels, slices) / count;
    if (threadIdx.x % 32) return;
    double dzdg = (given ? along : along - rest * dzdb) / sigma;
    double slope = given ? 0 : -scale / sigma * dzdg / count;
    ders[c] = ACC(dzdg);
    ders[channels + c] = ACC(dzdb);
    factors[c] = moments[2 * c];
    factors[channels + c] = ACC(scale);
    factors[2 * channels + c] = ACC(slope);
    factors[3 * channels + c] = ACC(given ? 0 : -scale * dzdb / count - slope * rest);
}

// The channels of a pack: one, or, with channels last, neighbouring ones; or each its own.
enum Order { ONE, NEIGHBOURS, ANY };

// The factors of the channels of a pack, whose first element is i.
template <int size, Order order>
__device__ Pack<ACC, size> factors_of(const ACC* factors, const Maps& maps, INDEX i) {
    Pack<ACC, size> own;
    if constexpr (order == NEIGHBOURS)
        own = *(const Pack<ACC, size>*)(factors + maps.channel(i));
    else
        for (int k = 0; k < size; k++) own.of[k] = factors[maps.channel(order == ANY ? i + k : i)];
    return own;
}

template <int size, Order order>
__device__ void normalise(INDEX count, const REAL* x, const REAL* add, REAL* y, const ACC* factors,
                          const Maps& maps, INDEX rectify, ACC leak) {
    EACH(i, count / size) {
        Pack<REAL, size> from = ((const Pack<REAL, size>*)x)[i], added = from, to;
        if (add) added = ((const Pack<REAL, size>*)add)[i];
        auto centre = factors_of<size, order>(factors, maps, i * size);
        auto scale = factors_of<size, order>(factors + maps.channels, maps, i * size);
        auto shift = factors_of<size, order>(factors + 2 * maps.channels, maps, i * size);
        for (int k = 0; k < size; k++) {
            ACC value = (ACC(from.of[k]) - centre.of[k]) * scale.of[k] + shift.of[k];
            if (add) value += ACC(added.of[k]);
            if (rectify && leak == 0) value = fmax(value, ACC(0));  // nan becomes 0, as in Activation.relu
            if (rectify && leak != 0) {
                ACC leaked = value * leak;
                value = (value > leaked) == (leak <= 1) ? value : leaked;
            }
            to.of[k] = REAL(value);
        }
        ((Pack<REAL, size>*)y)[i] = to;
    }
}

extern "C" __global__ void batch_norm(INDEX count, const REAL* x, const REAL* add, REAL* y, const ACC* factors,
                                      MAPS, INDEX rectify, ACC leak) {
    bool packs = together(x) && together(add) && together(y) && count % PACKED == 0;
    if (packs && inner == 1 && channels % PACKED == 0)
        normalise<PACKED, NEIGHBOURS>(count, x, add, y, factors, THE_MAPS, rectify, leak);
    else if (packs && inner % PACKED == 0)
        normalise<PACKED, ONE>(count, x, add, y, factors, THE_MAPS, rectify, leak);
    else if (packs)
        normalise<PACKED, ANY>(count, x, add, y, factors, THE_MAPS, rectify, leak);
    else
        normalise<1, ONE>(count, x, add, y, factors, THE_MAPS, rectify, leak);
}

// x is null where the moments were given.
template <int size, Order order>
__device__ void derive(INDEX count, const REAL* dzdy, const REAL* x, REAL* dzdx, const ACC* factors,
                       const Maps& maps) {
    EACH(i, count / size) {
        Pack<REAL, size> der = ((const Pack<REAL, size>*)dzdy)[i], from = der, to;
        if (x) from = ((const Pack<REAL, size>*)x)[i];
        auto centre = factors_of<size, order>(factors, maps, i * size);
        auto scale = factors_of<size, order>(factors + maps.channels, maps, i * size);
        auto slope = factors_of<size, order>(factors + 2 * maps.channels, maps, i * size);
        auto shift = factors_of<size, order>(factors + 3 * maps.channels, maps, i * size);
        for (int k = 0; k < size; k++) {
            ACC value = ACC(der.of[k]) * scale.of[k];
            if (x) value += (ACC(from.of[k]) - centre.of[k]) * slope.of[k] + shift.of[k];
            to.of[k] = REAL(value);
        }
        ((Pack<REAL, size>*)dzdx)[i] = to;
    }
}

extern "C" __global__ void batch_norm_ders(INDEX count, const REAL* dzdy, const REAL* x, REAL* dzdx,
                                           const ACC* factors, MAPS) {
    bool packs = together(dzdy) && together(x) && together(dzdx) && count % PACKED == 0;
    if (packs && inner == 1 && channels % PACKED == 0)
        derive<PACKED, NEIGHBOURS>(count, dzdy, x, dzdx, factors, THE_MAPS);
    else if (packs && inner % PACKED == 0)
        derive<PACKED, ONE>(count, dzdy, x, dzdx, factors, THE_MAPS);
    else if (packs)
        derive<PACKED, ANY>(count, dzdy, x, dzdx, factors, THE_MAPS);
    else
        derive<1, ONE>(count, dzdy, x, dzdx, factors, THE_MAPS);
}
