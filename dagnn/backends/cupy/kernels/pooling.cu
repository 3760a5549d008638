// Pooling over sliding windows. Maps are (outer, height, width, inner): with channels first outer is N C and
// inner 1, with channels last outer is N and inner C. A thread makes one number of the result, or with channels
// last 16 bytes of neighbouring ones; neighbouring threads do what is next. Derivatives are gathered from the
// windows that hold a pixel: atomics would add them up in an order of their own.

struct Range {
    INDEX first, stop;
};

// One axis of the result, the length of the other maps along it, and what the windows do there.
struct Axis {
    INDEX extent;
    RECIPROCAL by_extent;
    INDEX other, window, stride;
    RECIPROCAL by_stride;
    INDEX pad;

    // The pixels inside the image of window `at` of the result.
    __device__ Range pixels(INDEX at) const { return pixels(at, other); }
    __device__ Range pixels(INDEX at, INDEX image) const {
        INDEX start = at * stride - pad;
        return {max(start, (INDEX)0), min(start + window, image)};
    }
    // The windows that hold pixel `at` of the result.
    __device__ Range windows(INDEX at) const {
        INDEX last = at + pad;
        INDEX first = last < window ? 0 : quotient(last - window, stride, by_stride) + 1;
        return {first, min(quotient(last, stride, by_stride) + 1, other)};
    }
};

// As parameters of a kernel, and as one argument.
#define AXIS(name)                                                                                          \
    INDEX name##_extent, RECIPROCAL name##_by_extent, INDEX name##_other, INDEX name##_window,              \
        INDEX name##_stride, RECIPROCAL name##_by_stride, INDEX name##_pad
