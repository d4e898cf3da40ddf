// How a block holds rows: which lane owns which elements, how they are loaded and stored, and how lanes fold what they hold.
// Nothing here rounds; all arithmetic is arith.cuh's.
//
// A team of LANES threads shares a row; a block is ROWS teams. A pack is PACK neighbouring elements of a row, 16 or 32 bytes,
// one for each of PACK neighbouring chains. Pack k of a lane lies k·LANES·PACK elements after its first. A lane owns the chains of
// its first SETS packs; pack k goes on with the chains of pack k mod SETS. Set when a module is compiled (plan.rs, Class):
//   T, W          element type of x, y, dy, dx; of the weight
//   HAS_WEIGHT, ZERO_CENTRED
//   LANES, ROWS   as above; ROWS is a power of two
//   PACK          4 or 8 elements
//   PACKS         packs a lane has of a row, at most; 0: any number, the row is streamed
//   SETS          a power of two; LANES·PACK·SETS is the number of chains, or the next power of two if hidden <= 256
//   ALIGNED       every row of every operand begins on 16 bytes and hidden is a multiple of PACK
//   EXACT         hidden is LANES·PACK·PACKS: every lane owns every element of every pack

constexpr u32 THREADS = LANES * ROWS;
constexpr u32 ROW_LANES = LANES < 32 ? LANES : 32;      // lanes of a row within one warp
constexpr u32 WARPS = LANES < 32 ? 1 : LANES / 32;      // warps that share a row
constexpr u32 WARPS_PADDED = WARPS <= 1 ? 1 : WARPS <= 2 ? 2 : WARPS <= 4 ? 4 : WARPS <= 8 ? 8 : WARPS <= 16 ? 16 : 32;

// Without a ring, backward keeps a lane's part of a row in registers between the two passes if that is little; else it reads it
// twice, the second time from the cache.
constexpr bool HELD = PACKS * PACK <= 16;

// The width: a constant if it is known.
__device__ __forceinline__ u32 exact_hidden(u32 given) { return EXACT ? LANES * PACK * PACKS : given; }

// PACK neighbouring elements of type E, as they lie in memory.
template <typename E> struct Pack {
    Words part[PACK * sizeof(E) / 16];

    __device__ __forceinline__ float operator[](int i) const {
        if constexpr (sizeof(E) == 4) return __uint_as_float(part[i / 4].word[i % 4]);
        else return widen(E{(u16)(part[0].word[i / 2] >> (i % 2 * 16))});
    }
};

// Elements [column, column + PACK) of a row of `hidden`; those past the end are zero. A row of which this lane shall load
// nothing is passed as one of no elements.
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

// The same of a row in global memory that nobody here reads again.
template <typename E> __device__ __forceinline__ Pack<E> load_pack_once(const E* row, u32 column, u32 hidden) {
    if (!ALIGNED) return load_pack(row, column, hidden);
    Pack<E> v = {};
    if (EXACT ? hidden > 0 : column < hidden) {
#pragma unroll
        for (int h = 0; h < (int)(PACK * sizeof(E) / 16); h++) v.part[h] = load_streaming((const Words*)(row + column) + h);
    }
    return v;
}

// Rounds and writes PACK values, those before the end of the row. The data passes through: nobody here reads it again.
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
            store_streaming((Words*)(row + column) + h, out);
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
    for (int i = 0; i < (int)PACK; i++) sum[i] = chain(d[i], x_hat(z[i], scale), sum[i]);
}

// y and dx of a pack.
template <typename S> __device__ __forceinline__ void store_y(T* row, u32 column, u32 hidden, const Pack<T>& z, const Pack<W>& w, S scale) {
    float out[PACK];
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) out[i] = weighted(x_hat(z[i], scale), weight_of(w, i));
    store_pack(row, column, hidden, out);
}

template <typename S> __device__ __forceinline__ void store_dx(T* row, u32 column, u32 hidden, const Pack<T>& z, const Pack<T>& d, const Pack<W>& w, S scale, float c) {
    float out[PACK];
#pragma unroll
    for (int i = 0; i < (int)PACK; i++)
        out[i] = gradient(centred(x_hat(z[i], scale), c, weighted(d[i], weight_of(w, i))), scale);
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
    const u32 mask = ROW_LANES == 32 ? ~0u : ((1u << (ROW_LANES % 32)) - 1) << (threadIdx.x % 32 / ROW_LANES * ROW_LANES);
#pragma unroll
    for (u32 d = 1; d < width; d *= 2) v = fold(v, __shfl_xor_sync(mask, v, d));
    return v;
}

// Waits for the threads of this row.
__device__ __forceinline__ void team_barrier() {
    if (WARPS == 1) __syncwarp();
    else if (ROWS == 1) __syncthreads();
    else named_barrier(1 + threadIdx.x / LANES, LANES);
}

// Folds the nodes of a team's lanes: one of each set of chains. Sets lie a whole team apart, so they are ordered by number. Where a
// team has several warps, their results pass through shared memory, in two buffers that take turns: a buffer is written again
// only after the barrier of the next call, which every reader has then reached.
static_assert(SETS == 1 || WARPS > 1);

