// y and rstd of every row. Blocks take rows in any order: no row knows another.
//
// A row stays in registers between the statistic and y. Many blocks of few rows, rather than few of many: the hardware hands the
// next block to whichever multiprocessor is done first. A team has ROWS rows on their way at once: row r·TEAMS after the first of the block.

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) forward(FORWARD_PARAMETERS) {
    const u32 hidden = exact_hidden(hidden_given);
    const u32 team = threadIdx.x / TEAM;
    __shared__ float nodes[TEAMS][2][SETS * TEAM_WARPS];
    RowFold fold_row{nodes[team]};
    for (u64 first = (u64)blockIdx.x * TEAMS * ROWS; first < rows; first += (u64)gridDim.x * TEAMS * ROWS) {
        Pack<T> z[ROWS][PACKS];
        Pack<W> w[PACKS] = {};
        Pack<B> b[PACKS] = {};
        // The halves of a split row's words are put together where they are loaded: there all wait for x, and the weight goes first.
        if (HAS_WEIGHT && !ALIGNED) load_row(w, weight, first + team < rows ? hidden : 0);
        if (HAS_BIAS && !ALIGNED) load_row(b, bias, first + team < rows ? hidden : 0);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const u64 row = first + r * TEAMS + team;
            load_row(z[r], ROW(x, row), row < rows ? hidden : 0);
        }
        if (HAS_RESIDUAL) {
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                const u64 row = first + r * TEAMS + team;
                const u32 end = row < rows ? hidden : 0;
                Pack<T> other[PACKS];
                load_row(other, ROW(residual, row), end);
                as_it_lies(ROW(z_out, row), [&](auto to) {
#pragma unroll
                    for (u32 k = 0; k < PACKS; k++) z[r][k] = store_sum(to, column_of(k), end, z[r][k], other[k]);
                });
            }
        }
        if (HAS_WEIGHT && ALIGNED) load_row(w, weight, first + team < rows ? hidden : 0);
        if (HAS_BIAS && ALIGNED) load_row(b, bias, first + team < rows ? hidden : 0);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const u64 row = first + r * TEAMS + team;
            const u32 end = row < rows ? hidden : 0;  // a team without a row loads and stores nothing
            const float sum = reduce(fold_row, [&](u32 k, float (&p)[PACK]) {
                if (!column_of(k).is_outside(end)) squares_step(z[r][k], p);
            });
            const Statistic stat = statistic(sum, (float)hidden, eps, [&](float s) {
                return reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(z[r][k], s, p); });
            });
            if (rstd && threadIdx.x % TEAM == 0 && row < rows) rstd[row] = stat.rstd;
            auto emit = [&](auto scale) {
                as_it_lies<is_seldom(decltype(scale){})>(ROW(y, row), [&](auto to) {
#pragma unroll
                    for (u32 k = 0; k < PACKS; k++) store_y(to, column_of(k), end, z[r][k], w[k], b[k], scale);
                });
            };
            if (stat.scale.pre == 1.0f) emit(OrdinaryRow{stat.rstd});
            else emit(stat.scale);
        }
    }
}
