// How a block holds rows: which lane owns which elements, how it loads and stores them, and how lanes fold what they hold.
// Nothing here rounds; all arithmetic is arith.cuh's.
//
// Set when a module is compiled (plan.rs, Class):
//   T, W          element type of x, y, dy, dx; of the weight
//   HAS_WEIGHT, ZERO_CENTRED
//   LANES         threads that share a row; lane l owns the chains 8l … 8l+7
//   ROWS          rows a block works on at once: a power of two, > 1 only while a row fits a warp
//   VECTORS       vectors of eight elements a lane holds of a row; 0: the row is streamed
//   ALIGNED       every row of every operand begins on 16 bytes and hidden % 8 == 0

constexpr u32 THREADS = LANES * ROWS;
constexpr u32 ROW_LANES = LANES < 32 ? LANES : 32;  // lanes of a row within one warp
constexpr u32 WARPS = LANES / 32;                   // warps of a row, 0 if it is part of a warp

struct alignas(16) Words { u32 word[4]; };

// Eight neighbouring elements, as they lie in memory. One 16-byte access for 16-bit types, two for f32.
template <typename E> struct Eight {
    Words half[sizeof(E) / 2];

    __device__ __forceinline__ float operator[](int i) const {
        if constexpr (sizeof(E) == 4) return __uint_as_float(half[i / 4].word[i % 4]);
        else return widen(E{(u16)(half[0].word[i / 2] >> (i % 2 * 16))});
    }
};

// Elements [column, column + 8) of a row of `hidden`; those past the end are zero.
template <typename E> __device__ __forceinline__ Eight<E> load_eight(const E* row, u32 column, u32 hidden) {
    Eight<E> v = {};
    if (ALIGNED) {
        if (column < hidden) {
            const Words* from = (const Words*)(row + column);
#pragma unroll
            for (int h = 0; h < (int)sizeof(E) / 2; h++) v.half[h] = from[h];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (column + i >= hidden) continue;
            if constexpr (sizeof(E) == 4) v.half[i / 4].word[i % 4] = ((const u32*)row)[column + i];
            else v.half[0].word[i / 2] |= (u32)((const u16*)row)[column + i] << (i % 2 * 16);
        }
    }
    return v;
}

// Rounds and writes eight values, those before the end of the row.
template <typename E> __device__ __forceinline__ void store_eight(E* row, u32 column, u32 hidden, const float (&value)[8]) {
    if (ALIGNED) {
        if (column >= hidden) return;
        Words* to = (Words*)(row + column);
#pragma unroll
        for (int h = 0; h < (int)sizeof(E) / 2; h++) {
            Words out;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if constexpr (sizeof(E) == 4) out.word[i] = __float_as_uint(store<E>(value[4 * h + i]));
                else out.word[i] = store_pair<E>(value[2 * i], value[2 * i + 1]);
            }
            to[h] = out;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (column + i < hidden) row[column + i] = store<E>(value[i]);
    }
}

// The weight that multiplies element i, from eight weights as loaded.
__device__ __forceinline__ float weight_of(const Eight<W>& weight, int i) {
    return HAS_WEIGHT ? effective_weight(weight[i], ZERO_CENTRED) : 1.0f;
}

__device__ __forceinline__ Eight<W> load_weight(const W* weight, u32 column, u32 hidden) {
    return HAS_WEIGHT ? load_eight(weight, column, hidden) : Eight<W>{};
}

// The node of a lane's eight chains.
__device__ __forceinline__ float fold_eight(const float (&p)[8]) {
    return fold(fold(fold(p[0], p[1]), fold(p[2], p[3])), fold(fold(p[4], p[5]), fold(p[6], p[7])));
}

// The node of `width` neighbouring lanes, in every one of them. All lanes of a row call this together; different rows of one
// warp may be in different branches.
__device__ __forceinline__ float fold_lanes(float v, u32 width) {
    const u32 mask = ROW_LANES == 32 ? ~0u : ((1u << (ROW_LANES % 32)) - 1) << (threadIdx.x % 32 / ROW_LANES * ROW_LANES);
#pragma unroll
    for (u32 d = 1; d < width; d *= 2) v = fold(v, __shfl_xor_sync(mask, v, d));
    return v;
}

// Folds the nodes of a row's lanes across its warps. `nodes` warps' results pass through shared memory, in two buffers that
// take turns: a buffer is written again only after the barrier of the next call, which every reader has then reached.
template <u32 SETS> struct RowFold {
    float (*buffer)[SETS * (WARPS ? WARPS : 1)];
    u32 turn = 0;

    // The root of the whole row, from each lane's node of each set; sets are ordered by number.
    __device__ __forceinline__ float operator()(const float (&node)[SETS]) {
        float warp_node[SETS];
#pragma unroll
        for (u32 s = 0; s < SETS; s++) warp_node[s] = fold_lanes(node[s], ROW_LANES);
        if constexpr (WARPS <= 1) return total(warp_node[0]);
        float* shared = buffer[turn];
        turn ^= 1;
        if (threadIdx.x % 32 == 0) {
#pragma unroll
            for (u32 s = 0; s < SETS; s++) shared[s * WARPS + threadIdx.x / 32] = warp_node[s];
        }
        __syncthreads();
        // Each lane takes SETS neighbouring nodes; lanes past the end hold +0.0.
        float p[SETS];
#pragma unroll
        for (u32 s = 0; s < SETS; s++) p[s] = threadIdx.x % 32 < WARPS ? shared[threadIdx.x % 32 * SETS + s] : 0.0f;
#pragma unroll
        for (u32 d = 1; d < SETS; d *= 2)
#pragma unroll
            for (u32 s = 0; s < SETS; s += 2 * d) p[s] = fold(p[s], p[s + d]);
        return total(fold_lanes(p[0], 32));
    }
};

#if VECTORS == 0
// Streamed rows: eight chains a lane in each of STREAM_SETS sets, set s holding the chains [s·8·LANES, (s+1)·8·LANES). A set
// past the last chain holds nothing, which is the same as pads.
constexpr u32 STREAM_SETS = 8;

// reduce(step(column, p)) over a streamed row, where `step` takes a lane's eight chains through the vector at `column`.
template <typename F> __device__ __forceinline__ float streamed(u32 hidden, u32 chains, RowFold<STREAM_SETS>& fold_row, F step) {
    float node[STREAM_SETS] = {};
#pragma unroll
    for (u32 s = 0; s < STREAM_SETS; s++) {
        const u32 first = (s * LANES + threadIdx.x) * 8;
        if (first >= chains) break;
        float p[8] = {};
#pragma unroll 2
        for (u32 column = first; column < hidden; column += chains) step(column, p);
        node[s] = fold_eight(p);
    }
    return fold_row(node);
}

// reduce((z·s)²) over a streamed row.
__device__ __forceinline__ float streamed_squares(const T* z, u32 hidden, u32 chains, float s, RowFold<STREAM_SETS>& fold_row) {
    return streamed(hidden, chains, fold_row, [&](u32 column, float (&p)[8]) {
        const Eight<T> v = load_eight(z, column, hidden);
#pragma unroll
        for (int i = 0; i < 8; i++) p[i] = chain(__fmul_rn(v[i], s), __fmul_rn(v[i], s), p[i]);
    });
}
#endif
