// What all kernels share. REAL is the type of the data, ACC that of sums of them, INDEX what counts elements.
// The 16-bit types are here so that no header is needed; their sums are made in float.

struct float16 {
    unsigned short bits;
    float16() = default;
    __device__ float16(float value) {
#ifdef __CUDACC_RTC__
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
        bits = half_bits(value);
#endif
    }
    __device__ operator float() const {
#ifdef __CUDACC_RTC__
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
#else
        return half_value(bits);
#endif
    }
};

struct bfloat16 {
    unsigned short bits;
    bfloat16() = default;
    __device__ bfloat16(float value) {
        unsigned int word = __float_as_uint(value);
        bool nan = (word & 0x7fffffffu) > 0x7f800000u;
        // To the nearest, halves to even; a nan keeps its sign and stays one.
        bits = nan ? (word >> 16) | 0x40u : (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    }
    __device__ operator float() const { return __uint_as_float((unsigned int)bits << 16); }
};

// All elements of this thread: thread after thread, then the whole grid further.
#define EACH(i, count)                                                            \
    for (INDEX i = (INDEX)blockIdx.x * blockDim.x + threadIdx.x; i < (count);     \
         i += (INDEX)gridDim.x * blockDim.x)

// Division by a number that all threads share, by the product with what modules.reciprocal made of it:
// a division takes as long as 20 products, and a kernel of few operations per element then waits for it.
typedef unsigned long long RECIPROCAL;

__device__ inline int quotient(int i, int, RECIPROCAL reciprocal) {
    return __umulhi(2u * i, (unsigned int)reciprocal) >> (unsigned int)(reciprocal >> 32);
}

__device__ inline long long quotient(long long i, long long divisor, RECIPROCAL) { return i / divisor; }

// Neighbouring numbers, which a thread reads or writes at once, 16 bytes at a time.
template <class T, int size>
struct alignas(size * sizeof(T) < 16 ? size * sizeof(T) : 16) Pack {
    T of[size];
};

// 16 bytes of data.
#define PACKED (16 / (int)sizeof(REAL))
typedef Pack<REAL, PACKED> PACK;

// Whether this memory may be read by packs.
__device__ inline bool together(const void* memory) { return (unsigned long long)memory % sizeof(PACK) == 0; }
