// dx of every row, and the partial column sums of every row group, where a cluster shares a row. A cluster works on one group after another
// (g, g + clusters, …), and on the rows of a group in order; all these are one sequence of rows to it.
//
// A place of the ring holds a slice of x and of dy; dz, if it is given, is read where it is needed. Slices arrive in order, and each is read
// twice: in the first pass over its row, for the dot product, and in the second, for dx and the column sums. While the warps learn a row's dot
// product from each other they are at the first pass of the next row, whose first LEAD packs come before the second pass of this one, and
// the others take turns with it:
//   first(0 …), send(0); for each row j: first LEAD packs of first(j + 1); sum(j); second(j, k), first(j + 1, k + LEAD), …; send(j + 1)
// Nobody waits in order to fill a place again: each warp counts itself on a number in shared memory when it has read a slice for the last time, and
// the last of them begins the copy of the slice that comes `stages` later. Its count is ordered after those of all others and so after their
// reads. As the first pass runs PACKS + LEAD slices ahead of the second at most, that many places suffice (plan.rs), and fewer would wait for ever.
// All warps of a block meet where a row's rstd is infinite: they are then at the same row, and nothing that a warp waits for comes later.
// In place: no block writes dx of a row before it has all messages about it, which others send when they have read what they read of it, and be it the
// whole row for its root.
// A turn of two ordinary rows is compiled for them alone; the other is right for all.

constexpr u32 NO_ROW = ~0u;

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, BLOCKS_PER_SM) backward(BACKWARD_PARAMETERS) {
    BACKWARD_OF_HEAD;
    const u32 hidden = exact_hidden(hidden_given);
    const Part part{cluster_rank(), hidden};
    const Exchange exchange{part.rank};
    ClusterShared& shared = cluster_shared();
    const u32 end_row = (u32)rows, step = (u32)groups;
    u32 group = blockIdx.x / CLUSTER, now = group < step ? group : NO_ROW;
    // To the row after this one in the sequence: of the same group, or the first of the cluster's next.
    auto advance = [&](u32& row, u32& group) {
        if (row == NO_ROW) return;
        row += step;
        if (row >= end_row) group += gridDim.x / CLUSTER, row = group < step ? group : NO_ROW;
    };

    // The slice that is fetched next: slice `far` of `far_row`, a row of `far_group`. Every thread goes along with it, so that whoever fetches has
    // nothing to look up: all warps of the cluster would wait for that one.
    u32 far_row = now, far_group = group, far = 0;
    auto pass_by = [&] {
        if (++far == PACKS) far = 0, advance(far_row, far_group);
    };
    // Begins to fill a place with it. By one thread.
    auto fetch = [&](u32 place) {
        if (far_row == NO_ROW) return;
        const u32 bytes = part.end(far) * (u32)sizeof(T);
        arrival_expect(&shared.full[place], 2 * bytes);
        if (bytes > 0) {
            bulk_copy(slice_at(2 * place), ROW(x, far_row) + part.first(far), bytes, &shared.full[place]);
            bulk_copy(slice_at(2 * place + 1), ROW(dy, far_row) + part.first(far), bytes, &shared.full[place]);
        }
    };

    if (threadIdx.x == 0) {
        for (u32 s = 0; s < stages; s++) arrival_init(&shared.full[s]), shared.readers[s] = 0;
        exchange.init();
        cluster_init_done();
        async_proxy_fence();
    }
#pragma unroll 1
    for (u32 s = 0; s < stages; s++) {
        if (threadIdx.x == 0) fetch(s);
        pass_by();
    }
    // The weight stays in registers, or, where there are too few, each thread has its own in shared memory behind the ring.
    Pack<W> kept[PACKS] = {};
    Pack<W>* const beside = (Pack<W>*)slice_at(2 * stages) + threadIdx.x;
    if (HAS_WEIGHT) {
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) (KEEPS_WEIGHT ? kept[k] : beside[k * THREADS]) = load_weight(weight, part.column(k), hidden);
    }
    auto weight_at = [&](u32 k) { return !HAS_WEIGHT || KEEPS_WEIGHT ? kept[k] : beside[k * THREADS]; };
    __syncthreads();
    cluster_arrive();
    cluster_wait();
    if (now == NO_ROW) return;

    RowFold fold_alone{shared.alone};
    auto scale_of = [&](u32 row, float rstd) {
        return row_scale(rstd, [&] { return scaled_root(streamed_squares(ROW(x, row), hidden, chains, SCALE_UP, fold_alone), (float)hidden); });
    };
    u32 first_place = 0, first_phase = 0, second_place = 0;
    float p[PACK], sums[PACKS][PACK] = {};
    auto first_pass = [&](u32 k, auto scale) {
        if (k == 0) {
#pragma unroll
            for (u32 i = 0; i < PACK; i++) p[i] = 0.0f;
        }
        const Pack<W> w = weight_at(k);
        arrival_wait(&shared.full[first_place], first_phase);
        dot_step(part.load(slice_at(2 * first_place), k), part.load(slice_at(2 * first_place + 1), k), w, scale, p);
        if (++first_place == stages) first_place = 0, first_phase ^= 1;
    };
    auto second_pass = [&](u32 k, auto scale, float c) {
        const Pack<T> z = part.load(slice_at(2 * second_place), k), d = part.load(slice_at(2 * second_place + 1), k);
        __syncwarp();
        if (threadIdx.x % 32 == 0 && count(&shared.readers[second_place], WARPS - 1) == WARPS - 1) fetch(second_place);
        pass_by();
        const Pack<W> w = weight_at(k);
        const Pack<T> g = load_dz(ROW(dz, now), part.column(k), hidden);
        column_step(z, d, scale, sums[k]);
        store_dx(ROW(dx, now), part.column(k), hidden, z, d, g, w, scale, c);
        if (++second_place == stages) second_place = 0;
    };

    // rstd is asked for two rows ahead.
    auto rstd_of = [&](u32 row) { return row != NO_ROW ? rstd[row] : 1.0f; };
    u32 after_next = now, after_group = group, n = 0;
    advance(after_next, after_group);
    u32 next = after_next;
    float next_rstd = rstd_of(next);
    RowScale scale = scale_of(now, rstd[now]);
