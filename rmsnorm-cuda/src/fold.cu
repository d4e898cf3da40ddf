// dw from the partial rows: in each column the tree over the nodes 0 … nodes−1, padded with +0.0 to 32·2^level, then the one
// rounding to the type of dw.

// The node of 2^LEVEL neighbouring nodes of one column.
template <int LEVEL> __device__ __forceinline__ float fold_column(const float* column, u32 first, u32 nodes, u32 hidden) {
    if constexpr (LEVEL == 0) return first < nodes ? column[(u64)first * hidden] : 0.0f;
    else
        return fold(fold_column<LEVEL - 1>(column, first, nodes, hidden),
                    fold_column<LEVEL - 1>(column, first + (1 << (LEVEL - 1)), nodes, hidden));
}

// 32 columns a block. Warp w folds the nodes [w·2^level, (w+1)·2^level) of each; then warp w folds the 32 results of column w.
extern "C" __global__ void __launch_bounds__(1024)
fold_partials(const float* partial, DW* dw, u32 nodes, u32 level, u32 hidden) {
    __shared__ float node[32][33];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 column = blockIdx.x * 32 + lane, first = warp << level;
    float v = 0.0f;
    if (column < hidden) {
        const float* p = partial + column;
        switch (level) {
            case 0: v = fold_column<0>(p, first, nodes, hidden); break;
            case 1: v = fold_column<1>(p, first, nodes, hidden); break;
            case 2: v = fold_column<2>(p, first, nodes, hidden); break;
            case 3: v = fold_column<3>(p, first, nodes, hidden); break;
            case 4: v = fold_column<4>(p, first, nodes, hidden); break;
            case 5: v = fold_column<5>(p, first, nodes, hidden); break;
        }
    }
    node[warp][lane] = v;
    __syncthreads();
    v = node[lane][warp];
#pragma unroll
    for (u32 d = 1; d < 32; d *= 2) v = fold(v, __shfl_xor_sync(~0u, v, d));
    const u32 mine = blockIdx.x * 32 + warp;
    if (lane == 0 && mine < hidden) dw[mine] = store<DW>(total(v));
}
