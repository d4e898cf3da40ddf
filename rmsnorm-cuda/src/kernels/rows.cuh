// How a block holds rows: which thread owns which elements, how they are loaded and stored, and how threads fold what they hold.
// Nothing here rounds; all arithmetic is arith.cuh's.
//
// A team of TEAM threads shares a row; a block is TEAMS teams. A pack is PACK elements of a row, 8 to 32 bytes, one
// for each of PACK chains. Pack k of a thread lies k·TEAM·PACK elements after its first. A thread owns the chains of
// its first SETS packs; pack k goes on with the chains of pack k mod SETS. Set when a module is compiled (plan.rs, Class):
//   T, W, B       element type of x, y, dy, dx; of the weight; of the bias
//   HAS_WEIGHT, ZERO_CENTRED
//   HAS_BIAS      a bias is added before y is rounded
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
//
// The elements of a pack are neighbours where rows are ALIGNED. Elsewhere one access cannot take 16 bytes, and the lanes of a warp share out the same
// PACK·32 elements by words of four bytes: neighbouring lanes have neighbouring words, so that they touch neighbouring bytes together, wherever the
// row begins. The example with hidden 4097 (2048 chains, SETS 4): element 1030 is still in pack 2 of warp 0, whose packs begin at k·512 elements, but as its element
// 6: word 3, of lane 3 (elements 6 and 7), in the first of that lane's four words, which are SPREAD = 64 elements apart (6, 70, 134, 198). Chains
// keep their elements and the tree its order; only who folds what differs: a lane the two chains of a word, the warp those of words at one distance
// (lanes 0 … 31 have the chains 0 … 63 in their first words), and then what its words came to, 0 … 63 with 64 … 127 (fold_spread).
//
// In place y has the rows of x, z those of x or of the residual, dx those of x, dy or dz. A kernel that may be launched so reads every element of a row for
// the last time before it is written: in the thread that writes it, or ahead of a barrier, a shuffle or a message that the writer awaits. Where words have halves
// of two lanes, all loads of a pack come before the shuffles that hand halves over, and these before its stores. No pointer is __restrict__.
// docs/determinism.md goes through the kernels.

constexpr u32 THREADS = TEAM * TEAMS;
constexpr u32 TEAM_LANES = TEAM < 32 ? TEAM : 32;     // lanes of a team within one warp
constexpr u32 TEAM_WARPS = TEAM < 32 ? 1 : TEAM / 32;  // warps of a team
constexpr u32 TEAM_WARPS_PADDED = TEAM_WARPS <= 1 ? 1 : TEAM_WARPS <= 2 ? 2 : TEAM_WARPS <= 4 ? 4 : TEAM_WARPS <= 8 ? 8 : TEAM_WARPS <= 16 ? 16 : 32;

// Elements of the widest row that the threads hold.
constexpr u32 HOLDS = CLUSTER * TEAM * PACK * PACKS;

// The width: a constant if it is known.
__device__ __forceinline__ u32 exact_hidden(u32 given) { return EXACT ? HOLDS : given; }

// The same as what a sum is divided by.
__device__ __forceinline__ auto divisor(u32 hidden) {
    if constexpr (EXACT && (HOLDS & (HOLDS - 1)) == 0) return PowerOfTwo{1.0f / HOLDS};
    else return (float)hidden;
}

// The lanes of this thread's team within its warp.
__device__ __forceinline__ u32 team_mask() { return TEAM_LANES == 32 ? ~0u : ((1u << (TEAM_LANES % 32)) - 1) << (threadIdx.x % 32 / TEAM_LANES * TEAM_LANES); }

// Neighbouring elements of a pack, and from one such word of it to the next.
constexpr u32 WORD = ALIGNED ? PACK : 4 / sizeof(T), SPREAD = WORD * TEAM_LANES;

// Where element i of a pack lies after its first.
__device__ __forceinline__ u32 place(u32 i) { return i / WORD * SPREAD + i % WORD; }

// Where a pack lies in a row: the first element that its warp has of it, and this lane's. `whole`: all that the warp has is known to lie before the
// end of the row. Where all lies past the end there is nothing to do: of 4097 elements one warp has the last pack, and the others pass over it.
struct Column {
    u32 of_warp, of_lane, of_pack;
    bool whole;

