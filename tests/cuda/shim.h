// CUDA on a CPU, for tests: what kernels call, and the threads of a block as fibers.
//
// The threads of a block run one after the other on one fiber; a thread that waits (at a barrier or a
// shuffle) leaves its fiber, and the next ones go on with another. A kernel without barriers is a plain loop.
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <string>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// All in one section, so that a new block can find rubbish in it, as on a device.
#define __shared__ static __attribute__((section("shared_memory")))
extern "C" __attribute__((weak, visibility("hidden"))) char __start_shared_memory[], __stop_shared_memory[];

struct dim3 {
    unsigned int x = 1, y = 1, z = 1;
};
static dim3 gridDim, blockDim;
static dim3 blockIdx, threadIdx;
static const int warpSize = 32;

namespace emulation {

constexpr int MOST_THREADS = 1024, STACK = 1 << 16;
enum State : char { FRESH, AT_BARRIER, AT_SHUFFLE, DONE };

struct Thread {
    State state;
    unsigned int mask;
    jmp_buf here;
};
static Thread threads[MOST_THREADS];
static unsigned char exchanged[MOST_THREADS][16];
static char* stacks[MOST_THREADS];
static jmp_buf scheduler;
static int count, current, started, fibers;
static void (*body)(void*);
static void* body_argument;

inline void become(int thread) {
    current = thread;
    threadIdx.x = thread % blockDim.x;
    threadIdx.y = thread / blockDim.x % blockDim.y;
    threadIdx.z = thread / blockDim.x / blockDim.y;
}

static void fiber() {
    while (started < count) {
        become(started++);
        body(body_argument);
        threads[current].state = DONE;
    }
    _longjmp(scheduler, 1);
}

static __attribute__((noinline)) void start_fiber() {
    char*& stack = stacks[fibers++];
    if (!stack) stack = (char*)malloc(STACK);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, fiber, 0);
    setcontext(&context);
}

static __attribute__((noinline)) void wait(State state, unsigned int mask) {
    Thread& thread = threads[current];
    thread.state = state;
    thread.mask = mask;
    if (!_setjmp(thread.here)) _longjmp(scheduler, 1);
}

static __attribute__((noinline)) void resume(int thread) {
    threads[thread].state = FRESH;
    become(thread);
    if (!_setjmp(scheduler)) _longjmp(threads[thread].here, 1);
}

static bool may_go(int thread, bool shuffling) {
    const Thread& own = threads[thread];
    if (own.state == AT_BARRIER) return !shuffling;
    int first = thread / warpSize * warpSize;
    for (int k = first; k < count && k < first + warpSize; k++)
        if ((own.mask >> (k - first) & 1u) && threads[k].state == AT_BARRIER) return false;
    return own.state == AT_SHUFFLE;
}

// False where threads wait for others that never come.
static __attribute__((noinline)) bool run_block() {
    static int released[MOST_THREADS];
    static int releases, k;
    started = fibers = 0;
    for (k = 0; k < count; k++) threads[k].state = FRESH;
    memset(exchanged, 0xff, sizeof exchanged);
    if (__start_shared_memory) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    while (started < count)
        if (!_setjmp(scheduler)) start_fiber();
    for (;;) {
        int waiting = 0, shuffling = 0;
        for (k = 0; k < count; k++) {
            waiting += threads[k].state != DONE;
            shuffling += threads[k].state == AT_SHUFFLE;
        }
        for (k = releases = 0; k < count; k++)
            if (may_go(k, shuffling)) released[releases++] = k;
        if (!waiting) return true;
        if (!releases) return false;
        for (k = 0; k < releases; k++) resume(released[k]);
    }
}

