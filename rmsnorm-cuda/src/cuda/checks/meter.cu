// What the bench needs beside the kernels: data, and the ceilings that a norm is measured against.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
struct alignas(16) Words { u32 word[4]; };

__device__ __forceinline__ u32 hash(u64 i, u32 seed) {
    u64 h = (i + 1) * 0x9E3779B97F4A7C15ull ^ (u64)seed * 0xD1B54A32D192ED03ull;
    h = (h ^ h >> 29) * 0xBF58476D1CE4E5B9ull;
    return (u32)(h >> 32);
}

// Normal numbers as bit patterns of 2 or 4 bytes; the type of two bytes is f16 if `half`, else bf16.
extern "C" __global__ void fill_normal(void* out, u64 n, u32 bytes, u32 half, u32 seed) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < n; i += gridDim.x * (u64)blockDim.x) {
        const float u = (hash(2 * i, seed) + 1.0f) * 2.3283064e-10f, a = hash(2 * i + 1, seed) * 1.4629181e-9f;
        const float v = sqrtf(-2.0f * __logf(u)) * __cosf(a);
        u16 two;
        if (half) asm("cvt.rn.f16.f32 %0, %1;" : "=h"(two) : "f"(v));
        else asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(two) : "f"(v));
        if (bytes == 4) ((float*)out)[i] = v;
        else ((u16*)out)[i] = two;
    }
}

// Streaming accesses are those that are evicted first; the others leave that to the cache.
template <bool STREAMING> __device__ __forceinline__ Words load(const Words* p) {
    Words v;
    if (STREAMING)
        asm volatile("ld.global.cs.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3]) : "l"(p));
    else
        asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3]) : "l"(p));
    return v;
}

template <bool STREAMING> __device__ __forceinline__ void store(Words* p, Words v) {
    if (STREAMING)
        asm volatile("st.global.cs.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]) : "memory");
    else
        asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]) : "memory");
}

// One read, one write; DEPTH accesses of 16 bytes in flight a thread. Streaming threads take words a whole grid apart, the
// others words a block apart, so that a block's are neighbours.
template <int DEPTH, bool STREAMING> __device__ __forceinline__ void copy(const Words* a, Words* o, u64 n) {
    const u64 grid = gridDim.x * (u64)blockDim.x, step = STREAMING ? grid : blockDim.x;
    const u64 first = blockIdx.x * (u64)blockDim.x * (STREAMING ? 1 : DEPTH) + threadIdx.x;
    for (u64 i = first; i < n; i += grid * DEPTH) {
        Words v[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (i + d * step < n) v[d] = load<STREAMING>(a + i + d * step);
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (i + d * step < n) store<STREAMING>(o + i + d * step, v[d]);
    }
}

// Two reads, one write.
template <int DEPTH, bool STREAMING> __device__ __forceinline__ void add(const Words* a, const Words* b, Words* o, u64 n) {
    const u64 grid = gridDim.x * (u64)blockDim.x, step = STREAMING ? grid : blockDim.x;
    const u64 first = blockIdx.x * (u64)blockDim.x * (STREAMING ? 1 : DEPTH) + threadIdx.x;
    for (u64 i = first; i < n; i += grid * DEPTH) {
        Words v[DEPTH], w[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
            if (i + d * step < n) v[d] = load<STREAMING>(a + i + d * step), w[d] = load<STREAMING>(b + i + d * step);
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
#pragma unroll
            for (int j = 0; j < 4; j++) v[d].word[j] ^= w[d].word[j];
            if (i + d * step < n) store<STREAMING>(o + i + d * step, v[d]);
        }
    }
}

// Two reads, two writes; three reads, one write. As `add`.
template <int DEPTH, bool THREE> __device__ __forceinline__ void four(const Words* a, const Words* b, Words* c, Words* d, u64 n) {
    const u64 first = blockIdx.x * (u64)blockDim.x * DEPTH + threadIdx.x;
    for (u64 i = first; i < n; i += gridDim.x * (u64)blockDim.x * DEPTH) {
        Words v[DEPTH], w[DEPTH], u[DEPTH];
#pragma unroll
        for (int e = 0; e < DEPTH; e++) {
            const u64 at = i + e * (u64)blockDim.x;
            if (at >= n) continue;
            v[e] = load<false>(a + at), w[e] = load<false>(b + at);
            if (THREE) u[e] = load<false>(d + at);
        }
#pragma unroll
        for (int e = 0; e < DEPTH; e++) {
            const u64 at = i + e * (u64)blockDim.x;
#pragma unroll
            for (int j = 0; j < 4; j++) v[e].word[j] ^= THREE ? w[e].word[j] ^ u[e].word[j] : w[e].word[j];
            if (at >= n) continue;
            store<false>(c + at, v[e]);
            if (!THREE) store<false>(d + at, w[e]);
        }
    }
}

// Each takes four tensors, and what it does not need of them it does not touch.
#define CEILINGS(DEPTH) \
    extern "C" __global__ void copy_##DEPTH(const Words* a, const Words*, Words* o, Words*, u64 n) { copy<DEPTH, true>(a, o, n); } \
    extern "C" __global__ void copy_cached_##DEPTH(const Words* a, const Words*, Words* o, Words*, u64 n) { copy<DEPTH, false>(a, o, n); } \
    extern "C" __global__ void add_##DEPTH(const Words* a, const Words* b, Words* o, Words*, u64 n) { add<DEPTH, true>(a, b, o, n); } \
    extern "C" __global__ void add_cached_##DEPTH(const Words* a, const Words* b, Words* o, Words*, u64 n) { add<DEPTH, false>(a, b, o, n); } \
    extern "C" __global__ void pair_##DEPTH(const Words* a, const Words* b, Words* c, Words* d, u64 n) { four<DEPTH, false>(a, b, c, d, n); } \
    extern "C" __global__ void three_##DEPTH(const Words* a, const Words* b, Words* c, Words* d, u64 n) { four<DEPTH, true>(a, b, c, d, n); }
CEILINGS(1)
CEILINGS(2)
CEILINGS(4)
extern "C" __global__ void nothing() {}
