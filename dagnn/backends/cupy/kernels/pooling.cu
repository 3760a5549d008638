// Pooling over sliding windows. Maps are (outer, height, width, inner): with channels first outer is N C and
// inner 1, with channels last outer is N and inner C. A thread makes one number of the result, neighbouring
// threads neighbouring ones. Derivatives are gathered from the windows that hold a pixel: atomics would add
// them up in an order of their own.

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

template <class Tap>
__device__ void max_pool(INDEX count, const REAL* x, REAL* y, Tap* winner, const Axis& down, const Axis& across,
                         INDEX inner, RECIPROCAL by_inner) {
    EACH(i, count) {
        Place at(i, down, across, inner, by_inner);
        Range rows = down.pixels(at.row), columns = across.pixels(at.column);
        ACC best = -ACC(__uint_as_float(0x7f800000u));
        INDEX row = rows.first, column = columns.first;
        // Column by column: of equal pixels the first wins. Comparisons with nan are false.
        for (INDEX w = columns.first; w < columns.stop; w++)
            for (INDEX h = rows.first; h < rows.stop; h++) {
                ACC value = ACC(x[at.other + (h * across.other + w) * inner]);
                if (value > best) {
                    best = value;
                    row = h;
                    column = w;
                }
            }
        y[i] = REAL(best);
        if (winner) {
            INDEX u = row - (at.row * down.stride - down.pad);
            INDEX v = column - (at.column * across.stride - across.pad);
            winner[i] = Tap(u + v * down.window);
        }
    }
}

extern "C" __global__ void max_pool_of_bytes(INDEX count, const REAL* x, REAL* y, unsigned char* winner,
                                             AXIS(down), AXIS(across), INDEX inner, RECIPROCAL by_inner) {
    max_pool(count, x, y, winner, AXIS_OF(down), AXIS_OF(across), inner, by_inner);
}

extern "C" __global__ void max_pool_of_ints(INDEX count, const REAL* x, REAL* y, int* winner, AXIS(down),
                                            AXIS(across), INDEX inner, RECIPROCAL by_inner) {
    max_pool(count, x, y, winner, AXIS_OF(down), AXIS_OF(across), inner, by_inner);
}

template <class Tap>
__device__ void max_pool_dzdx(INDEX count, const REAL* dzdy, const Tap* winner, REAL* dzdx, const Axis& down,
                              const Axis& across, INDEX inner, RECIPROCAL by_inner) {
    EACH(i, count) {
        Place at(i, down, across, inner, by_inner);
        Range rows = down.windows(at.row), columns = across.windows(at.column);
        ACC sum = 0;
        for (INDEX h = rows.first; h < rows.stop; h++)
            for (INDEX w = columns.first; w < columns.stop; w++) {
                INDEX tap = at.row + down.pad - h * down.stride;
                tap += (at.column + across.pad - w * across.stride) * down.window;
                INDEX k = at.other + (h * across.other + w) * inner;
                if (winner[k] == tap) sum += ACC(dzdy[k]);
            }
        dzdx[i] = REAL(sum);
    }
}

extern "C" __global__ void max_pool_dzdx_of_bytes(INDEX count, const REAL* dzdy, const unsigned char* winner,
                                                  REAL* dzdx, AXIS(down), AXIS(across), INDEX inner,
                                                  RECIPROCAL by_inner) {
    max_pool_dzdx(count, dzdy, winner, dzdx, AXIS_OF(down), AXIS_OF(across), inner, by_inner);
}

extern "C" __global__ void max_pool_dzdx_of_ints(INDEX count, const REAL* dzdy, const int* winner, REAL* dzdx,
                                                 AXIS(down), AXIS(across), INDEX inner, RECIPROCAL by_inner) {
    max_pool_dzdx(count, dzdy, winner, dzdx, AXIS_OF(down), AXIS_OF(across), inner, by_inner);
}

extern "C" __global__ void avg_pool(INDEX count, const REAL* x, REAL* y, AXIS(down), AXIS(across), INDEX inner,
                                    RECIPROCAL by_inner) {
    Axis down = AXIS_OF(down), across = AXIS_OF(across);
    EACH(i, count) {
        Place at(i, down, across, inner, by_inner);
        Range rows = down.pixels(at.row), columns = across.pixels(at.column);
        ACC sum = 0;
        for (INDEX h = rows.first; h < rows.stop; h++)
            for (INDEX w = columns.first; w < columns.stop; w++)
                sum += ACC(x[at.other + (h * across.other + w) * inner]);
        y[i] = REAL(sum / ACC((rows.stop - rows.first) * (columns.stop - columns.first)));
    }
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

extern "C" __global__ void avg_pool_dzdx(INDEX count, const REAL* dzdy, REAL* dzdx, AXIS(down), AXIS(across),
                                         INDEX inner, RECIPROCAL by_inner) {
    Axis down = AXIS_OF(down), across = AXIS_OF(across);
    EACH(i, count) {
        Place at(i, down, across, inner, by_inner);
        Range rows = down.windows(at.row), columns = across.windows(at.column);
        ACC sum = 0;
        for (INDEX h = rows.first; h < rows.stop; h++) {
            Range down_there = down.pixels(h, down.extent);
            for (INDEX w = columns.first; w < columns.stop; w++) {
                Range there = across.pixels(w, across.extent);
                ACC pixels = ACC((down_there.stop - down_there.first) * (there.stop - there.first));
                sum += ACC(dzdy[at.other + (h * across.other + w) * inner]) / pixels;
            }
        }
        dzdx[i] = REAL(sum);
    }
}
