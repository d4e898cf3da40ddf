// db: the partial column sums of dy, which is read once more for them. The kernels over rows have no registers for a second sum a column.
//
// A thread has a pack of columns of one row group: group g is the rows g, g + groups, g + 2·groups, … Of a block, `lanes` threads share a row, up to a
// whole warp, so that they read neighbouring bytes; where rows are narrower, those of the next groups follow. The THREADS / lanes
// groups of a block are a node of the tree: it folds them, pads being +0.0, and writes one partial row.

constexpr u32 PACK = ALIGNED ? 16 / sizeof(T) : 1, WORDS = ALIGNED ? 4 : 1, AT_ONCE = 4;

// A pack of dy, as it lies in memory.
template <typename E> struct Pack {
    u32 word[WORDS];

    __device__ __forceinline__ explicit Pack(const E* from) {
        if (ALIGNED) {
            const Words<4> v = *(const Words<4>*)from;
#pragma unroll
            for (u32 i = 0; i < WORDS; i++) word[i] = v.word[i];
        } else if (sizeof(E) == 4) word[0] = *(const u32*)from;
        else word[0] = *(const u16*)from;
    }

    __device__ __forceinline__ float operator[](u32 i) const {
        if constexpr (sizeof(E) == 4) return __uint_as_float(word[i]);
        else return widen(E{(u16)(word[i / 2] >> (i % 2 * 16))});
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) bias_partials(BIAS_PARAMETERS) {
    dy += head(inner) * dy_jump, partial += head(inner) * groups * hidden;
    const u32 block = block_of_head(inner);
    const u32 slots = THREADS / lanes, slot = threadIdx.x / lanes, tile = lanes * PACK, tiles = (hidden + tile - 1) / tile;
    const u32 column = block % tiles * tile + threadIdx.x % lanes * PACK;
    const u64 node = block / tiles, group = node * slots + slot;
    float sum[PACK] = {};
    auto add = [&](const Pack<T>& v) {
#pragma unroll
        for (u32 i = 0; i < PACK; i++) sum[i] = chain(v[i], 1.0f, sum[i]);
    };
    if (group < groups && column < hidden) {
        const T* at = dy + column;
        auto load = [&](u64 row) { return Pack<T>(row_of(at, row, dy_stride, dy_jump, inner, reciprocal)); };
        u64 row = group;
        for (; row + (AT_ONCE - 1) * groups < rows; row += AT_ONCE * groups) {
            const Pack<T> v[AT_ONCE] = {load(row), load(row + groups), load(row + 2 * groups), load(row + 3 * groups)};
#pragma unroll
            for (u32 r = 0; r < AT_ONCE; r++) add(v[r]);
        }
#pragma unroll 1
        for (; row < rows; row += groups) add(load(row));
    }
    // At distance d, slot s takes what slot s + d has come to, which changes no more.
    __shared__ float sums[PACK][THREADS];
#pragma unroll
    for (u32 i = 0; i < PACK; i++) sums[i][threadIdx.x] = sum[i];
    for (u32 d = 1; d < slots; d *= 2) {
        __syncthreads();
        if (slot % (2 * d) != 0) continue;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) sums[i][threadIdx.x] = sum[i] = fold(sum[i], sums[i][threadIdx.x + d * lanes]);
    }
    if (slot > 0 || column >= hidden) return;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) partial[node * hidden + column + i] = sum[i];
}
