// dx of every row, and the partial column sums of every row group.
//
// A team works on one group at a time: group g is the rows g, g + groups, g + 2·groups, … Its sums stay in registers; then the
// block folds its ROWS neighbouring groups (they are a node of the tree) and writes one partial row. A block without a group
// touches nothing, and each partial row below ceil(groups / ROWS) is written in full by exactly one block: nobody reads a slot
// that nobody wrote.

#define BACKWARD_PARAMETERS                                                                                             \
    const T *x, u64 x_stride, const T *dy, u64 dy_stride, const W *weight, const float *rstd, T *dx, u64 dx_stride,     \
        float *partial, u64 rows, u64 groups, u32 hidden_given

#if PACKS == 0

extern "C" __global__ void __launch_bounds__(THREADS) backward(BACKWARD_PARAMETERS, u32 chains) {
    const u32 hidden = exact_hidden(hidden_given);
    __shared__ float nodes[2][SETS * WARPS];
    RowFold fold_row{nodes};
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *z = x + row * x_stride, *d = dy + row * dy_stride;
        const RowScale scale = row_scale(rstd[row], [&] {
            return scaled_root(streamed_squares(z, hidden, chains, SCALE_UP, fold_row), (float)hidden);
        });
        const float dot = streamed(hidden, chains, fold_row, [&](u32 column, float (&p)[PACK]) {
            dot_step(load_pack(z, column, hidden), load_pack(d, column, hidden), load_weight(weight, column, hidden), scale, p);
        });
        const float c = mean(dot, (float)hidden);
        for (u32 column = threadIdx.x * PACK; column < hidden; column += THREADS * PACK)
            store_dx(dx + row * dx_stride, column, hidden, load_pack(z, column, hidden), load_pack(d, column, hidden),
                     load_weight(weight, column, hidden), scale, c);
    }
}

// The partial rows of streamed rows: dw does not need the dot product, so a block takes one tile of columns of one group.
extern "C" __global__ void __launch_bounds__(THREADS) columns(BACKWARD_PARAMETERS, u32 chains) {
    const u32 hidden = exact_hidden(hidden_given);
    __shared__ float nodes[2][SETS * WARPS];
    RowFold fold_row{nodes};
    const u32 tiles = (hidden + THREADS * PACK - 1) / (THREADS * PACK);
    for (u64 item = blockIdx.x; item < groups * tiles; item += gridDim.x) {
        const u64 group = item / tiles;
        const u32 column = ((u32)(item % tiles) * THREADS + threadIdx.x) * PACK;
        float sum[PACK] = {};
        for (u64 row = group; row < rows; row += groups) {
            const T* z = x + row * x_stride;
            const RowScale scale = row_scale(rstd[row], [&] {
                return scaled_root(streamed_squares(z, hidden, chains, SCALE_UP, fold_row), (float)hidden);
            });
            column_step(load_pack(z, column, hidden), load_pack(dy + row * dy_stride, column, hidden), scale, sum);
        }
        store_pack(partial + group * hidden, column, hidden, sum);
    }
}

#else

// Those who fold the sums of a block's row groups: its teams, or its warps where these have several.
constexpr u32 PARTNERS = LANES < 32 ? THREADS / 32 : ROWS;

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
    const u32 lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
    // The groups of one warp lie LANES lanes apart.
#pragma unroll
    for (u32 k = 0; k < PACKS; k++)
#pragma unroll
        for (u32 i = 0; i < PACK; i++)
#pragma unroll
            for (u32 d = LANES; d < 32; d *= 2) sum[k][i] = fold(sum[k][i], __shfl_xor_sync(~0u, sum[k][i], d));
    // Those of different partners meet in shared memory, pack by pack: at distance d, partner t + d hands its sums to partner t. Two buffers take
    // turns: who writes one again has met its readers since, at the meeting for the other.
    const u32 rank = LANES < 32 ? threadIdx.x / 32 : team;
    const bool speaks = threadIdx.x % 32 < LANES;
    __shared__ float buffers[2][PARTNERS > 1 ? PARTNERS / 2 : 1][PACK][LANES];
#pragma unroll
    for (u32 d = 1; d < PARTNERS; d *= 2)
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) {
            auto& handed = buffers[all.parity][rank / (2 * d)];
            if (rank % (2 * d) == d && speaks) {
#pragma unroll
                for (u32 i = 0; i < PACK; i++) handed[i][lane] = sum[k][i];
            }
            all();
            if (rank % (2 * d) == 0 && speaks) {
#pragma unroll
                for (u32 i = 0; i < PACK; i++) sum[k][i] = fold(sum[k][i], handed[i][lane]);
            }
        }
    if (rank == 0 && speaks) {
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) store_pack(partial, column_of(k), hidden, sum[k]);
    }
}

#if RING

// With a ring, a multiprocessor could ask for more than its share of the memory's rate. Those near the memory then get it, finish
// early, and leave the memory idle while the others finish. So no team runs ahead of time: it begins a row `pace` (in 1/256 ns)
// after the one before, counted from the start, or when it can. The teams begin at different fractions of a period.
struct Pace {
    u64 due;
    u32 period;

    __device__ __forceinline__ Pace(u32 period) : period(period) {
        const u32 fraction = (blockIdx.x * 61 + threadIdx.x / LANES * 37) % 128;
        due = (nanoseconds() << 8) + (u64)period * fraction / 128;
    }

