// Types, and the instructions that CUDA C++ has no name for without its headers: one function each, and nothing else. (The
// tests replace this file by one that does the same on a CPU.)

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// So many words, in one access: 2 or 4.
template <u32 N> struct alignas(4 * N) Words { u32 word[N]; };

// Of a product of 128 bits.
__device__ __forceinline__ u64 high_half(u64 a, u64 b) { u64 r; asm("mul.hi.u64 %0, %1, %2;" : "=l"(r) : "l"(a), "l"(b)); return r; }

// Conversions to nearest even, overflow to infinity, NaN to 0x7fff.
__device__ __forceinline__ float f32_from_f16(u16 v) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v)); return r; }
__device__ __forceinline__ u16 f16_from_f32(float v) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
__device__ __forceinline__ u16 bf16_from_f32(float v) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }

// Two at once, the first in the low half.
__device__ __forceinline__ u32 f16x2_from_f32(float low, float high) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
__device__ __forceinline__ u32 bf16x2_from_f32(float low, float high) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }

// In one access. (Of an assignment the compiler may make several.)
__device__ __forceinline__ void store_words(Words<4>* to, Words<4> v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]) : "memory");
}
__device__ __forceinline__ void store_words(Words<2>* to, Words<2> v) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]) : "memory");
}

// Four bytes, where the address is a multiple of four: anywhere else the hardware traps, and here the tests can.
__device__ __forceinline__ u32 load_word(const void* from) { return *(const u32*)from; }
__device__ __forceinline__ void store_word(void* to, u32 v) { *(u32*)to = v; }

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
extern __shared__ __attribute__((aligned(128))) Words<4> ring_memory[];

// What this thread wrote to shared memory, barriers too, is there for bulk copies that begin later.
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier in shared memory whose phase completes when the bytes that one thread expects have arrived.
__device__ __forceinline__ void arrival_init(u64* barrier) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory"); }
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

// The same from shared memory. `bulk_stores_read`: what this thread's copies take has been read.
__device__ __forceinline__ void bulk_store(void* to, const void* from, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\ncp.async.bulk.commit_group;" ::"l"(to), "r"(shared_address(from)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bulk_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Clusters: from compute capability 9.0 on --------------------------------------------------------------------------------

// This block's number in its cluster.
__device__ __forceinline__ u32 cluster_rank() { u32 r; asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }

// What this thread did to barriers in its shared memory is seen by all threads of the cluster that have waited after it arrived.
__device__ __forceinline__ void cluster_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// All threads of the cluster arrive, once, and wait for each other. Whole warps at a time.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Stores `v` where block `rank` of the cluster has `slot`, at some later time, and then counts four bytes on its `barrier`. The count
// releases the value in the scope of the cluster. (NVRTC 12.0 has no st.async: there a store, a fence and the count do it.)
__device__ __forceinline__ void message(float* slot, float v, u64* barrier, u32 rank) {
    u32 to, counted;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(slot)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(shared_address(barrier)), "r"(rank));
#if __CUDACC_VER_MAJOR__ > 12 || __CUDACC_VER_MINOR__ > 0
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(__float_as_uint(v)), "r"(counted) : "memory");
#else
    asm volatile("st.relaxed.cluster.shared::cluster.b32 [%0], %1;\nfence.acq_rel.cluster;\nmbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%2], 4;" ::"r"(to), "r"(__float_as_uint(v)), "r"(counted) : "memory");
#endif
}

// As arrival_wait, where the bytes came as messages. Of two operations that synchronise, each must name a scope with the other's thread in it;
// that of an unqualified wait is the block, so it proves nothing about another block's message. It only polls, for it costs nothing, and
// one wait in the scope of the cluster, which also empties the first cache, acquires.
__device__ __forceinline__ void messages_wait(u64* barrier, u32 phase) {
    arrival_wait(barrier, phase);
    asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(shared_address(barrier)), "r"(phase) : "memory");
}

// Adds 1 to a number in shared memory, or makes `last` 0 again, and returns what it was. What a thread of the block did before its own is ordered
// before what another does after a later one. (Of an addition the compiler would make one for all lanes, though only one comes here.)
__device__ __forceinline__ u32 count(u32* counter, u32 last) {
    u32 before;
    asm volatile("atom.acq_rel.cta.shared::cta.inc.u32 %0, [%1], %2;" : "=r"(before) : "r"(shared_address(counter)), "r"(last) : "memory");
    return before;
}
