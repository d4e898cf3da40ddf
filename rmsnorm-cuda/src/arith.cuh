// THE SPECIFICATION, CUDA half. Its twin is arith.rs: the same sections, names and order; the prose stands there.
//
// Only __fadd_rn, __fmul_rn, __fmaf_rn, __fdiv_rn and __fsqrt_rn: the compiler never merges or splits these. No header is
// included but ptx.cuh. NVRTC is never given a fast-math option, and -ftz=true would break them all.

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

// §1 Widen and store ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(f16 v) { return f32_from_f16(v.bits); }
__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float((u32)v.bits << 16); }

template <typename T> __device__ __forceinline__ T store(float v);
template <> __device__ __forceinline__ float store<float>(float v) { return v; }
template <> __device__ __forceinline__ f16 store<f16>(float v) { return f16{f16_from_f32(v)}; }
template <> __device__ __forceinline__ bf16 store<bf16>(float v) { return bf16{bf16_from_f32(v)}; }

// Two at once, the first in the low half: the same bits as one by one.
template <typename T> __device__ __forceinline__ u32 store_pair(float low, float high);
template <> __device__ __forceinline__ u32 store_pair<f16>(float low, float high) { return f16x2_from_f32(low, high); }
template <> __device__ __forceinline__ u32 store_pair<bf16>(float low, float high) { return bf16x2_from_f32(low, high); }

// §2 The one reduction: chains, then a tree -------------------------------------------------------------------------------

__device__ __forceinline__ float chain(float a, float b, float acc) { return __fmaf_rn(a, b, acc); }

__device__ __forceinline__ float fold(float left, float right) { return __fadd_rn(left, right); }

__device__ __forceinline__ float total(float root) { return __fadd_rn(root, 0.0f); }

// §3 Row statistic --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float mean(float sum, float hidden) { return __fdiv_rn(sum, hidden); }

// The same of a power of two: its reciprocal is exact, so the product is the quotient, rounded once.
struct PowerOfTwo { float reciprocal; };

__device__ __forceinline__ float mean(float sum, PowerOfTwo hidden) { return __fmul_rn(sum, hidden.reciprocal); }

__device__ __forceinline__ float reciprocal_root(float v) { return __fdiv_rn(1.0f, __fsqrt_rn(v)); }

// §4 Scaled rows ----------------------------------------------------------------------------------------------------------

#define INFINITY_F32 __uint_as_float(0x7f800000u)
#define MIN_POSITIVE __uint_as_float(0x00800000u)
#define SCALE_UP __uint_as_float((127u + 100u) << 23)
#define SCALE_DOWN __uint_as_float((127u - 100u) << 23)

__device__ __forceinline__ float scale_for(float v) {
    return v == INFINITY_F32 ? SCALE_DOWN : v < MIN_POSITIVE ? SCALE_UP : 1.0f;
}

__device__ __forceinline__ float scaled(float z, float s) { return __fmul_rn(z, s); }

struct RowScale { float pre, post; };

struct Statistic { float rstd; RowScale scale; };

template <typename F> __device__ __forceinline__ RowScale row_scale(float rstd, F root) {
    if (rstd == INFINITY_F32) return RowScale{SCALE_UP, root()};
    return RowScale{1.0f, rstd};
}

// 0 of a row that has to be scaled.
template <typename N> __device__ __forceinline__ float ordinary_rstd(float sum, N hidden, float eps) {
    float v = __fadd_rn(mean(sum, hidden), eps);
    return scale_for(v) == 1.0f ? reciprocal_root(v) : 0.0f;
}

template <typename N, typename F> __device__ __forceinline__ Statistic statistic(float sum, N hidden, float eps, F rescale) {
    float v = __fadd_rn(mean(sum, hidden), eps), s = scale_for(v);
    if (s == 1.0f) {
        float rstd = reciprocal_root(v);
        return Statistic{rstd, {1.0f, rstd}};
    }
    float root = reciprocal_root(__fadd_rn(mean(rescale(s), hidden), __fmul_rn(__fmul_rn(eps, s), s)));
    float rstd = __fmul_rn(s, root);
    return Statistic{rstd, row_scale(rstd, [=] { return root; })};
}

__device__ __forceinline__ float scaled_root(float sum, float hidden) { return reciprocal_root(mean(sum, hidden)); }

__device__ __forceinline__ float x_hat(float z, RowScale row) { return __fmul_rn(__fmul_rn(z, row.pre), row.post); }

// The same where pre is 1: a product with 1 is exact, and is left out.
struct OrdinaryRow { float rstd; };

__device__ __forceinline__ float x_hat(float z, OrdinaryRow row) { return __fmul_rn(z, row.rstd); }

// §5 Forward --------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float added(float x, float residual) { return __fadd_rn(x, residual); }

__device__ __forceinline__ float effective_weight(float weight, bool zero_centred) {
    return zero_centred ? __fadd_rn(weight, 1.0f) : weight;
}

template <typename T> __device__ __forceinline__ float factor(float x_hat, bool twice) {
    return twice ? widen(store<T>(x_hat)) : x_hat;
}

__device__ __forceinline__ float weighted(float value, float weight) { return __fmul_rn(value, weight); }

__device__ __forceinline__ float weighted_with(float value, float weight, float bias) { return __fmaf_rn(value, weight, bias); }

// §6 Backward, along the row ----------------------------------------------------------------------------------------------

__device__ __forceinline__ float centred(float x_hat, float c, float wdy) { return __fmaf_rn(-x_hat, c, wdy); }

__device__ __forceinline__ float gradient(float t, RowScale row) { return __fmul_rn(__fmul_rn(t, row.post), row.pre); }

__device__ __forceinline__ float gradient(float t, OrdinaryRow row) { return __fmul_rn(t, row.rstd); }

__device__ __forceinline__ float gradient_with(float t, RowScale row, float dz) {
    return row.pre == 1.0f ? __fmaf_rn(t, row.post, dz) : __fmaf_rn(__fmul_rn(t, row.post), row.pre, dz);
}

__device__ __forceinline__ float gradient_with(float t, OrdinaryRow row, float dz) { return __fmaf_rn(t, row.rstd, dz); }

// §7 Backward, down the columns -------------------------------------------------------------------------------------------
// dw = reduce(G, dy·h) over the rows, h = factor(x_hat): chain(dy, h, acc), then fold over the row groups, then total. db = reduce(G, dy·1), by the
// same groups and tree: chain(dy, 1, acc).
