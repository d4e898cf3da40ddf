// The steps of a pack's chains, and how threads fold them: a pack, lanes, warps, a row.

// One step of a lane's chains for each reduction along a row: ss, ss of the scaled row, and dot.
__device__ __forceinline__ void squares_step(const Pack<T>& z, float (&p)[PACK]) {
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) p[i] = chain(z[i], z[i], p[i]);
}

__device__ __forceinline__ void scaled_squares_step(const Pack<T>& z, float s, float (&p)[PACK]) {
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) p[i] = chain(scaled(z[i], s), scaled(z[i], s), p[i]);
}

template <typename S> __device__ __forceinline__ void dot_step(const Pack<T>& z, const Pack<DY>& d, const Pack<W>& w, S scale, float (&p)[PACK]) {
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) p[i] = chain(weighted(d[i], weight_of(w, i)), x_hat(z[i], scale), p[i]);
}

// One row's contribution to the column sums of a pack.
template <typename S> __device__ __forceinline__ void column_step(const Pack<T>& z, const Pack<DY>& d, S scale, float (&sum)[PACK]) {
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) sum[i] = chain(d[i], factor<T>(x_hat(z[i], scale), TWICE), sum[i]);
}

// y and dx of a pack.
template <typename To, typename S> __device__ __forceinline__ void store_y(To row, Column column, u32 hidden, const Pack<T>& z, const Pack<W>& w, const Pack<B>& b, S scale) {
    float out[PACK];
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) {
        const float h = factor<T>(x_hat(z[i], scale), TWICE);
        out[i] = HAS_BIAS ? weighted_with(h, weight_of(w, i), b[i]) : weighted(h, weight_of(w, i));
    }
    store_pack(row, column, hidden, out);
}

template <typename To, typename S> __device__ __forceinline__ void store_dx(To row, Column column, u32 hidden, const Pack<T>& z, const Pack<DY>& d, const Pack<DZ>& g, const Pack<W>& w, S scale, float c) {
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
#pragma unroll
    for (u32 d = 1; d < width; d *= 2) v = fold(v, __shfl_xor_sync(team_mask(), v, d));
    return v;
}

// The same of lanes with VALUES words each, that of lane t and word h being node h·TEAM_LANES + t. Lanes come first, at distances 1, 2, 4, …; while they
// have several values, two lanes share the work: one goes on with the sums of the lower half of words, the other with those of the upper.
// At the end each has a whole word's, or several, and folds them with its partners, nearest words first.
template <u32 VALUES, u32 DISTANCE = 1> __device__ __forceinline__ float fold_spread(const float (&v)[VALUES]) {
    if constexpr (DISTANCE >= TEAM_LANES) {
        if constexpr (VALUES == 1) return v[0];
        else {
            float node[VALUES / 2];
#pragma unroll
            for (u32 i = 0; i < VALUES / 2; i++) node[i] = fold(v[2 * i], v[2 * i + 1]);
            return fold_spread<VALUES / 2, DISTANCE>(node);
        }
    } else if constexpr (VALUES == 1) {
        const float node[1] = {fold(v[0], __shfl_xor_sync(team_mask(), v[0], DISTANCE))};
        return fold_spread<1, 2 * DISTANCE>(node);
    } else {
        constexpr u32 HALF = VALUES / 2;
        const bool upper = threadIdx.x & DISTANCE;
        float sum[HALF];
#pragma unroll
        for (u32 i = 0; i < HALF; i++) {
            const float kept = upper ? v[i + HALF] : v[i], handed = upper ? v[i] : v[i + HALF];
            sum[i] = fold(kept, __shfl_xor_sync(team_mask(), handed, DISTANCE));
        }
        const float node = fold_spread<HALF, 2 * DISTANCE>(sum);
        return fold(node, __shfl_xor_sync(team_mask(), node, DISTANCE));
    }
}

// The nodes of sets of chains of a warp's lanes, or of a team's where it has fewer.
template <u32 N> __device__ __forceinline__ void fold_warp(float (&p)[N][PACK], float (&node)[N]) {
    if constexpr (ALIGNED) {
#pragma unroll
        for (u32 s = 0; s < N; s++) node[s] = fold_pack(p[s]);
#pragma unroll
        for (u32 s = 0; s < N; s++) node[s] = fold_lanes(node[s], TEAM_LANES);
    } else {
#pragma unroll
        for (u32 s = 0; s < N; s++) {
            float v[PACK / WORD];
#pragma unroll
            for (u32 h = 0; h < PACK / WORD; h++) v[h] = WORD == 1 ? p[s][h] : fold(p[s][h * WORD], p[s][h * WORD + WORD - 1]);
            node[s] = fold_spread(v);
        }
    }
}

// Waits for the threads of this row.
__device__ __forceinline__ void team_barrier() {
    if (TEAM_WARPS == 1) __syncwarp();
    else if (TEAMS == 1) __syncthreads();
    else named_barrier(1 + threadIdx.x / TEAM, TEAM);
}

// Folds the nodes of a team's warps: one of each set of chains. Set s holds the chains s·TEAM·PACK …, so in the tree all nodes of set 0 come
// before all of set 1: node s·TEAM_WARPS + w is warp w's of set s. They pass through shared memory, where each lane takes SETS
// neighbouring ones. Two buffers take turns: one is written again only after the barrier of the next call, which every reader has then
// reached.
static_assert(SETS == 1 || TEAM_WARPS > 1);

struct RowFold {
    float (*buffer)[SETS * TEAM_WARPS];
    u32 turn = 0;

    __device__ __forceinline__ float operator()(float (&v)[SETS]) {
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

// The sum of all chains of a row, where `step(k, p)` takes the chains p through pack k.
template <typename Fold, typename F> __device__ __forceinline__ float reduce(Fold& fold_row, F step) {
    float p[SETS][PACK] = {}, node[SETS];
#pragma unroll
    for (u32 k = 0; k < PACKS; k++) step(k, p[k % SETS]);
    fold_warp(p, node);
    return fold_row(node);
}

// The same of a row of any length, read as it is folded: `step(column, p)` takes the chains p through the pack at `column`. SETS is enough for
// the most chains that there are; a set past the last chain holds nothing, which is the same as pads.
template <typename F> __device__ __forceinline__ float streamed(u32 hidden, u32 chains, RowFold& fold_row, F step) {
    float node[SETS] = {};
#pragma unroll
    for (u32 s = 0; s < SETS; s++) {
        const u32 first = column_of(s).first();
        if (first >= chains) break;  // whole warps
        float p[1][PACK] = {}, of_set[1];
#pragma unroll 2
        for (u32 column = first; column < hidden; column += chains) step(column, p[0]);
        fold_warp(p, of_set);
        node[s] = of_set[0];
    }
    return fold_row(node);
}

// The sum of (z·s)² over such a row.
__device__ __forceinline__ float streamed_squares(const T* z, u32 hidden, u32 chains, float s, RowFold& fold_row) {
    return streamed(hidden, chains, fold_row, [&](u32 column, float (&p)[PACK]) { scaled_squares_step(load_pack(z, column, hidden), s, p); });
}
