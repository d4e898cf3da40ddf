// How a block holds rows: which thread owns which elements. pack.cuh has how they are loaded and stored, reduce.cuh what is done with them and how
// threads fold what they hold. Nothing in the three rounds; all arithmetic is arith.cuh's.
//
// A team of TEAM threads shares a row; a block is TEAMS teams. A pack is PACK elements of a row, 8 to 32 bytes, one
// for each of PACK chains. Pack k of a thread lies k·TEAM·PACK elements after its first. A thread owns the chains of
// its first SETS packs; pack k goes on with the chains of pack k mod SETS. Set when a module is compiled (plan.rs, Class):
//   T, W, B       element type of what is normalised (x, or with a residual z); of the weight; of the bias
//   X, R, Y       of forward's x, residual and y; X is T where there is no residual
//   DY, DZ, DX    of backward's dy, dz and dx. Rows of several types have forward.cu and backward.cu from global memory, or the streamed kernels alone
//   HAS_WEIGHT, ZERO_CENTRED
//   HAS_BIAS      a bias is added before y is rounded
//   TWICE         x_hat is rounded before the weight multiplies it
//   HAS_RESIDUAL  something is added to x
//   HAS_DZ        a gradient is added to dx
//   TEAM, TEAMS   as above; TEAMS is a power of two
//   PACK          4 or 8 elements
//   PACKS         packs a thread has of a row, at most; 0: any number, the row is streamed
//   SETS          a power of two; TEAM·PACK·SETS is the number of chains, or the next power of two if hidden <= 256
//   ALIGNED       every row of every operand begins on 16 bytes and hidden is a multiple of PACK
//   FILLED        hidden is more than what all packs but a thread's last hold
//   EXACT         hidden is CLUSTER·TEAM·PACK·PACKS: every thread owns every element of every pack
//   CLUSTER       1, or blocks that share a row (cluster.cuh): then SETS is that of a row which a block folds alone
//
// An example: hidden 4096, so 1024 chains; TEAM 64 (two warps), PACK 8, PACKS 8, SETS 2. Element 1030 lies in pack 1030 / 8 = 128 of the row: pack
// k = 128 / 64 = 2 of thread 128 mod 64 = 0, at place 1030 mod 8 = 6. As k mod SETS is 0, its chain is place 6 of that thread's first set, chain
// 1030 mod 1024 = 6, after element 6 (k = 0) and before 2054 (k = 4). In the tree thread 0 folds its chains 0 … 7 (fold_pack), then warp 0 its
// threads' nodes to that of the chains 0 … 255 (fold_lanes), then come 256 … 511 of warp 1, and last the second set, 512 … 1023 (RowFold).
//
// The elements of a pack are neighbours where rows are ALIGNED. Elsewhere one access cannot take 16 bytes, and the lanes of a warp share out the same
// PACK·32 elements by words of four bytes: neighbouring lanes have neighbouring words, so that they touch neighbouring bytes together, wherever the
// row begins. The example with hidden 4097 (2048 chains, SETS 4): element 1030 is still in pack 2 of warp 0, whose packs begin at k·512 elements, but as its element
// 6: word 3, of lane 3 (elements 6 and 7), in the first of that lane's four words, which are SPREAD = 64 elements apart (6, 70, 134, 198). Chains
// keep their elements and the tree its order; only who folds what differs: a lane the two chains of a word, the warp those of words at one distance
// (lanes 0 … 31 have the chains 0 … 63 in their first words), and then what its words came to, 0 … 63 with 64 … 127 (fold_spread).
//
// In place y has the rows of x, z those of x or of the residual, dx those of x, dy or dz. A kernel that may be launched so reads every element of a row for
// the last time before it is written: in the thread that writes it, or ahead of a barrier, a shuffle or a message that the writer awaits. Where words have halves
// of two lanes, all loads of a pack come before the shuffles that hand halves over, and these before its stores. No pointer is __restrict__.
// docs/determinism.md goes through the kernels.

