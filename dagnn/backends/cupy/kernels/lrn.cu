// Local response normalisation. Maps are (outer, channels, inner): with channels last inner is 1. A thread
// does a run of channels of one pixel, so that what windows share is still in the nearest cache.

__device__ inline ACC energy(const REAL* x, INDEX c, INDEX channels, INDEX inner, INDEX before, INDEX after,
                             ACC kappa, ACC alpha) {
    ACC sum = 0;
    INDEX stop = min(c + after + 1, channels);
    for (INDEX t = max(c - before, (INDEX)0); t < stop; t++) {
        ACC value = ACC(x[t * inner]);
        sum += value * value;
    }
    return kappa + alpha * sum;
}

// Which pixel of all channels, and which of its channels, thread i works on.
struct Run {
    INDEX base, first, stop;

    __device__ Run(INDEX i, INDEX channels, INDEX inner, RECIPROCAL by_inner, INDEX run, INDEX runs,
                   RECIPROCAL by_runs) {
        INDEX line = quotient(i, inner, by_inner), outer = quotient(line, runs, by_runs);
        base = outer * channels * inner + (i - line * inner);
        first = (line - outer * runs) * run;
        stop = min(first + run, channels);
    }
};

#define SIZES                                                                                               \
    INDEX channels, INDEX inner, RECIPROCAL by_inner, INDEX run, INDEX runs, RECIPROCAL by_runs, INDEX before, \
        INDEX after, ACC kappa, ACC alpha, ACC beta
#define RUN Run(i, channels, inner, by_inner, run, runs, by_runs)
#define ENERGY energy(x + at.base, c, channels, inner, before, after, kappa, alpha)

extern "C" __global__ void lrn(INDEX count, const REAL* x, REAL* y, SIZES) {
    EACH(i, count) {
        Run at = RUN;
        for (INDEX c = at.first; c < at.stop; c++) {
            INDEX k = at.base + c * inner;
            y[k] = REAL(ACC(x[k]) * exp(-beta * log(ENERGY)));
        }
    }
}

// What a channel gives to the derivatives of those in its window: 2 alpha beta dzdy x / energy^(beta + 1).
extern "C" __global__ void lrn_shared(INDEX count, const REAL* dzdy, const REAL* x, ACC* shared, SIZES) {
    EACH(i, count) {
        Run at = RUN;
        for (INDEX c = at.first; c < at.stop; c++) {
            INDEX k = at.base + c * inner;
            ACC slope = exp((-beta - 1) * log(ENERGY));
            shared[k] = 2 * alpha * beta * ACC(dzdy[k]) * ACC(x[k]) * slope;
        }
    }
}

extern "C" __global__ void lrn_dzdx(INDEX count, const REAL* dzdy, const REAL* x, const ACC* shared, REAL* dzdx,
                                    SIZES) {
    EACH(i, count) {
        Run at = RUN;
        for (INDEX c = at.first; c < at.stop; c++) {
            INDEX k = at.base + c * inner;
            ACC sum = 0;
            INDEX stop = min(c + before + 1, channels);
            for (INDEX t = max(c - after, (INDEX)0); t < stop; t++) sum += shared[at.base + t * inner];
            dzdx[k] = REAL(ACC(dzdy[k]) * exp(-beta * log(ENERGY)) - ACC(x[k]) * sum);
        }
    }
}
