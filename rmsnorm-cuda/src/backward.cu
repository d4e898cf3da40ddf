// dx of every row, and the partial column sums of every row group.
//
// A block works on ROWS neighbouring groups at a time: group g is the rows g, g + groups, g + 2·groups, … Its sums stay in
// registers; at the end the block folds its groups (they are a node of the tree) and writes one partial row. A block without a
// group touches nothing, and every partial row below ceil(groups / ROWS) is written in full by exactly one block: nobody reads
// a slot that nobody wrote.

#if VECTORS > 0

// Writes the sums of a block's row groups, folded into one node, as one partial row.
__device__ __forceinline__ void write_partial(float* partial, float (&sum)[VECTORS][8], u32 chains, u32 lane, u32 hidden, u32 owned) {
    if constexpr (ROWS == 1) {
#pragma unroll
        for (u32 k = 0; k < VECTORS; k++) store_eight(partial, k * chains + lane * 8, owned, sum[k]);
        return;
    }
    // The groups of a warp lie LANES lanes apart; the warps of a block follow each other.
    __shared__ float node[THREADS / 32][LANES * 8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (u32 d = LANES; d < 32; d *= 2) sum[0][i] = fold(sum[0][i], __shfl_xor_sync(~0u, sum[0][i], d));
        if (threadIdx.x % 32 < LANES) node[threadIdx.x / 32][lane * 8 + i] = sum[0][i];
    }
    __syncthreads();
    const u32 column = threadIdx.x;
    if (column < LANES * 8 && column < hidden) {
        float p[THREADS / 32];
#pragma unroll
        for (u32 w = 0; w < THREADS / 32; w++) p[w] = node[w][column];
#pragma unroll
        for (u32 d = 1; d < THREADS / 32; d *= 2)
#pragma unroll
            for (u32 w = 0; w < THREADS / 32; w += 2 * d) p[w] = fold(p[w], p[w + d]);
        partial[column] = p[0];
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS)
backward(const T* x, u64 x_stride, const T* dy, u64 dy_stride, const W* weight, const float* rstd, T* dx, u64 dx_stride,
         float* partial, u64 rows, u64 groups, u32 hidden, u32 chains) {
    const u32 lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    const u32 owned = lane * 8 < chains ? hidden : 0;  // a lane without chains owns nothing
    __shared__ float nodes[2][WARPS ? WARPS : 1];
    RowFold<1> fold_row{nodes};
    Eight<W> w[VECTORS];
#pragma unroll
    for (u32 k = 0; k < VECTORS; k++) w[k] = load_weight(weight, k * chains + lane * 8, owned);

    for (u64 base = (u64)blockIdx.x * ROWS; base < groups; base += (u64)gridDim.x * ROWS) {
        float sum[VECTORS][8] = {};
        for (u64 first = base; first < rows; first += groups) {
            const u64 row = first + slot;
            const bool active = base + slot < groups && row < rows;
            const u32 end = active ? owned : 0;
            Eight<T> z[VECTORS], d[VECTORS];
#pragma unroll
            for (u32 k = 0; k < VECTORS; k++) {
                z[k] = load_eight(x + row * x_stride, k * chains + lane * 8, end);
                d[k] = load_eight(dy + row * dy_stride, k * chains + lane * 8, end);
            }
            const RowScale scale = row_scale(active ? rstd[row] : 0.0f, [&] {
                float p[8] = {};
#pragma unroll
                for (u32 k = 0; k < VECTORS; k++)
#pragma unroll
                    for (int i = 0; i < 8; i++) p[i] = chain(__fmul_rn(z[k][i], SCALE_UP), __fmul_rn(z[k][i], SCALE_UP), p[i]);
                return scaled_root(fold_row({fold_eight(p)}), (float)hidden);
            });
            float p[8] = {};
#pragma unroll
            for (u32 k = 0; k < VECTORS; k++)
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float h = x_hat(z[k][i], scale);
                    p[i] = chain(weighted(d[k][i], weight_of(w[k], i)), h, p[i]);
                    sum[k][i] = chain(d[k][i], h, sum[k][i]);
                }
            const float c = mean(fold_row({fold_eight(p)}), (float)hidden);
#pragma unroll
            for (u32 k = 0; k < VECTORS; k++) {
                float out[8];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float wdy = weighted(d[k][i], weight_of(w[k], i));
                    out[i] = gradient(centred(x_hat(z[k][i], scale), c, wdy), scale);
                }
                store_eight(dx + row * dx_stride, k * chains + lane * 8, end, out);
            }
        }
        if (partial) write_partial(partial + base / ROWS * hidden, sum, chains, lane, hidden, owned);
    }
}

