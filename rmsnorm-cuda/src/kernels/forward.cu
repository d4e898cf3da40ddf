// y and rstd of every row. Blocks take rows in any order: no row knows another.
//
// A row stays in registers between the statistic and y. Many blocks of few rows, rather than few of many: the hardware hands the
// next block to whichever multiprocessor is done first. A team has ROWS rows on their way at once: row r·TEAMS after the first of the block.
// Of narrow rows the roots are most of the work: each lane of a team takes that of another row.

constexpr u32 WEIGHTS = HEADS ? ROWS : 1;  // of the rows of a team
constexpr bool SHARES_ROOTS = ROWS > 1 && TEAM_WARPS == 1 && TEAM_LANES >= ROWS;

// rstd of each of a team's rows; 0 of one that has to be scaled, and of all where a lane has them all to itself.
__device__ __forceinline__ void ordinary_rstds(const float (&sum)[ROWS], u32 hidden, float eps, float (&rstd)[ROWS]) {
    const u32 lane = threadIdx.x % TEAM_LANES;
    float mine = sum[0];
#pragma unroll
    for (u32 r = 1; r < ROWS; r++)
        if (lane % ROWS == r) mine = sum[r];
    mine = SHARES_ROOTS ? ordinary_rstd(mine, divisor_of<ROWS>(hidden), eps) : 0.0f;
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) rstd[r] = SHARES_ROOTS ? __shfl_sync(team_mask(), mine, threadIdx.x % 32 - lane + r) : 0.0f;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) forward(FORWARD_PARAMETERS) {
    const u32 hidden = exact_hidden(hidden_given);
    const u32 team = threadIdx.x / TEAM;
    __shared__ float nodes[TEAMS][2][SETS * TEAM_WARPS];
    RowFold fold_row{nodes[team]};
    for (u64 first = (u64)blockIdx.x * TEAMS * ROWS; first < rows; first += (u64)gridDim.x * TEAMS * ROWS) {
        Pack<X> of_x[ROWS][PACKS];
        Pack<T> z[ROWS][PACKS];
        Pack<W> w[WEIGHTS][PACKS] = {};
        Pack<B> b[WEIGHTS][PACKS] = {};
        auto load_weights = [&] {
#pragma unroll
            for (u32 r = 0; r < WEIGHTS; r++) {
                const u64 row = first + r * TEAMS + team;
                const u32 end = row < rows ? hidden : 0;
                if (HAS_WEIGHT) load_row(w[r], OF_HEAD(weight, row), end);
                if (HAS_BIAS) load_row(b[r], OF_HEAD(bias, row), end);
            }
        };
        // The halves of a split row's words are put together where they are loaded: there all wait for x, and the weight goes first.
        if (!ALIGNED) load_weights();
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const u64 row = first + r * TEAMS + team;
            load_row(of_x[r], ROW(x, row), row < rows ? hidden : 0);
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (HAS_RESIDUAL) {
                const u64 row = first + r * TEAMS + team;
                const u32 end = row < rows ? hidden : 0;
                Pack<R> other[PACKS];
                load_row(other, ROW(residual, row), end);
                as_it_lies(ROW(z_out, row), [&](auto to) {
#pragma unroll
                    for (u32 k = 0; k < PACKS; k++) z[r][k] = store_sum(to, column_of(k), end, of_x[r][k], other[k]);
                });
            } else {
#pragma unroll
                for (u32 k = 0; k < PACKS; k++) z[r][k] = without_residual(of_x[r][k]);
            }
        }
        if (ALIGNED) load_weights();
        float sum[ROWS], ordinary[ROWS], kept = 0.0f;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const u32 end = first + r * TEAMS + team < rows ? hidden : 0;  // a team without a row loads and stores nothing
            sum[r] = reduce(fold_row, [&](u32 k, float (&p)[PACK]) {
                if (!column_of(k).is_outside(end)) squares_step(z[r][k], p);
            });
        }
        ordinary_rstds(sum, hidden, eps, ordinary);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const u64 row = first + r * TEAMS + team;
            const u32 end = row < rows ? hidden : 0;
            Statistic stat{ordinary[r], {1.0f, ordinary[r]}};
            if (!SHARES_ROOTS || ordinary[r] == 0.0f)
                stat = statistic(sum[r], divisor_of<ROWS>(hidden), eps, [&](float s) {
                    return reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(z[r][k], s, p); });
                });
            if (SHARES_ROOTS && threadIdx.x % TEAM == r) kept = stat.rstd;
            if (!SHARES_ROOTS && rstd && threadIdx.x % TEAM == 0 && row < rows) rstd[row] = stat.rstd;
            auto emit = [&](auto scale) {
                as_it_lies<is_seldom(decltype(scale){})>(ROW(y, row), [&](auto to) {
#pragma unroll
                    for (u32 k = 0; k < PACKS; k++) store_y(to, column_of(k), end, z[r][k], w[r % WEIGHTS][k], b[r % WEIGHTS][k], scale);
                });
            };
            if (stat.scale.pre == 1.0f) emit(OrdinaryRow{stat.rstd});
            else emit(stat.scale);
        }
        const u64 row = first + threadIdx.x % TEAM * TEAMS + team;
        if (SHARES_ROOTS && rstd && threadIdx.x % TEAM < ROWS && row < rows) rstd[row] = kept;
    }
}
