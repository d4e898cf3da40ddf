// How a block holds rows: which thread owns which elements, how they are loaded and stored, and how threads fold what they hold.
// Nothing here rounds; all arithmetic is arith.cuh's.
//
// A team of TEAM threads shares a row; a block is TEAMS teams. A pack is PACK neighbouring elements of a row, 16 or 32 bytes, one
// for each of PACK neighbouring chains. Pack k of a thread lies k·TEAM·PACK elements after its first. A thread owns the chains of
// its first SETS packs; pack k goes on with the chains of pack k mod SETS. Set when a module is compiled (plan.rs, Class):
//   T, W          element type of x, y, dy, dx; of the weight
//   HAS_WEIGHT, ZERO_CENTRED
//   TWICE         x_hat is rounded before the weight multiplies it
//   HAS_RESIDUAL  something is added to x
//   HAS_DZ        a gradient is added to dx
//   TEAM, TEAMS   as above; TEAMS is a power of two
//   PACK          4 or 8 elements
//   PACKS         packs a thread has of a row, at most; 0: any number, the row is streamed
//   SETS          a power of two; TEAM·PACK·SETS is the number of chains, or the next power of two if hidden <= 256
//   ALIGNED       every row of every operand begins on 16 bytes and hidden is a multiple of PACK
//   EXACT         hidden is CLUSTER·TEAM·PACK·PACKS: every thread owns every element of every pack
//   CLUSTER       1, or blocks that share a row (cluster.cuh): then SETS is that of a row which a block folds alone
//
// An example: hidden 4096, so 1024 chains; TEAM 64 (two warps), PACK 8, PACKS 8, SETS 2. Element 1030 lies in pack 1030 / 8 = 128 of the row: pack
// k = 128 / 64 = 2 of thread 128 mod 64 = 0, at place 1030 mod 8 = 6. As k mod SETS is 0, its chain is place 6 of that thread's first set, chain
// 1030 mod 1024 = 6, after element 6 (k = 0) and before 2054 (k = 4). In the tree thread 0 folds its chains 0 … 7 (fold_pack), then warp 0 its
// threads' nodes to that of the chains 0 … 255 (fold_lanes), then come 256 … 511 of warp 1, and last the second set, 512 … 1023 (RowFold).

constexpr u32 THREADS = TEAM * TEAMS;
constexpr u32 TEAM_LANES = TEAM < 32 ? TEAM : 32;     // lanes of a team within one warp
constexpr u32 TEAM_WARPS = TEAM < 32 ? 1 : TEAM / 32;  // warps of a team
constexpr u32 TEAM_WARPS_PADDED = TEAM_WARPS <= 1 ? 1 : TEAM_WARPS <= 2 ? 2 : TEAM_WARPS <= 4 ? 4 : TEAM_WARPS <= 8 ? 8 : TEAM_WARPS <= 16 ? 16 : 32;

// The width: a constant if it is known.
__device__ __forceinline__ u32 exact_hidden(u32 given) { return EXACT ? CLUSTER * TEAM * PACK * PACKS : given; }

// PACK neighbouring elements of type E, as they lie in memory.
template <typename E> struct Pack {
    Words part[PACK * sizeof(E) / 16];

    __device__ __forceinline__ float operator[](int i) const {
        if constexpr (sizeof(E) == 4) return __uint_as_float(part[i / 4].word[i % 4]);
        else return widen(E{(u16)(part[0].word[i / 2] >> (i % 2 * 16))});
    }
};

// Elements [column, column + PACK) of a row of `hidden`; those past the end are zero. A team without a row loads
// nothing, because it passes a `hidden` of 0.
template <typename E> __device__ __forceinline__ Pack<E> load_pack(const E* row, u32 column, u32 hidden) {
    Pack<E> v = {};
    if (ALIGNED) {
        if (EXACT ? hidden > 0 : column < hidden) {
#pragma unroll
            for (int h = 0; h < (int)(PACK * sizeof(E) / 16); h++) v.part[h] = ((const Words*)(row + column))[h];
        }
    } else {
#pragma unroll
        for (int i = 0; i < (int)PACK; i++) {
            if (column + i >= hidden) continue;
            if constexpr (sizeof(E) == 4) v.part[i / 4].word[i % 4] = ((const u32*)row)[column + i];
            else v.part[0].word[i / 2] |= (u32)((const u16*)row)[column + i] << (i % 2 * 16);
        }
    }
    return v;
}

