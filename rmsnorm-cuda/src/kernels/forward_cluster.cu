// y and rstd of rows that a cluster shares: one cluster a row. The row arrives in shared memory by bulk copies and stays there between the
// statistic and y; meanwhile as much of the weight as registers allow is on its way, or the residual, whose sums take the row's place. A row that must be scaled is summed again out of shared
// memory, by all blocks of its cluster, for each has the same statistic.

// Packs of the weight that are asked for before the row has arrived: those of 96 bytes a thread, or 128 where registers allow.
constexpr u32 EARLY_FIT = HAS_RESIDUAL ? 1 : (EXACT && PACK == 4 ? 128 : 96) / (PACK * sizeof(W)), EARLY = EARLY_FIT < PACKS ? EARLY_FIT : PACKS;

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, BLOCKS_PER_SM) forward(FORWARD_PARAMETERS) {
    const u32 hidden = exact_hidden(hidden_given);
    const Part part{cluster_rank(), hidden};
    const Exchange exchange{part.rank};
    ClusterShared& shared = cluster_shared();
    const u64 row = blockIdx.x / CLUSTER;
    if (threadIdx.x == 0) {
        for (u32 k = 0; k < PACKS; k++) arrival_init(&shared.full[k]);
        exchange.init();
        cluster_init_done();
        async_proxy_fence();
        for (u32 k = 0; k < PACKS; k++) {
            const u32 bytes = part.end(k) * (u32)sizeof(T);
            arrival_expect(&shared.full[k], bytes);
            if (bytes > 0) bulk_copy(slice_at(k), ROW(x, row) + part.first(k), bytes, &shared.full[k]);
        }
    }
    __syncwarp();
    cluster_arrive();
    Pack<W> early[EARLY];
#pragma unroll
    for (u32 k = 0; k < EARLY; k++) early[k] = load_weight(OF_HEAD(weight, row), part.column(k), hidden);
    cluster_wait();
    if (HAS_RESIDUAL) {
        Pack<R> other[PACKS];
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) other[k] = load_pack(ROW(residual, row), part.column(k), hidden);
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) {
            arrival_wait(&shared.full[k], 0);
            part.store(slice_at(k), k, store_sum(ROW(z_out, row), part.column(k), hidden, part.load(slice_at(k), k), other[k]));
        }
    }

    u32 n = 0;
    auto reduce_row = [&](auto step) {
        float p[PACK] = {};
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) {
            arrival_wait(&shared.full[k], 0);
            step(part.load(slice_at(k), k), p);
        }
        exchange.send(n, fold_lanes(fold_pack(p), 32));
        return exchange.sum(n++);
    };
    const float sum = reduce_row([](const Pack<T>& z, float (&p)[PACK]) { squares_step(z, p); });
    const Statistic stat = statistic(sum, (float)hidden, eps, [&](float s) {
        return reduce_row([=](const Pack<T>& z, float (&p)[PACK]) { scaled_squares_step(z, s, p); });
    });
    if (rstd && part.rank == 0 && threadIdx.x == 0) rstd[row] = stat.rstd;
    auto emit = [&](auto scale) {
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) {
            const Pack<W> w = k < EARLY ? early[k < EARLY ? k : 0] : load_weight(OF_HEAD(weight, row), part.column(k), hidden);
            store_y(ROW(y, row), part.column(k), hidden, part.load(slice_at(k), k), w, load_bias(OF_HEAD(bias, row), part.column(k), hidden), scale);
        }
    };
    if (stat.scale.pre == 1.0f) emit(OrdinaryRow{stat.rstd});
    else emit(stat.scale);
}
