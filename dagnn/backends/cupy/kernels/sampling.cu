// Bilinear sampling. Images, samples and their derivatives are dense (N, C, H, W) maps of one order of
// memory: `last` for channels last. Grids are dense (M, 2, H', W'); `share` of them read one image.

// The two pixels around a position on one axis, their weights and the slopes of these; 0 outside the image.
struct Neighbours {
    INDEX pixel[2];
    ACC weight[2], slope[2];
    bool inside[2];
};

__device__ inline Neighbours around(ACC coordinate, INDEX size) {
    ACC at = (coordinate + 1) * (ACC(size - 1) / 2);
    // Two pixels outside the image everything is zero, however far a sample is.
    at = at < -2 ? ACC(-2) : at > size + 1 ? ACC(size + 1) : at;
    ACC low = floor(at), after = at - low;
    INDEX first = low == low ? (INDEX)low : 0;  // a position that is nan makes weights that are
    Neighbours found;
    for (int k = 0; k < 2; k++) {
        found.pixel[k] = first + k;
        found.inside[k] = first + k >= 0 && first + k < size;
        found.weight[k] = !found.inside[k] ? ACC(0) : k ? after : 1 - after;
        found.slope[k] = !found.inside[k] ? 0 : 2 * k - 1;
    }
    return found;
}

// An element of samples in the order of their memory: grid m, channel c, position p in the grid.
#define SAMPLE                                                                                              \
    INDEX m = i / (positions * channels), rest = i - m * positions * channels;                              \
    INDEX c = last ? rest % channels : rest / positions;                                                    \
    INDEX p = last ? rest / channels : rest % positions;                                                    \
    AROUND
#define AROUND                                                                                              \
    Neighbours rows = around(ACC(grid[2 * m * positions + p]), height);                                     \
    Neighbours columns = around(ACC(grid[(2 * m + 1) * positions + p]), width);                             \
    INDEX image = m / share * height * width * channels

#define EACH_CORNER(a, b)                                                                                   \
    for (int a = 0; a < 2; a++)                                                                             \
        for (int b = 0; b < 2; b++)                                                                         \
            if (rows.inside[a] && columns.inside[b])
#define PIXEL_AT(a, b, c)                                                                                   \
    (last ? image + (rows.pixel[a] * width + columns.pixel[b]) * channels + (c)                             \
          : image + ((c) * height + rows.pixel[a]) * width + columns.pixel[b])
#define SIZES INDEX channels, INDEX height, INDEX width, INDEX positions, INDEX share, INDEX last

extern "C" __global__ void bilinear_sampler(INDEX count, const REAL* x, const REAL* grid, SIZES, REAL* y) {
    EACH(i, count) {
        SAMPLE;
        ACC sum = 0;
        EACH_CORNER(a, b) sum += ACC(x[PIXEL_AT(a, b, c)]) * (rows.weight[a] * columns.weight[b]);
        y[i] = REAL(sum);
    }
}

// The derivative for x is a sum over the samples that meet a pixel, in whatever order threads come. So
// that it is the same in every run, it is made of integers: multiples of 2^-shift, of which the largest
// sum possible takes 62 bits.

// The largest exponent among finite numbers: |dzdy| < 2^(exponent + 1).
extern "C" __global__ void largest_exponent(INDEX count, const REAL* dzdy, int* exponent) {
    int largest = -2000;
    EACH(i, count) {
        ACC size = fabs(ACC(dzdy[i]));
        if (size > 0 && size - size == 0) largest = max(largest, (int)ilogb(size));
    }
    for (int far = 16; far; far /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, far));
    if (threadIdx.x % 32 == 0 && largest > -2000) atomicMax(exponent, largest);
}

__device__ inline int shift_for(int exponent, INDEX bits) { return min(61 - (int)bits - exponent, 1000); }

// Samples that meet a pixel are at most 2^bits. What is not finite makes nan in dzdx, which else is 0 here.
extern "C" __global__ void spread(INDEX count, const REAL* dzdy, const REAL* grid, SIZES, const int* exponent,
                                  INDEX bits, unsigned long long* sums, REAL* dzdx) {
    double unit = ldexp(1.0, shift_for(*exponent, bits));
    EACH(i, count) {
        SAMPLE;
        ACC der = dzdy[i];
        EACH_CORNER(a, b) {
            ACC part = der * (rows.weight[a] * columns.weight[b]);
            if (part == 0) continue;
            INDEX pixel = PIXEL_AT(a, b, c);
            if (part - part == 0)
                atomicAdd(&sums[pixel], (unsigned long long)llrint(part * unit));
            else
                dzdx[pixel] = REAL(part - part);
        }
    }
}

extern "C" __global__ void gather(INDEX count, const long long* sums, const int* exponent, INDEX bits, REAL* dzdx) {
    double unit = ldexp(1.0, -shift_for(*exponent, bits));
    EACH(i, count) if (dzdx[i] == REAL(0)) dzdx[i] = REAL(ACC(sums[i] * unit));
}

// The derivative for the grid: a sum over channels, which one thread makes, or the 32 of a warp (`lanes`).
extern "C" __global__ void bilinear_sampler_dzdgrid(INDEX count, const REAL* dzdy, const REAL* x, const REAL* grid, SIZES,
                                                    INDEX lanes, REAL* dzdgrid) {
    int lane = threadIdx.x % lanes;
    INDEX groups = (INDEX)gridDim.x * blockDim.x / lanes;
    for (INDEX i = ((INDEX)blockIdx.x * blockDim.x + threadIdx.x) / lanes; i < count; i += groups) {
        INDEX m = i / positions, p = i - m * positions;
        AROUND;
        ACC down = 0, across = 0;
        for (INDEX c = lane; c < channels; c += lanes) {
            ACC der = dzdy[last ? i * channels + c : (m * channels + c) * positions + p];
            EACH_CORNER(a, b) {
                ACC meets = der * ACC(x[PIXEL_AT(a, b, c)]);
                down += meets * rows.slope[a] * columns.weight[b];
                across += meets * columns.slope[b] * rows.weight[a];
            }
        }
        for (int far = lanes / 2; far; far /= 2) {
            down += __shfl_xor_sync(0xffffffffu, down, far);
            across += __shfl_xor_sync(0xffffffffu, across, far);
        }
        if (lane) continue;
        dzdgrid[2 * m * positions + p] = REAL(down * (ACC(height - 1) / 2));
        dzdgrid[(2 * m + 1) * positions + p] = REAL(across * (ACC(width - 1) / 2));
    }
}
