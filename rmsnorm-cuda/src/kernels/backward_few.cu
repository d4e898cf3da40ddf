// dw and dx of few rows in one launch: no scratch, and no block waits for another. The first blocks have a tile of columns each, of which they
// read every row; the others have TEAMS rows each. Both read x and dy, the second time from the cache: of few rows that costs less than a second
// launch. All groups of a column are one block's, so it folds the whole tree. Never in place: rows are read for dw while their dx is written.

// Of a tile, a lane has PACK neighbouring columns, and LANES lanes share a row; slot s of 32 folds the groups [s·SPAN, (s+1)·SPAN). Groups past
// the last hold +0.0, as pads do.
constexpr u32 LANES = THREADS / 32, TILE = LANES * PACK, SLOTS_OF_A_WARP = 32 / LANES;
static_assert(LANES <= 32 && PACK >= SLOTS_OF_A_WARP, "each slot of a warp keeps the sums of some columns");
constexpr u32 ROWS_AT_ONCE = SPAN < PACK ? SPAN : PACK, GROUPS_AT_ONCE = SPAN < 4 ? SPAN : 4;

struct Columns {
    const T* x;
    u64 x_stride, x_jump;
    const DY* dy;
    u64 dy_stride, dy_jump;
    u64 rows, groups;
    u32 column, hidden;
    u64 inner, reciprocal;
};

// The node of COUNT neighbouring groups, in each of a lane's columns; BATCH of them are on their way at once, and each is one row if ONE_ROW.
// `scale(row, is_there)` is a row's.
template <u32 COUNT, u32 BATCH, bool ONE_ROW, typename S> __device__ __forceinline__ void fold_groups(const Columns& of, u64 first, S& scale, float (&node)[PACK]) {
    if constexpr (COUNT > BATCH) {
        float right[PACK];
        fold_groups<COUNT / 2, BATCH, ONE_ROW>(of, first, scale, node);
        fold_groups<COUNT / 2, BATCH, ONE_ROW>(of, first + COUNT / 2, scale, right);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) node[i] = fold(node[i], right[i]);
    } else {
        float sum[COUNT][PACK] = {};
        for (u64 base = 0; base == 0 || !ONE_ROW && base < of.rows; base += of.groups) {
            Pack<T> z[COUNT];
            Pack<DY> d[COUNT];
            decltype(scale(base, true)) s[COUNT];
#pragma unroll
            for (u32 r = 0; r < COUNT; r++) {
                const u64 row = base + first + r;
                const bool is_there = first + r < of.groups && row < of.rows;
                z[r] = load_pack(row_of(of.x, row, of.x_stride, of.x_jump, of.inner, of.reciprocal), of.column, is_there ? of.hidden : 0);
                d[r] = load_pack(row_of(of.dy, row, of.dy_stride, of.dy_jump, of.inner, of.reciprocal), of.column, is_there ? of.hidden : 0);
                s[r] = scale(row, is_there);
            }
#pragma unroll
            for (u32 r = 0; r < COUNT; r++) column_step(z[r], d[r], s[r], sum[r]);
        }
#pragma unroll
        for (u32 n = 1; n < COUNT; n *= 2)
#pragma unroll
            for (u32 r = 0; r < COUNT; r += 2 * n)
#pragma unroll
                for (u32 i = 0; i < PACK; i++) sum[r][i] = fold(sum[r][i], sum[r + n][i]);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) node[i] = sum[0][i];
    }
}

