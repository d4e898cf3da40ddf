// y and rstd of rows that do not begin on 16 bytes, where there are bulk copies: a row comes to shared memory in words of 16 bytes and goes from
// there. (Straight from memory and back, lanes have words of four bytes and hand halves of them over: rows.cuh.)
//
// Each team has two buffers. `in` is filled with a row of x; `out` with y, at the place that y's row has among words of 16 bytes. What follows what:
//   in is filled by one thread, and read when its barrier says that the bytes are there; its ends are written before that thread arrives there.
//   out is read by the copy, and by those who store its ends, when all have written it and met; each makes what it wrote visible to copies first.
//   y may have the rows of x: a row has arrived before its y is copied out; what comes of other rows in the words at its ends, nobody uses.
//   out is written again, and the block ends, when the copy has read it; in is filled again when all have met since they read it.

// Whether x stays in registers between the statistic and y. A team of several warps reads it again: those registers would cost rows on their way.
constexpr bool KEEPS = TEAM_WARPS == 1;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) forward(FORWARD_PARAMETERS) {
    const u32 hidden = hidden_given, team = threadIdx.x / TEAM, member = threadIdx.x % TEAM, pitch = pitch_of(hidden);
    unsigned char *const in = (unsigned char*)ring_memory + 2 * team * pitch, *const out = in + pitch;
    __shared__ float nodes[TEAMS][2][SETS * TEAM_WARPS];
    __shared__ u64 barriers[TEAMS];
    RowFold fold_row{nodes[team]};
    u64* const arrived = &barriers[team];
    if (member == 0) arrival_init(arrived), async_proxy_fence();
    team_barrier();
    u32 phase = 0;
    for (u64 row = (u64)blockIdx.x * TEAMS + team; row < rows; row += (u64)gridDim.x * TEAMS) {
        if (member == 0) {
            const Arriving arriving(x, ROW(x, row), ROW(x, rows - 1), hidden);
            arriving.ends(in);
            arrival_expect(arrived, arriving.bytes());
            arriving.copy(in, arrived);
        }
        Pack<W> w[PACKS] = {};
        const W* const of_row = OF_HEAD(weight, row);
        auto load_weights = [&](auto from) {
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) begin_pack(w[k], from, column_of(k), hidden);
        };
        if constexpr (HAS_WEIGHT && sizeof(W) == 2 && WORD > 1) {
            if ((u64)of_row & 2) load_weights(of_row);
            else load_weights(Lying<const W, false>{of_row});
        } else if (HAS_WEIGHT) load_weights(of_row);

        arrival_wait(arrived, phase);
        phase ^= 1;
        const T* const x_row = (const T*)(in + skew(ROW(x, row)));
        Pack<T> kept[PACKS] = {};
        if (KEEPS) {
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) kept[k] = load_arrived(x_row, column_of(k), hidden);
        }
        auto z = [&](u32 k) { return KEEPS ? kept[k] : load_arrived(x_row, column_of(k), hidden); };
        const float sum = reduce(fold_row, [&](u32 k, float (&p)[PACK]) {
            if (!column_of(k).is_outside(hidden)) squares_step(z(k), p);
        });
        const Statistic stat = statistic(sum, (float)hidden, eps, [&](float s) {
            return reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(z(k), s, p); });
        });
        if (rstd && member == 0) rstd[row] = stat.rstd;

        T *const to = ROW(y, row), *const y_row = (T*)(out + skew(to));
        auto emit = [&](auto scale) {
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) store_y(y_row, column_of(k), hidden, z(k), w[k], Pack<B>{}, scale);
        };
        if (stat.scale.pre == 1.0f) emit(OrdinaryRow{stat.rstd});
        else emit(stat.scale);
        async_proxy_fence();
        team_barrier();
        // Whole words by the copy, what is before and after them by a thread each.
        constexpr u32 OF_WORD = 16 / sizeof(T);
        const u32 before = (OF_WORD - skew(to) / (u32)sizeof(T)) % OF_WORD, whole = (hidden - before) / OF_WORD * OF_WORD, after = before + whole + member;
        if (member == 0) bulk_store(to + before, y_row + before, whole * sizeof(T));
        if (member < before) to[member] = y_row[member];
        if (after < hidden) to[after] = y_row[after];
        if (member == 0) bulk_stores_read();
        team_barrier();
    }
}
