// Where the rows of an operand begin: row r is r·stride elements after the first. Rows of two levels (TWO_LEVELS) lie in groups of `inner`, from the last
// of one to the first of the next `jump` elements more than a stride, modulo 2^64: (r / inner)·jump in all. Of other rows the names are constants
// that nobody reads.

// r / inner, `reciprocal` being (2^64 - 1) / inner. The product's high half is the quotient or one less: the reciprocal is below 2^64 / inner by 1 at most,
// and r by less than 2^64.
__device__ __forceinline__ u64 group_of(u64 row, u64 inner, u64 reciprocal) {
    const u64 least = high_half(row, reciprocal);
    return least + (row - least * inner >= inner);
}

template <typename E> __device__ __forceinline__ E* row_of(E* operand, u64 row, u64 stride, u64 jump, u64 inner, u64 reciprocal) {
    if constexpr (TWO_LEVELS) return operand + (row * stride + group_of(row, inner, reciprocal) * jump);
    else return operand + row * stride;
}

// That of an operand of the kernel, by its name.
#define ROW(operand, row) row_of(operand, row, operand##_stride, operand##_jump, inner, reciprocal)

// Heads that have a weight each (HEADS) take turns in the rows: row r is head r mod inner's. What there is once a head lies behind that of the head before.
template <typename E> __device__ __forceinline__ E* of_head(E* operand, u64 row, u32 hidden, u64 inner, u64 reciprocal) {
    if constexpr (HEADS) return operand + (row - group_of(row, inner, reciprocal) * inner) * hidden;
    else return operand;
}

#define OF_HEAD(operand, row) of_head(operand, row, hidden, inner, reciprocal)

// Backward sums the rows of each head by themselves: every `inner`th block is one head's, and for it everything else is as if its rows were alone, and of one level.
// Each operand's first row lies `jump` elements after that of the head before, and rstd of its row r `inner` elements after that of row r - 1.
__device__ __forceinline__ u32 head(u64 inner) { return HEADS ? blockIdx.x % (u32)inner : 0; }
__device__ __forceinline__ u32 block_of_head(u64 inner) { return HEADS ? blockIdx.x / (u32)inner : blockIdx.x; }
__device__ __forceinline__ u32 blocks_of_head(u64 inner) { return HEADS ? gridDim.x / (u32)inner : gridDim.x; }

template <typename E> struct EachNth {
    E* first;
    u64 n;
    __device__ __forceinline__ E& operator[](u64 row) const { return first[row * n]; }
};

template <typename E, bool OF_HEADS> struct RootsOf { typedef E* Type; };
template <typename E> struct RootsOf<E, true> { typedef EachNth<E> Type; };
template <typename E> using Roots = typename RootsOf<E, HEADS>::Type;

template <typename E> __device__ __forceinline__ Roots<E> roots_of_head(E* rstd, u64 inner) {
    if constexpr (HEADS) return {rstd + head(inner), inner};
    else return rstd;
}

// What a kernel of backward begins with.
#define BACKWARD_OF_HEAD                                                                                                            \
    x += head(inner) * x_jump, dy += head(inner) * dy_jump, dz += head(inner) * dz_jump, dx += head(inner) * dx_jump;              \
    weight += head(inner) * hidden_given;                                                                                           \
    if (partial) partial += head(inner) * groups * hidden_given;                                                                    \
    const Roots<const float> rstd = roots_of_head(rstd_given, inner)