// Folds the nodes of a warp's slots. At each distance two lanes share the VALUES columns that both have: each hands over its sums of one
// half, and keeps the other, which then begins at `first`.
template <u32 VALUES, u32 DISTANCE> __device__ __forceinline__ void fold_slots(float (&v)[PACK], u32& first) {
    if constexpr (DISTANCE < 32) {
        constexpr u32 HALF = VALUES / 2;
        const bool upper = threadIdx.x & DISTANCE;
#pragma unroll
        for (u32 i = 0; i < HALF; i++) {
            const float kept = upper ? v[i + HALF] : v[i], handed = upper ? v[i] : v[i + HALF];
            v[i] = fold(kept, __shfl_xor_sync(~0u, handed, DISTANCE));
        }
        first += upper ? HALF : 0;
        fold_slots<HALF, 2 * DISTANCE>(v, first);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) backward_few(BACKWARD_FEW_PARAMETERS) {
    const u32 hidden = exact_hidden(hidden_given);
    const u32 tiles = (hidden + TILE - 1) / TILE;
    __shared__ float nodes[TEAMS][2][SETS * TEAM_WARPS];
    RowFold fold_row{nodes[threadIdx.x / TEAM]};

    if (blockIdx.x >= tiles) {
        const u64 row = (u64)(blockIdx.x - tiles) * TEAMS + threadIdx.x / TEAM;
        const u32 end = row < rows ? hidden : 0;  // a team without a row loads and stores nothing
        const float given = end > 0 ? rstd[row] : 0.0f;
        Pack<T> z[PACKS];
        Pack<DY> d[PACKS];
        Pack<DZ> g[PACKS];
        Pack<W> w[PACKS];
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) {
            z[k] = load_pack(ROW(x, row), column_of(k), end);
            d[k] = load_pack(ROW(dy, row), column_of(k), end);
            g[k] = load_dz(ROW(dz, row), column_of(k), end);
            w[k] = load_weight(weight, column_of(k), end);
        }
        auto work = [&](auto scale) {
            const float dot = reduce(fold_row, [&](u32 k, float (&p)[PACK]) { dot_step(z[k], d[k], w[k], scale, p); });
            const float c = mean(dot, (float)hidden);
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) store_dx(ROW(dx, row), column_of(k), end, z[k], d[k], g[k], w[k], scale, c);
        };
        if (given == INFINITY_F32)
            work(row_scale(given, [&] {
                const float squares = reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(z[k], SCALE_UP, p); });
                return scaled_root(squares, (float)hidden);
            }));
        else work(OrdinaryRow{given});
        return;
    }

    __shared__ float of_warps[LANES][TILE];
    const u32 lane = threadIdx.x % LANES;
    const u64 first_group = threadIdx.x / LANES * SPAN;
    const Columns columns{x, x_stride, x_jump, dy, dy_stride, dy_jump, rows, groups, blockIdx.x * TILE + lane * PACK, hidden, inner, reciprocal};
    auto hand_over = [&](float (&node)[PACK]) {
        u32 first = lane * PACK;
        fold_slots<PACK, LANES>(node, first);
#pragma unroll
        for (u32 i = 0; i < PACK / SLOTS_OF_A_WARP; i++) of_warps[threadIdx.x / 32][first + i] = node[i];
    };
    float node[PACK];
    bool is_scaled = false;
    auto ordinary = [&](u64 row, bool is_there) {
        const float given = is_there ? rstd[row] : 0.0f;
        is_scaled |= given == INFINITY_F32;
        return OrdinaryRow{given};
    };
    if (rows <= groups) fold_groups<SPAN, ROWS_AT_ONCE, true>(columns, first_group, ordinary, node);
    else fold_groups<SPAN, GROUPS_AT_ONCE, false>(columns, first_group, ordinary, node);
    hand_over(node);
    if (__syncthreads_or(is_scaled)) {
        // Such rows are rare: all is done again. Each team reads the whole of each of them, for all have to know its root.
        __shared__ float roots[FEW_ROWS_MAX];
        for (u64 row = 0; row < rows; row++) {
            if (rstd[row] != INFINITY_F32) continue;
            const float squares = reduce(fold_row, [&](u32 k, float (&p)[PACK]) {
                scaled_squares_step(load_pack(ROW(x, row), column_of(k), hidden), SCALE_UP, p);
            });
            if (threadIdx.x == 0) roots[row] = scaled_root(squares, (float)hidden);
        }
        __syncthreads();
        auto any = [&](u64 row, bool is_there) {
            return row_scale(is_there ? rstd[row] : 0.0f, [&] { return roots[row]; });
        };
        fold_groups<SPAN, 1, false>(columns, first_group, any, node);
        hand_over(node);
        __syncthreads();
    }
    const u32 column = blockIdx.x * TILE + threadIdx.x;
    if (threadIdx.x >= TILE || column >= hidden) return;
    float v[LANES];
#pragma unroll
    for (u32 w = 0; w < LANES; w++) v[w] = of_warps[w][threadIdx.x];
#pragma unroll
    for (u32 n = 1; n < LANES; n *= 2)
#pragma unroll
        for (u32 w = 0; w < LANES; w += 2 * n) v[w] = fold(v[w], v[w + n]);
    dw[column] = store<DW>(total(v[0]));
}
