// Losses and distances, in one pass over the scores of each pixel. Scores are dense (N, C, H, W) maps with
// channels first or last: `step` numbers lie between neighbouring pixels, `stride` between neighbouring
// channels. A pixel belongs to one thread, or to the 32 of a warp (`lanes`), which share its channels.
// Sums over pixels are made in double, first in each block, then of the blocks: in the same order always.
//
// A label that cannot be makes `wrong` one where the host asks, and the loss and its derivative nan.

// Arrays that broadcast to the maps, by the numbers between neighbours on each axis; 0 where there is one only.
#define BROADCAST(name) INDEX name##_n, INDEX name##_c, INDEX name##_h, INDEX name##_w
#define AT(name, n, c, p) ((n) * name##_n + (c) * name##_c + (p) / width * name##_h + (p) % width * name##_w)
#define SCORES const REAL *x, INDEX channels, INDEX pixels, INDEX width, INDEX step, INDEX stride
#define LABELS const void *labels, INDEX type, BROADCAST(labels)
#define WEIGHTS const REAL *weights, BROADCAST(weights)
#define WEIGHT(n, c, p) (weights ? ACC(weights[AT(weights, n, c, p)]) : ACC(1))

enum Kind {
    CLASSERROR, TOPKERROR, LOG, SOFTMAXLOG, MHINGE, MSHINGE,  // categorical
    BINARYERROR, BINARYLOG, LOGISTIC, HINGE                   // attributes
};

#define NOT_A_NUMBER ACC(__uint_as_float(0x7fffffffu))
#define MINUS_INFINITY ACC(__uint_as_float(0xff800000u))

// max(v, 0) and sign(v), where nan stays nan.
__device__ inline ACC rectified(ACC v) { return v < 0 ? ACC(0) : v; }
__device__ inline ACC sign_of(ACC v) { return v != v ? v : ACC((v > 0) - (v < 0)); }

// An element of an array of any type; losses.TYPES has their order.
__device__ inline double number(const void* a, INDEX type, INDEX i) {
    switch (type) {
        case 0: return ((const unsigned char*)a)[i];
        case 1: return ((const signed char*)a)[i];
        case 2: return ((const unsigned short*)a)[i];
        case 3: return ((const short*)a)[i];
        case 4: return ((const unsigned int*)a)[i];
        case 5: return ((const int*)a)[i];
        case 6: return (double)((const unsigned long long*)a)[i];
        case 7: return (double)((const long long*)a)[i];
        case 8: return (float)((const float16*)a)[i];
        case 9: return (float)((const bfloat16*)a)[i];
        case 10: return ((const float*)a)[i];
        default: return ((const double*)a)[i];
    }
}

constexpr int IGNORED = -1, WRONG = -2;

__device__ inline INDEX class_of(double label, INDEX channels) {
    if (!(label < channels) || label != rint(label)) return WRONG;
    return label < 0 ? IGNORED : (INDEX)label;
}

__device__ inline int attribute_of(double label) { return label == 0 || label == 1 || label == -1 ? (int)label : WRONG; }

// ---- Of the scores of one pixel, by all threads it belongs to: the result is everybody's.

template <class T>
__device__ inline T from(T value, int lane) { return __shfl_xor_sync(0xffffffffu, value, lane); }

// sum exp(x - most), with the largest score seen.
struct Exponentials {
    ACC most, sum;
    __device__ void add(ACC score) {
        if (score <= most) {
            sum += score == most ? ACC(1) : exp(score - most);
        } else {  // a new largest, or nan, after which everything is; exp(inf - inf) is nan too
            sum = sum * exp(most - score) + (1 + (score - score));
            most = score;
        }
    }
    __device__ void join(Exponentials other) {
        ACC larger = fmax(most, other.most);
        sum = (most == larger ? sum : sum * exp(most - larger)) +
              (other.most == larger ? other.sum : other.sum * exp(other.most - larger));
        most = larger;
    }
};