#pragma unroll
    for (u32 k = 0; k < PACKS; k++) first_pass(k, scale);
    exchange.send(0, fold_lanes(fold_pack(p), 32));
    // The second pass over this row and the first over the next, if there is one; then `next` is this row.
    auto turn = [&](auto scale, auto next_scale) {
        const bool more = next != NO_ROW;
        advance(after_next, after_group);
        next_rstd = rstd_of(after_next);
        if (more) {
#pragma unroll
            for (u32 k = 0; k < LEAD; k++) first_pass(k, next_scale);
        }
        float c;
        if (LEAD == PACKS) {
            float node = fold_pack(p);
            c = mean(exchange.sum(n, node), divisor(hidden));
            if (more) exchange.send(n + 1, node);
        } else c = mean(exchange.sum(n), divisor(hidden));
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) {
            second_pass(k, scale, c);
            if (k + LEAD < PACKS && more) {
                first_pass(k + LEAD, next_scale);
                if (k + LEAD == PACKS - 1) exchange.send(n + 1, fold_lanes(fold_pack(p), 32));
            }
        }
        if (next != now + step) {  // the last of its group; the first row of a group has its number
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) {
                if (partial) store_pack(partial + group * (u64)hidden, part.column(k), hidden, sums[k]);
#pragma unroll
                for (u32 i = 0; i < PACK; i++) sums[k][i] = 0.0f;
            }
            group = next;
        }
        now = next, next = after_next, n++;
    };
    for (;;) {
        // A loop of its own, so that what rows of the other kind need costs these no instruction: they fill the schedulers.
        while (scale.pre == 1.0f && next_rstd != INFINITY_F32 && now != NO_ROW) {
            const float post = next_rstd;
            turn(OrdinaryRow{scale.post}, OrdinaryRow{post});
            scale.post = post;
        }
        if (now == NO_ROW) break;
        RowScale next_scale{1.0f, next_rstd};
        if (next_rstd == INFINITY_F32) next_scale = scale_of(next, next_rstd);
        turn(scale, next_scale);
        scale = next_scale;
    }
}
