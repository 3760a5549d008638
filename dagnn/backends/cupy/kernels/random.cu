// Random numbers: Philox4x32-10 (Salmon, Moraes, Dror & Shaw, SC 2011), which makes of a key and a counter
// four words of 32 bits each, in any order.

struct Words {
    unsigned int of[4];
};

__device__ inline Words philox(Words counter, unsigned int key0, unsigned int key1) {
    for (int round = 0; round < 10; round++) {
        unsigned int high0 = __umulhi(0xD2511F53u, counter.of[0]), low0 = 0xD2511F53u * counter.of[0];
        unsigned int high1 = __umulhi(0xCD9E8D57u, counter.of[2]), low1 = 0xCD9E8D57u * counter.of[2];
        counter = {{high1 ^ counter.of[1] ^ key0, low1, high0 ^ counter.of[3] ^ key1, low0}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// SplitMix64's (Steele, Lea & Flood, OOPSLA 2014).
__device__ inline unsigned long long mixed(unsigned long long z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// What a generator is: the sum of its mixed keys, but for one that may be on the device, which then adds to
// it what random.py would have added; and how often it was asked.
#define GENERATOR unsigned long long keys, const unsigned long long* live, unsigned long long position, unsigned int call
#define THE_GENERATOR Generator(keys, live, position, call)

struct Generator {
    unsigned long long key;
    unsigned int call;
    __device__ Generator(unsigned long long keys, const unsigned long long* live, unsigned long long position,
                         unsigned int call)
        : key(mixed(live ? keys + mixed(*live + position) : keys)), call(call) {}
    __device__ Words operator()(unsigned long long i) const {
        return philox({{(unsigned int)i, (unsigned int)(i >> 32), call, 0}}, (unsigned int)key, (unsigned int)(key >> 32));
    }
};

// In steps of 2^-24 or 2^-53, at least 0 and less than 1. Of four words there are PER numbers.
#define PER (16 / (int)sizeof(ACC))

__device__ inline float uniform(const Words& words, int k, float) { return (words.of[k] >> 8) * (1 / 16777216.0f); }
__device__ inline double uniform(const Words& words, int k, double) {
    unsigned long long bits = (unsigned long long)words.of[2 * k] << 32 | words.of[2 * k + 1];
    return (bits >> 11) * (1 / 9007199254740992.0);
}

// Thread i makes the numbers i, i + step, i + 2 step, ..., so that neighbours write beside each other.
#define STEP ((count + PER - 1) / PER)

extern "C" __global__ void uniforms(INDEX count, REAL* y, GENERATOR) {
    Generator generator = THE_GENERATOR;
    INDEX step = STEP;
    EACH(i, step) {
        Words words = generator(i);
        for (int k = 0; k < PER && i + k * step < count; k++) y[i + k * step] = REAL(uniform(words, k, ACC()));
    }
}

// Box & Muller 1958: of two uniform numbers two normal ones.
extern "C" __global__ void normals(INDEX count, REAL* y, GENERATOR) {
    Generator generator = THE_GENERATOR;
    INDEX step = STEP;
    EACH(i, step) {
        Words words = generator(i);
        for (int k = 0; k < PER && i + k * step < count; k += 2) {
            ACC radius = sqrt(ACC(-2) * log(1 - uniform(words, k, ACC())));
            ACC angle = ACC(6.283185307179586) * uniform(words, k + 1, ACC());
            y[i + k * step] = REAL(radius * cos(angle));
            if (i + (k + 1) * step < count) y[i + (k + 1) * step] = REAL(radius * sin(angle));
        }
    }
}

extern "C" __global__ void dropout_mask(INDEX count, REAL* mask, ACC rate, ACC kept, GENERATOR) {
    Generator generator = THE_GENERATOR;
    INDEX step = (count + 3) / 4;
    EACH(i, step) {
        Words words = generator(i);
        for (int k = 0; k < 4 && i + k * step < count; k++)
            mask[i + k * step] = REAL(uniform(words, k, 0.0f) >= rate ? kept : ACC(0));
    }
}
