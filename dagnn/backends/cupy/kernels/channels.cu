// Channels of dense maps, in either order of memory: a bias for each, and the sum of each.

// y + biases + add, then a ReLU of this leak: without one nan becomes 0, with one it stays. Biases and add may be
// null. The channel changes every `step` numbers.
extern "C" __global__ void complete(INDEX count, REAL* y, const REAL* biases, const REAL* add, INDEX step,
                                    INDEX channels, INDEX rectify, ACC leak) {
    EACH(i, count) {
        ACC value = ACC(y[i]);
        if (biases) value += ACC(biases[i / step % channels]);
        if (add) value += ACC(add[i]);
        if (rectify) {
            ACC leaked = value * leak;
            if (leak == 0)
                value = fmax(value, ACC(0));
            else
                value = (leak <= 1 ? value > leaked : value < leaked) ? value : leaked;
        }
        y[i] = REAL(value);
    }
}

// Sums of pieces of each channel, (pieces, channels): a block adds up a piece for as many channels as it is wide.
// Number `row` of a channel lies at row / pixels by_image + row % pixels by_pixel.
extern "C" __global__ void channel_sums(const REAL* x, double* sums, INDEX channels, INDEX rows, INDEX piece,
                                        INDEX pixels, INDEX by_image, INDEX by_channel, INDEX by_pixel) {
    __shared__ double part[256];
    INDEX channel = (INDEX)blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * piece;
    INDEX end = first + piece < rows ? first + piece : rows;
    double sum = 0;
    for (INDEX row = first + threadIdx.y; row < end && channel < channels; row += blockDim.y)
        sum += double(ACC(x[row / pixels * by_image + row % pixels * by_pixel + channel * by_channel]));
    unsigned int own = threadIdx.y * blockDim.x + threadIdx.x;
    part[own] = sum;
    for (unsigned int half = blockDim.y / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) part[own] += part[own + half * blockDim.x];
    }
    if (threadIdx.y == 0 && channel < channels) sums[(INDEX)blockIdx.y * channels + channel] = part[own];
}

// The pieces of each channel added up.
extern "C" __global__ void add_up(INDEX channels, const double* sums, REAL* y, INDEX pieces) {
    EACH(channel, channels) {
        double sum = 0;
        for (INDEX piece = 0; piece < pieces; piece++) sum += sums[piece * channels + channel];
        y[channel] = REAL(ACC(sum));
    }
}