#define AXIS_OF(name) \
    Axis { name##_extent, name##_by_extent, name##_other, name##_window, name##_stride, name##_by_stride, name##_pad }

// Where an element of the result lies, and where the other maps with its outer and inner index begin.
struct Place {
    INDEX row, column, other;

    __device__ Place(INDEX i, const Axis& down, const Axis& across, INDEX inner, RECIPROCAL by_inner) {
        INDEX pixel = quotient(i, inner, by_inner);
        INDEX line = quotient(pixel, across.extent, across.by_extent);
        INDEX outer = quotient(line, down.extent, down.by_extent);
        row = line - outer * down.extent;
        column = pixel - line * across.extent;
        other = outer * down.other * across.other * inner + (i - pixel * inner);
    }
};

#define MAPS AXIS(down), AXIS(across), INDEX inner, RECIPROCAL by_inner
#define THE_MAPS AXIS_OF(down), AXIS_OF(across), inner, by_inner

// Whether memory of inner numbers each may be read by packs, and the pack that begins at element k.
template <class T>
__device__ bool in_packs(const T* memory, INDEX inner) {
    return inner % PACKED == 0 && (unsigned long long)memory % alignof(Pack<T, PACKED>) == 0;
}

template <int size, class T>
__device__ Pack<T, size>& pack(T* memory, INDEX k) {
    return *(Pack<T, size>*)(memory + k);
}

template <int size, class T>
__device__ const Pack<T, size>& pack(const T* memory, INDEX k) {
    return *(const Pack<T, size>*)(memory + k);
}

template <int size, class Tap>
__device__ void max_pool(INDEX count, const REAL* x, REAL* y, Tap* winner, const Axis& down, const Axis& across,
                         INDEX inner, RECIPROCAL by_inner) {
    EACH(i, count / size) {
        Place at(i * size, down, across, inner, by_inner);
        Range rows = down.pixels(at.row), columns = across.pixels(at.column);
        INDEX top = at.row * down.stride - down.pad, left = at.column * across.stride - across.pad;
        ACC best[size];
        Pack<Tap, size> taps;
        for (int k = 0; k < size; k++) {
            best[k] = -ACC(__uint_as_float(0x7f800000u));
            taps.of[k] = Tap(rows.first - top + (columns.first - left) * down.window);
        }
        // Column by column: of equal pixels the first wins. Comparisons with nan are false.
        for (INDEX w = columns.first; w < columns.stop; w++)
            for (INDEX h = rows.first; h < rows.stop; h++) {
                auto values = pack<size>(x, at.other + (h * across.other + w) * inner);
                Tap tap = Tap(h - top + (w - left) * down.window);
                for (int k = 0; k < size; k++)
                    if (ACC(values.of[k]) > best[k]) {
                        best[k] = ACC(values.of[k]);
                        taps.of[k] = tap;
                    }
            }
        Pack<REAL, size> result;
        for (int k = 0; k < size; k++) result.of[k] = REAL(best[k]);
        pack<size>(y, i * size) = result;
        if (winner) pack<size>(winner, i * size) = taps;
    }
}

template <class Tap>
__device__ void max_pool(INDEX count, const REAL* x, REAL* y, Tap* winner, const Axis& down, const Axis& across,
                         INDEX inner, RECIPROCAL by_inner) {
    if (in_packs(x, inner) && in_packs(y, inner) && in_packs(winner, inner))
        max_pool<PACKED>(count, x, y, winner, down, across, inner, by_inner);
    else
        max_pool<1>(count, x, y, winner, down, across, inner, by_inner);
}

extern "C" __global__ void max_pool_of_bytes(INDEX count, const REAL* x, REAL* y, unsigned char* winner, MAPS) {
    max_pool(count, x, y, winner, THE_MAPS);
}

extern "C" __global__ void max_pool_of_ints(INDEX count, const REAL* x, REAL* y, int* winner, MAPS) {
    max_pool(count, x, y, winner, THE_MAPS);
}

template <int size, class Tap>
__device__ void max_pool_dzdx(INDEX count, const REAL* dzdy, const Tap* winner, REAL* dzdx, const Axis& down,
                              const Axis& across, INDEX inner, RECIPROCAL by_inner) {
    EACH(i, count / size) {
        Place at(i * size, down, across, inner, by_inner);
        Range rows = down.windows(at.row), columns = across.windows(at.column);
        ACC sums[size] = {};
        for (INDEX h = rows.first; h < rows.stop; h++)
            for (INDEX w = columns.first; w < columns.stop; w++) {
                INDEX tap = at.row + down.pad - h * down.stride;
                tap += (at.column + across.pad - w * across.stride) * down.window;
                INDEX from = at.other + (h * across.other + w) * inner;
                auto taps = pack<size>(winner, from);
                auto ders = pack<size>(dzdy, from);
                for (int k = 0; k < size; k++)
                    if (taps.of[k] == tap) sums[k] += ACC(ders.of[k]);
            }
        Pack<REAL, size> result;
        for (int k = 0; k < size; k++) result.of[k] = REAL(sums[k]);
        pack<size>(dzdx, i * size) = result;
    }
}

template <class Tap>
__device__ void max_pool_dzdx(INDEX count, const REAL* dzdy, const Tap* winner, REAL* dzdx, const Axis& down,
                              const Axis& across, INDEX inner, RECIPROCAL by_inner) {
    if (in_packs(dzdy, inner) && in_packs(winner, inner) && in_packs(dzdx, inner))
        max_pool_dzdx<PACKED>(count, dzdy, winner, dzdx, down, across, inner, by_inner);
    else
        max_pool_dzdx<1>(count, dzdy, winner, dzdx, down, across, inner, by_inner);
}

extern "C" __global__ void max_pool_dzdx_of_bytes(INDEX count, const REAL* dzdy, const unsigned char* winner,
                                                  REAL* dzdx, MAPS) {
    max_pool_dzdx(count, dzdy, winner, dzdx, THE_MAPS);
}

extern "C" __global__ void max_pool_dzdx_of_ints(INDEX count, const REAL* dzdy, const int* winner, REAL* dzdx,
                                                 MAPS) {
    max_pool_dzdx(count, dzdy, winner, dzdx, THE_MAPS);
}

template <int size>
__device__ void average(INDEX count, const REAL* x, REAL* y, const Axis& down, const Axis& across, INDEX inner,
                        RECIPROCAL by_inner) {
    EACH(i, count / size) {
        Place at(i * size, down, across, inner, by_inner);
        Range rows = down.pixels(at.row), columns = across.pixels(at.column);
        ACC sums[size] = {}, pixels = ACC((rows.stop - rows.first) * (columns.stop - columns.first));
        for (INDEX h = rows.first; h < rows.stop; h++)
            for (INDEX w = columns.first; w < columns.stop; w++) {
                auto values = pack<size>(x, at.other + (h * across.other + w) * inner);
                for (int k = 0; k < size; k++) sums[k] += ACC(values.of[k]);
            }
        Pack<REAL, size> result;
        for (int k = 0; k < size; k++) result.of[k] = REAL(sums[k] / pixels);
        pack<size>(y, i * size) = result;
    }
}

extern "C" __global__ void avg_pool(INDEX count, const REAL* x, REAL* y, MAPS) {
    if (in_packs(x, inner) && in_packs(y, inner))
        average<PACKED>(count, x, y, THE_MAPS);
    else
        average<1>(count, x, y, THE_MAPS);
}

// With channels first and large windows: a warp makes one number, so that its threads read neighbouring pixels.
extern "C" __global__ void avg_pool_by_warps(INDEX count, const REAL* x, REAL* y, AXIS(down), AXIS(across)) {
    Axis down = AXIS_OF(down), across = AXIS_OF(across);
    INDEX i = (INDEX)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (i >= count) return;
    Place at(i, down, across, 1, 1ull << 31);
    Range rows = down.pixels(at.row), columns = across.pixels(at.column);
    INDEX width = columns.stop - columns.first, pixels = (rows.stop - rows.first) * width;
    ACC sum = 0;
    for (INDEX k = threadIdx.x % 32; k < pixels; k += 32)
        sum += ACC(x[at.other + (rows.first + k / width) * across.other + columns.first + k % width]);
    for (int step = 16; step; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) y[i] = REAL(sum / ACC(pixels));
}

template <int size>
__device__ void share(INDEX count, const REAL* dzdy, REAL* dzdx, const Axis& down, const Axis& across,
                      INDEX inner, RECIPROCAL by_inner) {
    EACH(i, count / size) {
        Place at(i * size, down, across, inner, by_inner);
        Range rows = down.windows(at.row), columns = across.windows(at.column);
        ACC sums[size] = {};
        for (INDEX h = rows.first; h < rows.stop; h++)
            for (INDEX w = columns.first; w < columns.stop; w++) {
                Range high = down.pixels(h, down.extent), wide = across.pixels(w, across.extent);
                ACC pixels = ACC((high.stop - high.first) * (wide.stop - wide.first));
                auto ders = pack<size>(dzdy, at.other + (h * across.other + w) * inner);
                for (int k = 0; k < size; k++) sums[k] += ACC(ders.of[k]) / pixels;
            }
        Pack<REAL, size> result;
        for (int k = 0; k < size; k++) result.of[k] = REAL(sums[k]);
        pack<size>(dzdx, i * size) = result;
    }
}

extern "C" __global__ void avg_pool_dzdx(INDEX count, const REAL* dzdy, REAL* dzdx, MAPS) {
    if (in_packs(dzdy, inner) && in_packs(dzdx, inner))
        share<PACKED>(count, dzdy, dzdx, THE_MAPS);
    else
        share<1>(count, dzdy, dzdx, THE_MAPS);
}