// PACK values, rounded.
template <typename E> __device__ __forceinline__ Pack<E> rounded(const float (&value)[PACK]) {
    Pack<E> v;
#pragma unroll
    for (int i = 0; i < (int)(PACK * sizeof(E) / 4); i++) {
        if constexpr (sizeof(E) == 4) v.part[i / 4].word[i % 4] = __float_as_uint(store<E>(value[i]));
        else v.part[i / 4].word[i % 4] = store_pair<E>(value[2 * i], value[2 * i + 1]);
    }
    return v;
}

// Rounds and writes PACK values, those before the end of the row.
template <typename E> __device__ __forceinline__ void store_pack(E* row, u32 column, u32 hidden, const float (&value)[PACK]) {
    if (ALIGNED) {
        if (EXACT ? hidden == 0 : column >= hidden) return;
#pragma unroll
        for (int h = 0; h < (int)(PACK * sizeof(E) / 16); h++) {
            Words out;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if constexpr (sizeof(E) == 4) out.word[i] = __float_as_uint(store<E>(value[4 * h + i]));
                else out.word[i] = store_pair<E>(value[2 * i], value[2 * i + 1]);
            }
            store_words((Words*)(row + column) + h, out);
        }
    } else {
#pragma unroll
        for (int i = 0; i < (int)PACK; i++)
            if (column + i < hidden) row[column + i] = store<E>(value[i]);
    }
}

// The weight that multiplies element i of a pack.
__device__ __forceinline__ float weight_of(const Pack<W>& weight, int i) {
    return HAS_WEIGHT ? effective_weight(weight[i], ZERO_CENTRED) : 1.0f;
}

__device__ __forceinline__ Pack<W> load_weight(const W* weight, u32 column, u32 hidden) {
    return HAS_WEIGHT ? load_pack(weight, column, hidden) : Pack<W>{};
}

__device__ __forceinline__ Pack<T> load_dz(const T* row, u32 column, u32 hidden) {
    return HAS_DZ ? load_pack(row, column, hidden) : Pack<T>{};
}

// Stores the sums of a pack of x and one of the residual, rounded, and gives what it stored.
__device__ __forceinline__ Pack<T> store_sum(T* row, u32 column, u32 hidden, const Pack<T>& x, const Pack<T>& residual) {
    float sum[PACK];
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) sum[i] = added(x[i], residual[i]);
    store_pack(row, column, hidden, sum);
    return rounded<T>(sum);
}

// One step of a lane's chains for each reduction along a row: ss, ss of the scaled row, and dot.
__device__ __forceinline__ void squares_step(const Pack<T>& z, float (&p)[PACK]) {
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) p[i] = chain(z[i], z[i], p[i]);
}

__device__ __forceinline__ void scaled_squares_step(const Pack<T>& z, float s, float (&p)[PACK]) {
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) p[i] = chain(scaled(z[i], s), scaled(z[i], s), p[i]);
}

template <typename S> __device__ __forceinline__ void dot_step(const Pack<T>& z, const Pack<T>& d, const Pack<W>& w, S scale, float (&p)[PACK]) {
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) p[i] = chain(weighted(d[i], weight_of(w, i)), x_hat(z[i], scale), p[i]);
}

// One row's contribution to the column sums of a pack.
template <typename S> __device__ __forceinline__ void column_step(const Pack<T>& z, const Pack<T>& d, S scale, float (&sum)[PACK]) {
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) sum[i] = chain(d[i], factor<T>(x_hat(z[i], scale), TWICE), sum[i]);
}

// y and dx of a pack.
template <typename S> __device__ __forceinline__ void store_y(T* row, u32 column, u32 hidden, const Pack<T>& z, const Pack<W>& w, S scale) {
    float out[PACK];
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) out[i] = weighted(factor<T>(x_hat(z[i], scale), TWICE), weight_of(w, i));
    store_pack(row, column, hidden, out);
}

template <typename S> __device__ __forceinline__ void store_dx(T* row, u32 column, u32 hidden, const Pack<T>& z, const Pack<T>& d, const Pack<T>& g, const Pack<W>& w, S scale, float c) {
    float out[PACK];
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) {
        const float t = centred(x_hat(z[i], scale), c, weighted(d[i], weight_of(w, i)));
        out[i] = HAS_DZ ? gradient_with(t, scale, g[i]) : gradient(t, scale);
    }
    store_pack(row, column, hidden, out);
}

// The node of a lane's chains.
__device__ __forceinline__ float fold_pack(float (&p)[PACK]) {
#pragma unroll
    for (u32 d = 1; d < PACK; d *= 2)
#pragma unroll
        for (u32 i = 0; i < PACK; i += 2 * d) p[i] = fold(p[i], p[i + d]);
    return p[0];
}