__device__ Exponentials exponentials(const REAL* x, INDEX channels, INDEX stride, int lane, int lanes) {
    Exponentials all = {MINUS_INFINITY, 0};
    for (INDEX k = lane; k < channels; k += lanes) all.add(ACC(x[k * stride]));
    for (int far = lanes / 2; far; far /= 2) all.join({from(all.most, far), from(all.sum, far)});
    return all;
}

// How many scores come before that of class c: larger ones and nan, and equal ones of lower number.
__device__ INDEX rank_of(const REAL* x, INDEX channels, INDEX stride, INDEX c, int lane, int lanes) {
    ACC own = x[c * stride];
    INDEX before = 0;
    for (INDEX k = lane; k < channels; k += lanes) {
        ACC score = x[k * stride];
        before += !(score <= own) || (score == own && k < c);
    }
    for (int far = lanes / 2; far; far /= 2) before += from(before, far);
    return before;
}

// The largest score but that of class c, the first of equal ones; nan if one is nan.
struct Rival {
    ACC score;
    INDEX k;
    __device__ void join(Rival other) {
        if (other.score > score || (other.score == score && other.k < k) || other.score != other.score) *this = other;
    }
};

__device__ Rival rival_of(const REAL* x, INDEX channels, INDEX stride, INDEX c, int lane, int lanes) {
    Rival best = {MINUS_INFINITY, channels};
    for (INDEX k = lane; k < channels; k += lanes)
        if (k != c) best.join({ACC(x[k * stride]), k});
    for (int far = lanes / 2; far; far /= 2) best.join({from(best.score, far), from(best.k, far)});
    return best;
}

// ---- Sums