    __device__ __forceinline__ Column(u32 first) : of_warp(first), of_lane(0), of_pack(0), whole(false) {}
    __device__ __forceinline__ Column(u32 of_warp, u32 of_lane, u32 of_pack, bool whole) : of_warp(of_warp), of_lane(of_lane), of_pack(of_pack), whole(whole) {}

    __device__ __forceinline__ u32 first() const { return of_warp + of_lane + of_pack; }
    // Of a row that is there, `hidden` being its length.
    __device__ __forceinline__ bool has(u32 i, u32 hidden) const { return whole || first() + place(i) < hidden; }
    __device__ __forceinline__ bool is_whole(u32 hidden) const { return whole || of_warp + of_pack + TEAM_LANES * PACK <= hidden; }
    __device__ __forceinline__ bool is_outside(u32 hidden) const { return !ALIGNED && !whole && of_warp + of_pack >= hidden; }
    template <typename E> __device__ __forceinline__ E* at(E* row, u32 i) const { return row + (of_warp + of_lane) + (u64)(of_pack + place(i)); }
};

// That of pack k of this thread. All packs of a held row before its last are whole.
__device__ __forceinline__ Column column_of(u32 k) {
    const u32 member = threadIdx.x % TEAM, lane = member % TEAM_LANES;
    if (ALIGNED) return (k * TEAM + member) * PACK;
    return Column((member - lane) * PACK, lane * WORD, k * TEAM * PACK, k + 1 < PACKS);
}

// A row of two-byte elements of which it is known whether it begins in the middle of a word. Of any other row nothing has to be known.
template <typename E, bool SPLIT> struct Lying { E* row; };

// Whether what is done for rows of this scale is seldom done: such text is not compiled once more for how a row lies.
// (That of one pack is short, and otherwise spilled what its few registers do not hold.)
constexpr bool is_seldom(RowScale) { return PACKS > 1; }
constexpr bool is_seldom(OrdinaryRow) { return false; }

// Calls `f` with a row as what it is; where that is seldom, as a row of which nothing is known.
template <bool IS_SELDOM = false, typename E, typename F> __device__ __forceinline__ void as_it_lies(E* row, F f) {
    if constexpr (ALIGNED || sizeof(E) == 4 || IS_SELDOM) f(row);
    else if ((u64)row & 2) f(Lying<E, true>{row});
    else f(Lying<E, false>{row});
}

// PACK elements of type E, as they lie in memory.
template <typename E> struct Pack {
    static constexpr u32 WORDS = PACK * sizeof(E) / 4, WORDS_AT_ONCE = WORDS < 4 ? WORDS : 4, PARTS = WORDS / WORDS_AT_ONCE;
    using Part = Words<WORDS_AT_ONCE>;
    Part part[PARTS];

    __device__ __forceinline__ u32& word(u32 i) { return part[i / WORDS_AT_ONCE].word[i % WORDS_AT_ONCE]; }
    __device__ __forceinline__ u32 word(u32 i) const { return part[i / WORDS_AT_ONCE].word[i % WORDS_AT_ONCE]; }

    __device__ __forceinline__ float operator[](int i) const {
        if constexpr (sizeof(E) == 4) return __uint_as_float(word(i));
        else return widen(E{(u16)(word(i / 2) >> (i % 2 * 16))});
    }
};

// A pack of a row of `hidden` elements; those past the end are zero. A team without a row loads
// nothing, because it passes a `hidden` of 0.
template <typename E> __device__ __forceinline__ Pack<E> load_pack(const E* row, Column column, u32 hidden) {
    Pack<E> v = {};
    if constexpr (ALIGNED) {
        if (EXACT ? hidden > 0 : column.first() < hidden) {
#pragma unroll
            for (u32 h = 0; h < Pack<E>::PARTS; h++) v.part[h] = ((const typename Pack<E>::Part*)(row + column.first()))[h];
        }
    } else if (hidden > 0 && !column.is_outside(hidden)) {
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            if (!column.has(i, hidden)) continue;
            if constexpr (sizeof(E) == 4) v.word(i) = *column.at((const u32*)row, i);
            else v.word(i / 2) |= (u32)*column.at((const u16*)row, i) << (i % 2 * 16);
        }
    }
    return v;
}

