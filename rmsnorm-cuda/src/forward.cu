// y and rstd of every row. A block takes rows in any order: no row knows another.

#if VECTORS > 0

// A lane holds its part of the row in registers between the statistic and the output; the weight stays for all rows.
extern "C" __global__ void __launch_bounds__(THREADS)
forward(const T* x, u64 x_stride, const W* weight, T* y, u64 y_stride, float* rstd, u64 rows, u32 hidden, u32 chains, float eps) {
    const u32 lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    const u32 owned = lane * 8 < chains ? hidden : 0;  // a lane without chains owns nothing
    __shared__ float nodes[2][WARPS ? WARPS : 1];
    RowFold<1> fold_row{nodes};
    Eight<W> w[VECTORS];
#pragma unroll
    for (u32 k = 0; k < VECTORS; k++) w[k] = load_weight(weight, k * chains + lane * 8, owned);

    for (u64 base = (u64)blockIdx.x * ROWS; base < rows; base += (u64)gridDim.x * ROWS) {
        const u64 row = base + slot;
        const u32 end = row < rows ? owned : 0;
        Eight<T> z[VECTORS];
#pragma unroll
        for (u32 k = 0; k < VECTORS; k++) z[k] = load_eight(x + row * x_stride, k * chains + lane * 8, end);
        auto squares = [&](float s) {
            float p[8] = {};
#pragma unroll
            for (u32 k = 0; k < VECTORS; k++)
#pragma unroll
                for (int i = 0; i < 8; i++) p[i] = chain(__fmul_rn(z[k][i], s), __fmul_rn(z[k][i], s), p[i]);
            return fold_row({fold_eight(p)});
        };
        const Statistic stat = statistic(squares(1.0f), (float)hidden, eps, squares);
        if (rstd && lane == 0 && row < rows) rstd[row] = stat.rstd;
#pragma unroll
        for (u32 k = 0; k < VECTORS; k++) {
            float out[8];
#pragma unroll
            for (int i = 0; i < 8; i++) out[i] = weighted(x_hat(z[k][i], stat.scale), weight_of(w[k], i));
            store_eight(y + row * y_stride, k * chains + lane * 8, end, out);
        }
    }
}

#else

// A row is read twice, the second time from the cache if it fits.
extern "C" __global__ void __launch_bounds__(THREADS)
forward(const T* x, u64 x_stride, const W* weight, T* y, u64 y_stride, float* rstd, u64 rows, u32 hidden, u32 chains, float eps) {
    __shared__ float nodes[2][STREAM_SETS * WARPS];
    RowFold<STREAM_SETS> fold_row{nodes};
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* z = x + row * x_stride;
        auto squares = [&](float s) { return streamed_squares(z, hidden, chains, s, fold_row); };
        const Statistic stat = statistic(squares(1.0f), (float)hidden, eps, squares);
        if (rstd && threadIdx.x == 0) rstd[row] = stat.rstd;
        for (u32 column = threadIdx.x * 8; column < hidden; column += THREADS * 8) {
            const Eight<T> v = load_eight(z, column, hidden);
            const Eight<W> w = load_weight(weight, column, hidden);
            float out[8];
#pragma unroll
            for (int i = 0; i < 8; i++) out[i] = weighted(x_hat(v[i], stat.scale), weight_of(w, i));
            store_eight(y + row * y_stride, column, hidden, out);
        }
    }
}

#endif
