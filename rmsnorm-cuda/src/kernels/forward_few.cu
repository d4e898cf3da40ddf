// y and rstd of few rows, where what counts is how long one row takes. A block has one row, in one turn: all of it is on its way at once, and
// after one barrier every lane folds the nodes of all warps itself, which is sooner than a second round of shuffles.
//
// SHARES blocks share a row. Each reads the whole of it and computes its rstd, which is sooner than to tell each other (the second reads
// from the cache). The first stores rstd. y and z are shared out: to each block one pack of TEAM_WARPS / BLOCKS_A_PACK warps. So in place SHARES is 1.
static_assert(TEAMS == 1 && SETS == 1 && (SHARES == 1 || SHARES % PACKS == 0));
constexpr u32 BLOCKS_A_PACK = SHARES == 1 ? 1 : SHARES / PACKS;
static_assert(TEAM_WARPS % BLOCKS_A_PACK == 0);

struct WideFold {
    float (*buffer)[TEAM_WARPS];
    u32 turn = 0;  // a row that must be scaled has two

    __device__ __forceinline__ float operator()(const float (&node)[SETS]) {
        float* shared = buffer[turn++];
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = node[0];
        __syncthreads();
        float all[TEAM_WARPS];
#pragma unroll
        for (u32 i = 0; i < TEAM_WARPS; i++) all[i] = shared[i];
#pragma unroll
        for (u32 d = 1; d < TEAM_WARPS; d *= 2)
#pragma unroll
            for (u32 i = 0; i < TEAM_WARPS; i += 2 * d) all[i] = fold(all[i], all[i + d]);
        return total(all[0]);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) forward_few(FORWARD_PARAMETERS) {
    const u32 hidden = exact_hidden(hidden_given);
    const u64 row = blockIdx.x / SHARES;
    const u32 share = blockIdx.x % SHARES;
    // How far this thread may store in pack k: as far as the row goes, or not at all.
    auto own = [&](u32 k) {
        const bool is_own = k == share / BLOCKS_A_PACK && threadIdx.x / (THREADS / BLOCKS_A_PACK) == share % BLOCKS_A_PACK;
        return SHARES == 1 || is_own ? hidden : 0;
    };
    alignas(16) __shared__ float nodes[2][TEAM_WARPS];
    WideFold fold_row{nodes};
    Pack<X> of_x[PACKS];
    Pack<T> z[PACKS];
    Pack<W> w[PACKS];
    Pack<B> b[PACKS];
#pragma unroll
    for (u32 k = 0; k < PACKS; k++) of_x[k] = load_pack(ROW(x, row), column_of(k), hidden);
#pragma unroll
    for (u32 k = 0; k < PACKS; k++) w[k] = load_weight(OF_HEAD(weight, row), column_of(k), own(k)), b[k] = load_bias(OF_HEAD(bias, row), column_of(k), own(k));
    if (HAS_RESIDUAL) {
        Pack<R> other[PACKS];
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) other[k] = load_pack(ROW(residual, row), column_of(k), hidden);
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) z[k] = store_sum(ROW(z_out, row), column_of(k), own(k), of_x[k], other[k]);
    } else {
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) z[k] = without_residual(of_x[k]);
    }
    const float sum = reduce(fold_row, [&](u32 k, float (&p)[PACK]) { squares_step(z[k], p); });
    const Statistic stat = statistic(sum, divisor(hidden), eps, [&](float s) {
        return reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(z[k], s, p); });
    });
    auto emit = [&](auto scale) {
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) store_y(ROW(y, row), column_of(k), own(k), z[k], w[k], b[k], scale);
    };
    if (stat.scale.pre == 1.0f) emit(OrdinaryRow{stat.rstd});
    else emit(stat.scale);
    if (rstd && threadIdx.x == 0 && share == 0) rstd[row] = stat.rstd;
}
