// Runs the kernels of a module on a CPU: this text, then the module's own, is one C++ file.
//
// Clusters (or blocks, where there are none) run one after another, from any of them on, upwards or downwards. The threads of all blocks of a cluster are fibers that give way where they
// wait: at barriers, shuffles and arrivals. Who goes on next is drawn from a seed, and for a while some warps do not go on at all,
// so a missing barrier shows as other bits for some seed.
// Bulk copies happen at once or as late as they are waited for: a buffer filled too early, or read too early, shows too. Messages to other blocks
// arrive at once, or each at some time after somebody has begun to wait for it; one to a block that has ended ends the launch.
// Copies from shared memory read it at once or when their thread waits until they have; one that nobody waited for ends the launch.
// Blocks of a cluster have dynamic shared memory of their own, and none that a kernel declares.
// A wait that nobody can end, threads that disagree about a barrier, or a misaligned bulk copy or word end the launch with a code.
//
// It is compiled anew with each of hundreds of modules, so it takes next to nothing of the C++ library: <random> alone takes three
// times as long as a module.

#include <cstring>
#include <sys/mman.h>
#include <utility>

#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

template <u32 N> struct alignas(4 * N) Words { u32 word[N]; };
struct Index { u32 x; };
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum Code { FINISHED, STUCK, BARRIER_MISUSE, SHUFFLE_MISUSE, COPY_MISALIGNED, TOO_LARGE, MESSAGE_MISUSE, ACCESS_MISALIGNED };

constexpr u32 THREADS_MAX = 1024, CLUSTER_MAX = 8, FIBERS_MAX = 4096, STACK_BYTES = 64 << 10, SHARED_BYTES = 227 << 10;
constexpr u32 EXCHANGES_MAX = 64, COPIES_MAX = 1 << 16;

struct Exchange { u32 mask, arrived[2]; u64 turn[32], complete; float value[2][32]; };
struct Exchanges { u32 count; Exchange of[EXCHANGES_MAX]; };
struct Barrier { u32 expected, arrived; u64 generation; bool any, any_before; };
struct __attribute__((may_alias)) Arrival { u32 phase : 1, armed : 1; int pending; };  // lies in the barrier itself
struct Copy { void* to; const void* from; u32 bytes; u64* barrier; float message; };  // a message has no `from`
static_assert(sizeof(Arrival) == sizeof(u64), "in its place");

