// Types, and the instructions that CUDA C++ has no name for without its headers: one function each, and nothing else. (The
// tests replace this file by one that does the same on a CPU.)

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(16) Words { u32 word[4]; };

// Conversions to nearest even, overflow to infinity, NaN to 0x7fff.
__device__ __forceinline__ float f32_from_f16(u16 v) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v)); return r; }
__device__ __forceinline__ u16 f16_from_f32(float v) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
__device__ __forceinline__ u16 bf16_from_f32(float v) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }

// Two at once, the first in the low half.
__device__ __forceinline__ u32 f16x2_from_f32(float low, float high) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
__device__ __forceinline__ u32 bf16x2_from_f32(float low, float high) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }

// 16 bytes in one access. (Of an assignment the compiler may make four.)
__device__ __forceinline__ void store_words(Words* to, Words v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]) : "memory");
}

// Waits for `threads` threads of the block that name the same barrier, 1 to 15.
__device__ __forceinline__ void named_barrier(u32 name, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory"); }

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A barrier in shared memory for `threads` threads, whose phases are counted from 0: `meeting` arrives at a phase of this parity and
// waits for the others.
__device__ __forceinline__ void meeting_init(u64* barrier, u32 threads) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(threads) : "memory"); }
__device__ __forceinline__ void meeting(u64* barrier, u32 parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .b64 arrived;\n.reg .pred done;\nmbarrier.arrive.shared::cta.b64 arrived, [%0];\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
#else
    asm volatile("{\n.reg .b64 arrived;\n.reg .pred done;\nmbarrier.arrive.shared::cta.b64 arrived, [%0];\nagain:\nmbarrier.test_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
#endif
}

// A clock that all multiprocessors share.
__device__ __forceinline__ u64 nanoseconds() { u64 t; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)); return t; }

// The dynamic shared memory of the block. On 128 bytes, or bulk copies into it take twice as long.
extern __shared__ __attribute__((aligned(128))) Words ring_memory[];

// A barrier in shared memory whose phase completes when the bytes that one thread expects have arrived.
__device__ __forceinline__ void arrival_init(u64* barrier) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory"); }
__device__ __forceinline__ void arrival_init_done() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void arrival_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void arrival_wait(u64* barrier, u32 phase) {
    asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(shared_address(barrier)), "r"(phase) : "memory");
}

// Copies to shared memory while the threads go on; both ends and `bytes` are multiples of 16.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
