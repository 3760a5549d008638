// Pooling over regions of interest. `edges` has a row of ints for each region: its image, then of its bins
// the first row of each, the row after the last, the first column and the column after the last.

__device__ inline float product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double product(double a, double b) { return __dmul_rn(a, b); }

// a x + b y + t in coordinates from 1, rounded, halves away from zero; back to coordinates from 0. Rounding
// decides which pixels a bin gets, so that no product may be contracted with a sum.
__device__ inline ACC corner(ACC a, ACC x, ACC b, ACC y, ACC t) {
    ACC at = product(a, x) + product(b, y) + t + ACC(1);
    return trunc(at + copysign(ACC(0.5), at)) - ACC(1);
}

__device__ inline void bins(int* edges, ACC first, ACC last, INDEX parts, INDEX extent) {
    ACC part = fmax(last - first + ACC(1), ACC(1)) / ACC(parts);
    for (INDEX k = 0; k < parts; k++) {
        ACC start = floor(product(ACC(k), part)) + first;
        ACC stop = ceil(product(ACC(k + 1), part)) + first;
        edges[k] = (int)fmin(fmax(start, ACC(0)), ACC(extent));
        edges[parts + k] = (int)fmin(fmax(stop, ACC(0)), ACC(extent));
    }
}

// rois (5, count): image, x1, y1, x2, y2; (x, y) goes to (xx x + xy y + x0, yx x + yy y + y0).
extern "C" __global__ void roi_edges(INDEX count, const ACC* rois, int* edges, INDEX images, INDEX height,
                                     INDEX width, INDEX down, INDEX across, ACC xx, ACC xy, ACC x0, ACC yx,
                                     ACC yy, ACC y0) {
    EACH(r, count) {
        ACC x1 = rois[count + r], y1 = rois[2 * count + r], x2 = rois[3 * count + r], y2 = rois[4 * count + r];
        int* own = edges + r * (1 + 2 * (down + across));
        own[0] = (int)fmin(fmax(trunc(rois[r]), ACC(0)), ACC(images - 1));
        bins(own + 1, corner(yx, x1, yy, y1, y0), corner(yx, x2, yy, y2, y0), down, height);
        bins(own + 1 + 2 * down, corner(xx, x1, xy, y1, x0), corner(xx, x2, xy, y2, x0), across, width);
    }
}

// Of the element i of maps whose memory is (outer, channel, pixel), or (outer, pixel, channel).
struct Place {
    INDEX outer, channel, pixel;

    __device__ Place(INDEX i, bool last, INDEX inner, RECIPROCAL by_inner, INDEX middle, RECIPROCAL by_middle) {
        INDEX line = quotient(i, inner, by_inner);
        outer = quotient(line, middle, by_middle);
        channel = last ? i - line * inner : line - outer * middle;
        pixel = last ? line - outer * middle : i - line * inner;
    }
};

// One thread a bin of a channel. `winner` is null where the mean is asked for, not the maximum.
extern "C" __global__ void roi_pool(INDEX count, const REAL* x, const int* edges, REAL* y, int* winner, INDEX last,
                                    INDEX inner, RECIPROCAL by_inner, INDEX middle, RECIPROCAL by_middle,
                                    INDEX width, INDEX image, INDEX channel_step, INDEX pixel_step, INDEX down,
                                    INDEX across, RECIPROCAL by_across) {
    EACH(i, count) {
        Place at(i, last, inner, by_inner, middle, by_middle);
        INDEX row = quotient(at.pixel, across, by_across), column = at.pixel - row * across;
        const int* own = edges + at.outer * (1 + 2 * (down + across));
        INDEX top = own[1 + row], bottom = own[1 + down + row];
        INDEX left = own[1 + 2 * down + column], right = own[1 + 2 * down + across + column];
        const REAL* pixels = x + own[0] * image + at.channel * channel_step;
        bool empty = top >= bottom || left >= right;
        ACC best = empty ? ACC(0) : -ACC(__uint_as_float(0x7f800000u)), sum = 0;
        INDEX first = empty ? -1 : top * width + left;
        for (INDEX w = left; w < right; w++)
            for (INDEX h = top; h < bottom; h++) {
                INDEX pixel = h * width + w;
                ACC value = ACC(pixels[pixel * pixel_step]);
                sum += value;
                if (value > best) {
                    best = value;
                    first = pixel;
                }
            }
        if (winner) winner[i] = (int)first;
        y[i] = REAL(winner ? best : empty ? ACC(0) : sum / ACC((bottom - top) * (right - left)));
    }
}

// One thread a pixel of a channel, which asks all regions of its image.
extern "C" __global__ void roi_pool_dzdx(INDEX count, const REAL* dzdy, const int* edges, const int* winner,
                                         REAL* dzdx, INDEX last, INDEX inner, RECIPROCAL by_inner, INDEX middle,
                                         RECIPROCAL by_middle, INDEX width, RECIPROCAL by_width, INDEX regions,
                                         INDEX region, INDEX channel_step, INDEX bin_step, INDEX down,
                                         INDEX across) {
    EACH(i, count) {
        Place at(i, last, inner, by_inner, middle, by_middle);
        INDEX row = quotient(at.pixel, width, by_width), column = at.pixel - row * width;
        ACC sum = 0;
        for (INDEX r = 0; r < regions; r++) {
            const int* own = edges + r * (1 + 2 * (down + across));
            const int *tops = own + 1, *bottoms = tops + down, *lefts = bottoms + down, *rights = lefts + across;
            if (own[0] != at.outer || row < tops[0] || row >= bottoms[down - 1]) continue;
            if (column < lefts[0] || column >= rights[across - 1]) continue;
            INDEX base = r * region + at.channel * channel_step;
            for (INDEX h = 0; h < down; h++) {
                if (row < tops[h] || row >= bottoms[h]) continue;
                for (INDEX w = 0; w < across; w++) {
                    if (column < lefts[w] || column >= rights[w]) continue;
                    INDEX k = base + (h * across + w) * bin_step;
                    if (!winner)
                        sum += ACC(dzdy[k]) / ACC((bottoms[h] - tops[h]) * (rights[w] - lefts[w]));
                    else if (winner[k] == at.pixel)
                        sum += ACC(dzdy[k]);
                }
            }
        }
        dzdx[i] = REAL(sum);
    }
}
