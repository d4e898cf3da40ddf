// How packs are loaded and stored, of rows that are aligned (whole packs) and of others (words, and halves of words that lanes hand over).

// A row of two-byte elements, each lane having two neighbours of it, of which it is known whether it begins in the middle of a word. Of any other row nothing has to be known.
template <typename E, bool SPLIT> struct Lying { E* row; };

// Whether what is done for rows of this scale is seldom done: such text is not compiled once more for how a row lies.
// (That of one pack is short, and otherwise spilled what its few registers do not hold.)
constexpr bool is_seldom(RowScale) { return PACKS > 1; }
constexpr bool is_seldom(OrdinaryRow) { return false; }

// Calls `f` with a row as what it is; where that is seldom, as a row of which nothing is known.
template <bool IS_SELDOM = false, typename E, typename F> __device__ __forceinline__ void as_it_lies(E* row, F f) {
    if constexpr (ALIGNED || sizeof(E) == 4 || WORD == 1 || IS_SELDOM) f(row);
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

template <bool IS_SELDOM = false> __device__ __forceinline__ Pack<DZ> load_dz(const DZ* row, Column column, u32 hidden) {
    return HAS_DZ ? load_words<IS_SELDOM>(row, column, hidden) : Pack<DZ>{};
}

// Stores the sums of a pack of x and one of the residual, rounded, and gives what it stored.
template <typename To> __device__ __forceinline__ Pack<T> store_sum(To row, Column column, u32 hidden, const Pack<X>& x, const Pack<R>& residual) {
    float sum[PACK];
#pragma unroll
    for (int i = 0; i < (int)PACK; i++) sum[i] = added(x[i], residual[i]);
    store_pack(row, column, hidden, sum);
    return rounded<T>(sum);
}

// What is normalised where there is no residual: x, which is then of type T.
__device__ __forceinline__ const T* without_residual(const T* x) { return x; }
__device__ __forceinline__ Pack<T> without_residual(const Pack<T>& x) { return x; }
template <typename E> __device__ __forceinline__ const T* without_residual(const E*) { return nullptr; }
template <typename E> __device__ __forceinline__ Pack<T> without_residual(const Pack<E>&) { return {}; }
