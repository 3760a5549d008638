// Patches of maps and back: what turns a convolution into matrix products where cuDNN doesn't do it.
// Row (g, n, i, j) of the patches holds what the filters of group g see at output pixel (i, j) of image n, tap
// after tap and in each channel after channel. Both kernels gather: no number is written twice, so that sums
// are made in the same order every time.

// What the filters do along one axis.
struct Axis {
    INDEX stride, dilate, pad, extent, output;

    // The pixel that tap `tap` meets at output pixel `at`; it may lie outside.
    __device__ INDEX pixel(INDEX at, INDEX tap) const { return at * stride + tap * dilate - pad; }
    // The output pixel at which `tap` meets `pixel`, or -1.
    __device__ INDEX meets(INDEX pixel, INDEX tap) const {
        INDEX from = pixel + pad - tap * dilate;
        return from < 0 || from % stride || from / stride >= output ? -1 : from / stride;
    }
};

#define AXES                                                                                             \
    INDEX stride_down, INDEX dilate_down, INDEX top, INDEX height, INDEX output_height, INDEX stride_across, \
        INDEX dilate_across, INDEX left, INDEX width, INDEX output_width
#define DOWN Axis{stride_down, dilate_down, top, height, output_height}
#define ACROSS Axis{stride_across, dilate_across, left, width, output_width}

// patches (groups, rows, taps, depth) of maps x, whose numbers lie `by_...` apart.
extern "C" __global__ void gather(INDEX count, const REAL* x, ACC* patches, INDEX rows, INDEX taps, INDEX taps_across,
                                  INDEX depth, INDEX by_image, INDEX by_channel, INDEX by_pixel, AXES) {
    Axis down = DOWN, across = ACROSS;
    EACH(i, count) {
        INDEX channel = i % depth, tap = i / depth % taps, line = i / depth / taps;
        INDEX row = line % rows, group = line / rows;
        INDEX column = row % across.output, image = row / across.output / down.output;
        INDEX y = down.pixel(row / across.output % down.output, tap / taps_across);
        INDEX z = across.pixel(column, tap % taps_across);
        bool inside = y >= 0 && y < down.extent && z >= 0 && z < across.extent;
        INDEX from = image * by_image + (group * depth + channel) * by_channel + (y * across.extent + z) * by_pixel;
        patches[i] = inside ? ACC(x[from]) : ACC(0);
    }
}

// Maps x (images, channels, height, width), dense with channels first or `last`: the sums of the patches' numbers
// that belong to each of theirs.
extern "C" __global__ void fold(INDEX count, const ACC* patches, REAL* x, INDEX rows, INDEX taps_down,
                                INDEX taps_across, INDEX depth, INDEX channels, INDEX last, AXES) {
    Axis down = DOWN, across = ACROSS;
    INDEX pixels = down.extent * across.extent;
    EACH(i, count) {
        INDEX channel = last ? i % channels : i / pixels % channels;
        INDEX pixel = last ? i / channels % pixels : i % pixels;
        INDEX first = i / channels / pixels * down.output * across.output;
        INDEX group = channel / depth;
        ACC sum = 0;
        for (INDEX u = 0; u < taps_down; u++) {
            INDEX y = down.meets(pixel / across.extent, u);
            for (INDEX v = 0; v < taps_across && y >= 0; v++) {
                INDEX z = across.meets(pixel % across.extent, v);
                INDEX row = group * rows + first + y * across.output + z;
                INDEX tap = row * taps_down * taps_across + u * taps_across + v;
                if (z >= 0) sum += patches[tap * depth + channel % depth];
            }
        }
        x[i] = REAL(sum);
    }
}
