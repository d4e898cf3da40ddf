// dx of every row, and the partial column sums of every row group.
//
// A team works on one group at a time: group g is the rows g, g + groups, g + 2·groups, … Its sums stay in registers; then the
// block folds its TEAMS neighbouring groups (they are a node of the tree) and writes one partial row. A block without a group
// touches nothing, and each partial row below ceil(groups / TEAMS) is written in full by exactly one block: nobody reads a slot
// that nobody wrote.

// Those who fold the sums of a block's row groups: its teams, or its warps where these have several.
constexpr u32 PARTNERS = TEAM < 32 ? THREADS / 32 : TEAMS;

// All threads of a block, who meet again and again. This is no barrier of the hardware: racecheck tells the order of two accesses by how many
// of those each thread has passed, whichever they were, and teams pass different numbers: one for each row, one more for a row that must
// be scaled, none without a row.
struct Meeting {
    u64* barrier;
    u32 parity = 0;

    __device__ __forceinline__ explicit Meeting(u64* barrier) : barrier(barrier) {
        if (PARTNERS == 1) return;
        if (threadIdx.x == 0) meeting_init(barrier, THREADS);
        __syncthreads();
    }

    __device__ __forceinline__ void operator()() { meeting(barrier, parity), parity ^= 1; }
};

// Writes the sums of a block's row groups, folded into one node, as one partial row.
__device__ __forceinline__ void write_partial(float* partial, float (&sum)[PACKS][PACK], u32 hidden, Meeting& all) {
    const u32 member = threadIdx.x % TEAM, team = threadIdx.x / TEAM;
    // The groups of one warp lie TEAM lanes apart.
#pragma unroll
    for (u32 k = 0; k < PACKS; k++)
#pragma unroll
        for (u32 i = 0; i < PACK; i++)
#pragma unroll
            for (u32 d = TEAM; d < 32; d *= 2) sum[k][i] = fold(sum[k][i], __shfl_xor_sync(~0u, sum[k][i], d));
    // Those of different partners meet in shared memory, pack by pack: at distance d, partner t + d hands its sums to partner t. Two buffers take
    // turns: who writes one again has met its readers since, at the meeting for the other.
    const u32 rank = TEAM < 32 ? threadIdx.x / 32 : team;
    const bool speaks = threadIdx.x % 32 < TEAM;
    __shared__ float buffers[2][PARTNERS > 1 ? PARTNERS / 2 : 1][PACK][TEAM];
#pragma unroll
    for (u32 d = 1; d < PARTNERS; d *= 2)
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) {
            auto& handed = buffers[all.parity][rank / (2 * d)];
            if (rank % (2 * d) == d && speaks) {
#pragma unroll
                for (u32 i = 0; i < PACK; i++) handed[i][member] = sum[k][i];
            }
            all();
            if (rank % (2 * d) == 0 && speaks) {
#pragma unroll
                for (u32 i = 0; i < PACK; i++) sum[k][i] = fold(sum[k][i], handed[i][member]);
            }
        }
    if (rank == 0 && speaks) {
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) store_pack(partial, column_of(k), hidden, sum[k]);
    }
}

// Of COUNT rows.
template <u32 N, typename S> struct Scalings {
    typedef S Scale;
    static constexpr u32 COUNT = N;
    S of[N];
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) backward(BACKWARD_PARAMETERS) {
    BACKWARD_OF_HEAD;
    const u32 hidden = exact_hidden(hidden_given);
    __shared__ float nodes[TEAMS][2][SETS * TEAM_WARPS];
    RowFold fold_row{nodes[threadIdx.x / TEAM]};
    __shared__ u64 met;
    Meeting all(&met);
    const Operands operands{{x, x_stride, x_jump}, {dy, dy_stride, dy_jump}, {dz, dz_stride, dz_jump}, rstd, rows, groups, hidden, inner, reciprocal};
    Source source(operands, stages, pace);

    // The weight stays in registers for all rows of a team.
    Pack<W> w[PACKS] = {};
    if (HAS_WEIGHT) load_row<is_seldom(RowScale{})>(w, weight, hidden);

    for (u64 base = (u64)block_of_head(inner) * TEAMS; base < groups; base += (u64)blocks_of_head(inner) * TEAMS) {
        float sum[PACKS][PACK] = {};
        source.begin(base);
        while (source.next()) {
            // The rows from `at` on, as many as there are scales: while one of them waits, another is computed.
            auto work = [&](u32 at, auto scales) {
                constexpr bool IS_SELDOM = is_seldom(typename decltype(scales)::Scale{});
                float c[scales.COUNT];
#pragma unroll
                for (u32 r = 0; r < scales.COUNT; r++) {
                    const float dot = reduce(fold_row, [&](u32 k, float (&p)[PACK]) {
                        if (column_of(k).is_outside(source.end)) return;
                        const Pack<T> zk = source.z<IS_SELDOM>(at + r, k);
                        const Pack<DY> dk = source.d<IS_SELDOM>(at + r, k);
                        dot_step(zk, dk, w[k], scales.of[r], p);
                        column_step(zk, dk, scales.of[r], sum[k]);
                    });
                    c[r] = mean(dot, divisor_of<Source::AT_ONCE>(hidden));
                }
                if (at == 0) source.met();
#pragma unroll
                for (u32 r = 0; r < scales.COUNT; r++)
                    as_it_lies<IS_SELDOM>(ROW(dx, source.row(at + r)), [&](auto to) {
#pragma unroll
                        for (u32 k = 0; k < PACKS; k++)
                            store_dx(to, column_of(k), source.end, source.z<IS_SELDOM>(at + r, k), source.d<IS_SELDOM>(at + r, k), source.g<IS_SELDOM>(at + r, k), w[k], scales.of[r], c[r]);
                    });
            };
            bool is_ordinary = source.count == Source::AT_ONCE;
#pragma unroll
            for (float rstd : source.rstd) is_ordinary &= rstd != INFINITY_F32;
            if (is_ordinary) {
                Scalings<Source::AT_ONCE, OrdinaryRow> scales;
#pragma unroll
                for (u32 r = 0; r < Source::AT_ONCE; r++) scales.of[r] = OrdinaryRow{source.rstd[r]};
                work(0, scales);
            } else {
#pragma unroll
                for (u32 r = 0; r < Source::AT_ONCE; r++)
                    if (r < source.count)
                        work(r, Scalings<1, RowScale>{{row_scale(source.rstd[r], [&] {
                            const float squares = reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(source.z<is_seldom(RowScale{})>(r, k), SCALE_UP, p); });
                            return scaled_root(squares, (float)hidden);
                        })}});
            }
        }
        if (partial) write_partial(partial + base / TEAMS * hidden, sum, hidden, all);
    }
}
