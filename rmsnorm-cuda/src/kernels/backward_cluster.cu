// dx of every row, and the partial column sums of every row group, where a cluster shares a row. A cluster works on one group after another
// (g, g + clusters, …), and on the rows of a group in order; all these are one sequence of rows to it.
//
// A place of the ring holds a slice of x and of dy; dz, if it is given, is read where it is needed. Slices arrive in order, and each is read twice: in the first pass over its row, for the dot
// product, and in the second, for dx and the column sums. While the warps learn a row's dot product from each other they are at the first
// pass of the next row, whose first LEAD packs come before the second pass of this one, and the others take turns with it:
//   first(0 …), send(0); for each row j: first LEAD packs of first(j + 1); sum(j); second(j, k), first(j + 1, k + LEAD), …; send(j + 1)
// Nobody waits in order to fill a place again: each warp counts itself on a number in shared memory when it has read a slice for the last time, and
// the last of them begins the copy of the slice that comes `stages` later. Its count is ordered after those of all others and so after their
// reads; and it hands on `wanted`, for whoever is last at the next place has counted itself there after it did here. As the first pass runs
// PACKS + LEAD slices ahead of the second at most, that many places suffice (plan.rs), and fewer would wait for ever.
// All warps of a block meet where a row's rstd is infinite: they are then at the same row, and nothing that a warp waits for comes later.

constexpr u32 NO_ROW = ~0u;

// Sums and weight may take 96 KiB of the registers, or 48 where 1024 threads share them; otherwise the weight comes from the caches, twice a row.
constexpr bool KEEPS_WEIGHT = THREADS * PACKS * PACK * (sizeof(float) + sizeof(W)) <= (THREADS < 1024 ? 96 : 48) << 10;

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, BLOCKS_PER_SM) backward(BACKWARD_PARAMETERS) {
    const u32 hidden = exact_hidden(hidden_given);
    const Part part{cluster_rank(), hidden};
    const Exchange exchange{part.rank};
    ClusterShared& shared = cluster_shared();
    // The row after this one in the sequence: of the same group, or the first of the next.
    const u32 end_row = (u32)rows, step = (u32)groups;
    auto first_of = [&](u32 group) { return group < step ? group : NO_ROW; };
    auto after = [&](u32 row) { return row + step < end_row ? row + step : first_of(row % step + gridDim.x / CLUSTER); };
    u32 now = first_of(blockIdx.x / CLUSTER);

    // Begins to fill a place with the next slice. One thread at a time.
    auto fetch = [&](u32 place) {
        auto next = shared.wanted;
        if (next.row == NO_ROW) return;
        const u32 bytes = part.end(next.pack) * (u32)sizeof(T);
        arrival_expect(&shared.full[place], 2 * bytes);
        if (bytes > 0) {
            bulk_copy(slice_at(2 * place), x + next.row * x_stride + part.first(next.pack), bytes, &shared.full[place]);
            bulk_copy(slice_at(2 * place + 1), dy + next.row * dy_stride + part.first(next.pack), bytes, &shared.full[place]);
        }
        if (++next.pack == PACKS) next = {after(next.row), 0};
        shared.wanted = next;
    };

    if (threadIdx.x == 0) {
        for (u32 s = 0; s < stages; s++) arrival_init(&shared.full[s]), shared.readers[s] = 0;
        exchange.init();
        cluster_init_done();
        arrival_init_done();
        shared.wanted = {now, 0};
        for (u32 s = 0; s < stages; s++) fetch(s);
    }
    Pack<W> kept[PACKS];
#pragma unroll
    for (u32 k = 0; k < PACKS; k++)
        if (KEEPS_WEIGHT) kept[k] = load_weight(weight, part.column(k), hidden);
    auto weight_at = [&](u32 k) { return KEEPS_WEIGHT ? kept[k] : load_weight(weight, part.column(k), hidden); };
    __syncthreads();
    cluster_arrive();
    cluster_wait();
    if (now == NO_ROW) return;

    RowFold fold_alone{shared.alone};
    auto scale_of = [&](u32 row, float rstd) {
        return row_scale(rstd, [&] { return scaled_root(streamed_squares(x + row * x_stride, hidden, chains, SCALE_UP, fold_alone), (float)hidden); });
    };
    u32 first_place = 0, first_phase = 0, second_place = 0;
    float p[PACK], sums[PACKS][PACK] = {};
    auto first_pass = [&](u32 k, RowScale scale) {
        if (k == 0) {
#pragma unroll
            for (u32 i = 0; i < PACK; i++) p[i] = 0.0f;
        }
        const Pack<W> w = weight_at(k);
        arrival_wait(&shared.full[first_place], first_phase);
        const Pack<T> z = part.load(slice_at(2 * first_place), k), d = part.load(slice_at(2 * first_place + 1), k);
        if (scale.pre == 1.0f) dot_step(z, d, w, OrdinaryRow{scale.post}, p);
        else dot_step(z, d, w, scale, p);
        if (++first_place == stages) first_place = 0, first_phase ^= 1;
    };
    auto second_pass = [&](u32 k, u32 row, RowScale scale, float c) {
        const Pack<T> z = part.load(slice_at(2 * second_place), k), d = part.load(slice_at(2 * second_place + 1), k);
        __syncwarp();
        if (threadIdx.x % 32 == 0 && count(&shared.readers[second_place]) % WARPS == WARPS - 1) fetch(second_place);
        const Pack<W> w = weight_at(k);
        const Pack<T> g = load_dz(dz + row * dz_stride, part.column(k), hidden);
        auto work = [&](auto scale) {
            column_step(z, d, scale, sums[k]);
            store_dx(dx + row * dx_stride, part.column(k), hidden, z, d, g, w, scale, c);
        };
        if (scale.pre == 1.0f) work(OrdinaryRow{scale.post});
        else work(scale);
        if (++second_place == stages) second_place = 0;
    };

    // rstd is asked for two rows ahead.
    u32 next = after(now);
    float next_rstd = next != NO_ROW ? rstd[next] : 0.0f;
    RowScale scale = scale_of(now, rstd[now]);
#pragma unroll
    for (u32 k = 0; k < PACKS; k++) first_pass(k, scale);
    exchange.send(0, fold_lanes(fold_pack(p), 32));
    for (u32 n = 0;; n++) {
        const bool more = next != NO_ROW;
        const u32 second_next = more ? after(next) : NO_ROW;
        const float second_rstd = second_next != NO_ROW ? rstd[second_next] : 0.0f;
        RowScale next_scale = {};
        if (more) {
            next_scale = scale_of(next, next_rstd);
#pragma unroll
            for (u32 k = 0; k < LEAD; k++) first_pass(k, next_scale);
        }
        const float ahead = LEAD == PACKS ? fold_lanes(fold_pack(p), 32) : 0.0f;
        const float c = mean(exchange.sum(n), (float)hidden);
        if (LEAD == PACKS && more) exchange.send(n + 1, ahead);
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) {
            second_pass(k, now, scale, c);
            if (k + LEAD < PACKS && more) {
                first_pass(k + LEAD, next_scale);
                if (k + LEAD == PACKS - 1) exchange.send(n + 1, fold_lanes(fold_pack(p), 32));
            }
        }
        if (now + step >= end_row) {  // the last of its group
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) {
                if (partial) store_pack(partial + now % step * (u64)hidden, part.column(k), hidden, sums[k]);
#pragma unroll
                for (u32 i = 0; i < PACK; i++) sums[k][i] = 0.0f;
            }
        }
        if (!more) break;
        now = next, next = second_next, scale = next_scale, next_rstd = second_rstd;
    }
}