// The same in words, in two steps, so that all that a thread loads of a row is on its way before it waits for any. The lanes of a team come here
// together.
//
// In a split row a lane loads the words in which its own begin; their other halves are the lane's after it, or for the last lane those of lane 0 at
// its next word, and are handed over when they have come. Lane 0's first word and the last lane's last have a half that is another warp's, or
// nobody's: of these their own half is loaded alone. `begin_pack` gives that of the last lane.
template <typename E> __device__ __forceinline__ u32 begin_pack(Pack<E>& v, const E* row, Column column, u32 hidden) {
    v = load_pack(row, column, hidden);
    return 0;
}

template <typename E, bool SPLIT> __device__ __forceinline__ u32 begin_pack(Pack<E>& v, Lying<const E, SPLIT> from, Column column, u32 hidden) {
    const u16* row = (const u16*)from.row;
    v = {};
    if constexpr (SPLIT) {
        if (!column.is_whole(hidden)) return begin_pack(v, from.row, column, hidden);
        const u32 lane = threadIdx.x % TEAM_LANES;
        const bool is_row = hidden > 0, is_first = is_row && lane == 0, others = is_row && lane > 0;
        if (is_first) v.word(0) = *column.at(row, 0);
#pragma unroll
        for (u32 i = 0; i < PACK; i += 2)
            if (i > 0 ? is_row : others) v.word(i / 2) = load_word(column.at(row, i) - 1);
        return is_row && lane == TEAM_LANES - 1 ? *column.at(row, PACK - 1) : 0;
    } else if (column.is_whole(hidden)) {
#pragma unroll
        for (u32 i = 0; i < PACK; i += 2)
            if (hidden > 0) v.word(i / 2) = load_word(column.at(row, i));
    } else if (!column.is_outside(hidden)) {
#pragma unroll
        for (u32 i = 0; i < PACK; i += 2) {
            const bool both = column.has(i + 1, hidden), one = !both && column.has(i, hidden);
            if (one) v.word(i / 2) = *column.at(row, i);
            if (both) v.word(i / 2) = load_word(column.at(row, i));
        }
    }
    return 0;
}

template <typename E> __device__ __forceinline__ void end_pack(Pack<E>&, const E*, Column, u32, u32) {}

template <typename E, bool SPLIT> __device__ __forceinline__ void end_pack(Pack<E>& v, Lying<const E, SPLIT>, Column column, u32 hidden, u32 last) {
    if (!SPLIT || !column.is_whole(hidden)) return;
    const u32 lane = threadIdx.x % TEAM_LANES, after = threadIdx.x % 32 - lane + (lane + 1) % TEAM_LANES;
#pragma unroll
    for (u32 i = 0; i < PACK; i += 2) {
        const u32 mine = v.word(i / 2), own = i == 0 && lane == 0 ? mine : mine >> 16;
        const bool is_end = i + 2 == PACK;
        const u32 handed = __shfl_sync(team_mask(), is_end || lane > 0 ? mine : v.word(i / 2 + 1 - is_end), after);
        v.word(i / 2) = own | (is_end && lane == TEAM_LANES - 1 ? last : handed) << 16;
    }
}

// The same of a row of which nothing is known.
template <bool IS_SELDOM = false, typename E> __device__ __forceinline__ Pack<E> load_words(const E* row, Column column, u32 hidden) {
    Pack<E> v;
    as_it_lies<IS_SELDOM>(row, [&](auto from) {
        const u32 last = begin_pack(v, from, column, hidden);
        end_pack(v, from, column, hidden, last);
    });
    return v;
}

// All packs that this thread has of a row.
template <bool IS_SELDOM = false, typename E, u32 N> __device__ __forceinline__ void load_row(Pack<E> (&v)[N], const E* row, u32 hidden) {
    as_it_lies<IS_SELDOM>(row, [&](auto from) {
        u32 last[N];
#pragma unroll
        for (u32 k = 0; k < N; k++) last[k] = begin_pack(v[k], from, column_of(k), hidden);
#pragma unroll
        for (u32 k = 0; k < N; k++) end_pack(v[k], from, column_of(k), hidden, last[k]);
    });
}

// PACK values, rounded.
template <typename E> __device__ __forceinline__ Pack<E> rounded(const float (&value)[PACK]) {
    Pack<E> v;
#pragma unroll
    for (u32 i = 0; i < Pack<E>::WORDS; i++) {
        if constexpr (sizeof(E) == 4) v.word(i) = __float_as_uint(store<E>(value[i]));
        else v.word(i) = store_pair<E>(value[2 * i], value[2 * i + 1]);
    }
    return v;
}

