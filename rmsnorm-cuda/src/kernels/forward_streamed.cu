// Rows too long for a block to hold: each is read twice, the second time from the cache if it fits.

extern "C" __global__ void __launch_bounds__(THREADS) forward(FORWARD_PARAMETERS) {
    const u32 hidden = exact_hidden(hidden_given);
    __shared__ float nodes[2][SETS * TEAM_WARPS];
    RowFold fold_row{nodes};
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* z = without_residual(ROW(x, row));
        if (HAS_RESIDUAL) {
            for (u32 k = 0; k * THREADS * PACK < hidden; k++)
                store_sum(ROW(z_out, row), column_of(k), hidden, load_pack(ROW(x, row), column_of(k), hidden), load_pack(ROW(residual, row), column_of(k), hidden));
            team_barrier();  // other threads read what this one has stored
            z = ROW(z_out, row);
        }
        auto squares = [&](float s) { return streamed_squares(z, hidden, chains, s, fold_row); };
        const Statistic stat = statistic(squares(1.0f), (float)hidden, eps, squares);
        if (rstd && threadIdx.x == 0) rstd[row] = stat.rstd;
        for (u32 k = 0; k * THREADS * PACK < hidden; k++)
            store_y(ROW(y, row), column_of(k), hidden, load_pack(z, column_of(k), hidden), load_weight(OF_HEAD(weight, row), column_of(k), hidden),
                    load_bias(OF_HEAD(bias, row), column_of(k), hidden), stat.scale);
    }
}
