// Where backward has its rows from. A Source goes through the rows of one group after another, for the threads of one team:
//   begin(base)       the block's first group is `base`; this team's is base + team
//   next()            the next rows, if there are any: `count` of them, AT_ONCE at most; `end`, how many elements of each are to be worked on
//   row(r), rstd[r]   the number of row r of them, and its rstd
//   z<s>(r, k), d<s>(r, k)  pack k of this thread, of x and of dy, as often as asked; s: IS_SELDOM, as in as_it_lies
//   g<s>(r, k)        the same of dz, zeros where there is none
//   met()             all threads of the team have been here since they asked for a pack of the rows before
// Every team of a block calls them alike; one without a row works on no element.

template <typename E> struct Matrix {
    const E* first;
    u64 stride, jump;
};

struct Operands {
    Matrix<T> x;
    Matrix<DY> dy;
    Matrix<DZ> dz;
    Roots<const float> rstd;
    u64 rows, groups;
    u32 hidden;
    u64 inner, reciprocal;

    template <typename E> __device__ __forceinline__ const E* row(Matrix<E> of, u64 row) const { return row_of(of.first, row, of.stride, of.jump, inner, reciprocal); }
    // What arrives in shared memory is of type T: where rows have several types, nobody asks.
    template <typename E> __device__ __forceinline__ Arriving arriving(Matrix<E> of, u64 row) const {
        return Arriving((const T*)of.first, (const T*)this->row(of, row), (const T*)this->row(of, rows - 1), hidden);
    }
    // By a number that is known when the kernel runs: member by member, or all would lie in memory.
    __device__ __forceinline__ Matrix<T> matrix(u32 i) const {
        return {i == 0 ? x.first : i == 1 ? (const T*)dy.first : (const T*)dz.first, i == 0 ? x.stride : i == 1 ? dy.stride : dz.stride, i == 0 ? x.jump : i == 1 ? dy.jump : dz.jump};
    }
};

// Rows in global memory. A thread's part of a row stays in registers between the two passes (KEPT), or is read twice, the second time from
// the cache. Where it is kept, the next row is on its way meanwhile.
template <bool KEPT> struct InMemory {
    const Operands& of;
    static constexpr u32 AT_ONCE = 1, count = 1;
    u64 base, first, here;
    u32 end;
    float rstd[1];
    struct Row {
        u32 end;
        float rstd;
        Pack<T> z[PACKS];
        Pack<DY> d[PACKS];
    } kept, ahead;

    __device__ __forceinline__ InMemory(const Operands& of, u32, u32) : of(of) {}

    __device__ __forceinline__ void begin(u64 group) {
        base = first = group;
        if (KEPT) fetch(first);
    }

    __device__ __forceinline__ bool next() {
        if (first >= of.rows) return false;
        const u32 team = threadIdx.x / TEAM;
        here = first + team, first += of.groups;
        if (KEPT) {
            kept = ahead, end = kept.end, rstd[0] = kept.rstd;
            fetch(first);
        } else {
            end = is_mine(here) ? of.hidden : 0;
            rstd[0] = end > 0 ? of.rstd[here] : 0.0f;
        }
        return true;
    }

    __device__ __forceinline__ bool is_mine(u64 row) const { return base + threadIdx.x / TEAM < of.groups && row < of.rows; }

    // Begins to load the team's row of those from `first` on.
    __device__ __forceinline__ void fetch(u64 first) {
        const u64 row = first + threadIdx.x / TEAM;
        ahead.end = is_mine(row) ? of.hidden : 0;
        ahead.rstd = ahead.end > 0 ? of.rstd[row] : 0.0f;
        load_row(ahead.z, of.row(of.x, row), ahead.end);
        load_row(ahead.d, of.row(of.dy, row), ahead.end);
    }

    __device__ __forceinline__ u64 row(u32) const { return here; }
    template <bool IS_SELDOM> __device__ __forceinline__ Pack<T> z(u32, u32 k) const { return KEPT ? kept.z[k] : load_words<IS_SELDOM>(of.row(of.x, here), column_of(k), end); }
    template <bool IS_SELDOM> __device__ __forceinline__ Pack<DY> d(u32, u32 k) const { return KEPT ? kept.d[k] : load_words<IS_SELDOM>(of.row(of.dy, here), column_of(k), end); }
    template <bool IS_SELDOM> __device__ __forceinline__ Pack<DZ> g(u32, u32 k) const { return load_dz<IS_SELDOM>(of.row(of.dz, here), column_of(k), end); }
    __device__ __forceinline__ void met() {}
};