// Rounds and writes PACK values, those before the end of the row.
template <typename E> __device__ __forceinline__ void store_pack(E* row, Column column, u32 hidden, const float (&value)[PACK]) {
    if constexpr (ALIGNED) {
        if (EXACT ? hidden == 0 : column.first() >= hidden) return;
        const Pack<E> v = rounded<E>(value);
#pragma unroll
        for (u32 h = 0; h < Pack<E>::PARTS; h++) store_words((typename Pack<E>::Part*)(row + column.first()) + h, v.part[h]);
    } else if (hidden > 0 && !column.is_outside(hidden)) {
#pragma unroll
        for (u32 i = 0; i < PACK; i++)
            if (column.has(i, hidden)) *column.at(row, i) = store<E>(value[i]);
    }
}

// The same, in words; the lanes of a team come here together. In a split row lane t writes its first element together with the one before, which
// lane t - 1 hands over, or to lane 0 the last lane, of its word before. Lane 0 of the first word and the last lane of the last have an element whose
// other half of a word is another warp's: they write it alone.
template <typename E, bool SPLIT> __device__ __forceinline__ void store_pack(Lying<E, SPLIT> to, Column column, u32 hidden, const float (&value)[PACK]) {
    if (!column.is_whole(hidden)) return store_pack(to.row, column, hidden, value);
    const u32 lane = threadIdx.x % TEAM_LANES, from = threadIdx.x % 32 - lane + (lane + TEAM_LANES - 1) % TEAM_LANES;
    const bool is_row = hidden > 0, is_first = is_row && lane == 0, is_last = is_row && lane == TEAM_LANES - 1, others = is_row && lane > 0;
    u32 of_last = 0;
#pragma unroll
    for (u32 i = 0; i < PACK; i += 2) {
        u16* at = column.at((u16*)to.row, i);
        const u32 mine = store_pair<E>(value[i], value[i + 1]);
        if constexpr (!SPLIT) {
            if (is_row) store_word(at, mine);
        } else {
            const u32 handed = __shfl_sync(team_mask(), mine, from), before = lane > 0 ? handed : of_last;
            of_last = handed;
            if (i > 0 ? is_row : others) store_word(at - 1, before >> 16 | mine << 16);
            if (i == 0 && is_first) at[0] = (u16)mine;
            if (i + 2 == PACK && is_last) at[1] = (u16)(mine >> 16);
        }
    }
}

// The weight that multiplies element i of a pack.
__device__ __forceinline__ float weight_of(const Pack<W>& weight, int i) {
    return HAS_WEIGHT ? effective_weight(weight[i], ZERO_CENTRED) : 1.0f;
}

__device__ __forceinline__ Pack<W> load_weight(const W* weight, Column column, u32 hidden) {
    return HAS_WEIGHT ? load_pack(weight, column, hidden) : Pack<W>{};
}

__device__ __forceinline__ Pack<B> load_bias(const B* bias, Column column, u32 hidden) {
    return HAS_BIAS ? load_pack(bias, column, hidden) : Pack<B>{};
}

template <bool IS_SELDOM = false> __device__ __forceinline__ Pack<T> load_dz(const T* row, Column column, u32 hidden) {
    return HAS_DZ ? load_words<IS_SELDOM>(row, column, hidden) : Pack<T>{};
}

// Stores the sums of a pack of x and one of the residual, rounded, and gives what it stored.
template <typename R> __device__ __forceinline__ Pack<T> store_sum(R row, Column column, u32 hidden, const Pack<T>& x, const Pack<T>& residual) {
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
template <typename R, typename S> __device__ __forceinline__ void store_y(R row, Column column, u32 hidden, const Pack<T>& z, const Pack<W>& w, const Pack<B>& b, S scale) {
    float out[PACK];
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) {
        const float h = factor<T>(x_hat(z[i], scale), TWICE);
        out[i] = HAS_BIAS ? weighted_with(h, weight_of(w, i), b[i]) : weighted(h, weight_of(w, i));
    }
    store_pack(row, column, hidden, out);
}

template <typename R, typename S> __device__ __forceinline__ void store_dx(R row, Column column, u32 hidden, const Pack<T>& z, const Pack<T>& d, const Pack<T>& g, const Pack<W>& w, S scale, float c) {
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