struct RowFold {
    float (*buffer)[SETS * WARPS];
    u32 turn = 0;

    __device__ __forceinline__ float operator()(const float (&node)[SETS]) {
        float v[SETS];
#pragma unroll
        for (u32 s = 0; s < SETS; s++) v[s] = fold_lanes(node[s], ROW_LANES);
        if constexpr (WARPS == 1) return total(v[0]);
        float* shared = buffer[turn];
        turn ^= 1;
        const u32 warp_lane = threadIdx.x % 32;
        if (warp_lane == 0) {
#pragma unroll
            for (u32 s = 0; s < SETS; s++) shared[s * WARPS + threadIdx.x % LANES / 32] = v[s];
        }
        team_barrier();
        // Each lane takes SETS neighbouring nodes; past the end there is +0.0.
        const u32 first = warp_lane % WARPS_PADDED;
#pragma unroll
        for (u32 s = 0; s < SETS; s++) v[s] = first < WARPS ? shared[first * SETS + s] : 0.0f;
#pragma unroll
        for (u32 d = 1; d < SETS; d *= 2)
#pragma unroll
            for (u32 s = 0; s < SETS; s += 2 * d) v[s] = fold(v[s], v[s + d]);
        return total(fold_lanes(v[0], WARPS_PADDED));
    }
};

#if PACKS == 0

// Streamed rows. SETS is enough for the most chains that there are; a set past the last chain holds nothing, which is the same
// as pads.

// reduce over a streamed row, where `step` takes a lane's chains through the pack at `column`.
template <typename F> __device__ __forceinline__ float streamed(u32 hidden, u32 chains, RowFold& fold_row, F step) {
    float node[SETS] = {};
#pragma unroll
    for (u32 s = 0; s < SETS; s++) {
        const u32 first = (s * LANES + threadIdx.x) * PACK;
        if (first >= chains) break;
        float p[PACK] = {};
#pragma unroll 2
        for (u32 column = first; column < hidden; column += chains) step(column, p);
        node[s] = fold_pack(p);
    }
    return fold_row(node);
}

// reduce((z·s)²) over a streamed row.
__device__ __forceinline__ float streamed_squares(const T* z, u32 hidden, u32 chains, float s, RowFold& fold_row) {
    return streamed(hidden, chains, fold_row, [&](u32 column, float (&p)[PACK]) { scaled_squares_step(load_pack(z, column, hidden), s, p); });
}

#else

// The first element of pack k of this lane.
__device__ __forceinline__ u32 column_of(u32 k) { return (k * LANES + threadIdx.x % LANES) * PACK; }

// The sum of all chains of a row, where `step(k, p)` takes the chains p through pack k.
template <typename F> __device__ __forceinline__ float reduce(RowFold& fold_row, F step) {
    float p[SETS][PACK] = {}, node[SETS];
#pragma unroll
    for (u32 k = 0; k < PACKS; k++) step(k, p[k % SETS]);
#pragma unroll
    for (u32 s = 0; s < SETS; s++) node[s] = fold_pack(p[s]);
    return fold_row(node);
}

#if RING

// Rows that arrive in shared memory by bulk copies, ahead of their turn: a ring of `stages` buffers for each team, filled by
// the team's first lane and waited for by all. A buffer is filled again once the team has met after its last reader.

struct Ring {
    u64* full;            // one barrier a stage: completes when the stage's bytes have arrived
    unsigned char* base;  // first stage of this team
    u32 stage_bytes, stages;
    u32 stage = 0, phase = 0;

    __device__ __forceinline__ Ring(u64 (*barriers)[STAGES_MAX], u32 stage_bytes, u32 stages) : stage_bytes(stage_bytes), stages(stages) {
        const u32 team = threadIdx.x / LANES;
        full = barriers[team];
        base = (unsigned char*)ring_memory + team * stages * stage_bytes;
        if (threadIdx.x % LANES == 0) {
            for (u32 s = 0; s < stages; s++) arrival_init(full + s);
            arrival_init_done();
        }
        __syncthreads();
    }

    __device__ __forceinline__ u32 before(u32 s) const { return s == 0 ? stages - 1 : s - 1; }

    // Announces that stage s will be filled.
    __device__ __forceinline__ void expect(u32 s) const { arrival_expect(full + s, stage_bytes); }

    // Begins to fill `bytes` bytes of stage s, `offset` bytes into it.
    __device__ __forceinline__ void fill(u32 s, u32 offset, const void* from, u32 bytes) const {
        bulk_copy(base + s * stage_bytes + offset, from, bytes, full + s);
    }

    // Waits for the current stage.
    __device__ __forceinline__ const unsigned char* wait() const {
        arrival_wait(full + stage, phase);
        return base + stage * stage_bytes;
    }

    __device__ __forceinline__ void advance() {
        if (++stage == stages) stage = 0, phase ^= 1;
    }
};

#endif
#endif