#else

extern "C" __global__ void __launch_bounds__(THREADS)
backward(const T* x, u64 x_stride, const T* dy, u64 dy_stride, const W* weight, const float* rstd, T* dx, u64 dx_stride,
         float* partial, u64 rows, u64 groups, u32 hidden, u32 chains) {
    __shared__ float nodes[2][STREAM_SETS * WARPS];
    RowFold<STREAM_SETS> fold_row{nodes};
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *z_row = x + row * x_stride, *d_row = dy + row * dy_stride;
        const RowScale scale = row_scale(rstd[row], [&] {
            return scaled_root(streamed_squares(z_row, hidden, chains, SCALE_UP, fold_row), (float)hidden);
        });
        const float dot = streamed(hidden, chains, fold_row, [&](u32 column, float (&p)[8]) {
            const Eight<T> z = load_eight(z_row, column, hidden), d = load_eight(d_row, column, hidden);
            const Eight<W> w = load_weight(weight, column, hidden);
#pragma unroll
            for (int i = 0; i < 8; i++) p[i] = chain(weighted(d[i], weight_of(w, i)), x_hat(z[i], scale), p[i]);
        });
        const float c = mean(dot, (float)hidden);
        for (u32 column = threadIdx.x * 8; column < hidden; column += THREADS * 8) {
            const Eight<T> z = load_eight(z_row, column, hidden), d = load_eight(d_row, column, hidden);
            const Eight<W> w = load_weight(weight, column, hidden);
            float out[8];
#pragma unroll
            for (int i = 0; i < 8; i++)
                out[i] = gradient(centred(x_hat(z[i], scale), c, weighted(d[i], weight_of(w, i))), scale);
            store_eight(dx + row * dx_stride, column, hidden, out);
        }
    }
}

// The partial rows of streamed rows: dw does not need the dot product, so a block takes one tile of columns of one group.
extern "C" __global__ void __launch_bounds__(THREADS)
columns(const T* x, u64 x_stride, const T* dy, u64 dy_stride, const float* rstd, float* partial, u64 rows, u64 groups, u32 hidden, u32 chains) {
    __shared__ float nodes[2][STREAM_SETS * WARPS];
    RowFold<STREAM_SETS> fold_row{nodes};
    const u32 tiles = (hidden + THREADS * 8 - 1) / (THREADS * 8);
    for (u64 item = blockIdx.x; item < groups * tiles; item += gridDim.x) {
        const u64 group = item / tiles;
        const u32 column = ((u32)(item % tiles) * THREADS + threadIdx.x) * 8;
        float sum[8] = {};
        for (u64 row = group; row < rows; row += groups) {
            const T* z_row = x + row * x_stride;
            const RowScale scale = row_scale(rstd[row], [&] {
                return scaled_root(streamed_squares(z_row, hidden, chains, SCALE_UP, fold_row), (float)hidden);
            });
            const Eight<T> z = load_eight(z_row, column, hidden), d = load_eight(dy + row * dy_stride, column, hidden);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] = chain(d[i], x_hat(z[i], scale), sum[i]);
        }
        store_eight(partial + group * hidden, column, hidden, sum);
    }
}

#endif
