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