    __device__ __forceinline__ void wait() {
        if (period == 0) return;
        if (threadIdx.x % LANES < 32)
            while ((long long)((nanoseconds() << 8) - due) < 0) {}
        due += period;
    }
};

// rstd of a team's rows in order. The memory answers slowly while it is busy: a warp fetches 32 rows at once, 32 to 64 rows ahead.
struct RowScales {
    const float* rstd;
    u64 rows, groups;
    u32 count = 0;
    float here, ahead;

    __device__ __forceinline__ RowScales(const float* rstd, u64 group, u64 rows, u64 groups) : rstd(rstd), rows(rows), groups(groups) {
        here = load(group);
        ahead = load(group + 32 * groups);
    }

    __device__ __forceinline__ float load(u64 first) const {
        const u64 row = first + threadIdx.x % 32 * groups;
        return row < rows ? rstd[row] : 0.0f;
    }

    // That of `row`, the next in order.
    __device__ __forceinline__ float at(u64 row) {
        const float v = __shfl_sync(~0u, here, count % 32);
        if (++count % 32 == 0) here = ahead, ahead = load(row + 33 * groups);
        return v;
    }
};

#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) backward(BACKWARD_PARAMETERS, u32 stages, u32 pace) {
    const u32 hidden = exact_hidden(hidden_given);
    const u32 lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
    __shared__ float nodes[ROWS][2][SETS * WARPS];
    RowFold fold_row{nodes[team]};
    __shared__ u64 met;
    Meeting all(&met);
    const u64 step = (u64)gridDim.x * ROWS;

#if RING
    __shared__ u64 barriers[ROWS][STAGES_MAX];
    const u32 row_bytes = hidden * sizeof(T);
    Ring ring(barriers, 2 * row_bytes, stages);
    u64 next_group = (u64)blockIdx.x * ROWS + team, next = next_group;  // the next row to fetch, and its group
    auto fetch = [&](u32 stage) {
        if (next_group >= groups) return;
        if (lane == 0) {
            ring.expect(stage);
            ring.fill(stage, 0, x + next * x_stride, row_bytes);
            ring.fill(stage, row_bytes, dy + next * dy_stride, row_bytes);
        }
        next += groups;
        if (next >= rows) next_group += step, next = next_group;
    };
    for (u32 s = 0; s + 1 < stages; s++) fetch(s);
    Pace on_time(pace);
#endif

    // The weight stays in registers for all rows of a team.
    Pack<W> w[PACKS];
#pragma unroll
    for (u32 k = 0; k < PACKS; k++) w[k] = load_weight(weight, column_of(k), hidden);

    for (u64 base = (u64)blockIdx.x * ROWS; base < groups; base += step) {
        const u64 group = base + team;
        float sum[PACKS][PACK] = {};
#if RING
        RowScales scales(rstd, group, group < groups ? rows : 0, groups);
        for (u64 row = group; group < groups && row < rows; row += groups) {
            on_time.wait();
            const float rstd_row = scales.at(row);
            const T *z_row = (const T*)ring.wait(), *d_row = (const T*)((const unsigned char*)z_row + row_bytes);
            auto z = [&](u32 k) { return load_pack(z_row, column_of(k), hidden); };
            auto d = [&](u32 k) { return load_pack(d_row, column_of(k), hidden); };
            const u32 end = hidden;
#else
        for (u64 first = base; first < rows; first += groups) {
            const u64 row = first + team;
            const bool active = group < groups && row < rows;
            const u32 end = active ? hidden : 0;  // a team without a row loads and stores nothing
            const float rstd_row = active ? rstd[row] : 0.0f;
            auto load = [&](const T* base, u64 stride, u32 k) {
                return HELD ? load_pack_once(base + row * stride, column_of(k), end) : load_pack(base + row * stride, column_of(k), end);
            };
            Pack<T> z_held[PACKS], d_held[PACKS];
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) if (HELD) z_held[k] = load(x, x_stride, k), d_held[k] = load(dy, dy_stride, k);
            auto z = [&](u32 k) { return HELD ? z_held[k] : load(x, x_stride, k); };
            auto d = [&](u32 k) { return HELD ? d_held[k] : load(dy, dy_stride, k); };
#endif
            auto work = [&](auto scale) {
                const float dot = reduce(fold_row, [&](u32 k, float (&p)[PACK]) {
                    const Pack<T> zk = z(k), dk = d(k);
                    dot_step(zk, dk, w[k], scale, p);
                    column_step(zk, dk, scale, sum[k]);
                });
                const float c = mean(dot, (float)hidden);
#if RING
                if (WARPS == 1) team_barrier();
                fetch(ring.before(ring.stage));  // the team has met: nobody reads the row before this one any more
#endif
#pragma unroll
                for (u32 k = 0; k < PACKS; k++) store_dx(dx + row * dx_stride, column_of(k), end, z(k), d(k), w[k], scale, c);
            };
            if (rstd_row == INFINITY_F32)
                work(row_scale(rstd_row, [&] {
                    const float squares = reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(z(k), SCALE_UP, p); });
                    return scaled_root(squares, (float)hidden);
                }));
            else work(OrdinaryRow{rstd_row});
#if RING
            ring.advance();
#endif
        }
        if (partial) write_partial(partial + base / ROWS * hidden, sum, hidden, all);
    }
}

#endif
