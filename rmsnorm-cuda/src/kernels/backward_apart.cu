// The same as backward.cu, for rows so wide that a multiprocessor has one row group at a time, and so costly for other reasons than their bytes that one team
// does not keep it busy: rows that are not aligned. Teams with different work are at different places of it, so that something goes on while one of them waits.
//
// The column sums need no dot product: team 0 takes them from every row of the group, in order. The other teams take turns with the rows for the dot product and
// dx. A warp of team 0, which has the least to do, fetches. A row is in the ring once; its stage is free again when each warp of both
// its teams has read it.

static_assert(TEAMS > 1 && TEAM_WARPS > 1);

constexpr u32 WORKERS = TEAMS - 1;  // teams for dx

// A row of the block, group by group, and where it is in the ring: its stage, and the parity of how often that was used before.
struct Place {
    u64 group, row;
    u32 stage, phase;
    __device__ __forceinline__ void next(const Operands& of, u32 stages) {
        row += of.groups;
        if (row >= of.rows) row = group += gridDim.x;
        if (++stage == stages) stage = 0, phase ^= 1;
    }
};

struct Ring {
    const Operands& of;
    u64 *full, *free;  // of each stage: completes when a row has arrived; when its two teams have read it
    u32* reads;        // warps that have
    u32 stages;

    __device__ __forceinline__ u32 pitch() const { return pitch_of(of.hidden); }
    __device__ __forceinline__ unsigned char* at(u32 stage) const { return (unsigned char*)ring_memory + stage * STAGE_ROWS * pitch(); }

    // By one warp: begins to fill the stage of a row, once it is free. (Of a stage that was never used the phase before the first is complete.)
    __device__ __forceinline__ void fetch(const Place& to) const {
        arrival_wait(free + to.stage, to.phase ^ 1);
        fetch_words(of, to.row, at(to.stage), full + to.stage);
    }

    __device__ __forceinline__ void wait(const Place& here) const { arrival_wait(full + here.stage, here.phase); }

    // This warp has read the stage.
    __device__ __forceinline__ void release(const Place& here) const {
        __syncwarp();
        constexpr u32 LAST = 2 * TEAM_WARPS - 1;
        if (threadIdx.x % 32 == 0 && count(reads + here.stage, LAST) == LAST) arrival_expect(free + here.stage, 0);
    }

    // A row of operand i in its stage.
    __device__ __forceinline__ const T* row(u32 i, Matrix<T> operand, const Place& here) const {
        return (const T*)(at(here.stage) + i * pitch() + skew(of.row(operand, here.row)));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) backward(BACKWARD_PARAMETERS) {
    BACKWARD_OF_HEAD;
    const u32 hidden = exact_hidden(hidden_given), team = threadIdx.x / TEAM;
    __shared__ u64 full[STAGES_MAX], free[STAGES_MAX];
    __shared__ u32 reads[STAGES_MAX];
    __shared__ float nodes[TEAMS][2][SETS * TEAM_WARPS];
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < stages; s++) arrival_init(full + s), arrival_init(free + s), reads[s] = 0;
        async_proxy_fence();
    }
    __syncthreads();
    const Operands operands{{x, x_stride, x_jump}, {dy, dy_stride, dy_jump}, {dz, dz_stride, dz_jump}, rstd, rows, groups, hidden, inner, reciprocal};
    const Ring ring{operands, full, free, reads, stages};
    RowFold fold_row{nodes[team]};
    Place here{blockIdx.x, blockIdx.x, 0, 0};

    if (team == 0) {
        Place wanted = here;
        auto fetch = [&] {
            if (threadIdx.x / 32 == TEAM_WARPS / 2 && wanted.group < groups) ring.fetch(wanted), wanted.next(operands, stages);
        };
        for (u32 i = 1; i < stages; i++) fetch();
        Pace pace_of_rows(pace);
        Scales scales{rstd, rows, groups};
        while (here.group < groups) {
            const u64 group = here.group;
            float sum[PACKS][PACK] = {};
            for (scales.begin(group); here.group == group; here.next(operands, stages)) {
                const float of_row = scales.at(here.row);
                pace_of_rows.wait();
                ring.wait(here);
                const T *const z = ring.row(0, operands.x, here), *const d = ring.row(1, operands.dy, here);
                auto add = [&](auto scale) {
#pragma unroll
                    for (u32 k = 0; k < PACKS; k++)
                        if (!column_of(k).is_outside(hidden)) column_step(load_arrived(z, column_of(k), hidden), load_arrived(d, column_of(k), hidden), scale, sum[k]);
                };
                if (of_row == INFINITY_F32)
                    add(row_scale(of_row, [&] {
                        const float squares = reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(load_arrived(z, column_of(k), hidden), SCALE_UP, p); });
                        return scaled_root(squares, (float)hidden);
                    }));
                else add(OrdinaryRow{of_row});
                ring.release(here);
                fetch();
            }
            if (partial) {
                float* const to = partial + group * hidden;
#pragma unroll
                for (u32 k = 0; k < PACKS; k++) store_pack(to, column_of(k), hidden, sum[k]);
            }
        }
        return;
    }

    // The weight stays in registers for all rows of a team.
    Pack<W> w[PACKS] = {};
    if (HAS_WEIGHT) load_row<is_seldom(RowScale{})>(w, weight, hidden);
    auto next = [&](u32 rows_on) {
        for (u32 i = 0; i < rows_on; i++) here.next(operands, stages);
        return here.group < groups ? rstd[here.row] : 0.0f;
    };
    float ahead = next(team - 1);
    while (here.group < groups) {
        // With dz, as it lies in memory: the compiler would keep it widened, in twice the registers.
#pragma unroll
        for (u32 k = 0; k < (HAS_DZ ? PACKS : 0); k++)
#pragma unroll
            for (u32 i = 0; i < Pack<W>::WORDS; i++) asm volatile("" : "+r"(w[k].word(i)));
        ring.wait(here);
        const T *const x_here = ring.row(0, operands.x, here), *const dy_here = ring.row(1, operands.dy, here);
        Pack<T> z[PACKS] = {}, d[PACKS] = {}, g[HAS_DZ ? PACKS : 1] = {};
#pragma unroll
        for (u32 k = 0; k < PACKS; k++) {
            if (column_of(k).is_outside(hidden)) continue;
            z[k] = load_arrived(x_here, column_of(k), hidden), d[k] = load_arrived(dy_here, column_of(k), hidden);
            if (HAS_DZ) g[k] = load_arrived(ring.row(2, operands.dz, here), column_of(k), hidden);
        }
        ring.release(here);
        T* const to_row = ROW(dx, here.row);
        const float of_row = ahead;
        ahead = next(WORKERS);
        auto work = [&](auto scale) {
            const float dot = reduce(fold_row, [&](u32 k, float (&p)[PACK]) {
                if (!column_of(k).is_outside(hidden)) dot_step(z[k], d[k], w[k], scale, p);
            });
            const float c = mean(dot, (float)hidden);
            as_it_lies<is_seldom(decltype(scale){})>(to_row, [&](auto to) {
#pragma unroll
                for (u32 k = 0; k < PACKS; k++) store_dx(to, column_of(k), hidden, z[k], d[k], g[HAS_DZ ? k : 0], w[k], scale, c);
            });
        };
        if (of_row == INFINITY_F32)
            work(row_scale(of_row, [&] {
                const float squares = reduce(fold_row, [&](u32 k, float (&p)[PACK]) { scaled_squares_step(z[k], SCALE_UP, p); });
                return scaled_root(squares, (float)hidden);
            }));
        else work(OrdinaryRow{of_row});
    }
}
