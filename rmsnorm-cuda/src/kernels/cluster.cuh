// How a cluster of CLUSTER blocks shares a row, and how its warps learn what all of them folded. From compute capability 9.0 on.
//
// A block is one team. Pack k of a thread lies k·CHAINS elements after its first; block `rank` of a cluster has the SLICE chains
// [rank·SLICE, (rank + 1)·SLICE), an aligned power of two of them. So the chains of a thread, a warp, a block are nodes of the tree.
//
// An example: hidden 65536, CLUSTER 4, TEAM 256, PACK 8, so SLICE 2048 and CHAINS 8192. Element 30001 lies in pack 30001 / 8192 = 3 of chain
// 30001 mod 8192 = 5425, of block 5425 / 2048 = 2 of the cluster, thread (5425 mod 2048) / 8 = 166 of that, its place 5425 mod 8 = 1.

constexpr u32 WARPS = THREADS / 32;
constexpr u32 NODES = CLUSTER * WARPS;  // one a warp, in the order of the chains
constexpr u32 SLICE = TEAM * PACK;
constexpr u32 CHAINS = CLUSTER * SLICE;
constexpr u32 SLICE_BYTES = SLICE * sizeof(T);
static_assert(TEAMS == 1 && ALIGNED && SLICE % 128 == 0 && (NODES & (NODES - 1)) == 0);

// What a block's dynamic shared memory begins with; then come slices of rows.
struct ClusterShared {
    float slots[2][NODES];
    float alone[2][SETS * TEAM_WARPS];  // RowFold's buffer, for a row that the block folds alone
    u64 arrived[2];                     // completes when all slots are filled
    u64 full[STAGES_MAX];               // completes when a slice has arrived
    u32 readers[STAGES_MAX];            // warps that have read the slice in this place for the last time
};
static_assert(sizeof(ClusterShared) <= CLUSTER_BYTES);

__device__ __forceinline__ ClusterShared& cluster_shared() { return *(ClusterShared*)ring_memory; }
__device__ __forceinline__ T* slice_at(u32 place) { return (T*)((unsigned char*)ring_memory + CLUSTER_BYTES + place * SLICE_BYTES); }

// The part of a row that is this block's.
struct Part {
    u32 rank, hidden;

    // First column of slice k, and how many elements it has.
    __device__ __forceinline__ u32 first(u32 k) const { return k * CHAINS + rank * SLICE; }
    __device__ __forceinline__ u32 end(u32 k) const {
        if (EXACT) return SLICE;
        return first(k) >= hidden ? 0 : hidden - first(k) < SLICE ? hidden - first(k) : SLICE;
    }

    // First column of pack k of this thread.
    __device__ __forceinline__ u32 column(u32 k) const { return first(k) + threadIdx.x * PACK; }

    // Pack k of this thread, out of slice k of a row in shared memory.
    __device__ __forceinline__ Pack<T> load(const T* slice, u32 k) const { return load_pack(slice, threadIdx.x * PACK, end(k)); }

    // The same, for this thread alone.
    __device__ __forceinline__ void store(T* slice, u32 k, const Pack<T>& v) const {
        if (threadIdx.x * PACK < end(k)) *(Pack<T>*)(slice + threadIdx.x * PACK) = v;
    }
};

// Every warp of the cluster gives a node and gets the sum of all, again and again: `send(n, node)`, `sum(n)` for n = 0, 1, 2, … A warp's
// first lanes send its node to every block; each warp waits for all nodes and finishes the tree itself. No block waits for another but for
// messages. Two slots take turns. A warp sends n + 1 only when it has the sum n. (Were n + 1 sent before, there would have to be four.) Therefore
//   No slot is overwritten while it is read: messages n + 2 come from warps that have the sum n + 1, to which every warp of the cluster
//   contributed when it had the sum n, and so had read slots n.
//   No message counts for the wrong phase: every block's phase n is complete when a message n + 2 is sent, for somebody there has the sum n + 1;
//   and no warp can miss that n was complete, for n + 2 completes with this warp's own message.
//   Arming: the barrier counts one arrival, of thread 0, which says how many bytes to expect just before it sends. A message may come earlier:
//   the arrival that is missing holds the phase, and the count of bytes is negative for a while.
//   End: a block waits for all messages to it, so none is under way to it, and no other block touches it, when it ends. Before the first
//   message the blocks of a cluster meet (cluster_arrive, cluster_wait), when every barrier is there.
// What orders memory: a message's count releases its value in the scope of the cluster, and messages_wait acquires it in that scope. A read of
// slots n has returned, for the shuffles of `sum` need its value, before its warp sends n + 1; so it comes before that message, before the
// wait for it that acquires, and before messages n + 2. (One warp could acquire for its block and hand the sum on. That was slower where the
// blocks of a cluster have little to do: docs/decisions.md.)
struct Exchange {
    u32 rank;

    // By one thread, before the blocks meet.
    __device__ __forceinline__ void init() const {
        for (u32 i = 0; i < 2; i++) arrival_init(&cluster_shared().arrived[i]);
    }

    __device__ __forceinline__ void send(u32 n, float node) const {
        ClusterShared& shared = cluster_shared();
        if (threadIdx.x == 0) arrival_expect(&shared.arrived[n % 2], NODES * sizeof(float));
        const u32 lane = threadIdx.x % 32;
        if (lane < CLUSTER) message(&shared.slots[n % 2][rank * WARPS + threadIdx.x / 32], node, &shared.arrived[n % 2], lane);
    }

    // A lane's share of the nodes, folded.
    static constexpr u32 EACH = NODES <= 32 ? 1 : NODES / 32, LANES = NODES / EACH;
    __device__ __forceinline__ float of_lane(u32 n) const {
        ClusterShared& shared = cluster_shared();
        messages_wait(&shared.arrived[n % 2], n / 2 % 2);
        float v[EACH];
#pragma unroll
        for (u32 i = 0; i < EACH; i++) v[i] = shared.slots[n % 2][threadIdx.x % LANES * EACH + i];
#pragma unroll
        for (u32 d = 1; d < EACH; d *= 2)
#pragma unroll
            for (u32 i = 0; i < EACH; i += 2 * d) v[i] = fold(v[i], v[i + d]);
        return v[0];
    }

    __device__ __forceinline__ float sum(u32 n) const { return total(fold_lanes(of_lane(n), LANES)); }

    // The same, and in place of a lane's `node` that of its warp: side by side, for each level of either tree waits for a shuffle.
    __device__ __forceinline__ float sum(u32 n, float& node) const {
        float v = of_lane(n);
#pragma unroll
        for (u32 d = 1; d < 32; d *= 2) {
            const float other = __shfl_xor_sync(~0u, v, d), other_node = __shfl_xor_sync(~0u, node, d);
            if (d < LANES) v = fold(v, other);
            node = fold(node, other_node);
        }
        return total(v);
    }
};