// With a ring, a multiprocessor could ask for more than its share of the memory's rate. Those near the memory then get it, finish
// early, and leave the memory idle while the others finish. So no team runs ahead of time: it begins a row `period` (in 1/256 ns)
// after the one before, counted from the start, or when it can. The teams begin at different fractions of a period, by a step that
// has no factor in common with 128.
struct Pace {
    u64 due;
    u32 period;

    __device__ __forceinline__ explicit Pace(u32 period) : period(period) {
        const u32 fraction = (blockIdx.x * 61 + threadIdx.x / TEAM * 37) % 128;
        due = (nanoseconds() << 8) + (u64)period * fraction / 128;
    }

    __device__ __forceinline__ void wait() {
        if (period == 0) return;
        if (threadIdx.x % TEAM < 32)
            while ((long long)((nanoseconds() << 8) - due) < 0) {}
        due += period;
    }
};

// rstd of a team's rows in order. The memory answers slowly while it is busy: a warp fetches 32 rows at once, 32 to 64 rows ahead.
struct Scales {
    Roots<const float> rstd;
    u64 rows, groups;
    u32 count;
    float here, ahead;

    __device__ __forceinline__ void begin(u64 group) {
        count = 0;
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

// By a warp: begins to bring a row of each operand, none of them ALIGNED, to `buffer`. Where a row's words begin and end takes many instructions: a lane does it
// for one operand.
__device__ __forceinline__ void fetch_words(const Operands& of, u64 row, unsigned char* buffer, u64* full) {
    const u32 lane = threadIdx.x % 32, i = lane < STAGE_ROWS ? lane : 0;
    const Arriving mine = of.arriving(of.matrix(i), row);
    unsigned char* const to = buffer + i * pitch_of(of.hidden);
    if (lane < STAGE_ROWS) mine.ends(to);
    u32 bytes = 0;
#pragma unroll
    for (u32 other = 0; other < STAGE_ROWS; other++) bytes += __shfl_sync(~0u, mine.bytes(), other);
    __syncwarp();
    if (lane == 0) arrival_expect(full, bytes);
    if (lane < STAGE_ROWS) mine.copy(to, full);
}

// Rows that arrive in shared memory by bulk copies, ahead of their turn: a ring of `stages` buffers for each team, each for ROWS rows of a group: of each a row
// of x, one of dy, and one of dz if there is one, filled by one warp of the team and waited for by all. A stage is filled again once the team has met after its
// last reader. A team of one warp waits for itself alone, so it works on two rows at once.
//
// In place nothing of a row is read from memory any more when its dx is written, for it has arrived; what a copy brings of the rows around its own may be
// either of both, and nobody uses it.
template <u32 ROWS> struct Ringed {
    static constexpr u32 AT_ONCE = ROWS;
    static_assert(ROWS == 1 || ALIGNED);
    const Operands& of;
    u64 (*barriers)[STAGES_MAX];  // one a stage: completes when the stage's bytes have arrived
    u32 stages, stage = 0, phase = 0;
    u64 wanted_group, wanted;  // the next row to fetch, and its group
    Scales scales;
    Pace pace;
    u64 first;  // the first of the rows that are here
    u32 count, end;
    float rstd[ROWS];
    const unsigned char* here;
    // Rows that are not ALIGNED are put together from halves of words: a thread does that once where it has registers for them.
    static constexpr bool KEEPS = !ALIGNED && PACKS * PACK <= 40 && THREADS <= 256;
    Pack<T> kept_z[PACKS], kept_d[PACKS];

    __device__ __forceinline__ Ringed(const Operands& of, u32 stages, u32 period)
        : of(of), stages(stages), scales{of.rstd, of.rows, of.groups}, pace(period), end(of.hidden) {
        __shared__ u64 of_teams[TEAMS][STAGES_MAX];
        barriers = of_teams;
        if (threadIdx.x % TEAM == 0) {
            for (u32 s = 0; s < stages; s++) arrival_init(full(s));
            async_proxy_fence();
        }
        __syncthreads();
        wanted_group = wanted = (u64)block_of_head(of.inner) * TEAMS + threadIdx.x / TEAM;
        for (u32 s = 0; s + 1 < stages; s++) fetch(s);
    }

    __device__ __forceinline__ u64* full(u32 s) const { return &barriers[threadIdx.x / TEAM][s]; }
    __device__ __forceinline__ u32 pitch() const { return pitch_of(of.hidden); }
    __device__ __forceinline__ unsigned char* at(u32 s) const {
        return (unsigned char*)ring_memory + (threadIdx.x / TEAM * stages + s) * ROWS * STAGE_ROWS * pitch();
    }

    // How many of ROWS rows from `first` on there are; the first is.
    __device__ __forceinline__ u32 rows_from(u64 first) const {
        u32 there = 1;
#pragma unroll
        for (u32 r = 1; r < ROWS; r++) there += first + r * of.groups < of.rows;
        return there;
    }

    // Begins to fill stage s with the next rows of this team, of whichever group.
    __device__ __forceinline__ void fetch(u32 s) {
        if (wanted_group >= of.groups) return;
        if constexpr (ALIGNED) {
            if (threadIdx.x % TEAM == 0) {
                const u32 there = rows_from(wanted);
                arrival_expect(full(s), there * STAGE_ROWS * of.hidden * (u32)sizeof(T));
#pragma unroll
                for (u32 r = 0; r < ROWS; r++)
                    if (r < there) {
                        const Arriving rows[] = {of.arriving(of.x, wanted + r * of.groups), of.arriving(of.dy, wanted + r * of.groups), of.arriving(of.dz, wanted + r * of.groups)};
#pragma unroll
                        for (u32 i = 0; i < STAGE_ROWS; i++) rows[i].copy(at(s) + (r * STAGE_ROWS + i) * pitch(), full(s));
                    }
            }
        } else if (threadIdx.x % TEAM / 32 == TEAM_WARPS / 2) fetch_words(of, wanted, at(s), full(s));  // a warp that seldom has the end of the row
        wanted += ROWS * of.groups;
        if (wanted >= of.rows) wanted_group += (u64)blocks_of_head(of.inner) * TEAMS, wanted = wanted_group;
    }

    __device__ __forceinline__ void begin(u64 base) {
        const u64 group = base + threadIdx.x / TEAM, first = group < of.groups ? group : of.rows;
        this->first = first - ROWS * of.groups;
        scales.begin(first);
    }

    __device__ __forceinline__ bool next() {
        first += ROWS * of.groups;
        if (first >= of.rows) return false;
        pace.wait();
        count = rows_from(first);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) rstd[r] = scales.at(row(r));
        arrival_wait(full(stage), phase);
        here = at(stage);
        if (KEEPS) {
            const T *x = arrived(0, 0, of.x), *dy = arrived(0, 1, of.dy);
#pragma unroll
            for (u32 k = 0; k < PACKS; k++) {
                kept_z[k] = kept_d[k] = {};
                if (column_of(k).is_outside(end)) continue;
                kept_z[k] = load_arrived(x, column_of(k), end), kept_d[k] = load_arrived(dy, column_of(k), end);
            }
        }
        return true;
    }

    __device__ __forceinline__ u64 row(u32 r) const { return first + r * of.groups; }

    // Where row r of the stage begins, of operand i.
    template <typename E> __device__ __forceinline__ const T* arrived(u32 r, u32 i, Matrix<E> operand) const {
        return (const T*)(here + (r * STAGE_ROWS + i) * pitch() + skew((const T*)of.row(operand, row(r))));
    }

    // Pack k of it.
    template <bool IS_SELDOM, typename E> __device__ __forceinline__ Pack<T> arrived_pack(u32 r, u32 i, Matrix<E> operand, u32 k) const {
        const T* row = arrived(r, i, operand);
        return IS_SELDOM ? load_pack(row, column_of(k), end) : load_arrived(row, column_of(k), end);
    }

    template <bool IS_SELDOM> __device__ __forceinline__ Pack<T> z(u32 r, u32 k) const { return KEEPS ? kept_z[k] : arrived_pack<IS_SELDOM>(r, 0, of.x, k); }
    template <bool IS_SELDOM> __device__ __forceinline__ Pack<T> d(u32 r, u32 k) const { return KEEPS ? kept_d[k] : arrived_pack<IS_SELDOM>(r, 1, of.dy, k); }

    template <bool IS_SELDOM> __device__ __forceinline__ Pack<T> g(u32 r, u32 k) const { return HAS_DZ ? arrived_pack<IS_SELDOM>(r, 2, of.dz, k) : Pack<T>{}; }

    __device__ __forceinline__ void met() {
        if (TEAM_WARPS == 1) team_barrier();
        fetch(stage == 0 ? stages - 1 : stage - 1);  // nobody reads the rows before these any more
        if (++stage == stages) stage = 0, phase ^= 1;
    }
};
