//! THE SPECIFICATION, Rust half. Its twin is `arith.cuh`, printed below: the same sections, names and order.
//!
//! Every output bit is decided here and in the two orders of [`order`](crate::order); everything else in this crate moves data. All
//! arithmetic is f32, rounded to nearest even, subnormals kept, fused only where `mul_add` is written. A thread whose control
//! register says otherwise computes something else: [`environment`] tells.
//!
//! **§0 Equality.** Bits are compared after mapping every NaN to the canonical one: 0x7fffffff in f32, 0x7fff in f16 and bf16.
//! That is what a GPU returns; [`Element::store`] maps to it on the CPU.
//!
//! ```cuda
#![doc = include_str!("arith.cuh")]
//! ```

use crate::{Error, FloatingPoint};
use half::{bf16, f16};
use std::hint::black_box;

/// Whether this thread computes as the specification demands; if not, [`Error::FloatingPoint`] says how it does. A few
/// nanoseconds. The answer holds until someone sets the thread's control register (MXCSR, FPCR), and for this thread alone,
/// though on Linux a thread begins with the mode of the one that began it. It underflows, and so traps where that traps.
pub fn environment() -> Result<(), Error> {
    // The operands are hidden from the compiler, which would compute the results itself, and rightly. Results are compared as
    // bits, since a comparison of floats flushes as well.
    let flushed_result = (black_box(f32::MIN_POSITIVE) * black_box(0.5)).to_bits() == 0;
    let flushed_operand = (black_box(f32::from_bits(1)) * black_box(SCALE_UP)).to_bits() == 0;
    // One and three quarters of its last place, either side of zero: both sums are above one only where the nearest is taken.
    let outwards = [1.0_f32, -1.0].map(|one| {
        let sum = black_box(one) + black_box(0.75 * f32::EPSILON * one);
        sum.to_bits() != one.to_bits()
    });
    let got = match outwards {
        _ if flushed_result || flushed_operand => FloatingPoint::FlushesSubnormals,
        [true, true] => return Ok(()),
        [true, false] => FloatingPoint::RoundsUp,
        [false, true] => FloatingPoint::RoundsDown,
        [false, false] => FloatingPoint::RoundsTowardZero,
    };
    Err(Error::FloatingPoint { got })
}

// §1 Widen and store ------------------------------------------------------------------------------------------------------