// SplitMix64.
struct Random {
    u64 state;
    u64 next() {
        u64 z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    u32 below(u32 end) { return (u32)((next() >> 32) * end >> 32); }
};

static void* stack_pointer[FIBERS_MAX];
static void* scheduler;
static u32 current, threads, cluster, running, running_of[CLUSTER_MAX];  // fiber; of a block; blocks; fibers, of each block
static u64 progress;
static Code code;
static bool late;
static Exchanges exchanges[FIBERS_MAX / 32];  // of each warp
static Barrier barriers[CLUSTER_MAX][16];
static Barrier of_cluster;
static u64 of_cluster_arrived[FIBERS_MAX];
static Copy copies[COPIES_MAX];
static u32 late_copies;
static Copy stores[THREADS_MAX];  // of each thread of a block without a cluster
static Random chance;
static void (*body)();
alignas(128) static Words<4> shared_memory[CLUSTER_MAX][SHARED_BYTES / 16];

static u32 block() { return current / threads; }

// Saves the callee-saved registers on this stack and goes on with another one.
__attribute__((naked, noinline)) static void change(void**, void*) {
    asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

static u32 block_of(const Copy& message) { return (u32)(((char*)message.to - (char*)shared_memory) / SHARED_BYTES); }

static void give_way() { change(&stack_pointer[current], scheduler); }

static void fail(Code what) {
    code = what;
    for (;;) give_way();
}

template <typename F> static void wait_until(F done) {
    while (!done()) give_way();
    progress++;
}

static void thread_main() {
    body();
    running--, progress++;
    if (--running_of[block()] == 0)
        for (u32 i = 0; i < late_copies; i++)
            if (!copies[i].from && block_of(copies[i]) == block()) code = MESSAGE_MISUSE;
    if (current < THREADS_MAX && stores[current].bytes > 0) code = MESSAGE_MISUSE;
    stack_pointer[current] = nullptr;
    void* unused;
    change(&unused, scheduler);
}

// Whether `vote` was true for any of those who met.
static bool meet(u32 name, u32 expected, bool vote = false) {
    Barrier& b = barriers[block()][name];
    if (b.arrived > 0 && b.expected != expected) fail(BARRIER_MISUSE);
    b.expected = expected;
    const u64 generation = b.generation;
    b.any |= vote;
    if (++b.arrived == expected) b.arrived = 0, b.generation++, b.any_before = b.any, b.any = false;
    progress++;
    wait_until([&] { return b.generation != generation; });
    return b.any_before;
}

static float shuffle(u32 mask, float value, u32 from) {
    const u32 lane = current % 32;
    Exchanges& of_warp = exchanges[current / 32];
    u32 at = 0;
    while (at < of_warp.count && of_warp.of[at].mask != mask) at++;
    if (at == EXCHANGES_MAX || !(mask >> lane & 1) || !(mask >> from & 1)) fail(SHUFFLE_MISUSE);
    Exchange& e = of_warp.of[at];
    if (at == of_warp.count) e = Exchange{mask, {}, {}, 0, {}}, of_warp.count++;
    const u64 turn = ++e.turn[lane];
    e.value[turn % 2][lane] = value;
    if (++e.arrived[turn % 2] == (u32)__builtin_popcount(mask)) e.arrived[turn % 2] = 0, e.complete = turn;
    progress++;
    wait_until([&] { return e.complete >= turn; });
    return e.value[turn % 2][from];
}

static Arrival& arrival(u64* barrier) { return *(Arrival*)barrier; }

static void arrive(u64* barrier, int pending) {
    Arrival& a = arrival(barrier);
    a.pending += pending;
    if (a.armed && a.pending == 0) a.armed = false, a.phase ^= 1, progress++;
}

static void carry_out(const Copy& copy) {
    if (!copy.from && running_of[block_of(copy)] == 0) fail(MESSAGE_MISUSE);
    std::memcpy(copy.to, copy.from ? copy.from : &copy.message, copy.bytes);
    arrive(copy.barrier, -(int)copy.bytes);
}

static void give(const Copy& copy) {
    if (!late) return carry_out(copy);
    if (late_copies == COPIES_MAX) fail(TOO_LARGE);
    copies[late_copies++] = copy;
}

static void run_cluster(u32 first_block, unsigned char* stacks) {
    static u32 order[FIBERS_MAX];
    const u32 fibers = threads * cluster;
    for (auto& of_warp : exchanges) of_warp.count = 0;
    for (auto& of_block : barriers)
        for (auto& barrier : of_block) barrier = {};
    for (auto& arrived : of_cluster_arrived) arrived = 0;
    for (auto& of_block : running_of) of_block = threads;
    late_copies = 0, of_cluster = {};
    for (auto& store : stores) store = {};
    for (u32 t = 0; t < fibers; t++) {
        void** top = (void**)(stacks + (size_t)(t + 1) * STACK_BYTES);
        top[-1] = nullptr, top[-2] = (void*)thread_main;
        for (u32 i = 3; i <= 8; i++) top[-(int)i] = nullptr;
        stack_pointer[t] = top - 8;
        order[t] = t;
    }
    running = fibers;
    u32 awake[CLUSTER_MAX], rounds = 0;  // the warps of each block that go on, and for how many rounds more
    bool all = false;
    while (running > 0 && code == FINISHED) {
        const u64 before = progress;
        if (rounds == 0) {
            // Of a cluster, some blocks go on as a whole, and some do not at all.
            for (u32& warps : awake) {
                const u32 kind = cluster > 1 ? chance.below(4) : 3;
                warps = kind == 0 ? 0 : kind == 1 ? ~0u : (u32)chance.next();
            }
            awake[chance.below(cluster)] |= 1u << chance.below(threads / 32 + 1) % 32;
            rounds = 1 + chance.below(64), all = false;
        }
        for (u32 i = fibers; i > 1; i--) std::swap(order[i - 1], order[chance.below(i)]);
        for (u32 i = 0; i < fibers; i++) {
            const u32 t = order[i];
            if (!stack_pointer[t] || code != FINISHED || !(all || awake[t / threads] >> t % threads / 32 & 1)) continue;
            current = t, threadIdx.x = t % threads, blockIdx.x = first_block + t / threads;
            change(&scheduler, stack_pointer[t]);
        }
        rounds--;
        if (progress != before) continue;
        if (all && code == FINISHED) code = STUCK;
        all = true, rounds = 1;
    }
}

// Calls a kernel with the arguments that `cells` point to.
template <typename... A, size_t... I> static void call(void (*kernel)(A...), void** cells, std::index_sequence<I...>) {
    kernel(*(A*)cells[I]...);
}
template <typename... A> static void call(void (*kernel)(A...), void** cells) { call(kernel, cells, std::index_sequence_for<A...>{}); }

}  // namespace emulator

static inline float __shfl_xor_sync(u32 mask, float v, u32 d) { return emulator::shuffle(mask, v, emulator::current % 32 ^ d); }
static inline float __shfl_sync(u32 mask, float v, u32 from) { return emulator::shuffle(mask, v, from); }
static inline void __syncwarp() { emulator::shuffle(~0u, 0.0f, emulator::current % 32); }
static inline void __syncthreads() { emulator::meet(0, emulator::threads); }
static inline int __syncthreads_or(int vote) { return emulator::meet(0, emulator::threads, vote != 0); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
static inline float __uint_as_float(u32 v) { float f; std::memcpy(&f, &v, 4); return f; }
static inline u32 __float_as_uint(float v) { u32 u; std::memcpy(&u, &v, 4); return u; }
static inline u32 __shfl_sync(u32 mask, u32 v, u32 from) { return __float_as_uint(emulator::shuffle(mask, __uint_as_float(v), from)); }

// What ptx.cuh has.
static inline float f32_from_f16(u16 v) { _Float16 h; std::memcpy(&h, &v, 2); return (float)h; }
static inline u16 f16_from_f32(float v) { _Float16 h = (_Float16)v; u16 u; std::memcpy(&u, &h, 2); return v != v ? 0x7fff : u; }
static inline u16 bf16_from_f32(float v) { const u32 b = __float_as_uint(v); return v != v ? 0x7fff : (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16); }
static inline u32 f16x2_from_f32(float low, float high) { return f16_from_f32(low) | (u32)f16_from_f32(high) << 16; }
static inline u64 high_half(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
static inline u32 bf16x2_from_f32(float low, float high) { return bf16_from_f32(low) | (u32)bf16_from_f32(high) << 16; }
template <u32 N> static inline void store_words(Words<N>* to, Words<N> v) { *to = v; }
static inline u32 load_word(const void* from) {
    if ((u64)from % 4) emulator::fail(emulator::ACCESS_MISALIGNED);
    return *(const u32*)from;
}
static inline void store_word(void* to, u32 v) {
    if ((u64)to % 4) emulator::fail(emulator::ACCESS_MISALIGNED);
    *(u32*)to = v;
}
static inline u64 nanoseconds() { static u64 now; return now += 100; }
static inline void named_barrier(u32 name, u32 threads) { emulator::meet(name, threads); }
static inline void meeting_init(u64* barrier, u32 threads) {
    if (threads != emulator::threads) emulator::fail(emulator::BARRIER_MISUSE);
    emulator::arrival(barrier) = {}, emulator::arrival(barrier).pending = (int)threads;
}
static inline void meeting(u64* barrier, u32 parity) {
    emulator::Arrival& a = emulator::arrival(barrier);
    if (--a.pending == 0) a.pending = (int)emulator::threads, a.phase ^= 1;
    emulator::progress++;
    emulator::wait_until([&] { return a.phase != parity; });
}
#define ring_memory emulator::shared_memory[emulator::block()]
static inline void arrival_init(u64* barrier) { emulator::arrival(barrier) = {}; }
static inline void async_proxy_fence() {}
static inline void arrival_expect(u64* barrier, u32 bytes) { emulator::arrival(barrier).armed = true, emulator::arrive(barrier, (int)bytes); }
static inline void arrival_wait(u64* barrier, u32 phase) {
    emulator::wait_until([=] {
        u32 kept = 0;
        for (u32 i = 0; i < emulator::late_copies; i++) {
            const emulator::Copy copy = emulator::copies[i];
            const bool arrives = copy.barrier == barrier && (copy.from || emulator::chance.below(4) == 0);
            emulator::progress += copy.barrier == barrier;
            arrives ? emulator::carry_out(copy) : (void)(emulator::copies[kept++] = copy);
        }
        emulator::late_copies = kept;
        return emulator::arrival(barrier).phase != phase;
    });
}
static inline void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier) {
    if (((u64)to | (u64)from | bytes) % 16 != 0) emulator::fail(emulator::COPY_MISALIGNED);
    emulator::give({to, from, bytes, barrier, 0.0f});
}
static inline void bulk_stores_read() {
    emulator::Copy& store = emulator::stores[emulator::current];
    if (store.from) std::memcpy(store.to, store.from, store.bytes);
    store = {};
}
static inline void bulk_store(void* to, const void* from, u32 bytes) {
    if (((u64)to | (u64)from | bytes) % 16 != 0) emulator::fail(emulator::COPY_MISALIGNED);
    emulator::Copy& store = emulator::stores[emulator::current];
    if (emulator::cluster > 1 || store.bytes > 0) emulator::fail(emulator::TOO_LARGE);
    if (!emulator::late) std::memcpy(to, from, bytes);
    store = {to, emulator::late ? from : nullptr, bytes, nullptr, 0.0f};
}
static inline u32 cluster_rank() { return emulator::block(); }
static inline void cluster_init_done() {}
static inline void cluster_arrive() {
    emulator::of_cluster_arrived[emulator::current]++, emulator::progress++;
    if (++emulator::of_cluster.arrived == emulator::threads * emulator::cluster) emulator::of_cluster.arrived = 0, emulator::of_cluster.generation++;
}
static inline void cluster_wait() {
    emulator::wait_until([] { return emulator::of_cluster.generation >= emulator::of_cluster_arrived[emulator::current]; });
}
static inline void message(float* slot, float v, u64* barrier, u32 rank) {
    const long long there = ((long long)rank - emulator::block()) * (long long)emulator::SHARED_BYTES;
    emulator::give({(char*)slot + there, nullptr, sizeof v, (u64*)((char*)barrier + there), v});
}
static inline void messages_wait(u64* barrier, u32 phase) { arrival_wait(barrier, phase); }
static inline u32 count(u32* counter, u32 last) {
    const u32 before = *counter;
    *counter = before == last ? 0 : before + 1;
    return before;
}

// Runs `kernel` over a grid of blocks, `cluster` to a cluster; `cells` point to its arguments. Returns a Code.
static int emulate(void (*kernel)(void**), u32 blocks, u32 cluster, u32 threads, u32 shared_bytes, void** cells, u64 seed) {
    using namespace emulator;
    static void (*running_kernel)(void**);
    static void** running_cells;
    if (threads > THREADS_MAX || cluster > CLUSTER_MAX || threads * cluster > FIBERS_MAX || shared_bytes > SHARED_BYTES) return TOO_LARGE;
    if (blocks % cluster != 0) return BARRIER_MISUSE;
    const size_t bytes = (size_t)threads * cluster * STACK_BYTES;
    auto* stacks = (unsigned char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stacks == MAP_FAILED) return TOO_LARGE;
    running_kernel = kernel, running_cells = cells;
    body = [] { running_kernel(running_cells); };
    emulator::threads = threads, emulator::cluster = cluster, late = seed % 2, code = FINISHED, gridDim.x = blocks, blockDim.x = threads;
    chance = {seed};
    const u32 clusters = blocks / cluster, begin = chance.below(clusters), step = chance.below(2) ? 1 : clusters - 1;
    for (u64 i = 0; i < clusters && code == FINISHED; i++) {
        std::memset((void*)shared_memory, 0xff, cluster * SHARED_BYTES);
        run_cluster((u32)((begin + i * step) % clusters) * cluster, stacks);
    }
    munmap(stacks, bytes);
    return code;
}
