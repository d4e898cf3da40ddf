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

// Heads that have a weight each (HEADS) are launched side by side: blockIdx.y is the head, and everything else is as if its rows were alone. They are of one
// level. Each operand's first row lies `jump` elements after that of the head before; what there is once a head lies behind that of the head before; and
// rstd of its row r is `inner` elements after that of row r - 1.
__device__ __forceinline__ u64 of_head(u64 step) { return HEADS ? blockIdx.y * step : 0; }

template <typename E> struct EachNth {
    E* first;
    u64 n;
    __device__ __forceinline__ E& operator[](u64 row) const { return first[row * n]; }
    __device__ __forceinline__ explicit operator bool() const { return first; }
};

template <typename E, bool OF_HEADS> struct RootsOf { typedef E* Type; };
template <typename E> struct RootsOf<E, true> { typedef EachNth<E> Type; };
template <typename E> using Roots = typename RootsOf<E, HEADS>::Type;

template <typename E> __device__ __forceinline__ Roots<E> roots_of_head(E* rstd, u64 inner) {
    if constexpr (HEADS) return {rstd ? rstd + blockIdx.y : rstd, inner};
    else return rstd;
}

// What a kernel over rows begins with.
#define FORWARD_OF_HEAD                                                                                                          \
    x += of_head(x_jump), residual += of_head(residual_jump), z_out += of_head(z_out_jump), y += of_head(y_jump);                \
    weight += of_head(hidden_given), bias += of_head(hidden_given);                                                              \
    const Roots<float> rstd = roots_of_head(rstd_given, inner)
#define BACKWARD_OF_HEAD                                                                                                         \
    x += of_head(x_jump), dy += of_head(dy_jump), dz += of_head(dz_jump), dx += of_head(dx_jump), weight += of_head(hidden_given); \
    const Roots<const float> rstd = roots_of_head(rstd_given, inner)
