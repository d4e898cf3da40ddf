// dw from the partial rows: in each column the tree over the nodes 0 … nodes−1, padded with +0.0 to a power of two, then the one
// rounding to the type of dw.

// The node of 2^LEVEL neighbouring nodes of one column.
template <u32 LEVEL> __device__ __forceinline__ float fold_column(const float* column, u32 first, u32 nodes, u32 hidden) {
    if constexpr (LEVEL == 0) return first < nodes ? column[(u64)first * hidden] : 0.0f;
    else
        return fold(fold_column<LEVEL - 1>(column, first, nodes, hidden),
                    fold_column<LEVEL - 1>(column, first + (1 << (LEVEL - 1)), nodes, hidden));
}

// The same of a level that is known when the kernel runs.
template <u32 LEVEL> __device__ __forceinline__ float fold_levels(u32 level, const float* column, u32 first, u32 nodes, u32 hidden) {
    if constexpr (LEVEL < FOLD_LEVEL_MAX)
        if (level > LEVEL) return fold_levels<LEVEL + 1>(level, column, first, nodes, hidden);
    return fold_column<LEVEL>(column, first, nodes, hidden);
}

// FOLD_COLUMNS columns a block. Warp w folds the nodes [w·2^level, (w+1)·2^level) of each; then as many lanes as there are warps fold the
// results of a column.
static_assert(FOLD_COLUMNS == 32);
extern "C" __global__ void __launch_bounds__(32 * FOLD_WARPS_MAX) fold_partials(FOLD_PARAMETERS) {
    partial += head(inner) * groups * hidden, dw += head(inner) * hidden;
    const u32 block = block_of_head(inner);
    __shared__ float node[FOLD_WARPS_MAX][FOLD_COLUMNS + 1];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const u32 column = block * FOLD_COLUMNS + lane;
    node[warp][lane] = column < hidden ? fold_levels<0>(level, partial + column, warp << level, nodes, hidden) : 0.0f;
    __syncthreads();
    const u32 which = threadIdx.x % warps, mine = block * FOLD_COLUMNS + threadIdx.x / warps;
    float v = node[which][threadIdx.x / warps];
    for (u32 d = 1; d < warps; d *= 2) v = fold(v, __shfl_xor_sync(~0u, v, d));
    if (which == 0 && mine < hidden) dw[mine] = store<DW>(total(v));
}
