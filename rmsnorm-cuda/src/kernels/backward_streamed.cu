// Rows too long for a block to hold: each is read twice, the second time from the cache if it fits.

extern "C" __global__ void __launch_bounds__(THREADS) backward(BACKWARD_PARAMETERS) {
    BACKWARD_OF_HEAD;
    const u32 hidden = exact_hidden(hidden_given);
    __shared__ float nodes[2][SETS * TEAM_WARPS];
    RowFold fold_row{nodes};
    for (u64 row = block_of_head(inner); row < rows; row += blocks_of_head(inner)) {
        const T* z = ROW(x, row);
        const DY* d = ROW(dy, row);
        const RowScale scale = row_scale(rstd[row], [&] {
            return scaled_root(streamed_squares(z, hidden, chains, SCALE_UP, fold_row), (float)hidden);
        });
        const float dot = streamed(hidden, dot_chains, fold_row, [&](u32 column, float (&p)[PACK]) {
            dot_step(load_pack(z, column, hidden), load_pack(d, column, hidden), load_weight(weight, column, hidden), scale, p);
        });
        const float c = mean(dot, (float)hidden);
        for (u32 k = 0; k * THREADS * PACK < hidden; k++)
            store_dx(ROW(dx, row), column_of(k), hidden, load_pack(z, column_of(k), hidden), load_pack(d, column_of(k), hidden),
                     load_dz(ROW(dz, row), column_of(k), hidden), load_weight(weight, column_of(k), hidden), scale, c);
    }
}

// The partial rows: dw does not need the dot product, so a block takes one tile of columns of one group. It is launched first, for in place the rows
// that it reads are dx afterwards.
extern "C" __global__ void __launch_bounds__(THREADS) columns(BACKWARD_PARAMETERS) {
    BACKWARD_OF_HEAD;
    const u32 hidden = exact_hidden(hidden_given);
    __shared__ float nodes[2][SETS * TEAM_WARPS];
    RowFold fold_row{nodes};
    const u32 tiles = (hidden + THREADS * PACK - 1) / (THREADS * PACK);
    for (u64 item = block_of_head(inner); item < groups * tiles; item += blocks_of_head(inner)) {
        const u64 group = item / tiles;
        const Column column = column_of((u32)(item % tiles));
        float sum[PACK] = {};
        for (u64 row = group; row < rows; row += groups) {
            const T* z = ROW(x, row);
            const RowScale scale = row_scale(rstd[row], [&] {
                return scaled_root(streamed_squares(z, hidden, chains, SCALE_UP, fold_row), (float)hidden);
            });
            column_step(load_pack(z, column, hidden), load_pack(ROW(dy, row), column, hidden), scale, sum);
        }
        store_pack(partial + group * hidden, column, hidden, sum);
    }
}