__device__ void add_up(double value, double* result) {
    __shared__ double sums[256];
    sums[threadIdx.x] = value;
    for (int half = 128; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *result = sums[0];
}

// The sum of what the blocks found, in y; one block.
extern "C" __global__ void finish(INDEX count, const double* parts, ACC divisor, REAL* y) {
    __shared__ double sum;
    double own = 0;
    EACH(i, count) own += parts[i];
    add_up(own, &sum);
    if (threadIdx.x == 0) *y = REAL(ACC(sum / divisor));
}

extern "C" __global__ void total(INDEX count, const REAL* x, double* parts) {
    double own = 0;
    EACH(i, count) own += ACC(x[i]);
    add_up(own, &parts[blockIdx.x]);
}

// ---- Losses

extern "C" __global__ void wrong_labels(INDEX count, const void* labels, INDEX type, INDEX channels, INDEX per_score,
                                        int* wrong) {
    EACH(i, count) {
        double label = number(labels, type, i);
        if ((per_score ? attribute_of(label) : class_of(label, channels)) == WRONG) *wrong = 1;
    }
}

// The pixels of a thread, or of its warp.
#define EACH_PIXEL(i, count)                                                                                \
    for (INDEX i = ((INDEX)blockIdx.x * blockDim.x + threadIdx.x) / lanes; i < (count);                     \
         i += (INDEX)gridDim.x * blockDim.x / lanes)
#define PIXEL                                                                                               \
    INDEX n = i / pixels, p = i - n * pixels;                                                               \
    INDEX start = n * pixels * channels + p * step
// The place of an element of dense maps, in the order of memory.
#define ELEMENT                                                                                             \
    INDEX n = i / (pixels * channels), inside = i - n * pixels * channels;                                  \
    INDEX c = stride == 1 ? inside % channels : inside / pixels;                                            \
    INDEX p = stride == 1 ? inside / channels : inside % pixels

extern "C" __global__ void categorical(INDEX count, SCORES, LABELS, WEIGHTS, INDEX lanes, INDEX kind, ACC top_k,
                                       double* parts, int* wrong) {
    int lane = threadIdx.x % lanes;
    double sum = 0;
    EACH_PIXEL(i, count) {
        PIXEL;
        INDEX c = class_of(number(labels, type, AT(labels, n, 0, p)), channels);
        ACC mass = WEIGHT(n, 0, p), t = 0;
        if (c == WRONG && wrong) *wrong = 1;
        if (c == WRONG) sum += NOT_A_NUMBER;
        if (c < 0 || mass == 0) continue;
        const REAL* scores = x + start;
        ACC score = scores[c * stride];
        switch (kind) {
            case CLASSERROR:
            case TOPKERROR: t = rank_of(scores, channels, stride, c, lane, lanes) >= top_k; break;
            case LOG: t = -log(score); break;
            case SOFTMAXLOG: {
                Exponentials all = exponentials(scores, channels, stride, lane, lanes);
                t = log(all.sum) - (score - all.most);
                break;
            }
            case MHINGE: t = rectified(1 - score); break;
            case MSHINGE: t = rectified(1 - score + rival_of(scores, channels, stride, c, lane, lanes).score); break;
        }
        if (lane == 0) sum += t * mass;
    }
    add_up(sum, &parts[blockIdx.x]);
}

extern "C" __global__ void categorical_dzdx(INDEX count, SCORES, LABELS, WEIGHTS, INDEX lanes, INDEX kind,
                                            const REAL* dzdy, ACC factor, ACC divisor, REAL* dzdx, int* wrong) {
    int lane = threadIdx.x % lanes;
    if (dzdy) factor = dzdy[0];
    EACH_PIXEL(i, count) {
        PIXEL;
        INDEX c = class_of(number(labels, type, AT(labels, n, 0, p)), channels);
        ACC mass = WEIGHT(n, 0, p) * factor / divisor;
        if (c == WRONG && wrong) *wrong = 1;
        if (c == WRONG) mass = NOT_A_NUMBER;
        if (c == IGNORED) mass = 0;
        c = c < 0 ? 0 : c;
        const REAL* scores = x + start;
        REAL* der = dzdx + start;
        ACC score = scores[c * stride], own = 0;
        Exponentials all = {0, 1};
        Rival rival = {0, channels};
        switch (kind) {
            case LOG: own = -mass / (score < ACC(1e-8) ? ACC(1e-8) : score); break;
            case MHINGE: own = -mass * (score < 1); break;
            case MSHINGE:
                rival = rival_of(scores, channels, stride, c, lane, lanes);
                mass *= score - rival.score < 1;
                own = -mass;
                break;
            case SOFTMAXLOG: all = exponentials(scores, channels, stride, lane, lanes); break;
        }
        for (INDEX k = lane; k < channels; k += lanes) {
            ACC d = k == c ? own : k == rival.k ? mass : ACC(0);
            if (kind == SOFTMAXLOG) d = exp(ACC(scores[k * stride]) - all.most) / all.sum * mass - (k == c ? mass : ACC(0));
            der[k * stride] = REAL(d);
        }
    }
}

extern "C" __global__ void attributes(INDEX count, SCORES, LABELS, WEIGHTS, INDEX kind, ACC threshold, double* parts,
                                      int* wrong) {
    double sum = 0;
    EACH(i, count) {
        ELEMENT;
        int sign = attribute_of(number(labels, type, AT(labels, n, c, p)));
        ACC mass = WEIGHT(n, c, p), score = x[i], t = 0;
        if (sign == WRONG && wrong) *wrong = 1;
        if (sign == WRONG) sum += NOT_A_NUMBER;
        if (sign == WRONG || sign == 0 || mass == 0) continue;
        switch (kind) {
            case BINARYERROR: t = sign_of(score - threshold) != sign; break;
            case BINARYLOG: t = -log(sign > 0 ? score : 1 - score); break;
            case LOGISTIC: t = rectified(-sign * score) + log1p(exp(-fabs(score))); break;
            case HINGE: t = rectified(1 - sign * score); break;
        }
        sum += t * mass;
    }
    add_up(sum, &parts[blockIdx.x]);
}

extern "C" __global__ void attributes_dzdx(INDEX count, SCORES, LABELS, WEIGHTS, INDEX kind, const REAL* dzdy,
                                           ACC factor, ACC divisor, REAL* dzdx, int* wrong) {
    if (dzdy) factor = dzdy[0];
    EACH(i, count) {
        ELEMENT;
        int sign = attribute_of(number(labels, type, AT(labels, n, c, p)));
        ACC mass = WEIGHT(n, c, p) * factor / divisor, score = x[i], d = 0;
        if (sign == WRONG && wrong) *wrong = 1;
        switch (kind) {
            case BINARYLOG: d = mass == 0 ? ACC(0) : mass / (sign > 0 ? -score : 1 - score); break;
            case LOGISTIC: d = -sign * mass / (1 + exp(sign * score)); break;
            case HINGE: d = -sign * mass * (sign * score < 1); break;
        }
        dzdx[i] = REAL(sign == WRONG ? NOT_A_NUMBER : sign == 0 ? ACC(0) : d);
    }
}

// ---- Distances

extern "C" __global__ void smooth_l1(INDEX count, const REAL* x, const REAL* x0, const REAL* weights, ACC bend,
                                     double* parts) {
    double sum = 0;
    EACH(i, count) {
        ACC distance = fabs(ACC(x[i]) - ACC(x0[i]));
        ACC near = distance > 1 / bend ? 1 / bend : distance;
        sum += (distance - near / 2) * near * bend * (weights ? ACC(weights[i]) : ACC(1));
    }
    add_up(sum, &parts[blockIdx.x]);
}

extern "C" __global__ void smooth_l1_dzdx(INDEX count, const REAL* x, const REAL* x0, const REAL* weights, ACC bend,
                                          const REAL* dzdy, ACC factor, REAL* dzdx) {
    if (dzdy) factor = dzdy[0];
    EACH(i, count) {
        ACC d = (ACC(x[i]) - ACC(x0[i])) * bend;
        d = d < -1 ? ACC(-1) : d > 1 ? ACC(1) : d;
        dzdx[i] = REAL(d * (weights ? ACC(weights[i]) : ACC(1)) * factor);
    }
}

__device__ inline ACC power(ACC size, ACC p) { return p == 1 ? size : p == 2 ? size * size : pow(size, p); }

#define FROM const REAL *x0, BROADCAST(x0)
#define DISTANCE(k) (ACC(x[start + (k) * stride]) - ACC(x0[AT(x0, n, k, p)]))

// sum of |x - x0|^exponent over the channels of a pixel
#define POWERS(sum)                                                                                         \
    ACC sum = 0;                                                                                            \
    for (INDEX k = lane; k < channels; k += lanes) sum += power(fabs(DISTANCE(k)), exponent);               \
    for (int far = lanes / 2; far; far /= 2) sum += from(sum, far)

// `root` is 1 / exponent, or 1 for none.
extern "C" __global__ void pdist(INDEX count, SCORES, FROM, WEIGHTS, INDEX lanes, ACC exponent, ACC root, REAL* y) {
    int lane = threadIdx.x % lanes;
    EACH_PIXEL(i, count) {
        PIXEL;
        POWERS(sum);
        if (root != 1) sum = root == ACC(0.5) ? sqrt(sum) : pow(sum, root);
        if (lane == 0) y[i] = REAL(sum * WEIGHT(n, 0, p));
    }
}

// dzdy has one number per pixel (`each` 1), or one (0), or is null: `factor`.
extern "C" __global__ void pdist_dzdx(INDEX count, SCORES, FROM, WEIGHTS, INDEX lanes, ACC exponent, ACC root,
                                      ACC epsilon, const REAL* dzdy, INDEX each, ACC factor, REAL* dzdx) {
    int lane = threadIdx.x % lanes;
    EACH_PIXEL(i, count) {
        PIXEL;
        ACC scale = WEIGHT(n, 0, p) * (dzdy ? ACC(dzdy[i * each]) : factor);
        if (root == 1) {
            scale *= exponent;
        } else {
            POWERS(sum);
            scale *= pow(sum < epsilon ? epsilon : sum, root - 1);
        }
        for (INDEX k = lane; k < channels; k += lanes) {
            ACC d = DISTANCE(k), size = fabs(d);
            if (exponent < 1 && size < epsilon) size = epsilon;
            dzdx[start + k * stride] = REAL(exponent == 2 ? d * scale : sign_of(d) * power(size, exponent - 1) * scale);
        }
    }
}
