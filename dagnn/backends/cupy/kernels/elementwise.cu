// One pass over dense memory, 16 bytes at a time where all arrays begin at multiples of them.

template <class F>
__device__ void one_by_one(INDEX count, const REAL* a, const REAL* b, REAL* y, F f) {
    INDEX packs = together(a) && together(b) && together(y) ? count / PACKED : 0;
    EACH(i, packs) {
        PACK from = ((const PACK*)a)[i], also = ((const PACK*)b)[i], to;
#pragma unroll
        for (int k = 0; k < PACKED; k++) to.of[k] = REAL(f(ACC(from.of[k]), ACC(also.of[k])));
        ((PACK*)y)[i] = to;
    }
    EACH(i, count - packs * PACKED) {
        INDEX k = packs * PACKED + i;
        y[k] = REAL(f(ACC(a[k]), ACC(b[k])));
    }
}

// Without a leak nan becomes 0.
__device__ inline ACC rectified(ACC x, ACC leak) { return x > 0 ? x : leak == 0 ? ACC(0) : leak * x; }

extern "C" __global__ void relu(INDEX count, const REAL* x, REAL* y, ACC leak) {
    one_by_one(count, x, x, y, [=](ACC x, ACC) { return rectified(x, leak); });
}

extern "C" __global__ void relu_dzdx(INDEX count, const REAL* dzdy, const REAL* y, REAL* dzdx, ACC leak) {
    one_by_one(count, dzdy, y, dzdx, [=](ACC dzdy, ACC y) { return dzdy * (y > 0 ? 1 : leak); });
}

extern "C" __global__ void sigmoid(INDEX count, const REAL* x, REAL* y) {
    one_by_one(count, x, x, y, [](ACC x, ACC) { return 1 / (1 + exp(-x)); });
}

extern "C" __global__ void sigmoid_dzdx(INDEX count, const REAL* dzdy, const REAL* y, REAL* dzdx) {
    one_by_one(count, dzdy, y, dzdx, [](ACC dzdy, ACC y) { return (1 - y) * y * dzdy; });
}

extern "C" __global__ void tanhs(INDEX count, const REAL* x, REAL* y) {
    one_by_one(count, x, x, y, [](ACC x, ACC) { return tanh(x); });
}

extern "C" __global__ void tanh_dzdx(INDEX count, const REAL* dzdy, const REAL* y, REAL* dzdx) {
    one_by_one(count, dzdy, y, dzdx, [](ACC dzdy, ACC y) { return (1 - y * y) * dzdy; });
}

// The sum of up to 8 arrays (null: no more), rectified unless the leak is negative.
#define TERMS 8

extern "C" __global__ void sum(INDEX count, const REAL* x0, const REAL* x1, const REAL* x2, const REAL* x3,
                               const REAL* x4, const REAL* x5, const REAL* x6, const REAL* x7, REAL* y, ACC leak) {
    const REAL* xs[TERMS] = {x0, x1, x2, x3, x4, x5, x6, x7};
    bool all = together(y);
    for (int t = 0; t < TERMS; t++) all = all && together(xs[t]);
    INDEX packs = all ? count / PACKED : 0;
    EACH(i, packs) {
        ACC sums[PACKED] = {};
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
            if (!xs[t]) break;
            PACK from = ((const PACK*)xs[t])[i];
#pragma unroll
            for (int k = 0; k < PACKED; k++) sums[k] += ACC(from.of[k]);
        }
        PACK to;
#pragma unroll
        for (int k = 0; k < PACKED; k++) to.of[k] = REAL(leak < 0 ? sums[k] : rectified(sums[k], leak));
        ((PACK*)y)[i] = to;
    }
    EACH(i, count - packs * PACKED) {
        INDEX k = packs * PACKED + i;
        ACC sum = 0;
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
            if (!xs[t]) break;
            sum += ACC(xs[t][k]);
        }
        y[k] = REAL(leak < 0 ? sum : rectified(sum, leak));
    }
}

// Rows of x go where rows of y have room for them, in units of so many bytes.
template <class UNIT>
__device__ void move(INDEX count, const void* x, void* y, INDEX row, RECIPROCAL by_row, INDEX pitch) {
    EACH(i, count) {
        INDEX r = quotient(i, row, by_row);
        ((UNIT*)y)[r * pitch + (i - r * row)] = ((const UNIT*)x)[i];
    }
}

struct alignas(16) Sixteen {
    unsigned int of[4];
};

extern "C" __global__ void place(INDEX count, const void* x, void* y, INDEX row, RECIPROCAL by_row, INDEX pitch,
                                 INDEX unit) {
    if (unit == 16) move<Sixteen>(count, x, y, row, by_row, pitch);
    if (unit == 8) move<unsigned long long>(count, x, y, row, by_row, pitch);
    if (unit == 4) move<unsigned int>(count, x, y, row, by_row, pitch);
    if (unit == 2) move<unsigned short>(count, x, y, row, by_row, pitch);
}
