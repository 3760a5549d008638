// Softmax over the channels of a pixel. Pixel p of image n begins at n * image + p * pixel (image = pixels *
// channels), and `step` lies between two of its channels.

#define SIZES INDEX channels, INDEX pixels, RECIPROCAL by_pixels, INDEX pixel, INDEX step

__device__ inline INDEX first(INDEX i, INDEX channels, INDEX pixels, RECIPROCAL by_pixels, INDEX pixel) {
    INDEX n = quotient(i, pixels, by_pixels);
    return n * pixels * channels + (i - n * pixels) * pixel;
}

// The pixel's sum, or its largest number, in every thread of the warp or block that works on it.
template <class F>
__device__ ACC over_threads(ACC value, F f) {
    __shared__ ACC values[8];
    for (int lanes = 16; lanes; lanes /= 2) value = f(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    if (blockDim.x == 32) return value;
    __syncthreads();
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value;
    __syncthreads();
    value = values[0];
    for (int k = 1; k < blockDim.x / 32; k++) value = f(value, values[k]);
    return value;
}

__device__ inline ACC larger(ACC a, ACC b) { return fmax(a, b); }
__device__ inline ACC added(ACC a, ACC b) { return a + b; }

// A thread per pixel.
extern "C" __global__ void softmax(INDEX count, const REAL* x, REAL* y, SIZES) {
    EACH(i, count) {
        INDEX at = first(i, channels, pixels, by_pixels, pixel);
        ACC most = ACC(x[at]), sum = 0;
        for (INDEX c = 1; c < channels; c++) most = fmax(most, ACC(x[at + c * step]));
        for (INDEX c = 0; c < channels; c++) sum += exp(ACC(x[at + c * step]) - most);
        for (INDEX c = 0; c < channels; c++) y[at + c * step] = REAL(exp(ACC(x[at + c * step]) - most) / sum);
    }
}

extern "C" __global__ void softmax_dzdx(INDEX count, const REAL* dzdy, const REAL* y, REAL* dzdx, SIZES) {
    EACH(i, count) {
        INDEX at = first(i, channels, pixels, by_pixels, pixel);
        ACC sum = 0;
        for (INDEX c = 0; c < channels; c++) sum += ACC(y[at + c * step]) * ACC(dzdy[at + c * step]);
        for (INDEX c = 0; c < channels; c++) {
            INDEX k = at + c * step;
            dzdx[k] = REAL(ACC(y[k]) * (ACC(dzdy[k]) - sum));
        }
    }
}

// A block per pixel.
extern "C" __global__ void softmax_of_many(INDEX count, const REAL* x, REAL* y, SIZES) {
    for (INDEX i = blockIdx.x; i < count; i += gridDim.x) {
        INDEX at = first(i, channels, pixels, by_pixels, pixel);
        ACC most = ACC(x[at]), sum = 0;
        for (INDEX c = threadIdx.x; c < channels; c += blockDim.x) most = fmax(most, ACC(x[at + c * step]));
        most = over_threads(most, larger);
        for (INDEX c = threadIdx.x; c < channels; c += blockDim.x) sum += exp(ACC(x[at + c * step]) - most);
        sum = over_threads(sum, added);
        for (INDEX c = threadIdx.x; c < channels; c += blockDim.x)
            y[at + c * step] = REAL(exp(ACC(x[at + c * step]) - most) / sum);
    }
}

extern "C" __global__ void softmax_dzdx_of_many(INDEX count, const REAL* dzdy, const REAL* y, REAL* dzdx, SIZES) {
    for (INDEX i = blockIdx.x; i < count; i += gridDim.x) {
        INDEX at = first(i, channels, pixels, by_pixels, pixel);
        ACC sum = 0;
        for (INDEX c = threadIdx.x; c < channels; c += blockDim.x)
            sum += ACC(y[at + c * step]) * ACC(dzdy[at + c * step]);
        sum = over_threads(sum, added);
        for (INDEX c = threadIdx.x; c < channels; c += blockDim.x) {
            INDEX k = at + c * step;
            dzdx[k] = REAL(ACC(y[k]) * (ACC(dzdy[k]) - sum));
        }
    }
}