/// §1 An element type: exact to f32, and back with one rounding to nearest even, overflow to ±Inf, NaN to the canonical NaN.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// To f32, exactly.
    fn widen(self) -> f32;
    /// From f32, rounded once.
    fn store(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn store(value: f32) -> Self {
        if value.is_nan() { f32::from_bits(0x7fff_ffff) } else { value }
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn store(value: f32) -> Self {
        if value.is_nan() { f16::from_bits(0x7fff) } else { f16::from_f32(value) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn store(value: f32) -> Self {
        let bits = value.to_bits();
        // Adds one half of the last place, less one where that place is even; a carry into the exponent is the right one.
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        bf16::from_bits(if value.is_nan() { 0x7fff } else { rounded as u16 })
    }
}

// §2 The one reduction: chains, then a tree -------------------------------------------------------------------------------

/// §2 One step of a chain. A chain starts from +0.0 and takes its elements in ascending order.
#[inline(always)]
pub fn chain(a: f32, b: f32, acc: f32) -> f32 {
    a.mul_add(b, acc)
}

/// §2 One step of the tree: the values of two nodes that are neighbours at their level. The leaves are the chains, padded
/// with +0.0 to a power of two; level by level the distance is 1, 2, 4, …
#[inline(always)]
pub fn fold(left: f32, right: f32) -> f32 {
    left + right
}

/// §2 The end of every reduction: never −0.0, so absent elements, pads and skipped chains cannot change a sign.
#[inline(always)]
pub fn total(root: f32) -> f32 {
    root + 0.0
}

// §3 Row statistic --------------------------------------------------------------------------------------------------------

/// §3 Mean of `hidden` values from their reduction.
#[inline(always)]
pub fn mean(sum: f32, hidden: f32) -> f32 {
    sum / hidden
}

/// §3 Reciprocal root: the root first, then the division.
#[inline(always)]
pub fn reciprocal_root(v: f32) -> f32 {
    1.0 / v.sqrt()
}

// §4 Scaled rows ----------------------------------------------------------------------------------------------------------

/// §4 Scale for rows whose squares leave the range at the bottom.
pub const SCALE_UP: f32 = f32::from_bits((127 + 100) << 23); // 2^100
/// §4 Scale for rows whose squares leave the range at the top.
pub const SCALE_DOWN: f32 = f32::from_bits((127 - 100) << 23); // 2^-100

/// §4 The scale of a row whose statistic came out as `v = mean(z²) + eps`; 1 for an ordinary row (and for NaN).
#[inline(always)]
pub fn scale_for(v: f32) -> f32 {
    if v == f32::INFINITY {
        SCALE_DOWN
    } else if v < f32::MIN_POSITIVE {
        SCALE_UP
    } else {
        1.0
    }
}

/// §4 An element of a scaled row. Exact unless scaling down makes it subnormal.
#[inline(always)]
pub fn scaled(z: f32, s: f32) -> f32 {
    z * s
}

/// §4 How x_hat is made from z and dx from t: `x_hat = (z·pre)·post`. For every row but those whose rstd overflowed, `pre` is
/// 1 and the first product is exact: `x_hat = z·rstd`.
#[derive(Clone, Copy, Debug)]
pub struct RowScale {
    /// 1, or [`SCALE_UP`] where rstd is +Inf.
    pub pre: f32,
    /// rstd, or the reciprocal root of the scaled row.
    pub post: f32,
}

/// §4 From a stored rstd. +Inf proves that eps was 0 and the row was scaled up: `root` must then give the reciprocal root of
/// the scaled row, [`scaled_root`].
#[inline(always)]
pub fn row_scale(rstd: f32, root: impl FnOnce() -> f32) -> RowScale {
    if rstd == f32::INFINITY { RowScale { pre: SCALE_UP, post: root() } } else { RowScale { pre: 1.0, post: rstd } }
}

/// §4 rstd of an ordinary row from `sum = reduce(z²)`; 0 of a row that has to be scaled.
#[inline(always)]
pub fn ordinary_rstd(sum: f32, hidden: f32, eps: f32) -> f32 {
    match mean(sum, hidden) + eps {
        v if scale_for(v) == 1.0 => reciprocal_root(v),
        _ => 0.0,
    }
}

/// §4 The statistic of a row from `sum = reduce(z²)`: (rstd, scale) for an ordinary row. `rescale(s)` must give
/// `reduce(scaled(z, s)²)`; it is called for scaled rows only.
#[inline(always)]
pub fn statistic(sum: f32, hidden: f32, eps: f32, rescale: impl FnOnce(f32) -> f32) -> (f32, RowScale) {
    let v = mean(sum, hidden) + eps;
    let s = scale_for(v);
    if s == 1.0 {
        let rstd = reciprocal_root(v);
        return (rstd, RowScale { pre: 1.0, post: rstd });
    }
    let root = reciprocal_root(mean(rescale(s), hidden) + eps * s * s);
    let rstd = s * root;
    (rstd, row_scale(rstd, || root))
}

/// §4 The reciprocal root of a row scaled up, eps being 0, from `sum = reduce(scaled(z, SCALE_UP)²)`.
#[inline(always)]
pub fn scaled_root(sum: f32, hidden: f32) -> f32 {
    reciprocal_root(mean(sum, hidden))
}

/// §4 The normalised element, the same bits in forward and backward.
#[inline(always)]
pub fn x_hat(z: f32, row: RowScale) -> f32 {
    (z * row.pre) * row.post
}

// §5 Forward --------------------------------------------------------------------------------------------------------------

/// §5 The sum with a residual before its one conversion. All that follows, and backward, takes the *stored* sum for z, so that
/// both normalise the same row.
#[inline(always)]
pub fn added(x: f32, residual: f32) -> f32 {
    x + residual
}

/// §5 The weight that multiplies: `weight + 1` where weights are zero-centred, else no addition.
#[inline(always)]
pub fn effective_weight(weight: f32, zero_centred: bool) -> f32 {
    if zero_centred { weight + 1.0 } else { weight }
}

/// §5 What the weight multiplies, in forward and in dw: x_hat, or with [`Rounding::Twice`](crate::Rounding::Twice) `stored(x_hat)`, which must be
/// x_hat as an element of z's type, widened again. All else in backward takes x_hat as it is.
#[inline(always)]
pub fn factor(x_hat: f32, twice: bool, stored: impl FnOnce(f32) -> f32) -> f32 {
    if twice { stored(x_hat) } else { x_hat }
}

/// §5 The output before its one conversion. Also §6: the weighted gradient, `wdy`.
#[inline(always)]
pub fn weighted(value: f32, weight: f32) -> f32 {
    value * weight
}

/// §5 The same where a bias is added, in one rounding. Without a weight the weight is one, and this is a sum.
#[inline(always)]
pub fn weighted_with(value: f32, weight: f32, bias: f32) -> f32 {
    value.mul_add(weight, bias)
}

// §6 Backward, along the row ----------------------------------------------------------------------------------------------

/// §6 `t = wdy − x_hat·c` with `c = mean(reduce(wdy·x_hat))`.
#[inline(always)]
pub fn centred(x_hat: f32, c: f32, wdy: f32) -> f32 {
    (-x_hat).mul_add(c, wdy)
}

/// §6 The gradient of x before its one conversion.
#[inline(always)]
pub fn gradient(t: f32, row: RowScale) -> f32 {
    (t * row.post) * row.pre
}

/// §6 The same where a gradient `dz` arrives at x by another way: added by the last product, in one rounding.
#[inline(always)]
pub fn gradient_with(t: f32, row: RowScale, dz: f32) -> f32 {
    if row.pre == 1.0 { t.mul_add(row.post, dz) } else { (t * row.post).mul_add(row.pre, dz) }
}

// §7 Backward, down the columns -------------------------------------------------------------------------------------------
// dw = reduce(G, dy·h) over the rows, h = `factor(x_hat)`: `chain(dy, h, acc)`, then `fold` over the row groups, then `total`. db = reduce(G, dy·1),
// by the same groups and tree: `chain(dy, 1, acc)`.