template <class T>
T exchange(unsigned int mask, T value, int lane) {
    static_assert(sizeof(T) <= sizeof exchanged[0], "shuffles are of up to 16 bytes");
    int first = current / warpSize * warpSize;
    memcpy(exchanged[current], &value, sizeof value);
    wait(AT_SHUFFLE, mask);
    if (lane >= 0 && lane < warpSize && first + lane < MOST_THREADS)
        memcpy(&value, exchanged[first + lane], sizeof value);
    wait(AT_SHUFFLE, mask);
    return value;
}

template <class... P, size_t... K>
int launch(void (*kernel)(P...), void** args, const unsigned int* sizes, std::index_sequence<K...>) {
    struct Call {
        void (*kernel)(P...);
        void** args;
    } call{kernel, args};
    body_argument = &call;
    body = [](void* data) {
        Call& call = *(Call*)data;
        call.kernel(*(std::remove_const_t<P>*)call.args[K]...);
    };
    gridDim = {sizes[0], sizes[1], sizes[2]};
    blockDim = {sizes[3], sizes[4], sizes[5]};
    count = blockDim.x * blockDim.y * blockDim.z;
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
                if (!run_block()) return 1;
    return 0;
}

template <class... P>
int launch(void (*kernel)(P...), void** args, const unsigned int* sizes) {
    return launch(kernel, args, sizes, std::index_sequence_for<P...>());
}

// "i4", "u8", "f4", "s2" (a struct), "v" (void), each behind as many P as it has stars.
template <class T>
std::string code() {
    using U = std::remove_cv_t<T>;
    if constexpr (std::is_pointer_v<U>) {
        return "P" + code<std::remove_pointer_t<U>>();
    } else if constexpr (std::is_void_v<U>) {
        return "v";
    } else {
        const char* kind = std::is_floating_point_v<U> ? "f" : std::is_class_v<U> ? "s" : std::is_unsigned_v<U> ? "u" : "i";
        return kind + std::to_string(sizeof(U));
    }
}

template <class... P>
std::string codes(void (*)(P...)) {
    std::string all;
    ((all += code<P>() + " "), ...);
    return all;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::AT_BARRIER, 0xffffffffu); }
inline void __syncwarp(unsigned int mask = 0xffffffffu) { emulation::wait(emulation::AT_SHUFFLE, mask); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned int mask, T value, int lane) {
    return emulation::exchange(mask, value, lane & 31);
}
template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta) {
    return emulation::exchange(mask, value, (int)(emulation::current % warpSize + delta));
}
template <class T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta) {
    return emulation::exchange(mask, value, emulation::current % warpSize - (int)delta);
}
template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int lanes) {
    return emulation::exchange(mask, value, emulation::current % warpSize ^ lanes);
}

template <class T>
T __ldg(const T* where) {
    return *where;
}
template <class T>
T atomicAdd(T* where, T value) {
    T old = *where;
    *where = old + value;
    return old;
}
template <class T>
T atomicMax(T* where, T value) {
    T old = *where;
    *where = old > value ? old : value;
    return old;
}
template <class T>
T atomicMin(T* where, T value) {
    T old = *where;
    *where = old < value ? old : value;
    return old;
}
template <class T>
T atomicExch(T* where, T value) {
    T old = *where;
    *where = value;
    return old;
}
template <class T>
T atomicCAS(T* where, T expected, T value) {
    T old = *where;
    if (old == expected) *where = value;
    return old;
}

template <class To, class From>
To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}
inline unsigned int __float_as_uint(float value) { return bits_as<unsigned int>(value); }
inline float __uint_as_float(unsigned int bits) { return bits_as<float>(bits); }
inline int __float_as_int(float value) { return bits_as<int>(value); }
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline long long __double_as_longlong(double value) { return bits_as<long long>(value); }
inline double __longlong_as_double(long long bits) { return bits_as<double>(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned long long)a * b >> 32; }

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }

// What types.cuh asks of another compiler than NVIDIA's.
inline unsigned short half_bits(float value) { return bits_as<unsigned short>((_Float16)value); }
inline float half_value(unsigned short bits) { return (float)bits_as<_Float16>(bits); }