// The node of `width` neighbouring lanes, in each of them. All lanes of a row call this together; different rows of one warp
// may be in different branches.
__device__ __forceinline__ float fold_lanes(float v, u32 width) {
    const u32 mask = TEAM_LANES == 32 ? ~0u : ((1u << (TEAM_LANES % 32)) - 1) << (threadIdx.x % 32 / TEAM_LANES * TEAM_LANES);
#pragma unroll
    for (u32 d = 1; d < width; d *= 2) v = fold(v, __shfl_xor_sync(mask, v, d));
    return v;
}

// Waits for the threads of this row.
__device__ __forceinline__ void team_barrier() {
    if (TEAM_WARPS == 1) __syncwarp();
    else if (TEAMS == 1) __syncthreads();
    else named_barrier(1 + threadIdx.x / TEAM, TEAM);
}

// Folds the nodes of a team's threads: one of each set of chains. Set s holds the chains s·TEAM·PACK …, so in the tree all nodes of set 0 come
// before all of set 1: node s·TEAM_WARPS + w is warp w's of set s. They pass through shared memory, where each lane takes SETS
// neighbouring ones. Two buffers take turns: one is written again only after the barrier of the next call, which every reader has then
// reached.
static_assert(SETS == 1 || TEAM_WARPS > 1);

struct RowFold {
    float (*buffer)[SETS * TEAM_WARPS];
    u32 turn = 0;

    __device__ __forceinline__ float operator()(const float (&node)[SETS]) {
        float v[SETS];
#pragma unroll
        for (u32 s = 0; s < SETS; s++) v[s] = fold_lanes(node[s], TEAM_LANES);
        if constexpr (TEAM_WARPS == 1) return total(v[0]);
        float* shared = buffer[turn];
        turn ^= 1;
        const u32 warp_lane = threadIdx.x % 32;
        if (warp_lane == 0) {
#pragma unroll
            for (u32 s = 0; s < SETS; s++) shared[s * TEAM_WARPS + threadIdx.x % TEAM / 32] = v[s];
        }
        team_barrier();
        // Past the end there is +0.0.
        const u32 first = warp_lane % TEAM_WARPS_PADDED;
#pragma unroll
        for (u32 s = 0; s < SETS; s++) v[s] = first < TEAM_WARPS ? shared[first * SETS + s] : 0.0f;
#pragma unroll
        for (u32 d = 1; d < SETS; d *= 2)
#pragma unroll
            for (u32 s = 0; s < SETS; s += 2 * d) v[s] = fold(v[s], v[s + d]);
        return total(fold_lanes(v[0], TEAM_WARPS_PADDED));
    }
};

// The first element of pack k of this lane.
__device__ __forceinline__ u32 column_of(u32 k) { return (k * TEAM + threadIdx.x % TEAM) * PACK; }

// The sum of all chains of a row, where `step(k, p)` takes the chains p through pack k.
template <typename F> __device__ __forceinline__ float reduce(RowFold& fold_row, F step) {
    float p[SETS][PACK] = {}, node[SETS];
#pragma unroll
    for (u32 k = 0; k < PACKS; k++) step(k, p[k % SETS]);
#pragma unroll
    for (u32 s = 0; s < SETS; s++) node[s] = fold_pack(p[s]);
    return fold_row(node);
}

// The same of a row of any length, read as it is folded: `step(column, p)` takes the chains p through the pack at `column`. SETS is enough for
// the most chains that there are; a set past the last chain holds nothing, which is the same as pads.
template <typename F> __device__ __forceinline__ float streamed(u32 hidden, u32 chains, RowFold& fold_row, F step) {
    float node[SETS] = {};
#pragma unroll
    for (u32 s = 0; s < SETS; s++) {
        const u32 first = (s * TEAM + threadIdx.x) * PACK;
        if (first >= chains) break;
        float p[PACK] = {};
#pragma unroll 2
        for (u32 column = first; column < hidden; column += chains) step(column, p);
        node[s] = fold_pack(p);
    }
    return fold_row(node);
}

// The sum of (z·s)² over such a row.
__device__ __forceinline__ float streamed_squares(const T* z, u32 hidden, u32 chains, float s, RowFold& fold_row) {
    return streamed(hidden, chains, fold_row, [&](u32 column, float (&p)[PACK]) { scaled_squares_step(load_pack(z, column, hidden), s, p); });
}