constexpr u32 THREADS = TEAM * TEAMS;
constexpr u32 TEAM_LANES = TEAM < 32 ? TEAM : 32;     // lanes of a team within one warp
constexpr u32 TEAM_WARPS = TEAM < 32 ? 1 : TEAM / 32;  // warps of a team
constexpr u32 TEAM_WARPS_PADDED = TEAM_WARPS <= 1 ? 1 : TEAM_WARPS <= 2 ? 2 : TEAM_WARPS <= 4 ? 4 : TEAM_WARPS <= 8 ? 8 : TEAM_WARPS <= 16 ? 16 : 32;

// Elements of the widest row that the threads hold.
constexpr u32 HOLDS = CLUSTER * TEAM * PACK * PACKS;

// The width: a constant if it is known.
__device__ __forceinline__ u32 exact_hidden(u32 given) { return EXACT ? HOLDS : given; }

// The same as what a sum is divided by.
__device__ __forceinline__ auto divisor(u32 hidden) {
    if constexpr (EXACT && (HOLDS & (HOLDS - 1)) == 0) return PowerOfTwo{1.0f / HOLDS};
    else return (float)hidden;
}

// The same where a team has AT_ONCE held rows on their way. With one it is a division, over which the compiler keeps little: with a product it kept the widened
// row (forward, 2048 bf16: 56 bytes spilled, and 0.77 of the ceiling for 0.97).
template <u32 AT_ONCE> __device__ __forceinline__ auto divisor_of(u32 hidden) {
    if constexpr (AT_ONCE > 1) return divisor(hidden);
    else return (float)hidden;
}

// The lanes of this thread's team within its warp.
__device__ __forceinline__ u32 team_mask() { return TEAM_LANES == 32 ? ~0u : ((1u << (TEAM_LANES % 32)) - 1) << (threadIdx.x % 32 / TEAM_LANES * TEAM_LANES); }

// Neighbouring elements of a pack, and from one such word of it to the next.
constexpr u32 WORD = ALIGNED ? PACK : 4 / sizeof(T), SPREAD = WORD * TEAM_LANES;

// Where element i of a pack lies after its first.
__device__ __forceinline__ u32 place(u32 i) { return i / WORD * SPREAD + i % WORD; }

// Where a pack lies in a row: the first element that its warp has of it, and this lane's. `whole`: all that the warp has is known to lie before the
// end of the row. Where all lies past the end there is nothing to do: of 4097 elements one warp has the last pack, and the others pass over it.
struct Column {
    u32 of_warp, of_lane, of_pack;
    bool whole;

    __device__ __forceinline__ Column(u32 first) : of_warp(first), of_lane(0), of_pack(0), whole(false) {}
    __device__ __forceinline__ Column(u32 of_warp, u32 of_lane, u32 of_pack, bool whole) : of_warp(of_warp), of_lane(of_lane), of_pack(of_pack), whole(whole) {}

    __device__ __forceinline__ u32 first() const { return of_warp + of_lane + of_pack; }
    // Of a row that is there, `hidden` being its length.
    __device__ __forceinline__ bool has(u32 i, u32 hidden) const { return whole || first() + place(i) < hidden; }
    __device__ __forceinline__ bool is_whole(u32 hidden) const { return whole || of_warp + of_pack + TEAM_LANES * PACK <= hidden; }
    __device__ __forceinline__ bool is_outside(u32 hidden) const { return !ALIGNED && !whole && of_warp + of_pack >= hidden; }
    template <typename E> __device__ __forceinline__ E* at(E* row, u32 i) const { return row + (of_warp + of_lane) + (u64)(of_pack + place(i)); }
};

// That of pack k of this thread.
__device__ __forceinline__ Column column_of(u32 k) {
    const u32 member = threadIdx.x % TEAM, lane = member % TEAM_LANES;
    if (ALIGNED) return (k * TEAM + member) * PACK;
    return Column((member - lane) * PACK, lane * WORD, k * TEAM * PACK, FILLED && k + 1 < PACKS);
}
