// What is done to many arrays at once: in blocks of CHUNK elements, array after array. A row of a table is an
// array: its first block, its size in elements, then addresses.

constexpr int CHUNK = 4096;
enum { FIRST, SIZE, NEW, VALUE, DER, ONE, TWO, FLAGS, INNER, STEPS = INNER + 3 };

// The row of this block: the last whose first block isn't behind it.
__device__ inline INDEX row_of_block(INDEX rows, const long long* table, int columns) {
    INDEX at = 0, last = rows - 1;
    while (at < last) {
        INDEX middle = (at + last + 1) / 2;
        if (table[middle * columns + FIRST] <= (long long)blockIdx.x)
            at = middle;
        else
            last = middle - 1;
    }
    return at;
}

#define EACH_OF(row, i)                                                                                     \
    for (long long i = ((long long)blockIdx.x - row[FIRST]) * CHUNK + threadIdx.x,                          \
                   stop = min(i - threadIdx.x + CHUNK, row[SIZE]);                                          \
         i < stop; i += blockDim.x)

// Sets `found` where an element is nan or inf. Rows: first, size, NEW unused, value.
extern "C" __global__ void not_finite(INDEX rows, const long long* table, int* found) {
    const long long* row = table + row_of_block(rows, table, 4) * 4;
    EACH_OF(row, i) {
        ACC v = ((const REAL*)row[VALUE])[i];
        if (v - v != 0) *found = 1;
    }
}

// new = scale value, rounded to the type `to`: float16, bfloat16, float, double. Rows: first, size, new, value.
extern "C" __global__ void cast(INDEX rows, const long long* table, INDEX to, ACC scale) {
    const long long* row = table + row_of_block(rows, table, 4) * 4;
    EACH_OF(row, i) {
        ACC v = ACC(((const REAL*)row[VALUE])[i]) * scale;
        switch (to) {
            case 0: ((float16*)row[NEW])[i] = (float)v; break;
            case 1: ((bfloat16*)row[NEW])[i] = (float)v; break;
            case 2: ((float*)row[NEW])[i] = v; break;
            default: ((double*)row[NEW])[i] = v;
        }
    }
}

// A step of a solver for all parameters. What changes from step to step is read from the device, so that a
// recorded step stays live.
//
// The addresses in a row of `table` are those of the new value, the value, the derivative and up to two
// slots; then come flags, and the order of the derivative's memory where that is another: sizes of the three
// inner axes of the value as it lies in memory, and what lies between the derivative's neighbours on each of
// four axes. A row of `numbers` is what its rule reads, each says which, and last a factor of the derivative.
// Where `go` is given and says no, nothing is done.

constexpr int COLUMNS = 15, NUMBERS = 8;
enum { AVERAGE = 1, SINGLE = 2, ELSEWHERE = 4 };  // FLAGS; SINGLE: the derivative is float, whatever REAL is

// Where element i of the value is in the derivative.
__device__ inline long long in_der(const long long* row, long long i) {
    if (!(row[FLAGS] & ELSEWHERE)) return i;
    long long place = 0;
    for (int axis = 3; axis > 0; axis--) {
        long long size = row[INNER + axis - 1];
        place += i % size * row[STEPS + axis];
        i /= size;
    }
    return place + i * row[STEPS];
}

__device__ inline ACC der_of(const long long* row, long long i) {
    long long place = in_der(row, i);
    if (row[FLAGS] & SINGLE) return ((const float*)row[DER])[place];
    return ((const REAL*)row[DER])[place];
}

// A product that is rounded before anything is added to it.
__device__ inline float product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double product(double a, double b) { return __dmul_rn(a, b); }

// d = dzdw + decay w, without the product where there is no decay.
__device__ inline ACC decayed(ACC w, ACC der, ACC decay) { return decay ? der + decay * w : der; }

