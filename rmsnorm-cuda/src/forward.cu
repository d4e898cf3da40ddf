// y and rstd of every row. Blocks take rows in any order: no row knows another.

#define FORWARD_PARAMETERS                                                                                              \
    const T *x, u64 x_stride, const W *weight, T *y, u64 y_stride, float *rstd, u64 rows, u32 hidden_given, u32 chains_given, float eps

#if PACKS == 0

// The row is read twice, the second time from the cache if it fits.
extern "C" __global__ void __launch_bounds__(THREADS) forward(FORWARD_PARAMETERS) {
    const u32 hidden = exact_hidden(hidden_given), chains = exact_chains(chains_given);
    __shared__ float nodes[2][SETS * WARPS];
    RowFold<SETS> fold_row{nodes};
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* z = x + row * x_stride;
        auto squares = [&](float s) { return streamed_squares(z, hidden, chains, s, fold_row); };
        const Statistic stat = statistic(squares(1.0f), (float)hidden, eps, squares);
        if (rstd && threadIdx.x == 0) rstd[row] = stat.rstd;
        for (u32 column = threadIdx.x * PACK; column < hidden; column += THREADS * PACK)
            store_y(y + row * y_stride, column, hidden, load_pack(z, column, hidden), load_weight(weight, column, hidden), stat.scale);
    }
}

#else

// The weight stays in registers for all rows of a team.
extern "C" __global__ void __launch_bounds__(THREADS) forward(FORWARD_PARAMETERS, u32 stages) {
    const u32 hidden = exact_hidden(hidden_given), chains = exact_chains(chains_given);
    const u32 lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
    const u32 owned = EXACT || lane * PACK < chains ? hidden : 0;  // a lane without chains owns nothing
    __shared__ float nodes[ROWS][2][WARPS];
    RowFold<1> fold_row{nodes[team]};
    Pack<W> w[PACKS];
#pragma unroll
    for (u32 k = 0; k < PACKS; k++) w[k] = load_weight(weight, k * chains + lane * PACK, owned);
    const u64 step = (u64)gridDim.x * ROWS;
    u64 row = (u64)blockIdx.x * ROWS + team;

#if RING
    __shared__ u64 barriers[ROWS][STAGES_MAX];
    Ring ring(barriers, hidden * sizeof(T), stages);
    u64 next = row;  // the next row to fetch
    auto fetch = [&](u32 stage) {
        if (lane == 0 && next < rows) {
            ring.expect(stage);
            ring.fill(stage, 0, x + next * x_stride, ring.stage_bytes);
        }
        next += step;
    };
    for (u32 s = 0; s + 1 < stages; s++) fetch(s);
    for (; row < rows; row += step) {
        const T* z_row = (const T*)ring.wait();
        auto z = [&](u32 k) { return load_pack(z_row, k * chains + lane * PACK, owned); };
#else
    for (u64 first = (u64)blockIdx.x * ROWS; first < rows; first += step, row += step) {
        const u32 end = row < rows ? owned : 0;
        auto load = [&](u32 k) { return load_pack(x + row * x_stride, k * chains + lane * PACK, end); };
        Pack<T> held[PACKS];
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) if (HELD) held[k] = load(k);
        auto z = [&](u32 k) { return HELD ? held[k] : load(k); };
#endif
        float p[PACK] = {};
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) squares_step(z(k), p);
        const float sum = fold_row({fold_pack(p)});
#if RING
        if (WARPS == 1) team_barrier();
        fetch(ring.before(ring.stage));  // the team has met: nobody reads the row before this one any more
#endif
        const Statistic stat = statistic(sum, (float)hidden, eps, [&](float s) {
            float q[PACK] = {};
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) scaled_squares_step(z(k), s, q);
            return fold_row({fold_pack(q)});
        });
        const bool active = RING || row < rows;
        if (rstd && lane == 0 && active) rstd[row] = stat.rstd;
        auto emit = [&](auto scale) {
#pragma unroll
            for (u32 k = 0; k < PACKS; k++)
                store_y(y + row * y_stride, k * chains + lane * PACK, active ? owned : 0, z(k), w[k], scale);
        };
        if (stat.scale.pre == 1.0f) emit(OrdinaryRow{stat.rstd});
        else emit(stat.scale);
#if RING
        ring.advance();
#endif
    }
}

#endif
