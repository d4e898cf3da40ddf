// y and rstd of every row. Blocks take rows in any order: no row knows another.

#define FORWARD_PARAMETERS                                                                                              \
    const T *x, u64 x_stride, const W *weight, T *y, u64 y_stride, float *rstd, u64 rows, u32 hidden_given, float eps

#if PACKS == 0

// The row is read twice, the second time from the cache if it fits.
extern "C" __global__ void __launch_bounds__(THREADS) forward(FORWARD_PARAMETERS, u32 chains) {
    const u32 hidden = exact_hidden(hidden_given);
    __shared__ float nodes[2][SETS * WARPS];
    RowFold fold_row{nodes};
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

// A row stays in registers between the statistic and y. Many blocks of few rows, rather than few of many: the hardware hands the
// next block to whichever multiprocessor is done first.
extern "C" __global__ void __launch_bounds__(THREADS, FORWARD_BLOCKS) forward(FORWARD_PARAMETERS) {
    const u32 hidden = exact_hidden(hidden_given);
    const u32 lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
    __shared__ float nodes[ROWS][2][SETS * WARPS];
    RowFold fold_row{nodes[team]};
    for (u64 first = (u64)blockIdx.x * ROWS; first < rows; first += (u64)gridDim.x * ROWS) {
        const u64 row = first + team;
        const u32 end = row < rows ? hidden : 0;  // a team without a row loads and stores nothing
        Pack<T> z[PACKS];
        Pack<W> w[PACKS];
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) z[k] = load_pack_once(x + row * x_stride, column_of(k), end);
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) w[k] = load_weight(weight, column_of(k), end);
        const float sum = reduce(fold_row, [&](u32 k, float (&p)[PACK]) { squares_step(z[k], p); });
        const Statistic stat = statistic(sum, (float)hidden, eps, [&](float s) {
            return reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(z[k], s, p); });
        });
        if (rstd && lane == 0 && row < rows) rstd[row] = stat.rstd;
        auto emit = [&](auto scale) {
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) store_y(y + row * y_stride, column_of(k), end, z[k], w[k], scale);
        };
        if (stat.scale.pre == 1.0f) emit(OrdinaryRow{stat.rstd});
        else emit(stat.scale);
    }
}

#endif