template <class Rule>
__device__ void steps(INDEX rows, const long long* table, const double* numbers, const bool* go) {
    if (go && !*go) return;
    INDEX at = row_of_block(rows, table, COLUMNS);
    const long long* row = table + at * COLUMNS;
    const double* given = numbers + at * NUMBERS;
    const REAL* value = (const REAL*)row[VALUE];
    REAL* fresh = (REAL*)row[NEW];
    if (row[FLAGS] & AVERAGE) {
        ACC kept = given[0], taken = given[1];
        EACH_OF(row, i) fresh[i] = REAL(kept * ACC(value[i]) + taken * der_of(row, i));
        return;
    }
    Rule rule(given);
    ACC factor = given[NUMBERS - 1];
    ACC *one = (ACC*)row[ONE], *two = (ACC*)row[TWO];
    EACH_OF(row, i) fresh[i] = REAL(rule.moved(ACC(value[i]), product(der_of(row, i), factor), one + i, two + i));
}

// learning rate, weight decay, momentum, 1 for Nesterov's
struct Sgd {
    ACC rate, decay, momentum;
    bool nesterov;
    __device__ Sgd(const double* n) : rate(n[0]), decay(n[1]), momentum(n[2]), nesterov(n[3] != 0) {}
    __device__ ACC moved(ACC w, ACC der, ACC* m, ACC*) const {
        ACC d = decayed(w, der, decay);
        ACC step = *m = momentum * *m - d;
        if (nesterov) step = momentum * step - d;
        return w + rate * step;
    }
};

// learning rate, weight decay, rho, epsilon
struct Adaptive {
    ACC rate, decay, rho, rest, epsilon;
    __device__ Adaptive(const double* n) : rate(n[0]), decay(n[1]), rho(n[2]), rest(1 - n[2]), epsilon(n[3]) {}
};

struct AdaGrad : Adaptive {
    using Adaptive::Adaptive;
    __device__ ACC moved(ACC w, ACC der, ACC* s, ACC*) const {
        ACC d = decayed(w, der, decay);
        *s = rho * *s + d * d;
        return w - rate * (d / (sqrt(*s) + epsilon));
    }
};

struct RMSProp : Adaptive {
    using Adaptive::Adaptive;
    __device__ ACC moved(ACC w, ACC der, ACC* s, ACC*) const {
        ACC d = decayed(w, der, decay);
        *s = rho * *s + rest * (d * d);
        return w - rate * (d / (sqrt(*s) + epsilon));
    }
};

struct AdaDelta : Adaptive {
    using Adaptive::Adaptive;
    __device__ ACC moved(ACC w, ACC der, ACC* s, ACC* u) const {
        ACC d = decayed(w, der, decay);
        *s = rho * *s + rest * (d * d);
        ACC delta = sqrt((*u + epsilon) / (*s + epsilon)) * d;
        *u = rho * *u + rest * (delta * delta);
        return w - rate * delta;
    }
};

// learning rate / (1 - beta1^t), weight decay, beta1, beta2, epsilon, 1 / (1 - beta2^t), factor of w before
struct Adam {
    ACC rate, decay, beta1, beta2, rest1, rest2, epsilon, correction, kept;
    __device__ Adam(const double* n)
        : rate(n[0]), decay(n[1]), beta1(n[2]), beta2(n[3]), rest1(1 - n[2]), rest2(1 - n[3]), epsilon(n[4]),
          correction(n[5]), kept(n[6]) {}
    __device__ ACC moved(ACC w, ACC der, ACC* m, ACC* v) const {
        w *= kept;
        ACC d = decayed(w, der, decay);
        *m = beta1 * *m + rest1 * d;
        *v = beta2 * *v + rest2 * (d * d);
        return w - rate * (*m / (sqrt(*v * correction) + epsilon));
    }
};

extern "C" __global__ void sgd(INDEX rows, const long long* table, const double* numbers, const bool* go) {
    steps<Sgd>(rows, table, numbers, go);
}

extern "C" __global__ void adagrad(INDEX rows, const long long* table, const double* numbers, const bool* go) {
    steps<AdaGrad>(rows, table, numbers, go);
}

extern "C" __global__ void rmsprop(INDEX rows, const long long* table, const double* numbers, const bool* go) {
    steps<RMSProp>(rows, table, numbers, go);
}

extern "C" __global__ void adadelta(INDEX rows, const long long* table, const double* numbers, const bool* go) {
    steps<AdaDelta>(rows, table, numbers, go);
}

extern "C" __global__ void adam(INDEX rows, const long long* table, const double* numbers, const bool* go) {
    steps<Adam>(rows, table, numbers, go);
}
