//! A proven forward error bound for every output element, for arithmetic in f32 with chains and a tree.
//!
//! The arithmetic is the one `docs/numerics.md` restates: sums of products by [chains and a tree](depth), `v = sum/N + eps`,
//! `1/sqrt(v)` with the root first, rows whose squares leave the range computed from `z·2^±100`, one rounding per operation
//! elsewhere and one conversion at the end. This module knows of no plan: it takes the depths of the sums as arguments.
//!
//! Notation: u = 2^-24 and η = 2^-150 of f32; o = u for zero-centred weights, else 0; γ_k = ku/(1−ku); rnd(a) = max(u·a, η),
//! one rounding. The numbers in brackets are the sections of `docs/numerics.md` that prove the line they stand at.
//!
//! A bound is never fitted: each term is the most that a named operation can contribute. It holds for the value *before its
//! last rounding*, against an exact one that the [crate root](crate) computes in f64; [`SLACK`] pays for that. The last is judged as what it is ([`interval`]).

use crate::format::{Format, power_of_two};
use crate::rounded::Rounded;

/// The depths of the three sums, each made by [`depth`]: the most roundings that one summand passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Depth {
    /// Of the mean square, forward along the row.
    pub forward: u64,
    /// Of `dot = Σ wdy·x_hat`, backward along the row.
    pub backward: u64,
    /// Of dw and db, down the column.
    pub column: u64,
}

/// Roundings that a summand passes through when `length` products are summed by `chains` chains and a tree: one per fused
/// step, `ceil(length / chains)`, and one per level of the tree, `log2 P`, P being the chains that hold anything,
/// `min(chains, length)`, padded to a power of two. Adding the +0.0 of an empty chain is exact, so levels of the tree that only
/// join empty chains do not count. An empty sum has depth 0.
///
/// # Panics
/// If `chains` is 0 and `length` is not.
pub fn depth(length: u64, chains: u64) -> u64 {
    if length == 0 {
        return 0;
    }
    length.div_ceil(chains) + u64::from(chains.min(length).next_power_of_two().trailing_zeros())
}

/// What the contract allows for one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Allowed {
    /// NaN and nothing else.
    Nan,
    /// NaN or an infinity.
    NotFinite,
    /// +Inf and nothing else: rstd of a zero row with eps = 0.
    Infinite,
    /// What a value within `error` of `exact` rounds to, be it infinite.
    Near {
        /// What the formulas give.
        exact: f64,
        /// Bound on the error before the last rounding.
        error: f64,
        /// An intermediate may leave the range of f32: then anything that is not finite is allowed too.
        may_overflow: bool,
    },
}

/// The least and the largest stored value: rounding is monotone, so what lies within `error` of `exact` rounds to nothing
/// outside of them. [§8]
pub fn interval(exact: f64, error: f64, format: Format) -> (f64, f64) {
    (format.round(exact - error), format.round(exact + error))
}

/// Every bound is multiplied by 1 + 2^-10. It pays for the f64 errors of the reference and of the bound's own evaluation, which
/// are at most 2^-12 of the bound for at most 2^17 chains. [§9]
pub const SLACK: f64 = 1.0 + 1.0 / 1024.0;

const F32: Format = Format::F32;

/// γ_k = ku/(1 − ku): the most that k roundings change a value, relatively. Infinite beyond ku = 1/4, where nobody should rely
/// on a bound. [§2]
pub fn gamma(k: u64) -> f64 {
    let ku = k as f64 * F32.unit_roundoff();
    if ku <= 0.25 { ku / (1.0 - ku) } else { f64::INFINITY }
}

/// ρ: the relative error of rstd, from the exact `v = mean(x²) + eps` and forward's depth. 0 for v = 0, Inf or NaN, of which
/// the contract asks special values; infinite for a depth without a bound. [§3]
///
/// ```text
/// ρ_v = γ_{D+2} + τ     τ = 0 for v < 2^-127 (scaled up: nothing underflows), 2η(1 + γ_{D+2})/v for v < 2^103, else 2^-51
/// ρ   = (1 − ρ_v)^-½ · (1+u)/(1−u) − 1 + σ     σ = η/rstd if rstd < 2^-125, else 0
/// ```
pub fn relative_rstd(v: f64, depth_forward: u64) -> f64 {
    rstd_errors(v, depth_forward).1
}

/// Of rstd before its last rounding, which is the division's, or that of a subnormal `s·r'`; and ρ.
fn rstd_errors(v: f64, depth_forward: u64) -> (f64, f64) {
    if v.is_nan() || v == 0.0 || v.is_infinite() {
        return (0.0, 0.0);
    }
    let (u, eta) = (F32.unit_roundoff(), F32.half_smallest_subnormal());
    let rounded = gamma(depth_forward + 2);
    if rounded == f64::INFINITY {
        return (rounded, rounded);
    }
    let underflowed = if v < power_of_two(-127) {
        0.0
    } else if v < power_of_two(103) {
        2.0 * eta * (1.0 + rounded) / v
    } else {
        power_of_two(-51)
    };
    let rho_v = rounded + underflowed;
    // (1 − ρ_v)^-½ ≤ 1 + ½ρ_v/(1 − ρ_v), which f64 evaluates without cancellation. So are 1/(1−u) and (1+u)/(1−u).
    let root = 0.5 * rho_v / (1.0 - rho_v);
    let (one, two) = (u / (1.0 - u), 2.0 * u / (1.0 - u));
    let (divided, stored) = (root + one + root * one, root + two + root * two);
    let rstd = 1.0 / v.sqrt();
    if rstd < power_of_two(-125) { (stored, stored + eta / rstd) } else { (divided, stored) }
}

/// What is allowed for rstd, stored in f32. [§3]
pub fn rstd(v: f64, depth_forward: u64) -> Allowed {
    if v.is_nan() {
        return Allowed::Nan;
    }
    if v == 0.0 {
        return Allowed::Infinite;
    }
    let exact = 1.0 / v.sqrt();
    allowed(exact, exact * rstd_errors(v, depth_forward).0, false)
}

/// The weight that multiplies, and what its addition and its product may lose.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// w' = weight + weight_offset; 1 without a weight.
    pub weight: f64,
    /// o: the relative error of w'.
    pub relative: f64,
    /// Whether there is a weight: without one nothing is multiplied, so nothing is rounded.
    pub multiplies: bool,
}

/// e_x, the error of x_hat for a row with the relative error `rho` of rstd: `ρ|x| + rnd((1+ρ)x)`. [§4]
pub fn x_hat_error(x_hat: f64, rho: f64) -> f64 {
    rho * x_hat.abs() + F32.rounding((1.0 + rho) * x_hat.abs())
}

/// h: x_hat, rounded to `narrow`, for a row with the relative error `rho` of rstd. [§5]
pub fn rounded_x_hat(x_hat: f64, rho: f64, narrow: Format) -> Rounded {
    Rounded::new(x_hat, x_hat_error(x_hat, rho) * SLACK, narrow)
}

/// What is allowed for y, from the exact x_hat, a bias being added if there is one. [§5]
///
/// ```text
/// a = |w'|(1+o)·e_x + |x·w'|·o;   without weight ρ|x|, or e_x if there is a bias
/// ```
pub fn y(x_hat: f64, rho: f64, scale: Scale, bias: Option<f64>, format: Format) -> Allowed {
    if let Some(special) = special_y(x_hat, scale, bias) {
        return special;
    }
    let Scale { weight, relative, multiplies } = scale;
    let product = x_hat * weight;
    let before = if multiplies || bias.is_some() {
        weight.abs() * (1.0 + relative) * x_hat_error(x_hat, rho) + product.abs() * relative
    } else {
        rho * product.abs()
    };
    match bias {
        None => rounded_once(product, before, format, false),
        Some(bias) if product == 0.0 => allowed(bias, 0.0, false),
        Some(bias) => {
            let exact = product + bias;
            rounded_once(exact, before + f64::EPSILON * exact.abs(), format, false)
        }
    }
}

/// Where y has no bound, or is an infinite bias.
fn special_y(x_hat: f64, scale: Scale, bias: Option<f64>) -> Option<Allowed> {
    if x_hat.is_nan() || bias.is_some_and(f64::is_nan) {
        return Some(Allowed::Nan);
    }
    if !scale.weight.is_finite() {
        return Some(Allowed::NotFinite);
    }
    bias.filter(|bias| bias.is_infinite()).map(|bias| allowed(bias, 0.0, false))
}

/// What is allowed for y of an x_hat that was rounded to `narrow`: that of the h which explains the `computed` one. [§5]
///
/// ```text
/// a = |h·w'|·o
/// ```
pub fn y_rounded_twice(
    x_hat: f64,
    rho: f64,
    scale: Scale,
    bias: Option<f64>,
    narrow: Format,
    format: Format,
    computed: f64,
) -> Allowed {
    if let Some(special) = special_y(x_hat, scale, bias) {
        return special;
    }
    let of = |h: f64| {
        let product = h * scale.weight;
        let exact = product + bias.unwrap_or(0.0);
        let is_rounded = scale.multiplies || bias.is_some();
        let error = if is_rounded { before_conversion(exact, product.abs() * scale.relative, format) } else { 0.0 };
        (exact, error * SLACK)
    };
    let rounded = rounded_x_hat(x_hat, rho, narrow);
    let (exact, error) = rounded.explaining(computed, of, |value| format.round(value));
    Allowed::Near { exact, error, may_overflow: false }
}

/// Backward along one row: what all its elements share. [§6]
#[derive(Clone, Copy, Debug)]
pub struct BackwardRow {
    rstd: f64,
    rho: f64,
    /// c = mean(wdy·x_hat), and the error of the computed c beside the factor (1 + φ) that it has from rstd.
    c: f64,
    c_error: f64,
    may_overflow: bool,
    special: Option<Allowed>,
}

impl BackwardRow {
    /// From the row's exact x_hat, with for each column (x_hat, dy, weight).
    pub fn new(rstd: f64, rho: f64, depth_backward: u64, row: impl Iterator<Item = (f64, f64, Scale)>) -> Self {
        let (u, eta) = (F32.unit_roundoff(), F32.half_smallest_subnormal());
        let folded = gamma(depth_backward);
        let (mut hidden, mut dot, mut sum, mut rounded, mut underflowed) = (0.0, 0.0, 0.0, 0.0, 0.0);
        let mut wdy_most = 0f64;
        let mut special = None;
        for (x_hat, dy, scale) in row {
            hidden += 1.0;
            if x_hat.is_nan() {
                special = Some(Allowed::Nan);
            } else if !dy.is_finite() || !scale.weight.is_finite() {
                special = special.or(Some(Allowed::NotFinite));
            }
            let wdy = dy * scale.weight;
            let magnitude = (wdy * x_hat).abs();
            let (relative, absolute) = wdy_errors(scale);
            // g: of the product of the two computed factors and of its way through the sum, φ apart.
            let g = relative + u + folded + relative * u + (relative + u + relative * u) * folded;
            dot += wdy * x_hat;
            sum += magnitude;
            rounded += g * magnitude;
            if magnitude > 0.0 {
                let factors = eta * (1.0 + relative) * wdy.abs() + absolute * (1.0 + rho) * (1.0 + u) * x_hat.abs();
                underflowed += (1.0 + folded) * (factors + eta * absolute + eta);
            }
            wdy_most = wdy_most.max(wdy.abs() * (1.0 + relative) + absolute);
        }
        let dot_error = (1.0 + rho) * rounded + underflowed;
        let may_overflow = overflows(wdy_most) || overflows(sum * (1.0 + rho) + dot_error);
        let c = dot / hidden;
        let before = dot_error / hidden;
        let c_error = before + F32.rounding(c.abs() * (1.0 + rho) + before);
        Self { rstd, rho, c, c_error, may_overflow, special }
    }

    /// What is allowed for one element of dx, whose exact value is `dx`, or `dx + dz` where a gradient `dz` is added to it.
    ///
    /// With r̂ = rstd(1 + φ), |φ| ≤ ρ, in x_hat, in c and in the last product alike, φ's share of the error is
    /// `φ(wdy − 3xc) − (3φ² + φ³)xc`, where bounding each place by itself would give `φ(|t| + 2|xc|)`.
    ///
    /// ```text
    /// b = e_wdy + (1+ρ)(|x|e_c + |c|rnd(x)) + rnd(x)·e_c          what is not φ's
    /// a = rstd·{ρ|wdy − 3xc| + (3ρ² + ρ³)|xc| + (1+ρ)(b + rnd(t))}
    /// a + u(|dx| + a) instead, if there is a dz and rstd may have been stored as +Inf: then t·r' is rounded by itself
    /// ```
    pub fn dx(&self, dx: f64, x_hat: f64, dy: f64, scale: Scale, dz: Option<f64>, format: Format) -> Allowed {
        if dz.is_some_and(f64::is_nan) {
            return Allowed::Nan;
        }
        if let Some(special) = self.special {
            return special;
        }
        let Self { rstd, rho, c, c_error, .. } = *self;
        let wdy = dy * scale.weight;
        let (relative, absolute) = wdy_errors(scale);
        let wdy_error = if wdy == 0.0 { 0.0 } else { relative * wdy.abs() + absolute };
        let (xc, x_rounding) = (x_hat * c, F32.rounding((1.0 + rho) * x_hat.abs()));
        let own = wdy_error + (1.0 + rho) * (x_hat.abs() * c_error + c.abs() * x_rounding) + x_rounding * c_error;
        let t_most = (wdy - xc).abs() + own + (2.0 * rho + rho * rho) * xc.abs();
        // fma(−0, c, wdy) is exact.
        let t_rounding = if x_hat == 0.0 { 0.0 } else { F32.rounding(t_most) };
        let shared = rho * (wdy - 3.0 * xc).abs() + (3.0 + rho) * rho * rho * xc.abs();
        let before = rstd * (shared + (1.0 + rho) * (own + t_rounding));
        let may_overflow = self.may_overflow || overflows(t_most);
        let Some(dz) = dz else { return rounded_once(dx, before, format, may_overflow) };
        let scaled = overflows((1.0 + rho) * rstd);
        if dz.is_infinite() && dx.is_finite() {
            // Then nothing but an infinite t·r' changes it.
            let q_overflows = scaled && overflows((dx.abs() + before) * power_of_two(-100));
            return allowed(dz, 0.0, may_overflow || q_overflows);
        }
        let q_rounding = if scaled { F32.unit_roundoff() * (dx.abs() + before) } else { 0.0 };
        rounded_once(dx + dz, before + q_rounding, format, may_overflow)
    }
}

/// The sums over the rows of one column from which dw and db and their bounds are made. [§7]
#[derive(Clone, Copy, Debug, Default)]
pub struct ColumnSums {
    dw: f64,
    /// ΣA, A = |dy·x_hat|; its share of the error of x_hat, Σ((1+ρ)(1+u) − 1)A; what underflows, in units of η.
    magnitude: f64,
    factors: f64,
    underflowed: f64,
    /// ΣA², and of the squares of the shares.
    squares: f64,
    factor_squares: f64,
    db: f64,
    dy_magnitude: f64,
    x_hat_nan: bool,
    dy_not_finite: bool,
}

impl ColumnSums {
    /// Takes one row's element.
    pub fn add(&mut self, x_hat: f64, rho: f64, dy: f64) {
        let u = F32.unit_roundoff();
        self.take(x_hat, (rho + u + rho * u) * (dy * x_hat).abs(), dy.abs(), dy);
    }

    /// Takes one row's element where x_hat is rounded, `h` being [what it may be](rounded_x_hat): dw is Σ dy·h.
    pub fn add_rounded(&mut self, h: Rounded, dy: f64) {
        self.take(h.nearest, h.spread() * dy.abs(), 0.0, dy);
    }

    /// A factor of dy, what its error makes of the product, and what its underflow does, in units of η.
    fn take(&mut self, factor: f64, product_error: f64, underflow: f64, dy: f64) {
        self.x_hat_nan |= factor.is_nan();
        self.dy_not_finite |= !dy.is_finite();
        self.db += dy;
        self.dy_magnitude += dy.abs();
        let magnitude = (dy * factor).abs();
        self.dw += dy * factor;
        self.magnitude += magnitude;
        self.factors += product_error;
        self.squares += magnitude * magnitude;
        self.factor_squares += product_error * product_error;
        if magnitude > 0.0 || product_error > 0.0 {
            self.underflowed += underflow + 1.0;
        }
    }

    /// Takes the sums over other rows.
    pub fn merge(&mut self, other: &Self) {
        self.dw += other.dw;
        self.magnitude += other.magnitude;
        self.factors += other.factors;
        self.underflowed += other.underflowed;
        self.squares += other.squares;
        self.factor_squares += other.factor_squares;
        self.db += other.db;
        self.dy_magnitude += other.dy_magnitude;
        self.x_hat_nan |= other.x_hat_nan;
        self.dy_not_finite |= other.dy_not_finite;
    }

    /// What is allowed for dw: `e = (1+γ)Σ((1+ρ)(1+u) − 1)A + γΣA + (1+γ)η(Σ|dy| + M)`, γ of the roundings before the last. Of a rounded x_hat
    /// `e = (1+γ)Σ|dy|·spread + γΣA + (1+γ)ηM`.
    pub fn dw(&self, depth_column: u64, format: Format) -> Allowed {
        if self.x_hat_nan {
            return Allowed::Nan;
        }
        if self.dy_not_finite {
            return Allowed::NotFinite;
        }
        let folded = gamma(before_last(depth_column, format));
        let factors = self.factors + F32.half_smallest_subnormal() * self.underflowed;
        let error = (1.0 + folded) * factors + folded * self.magnitude;
        let error = if self.magnitude + self.factors == 0.0 { 0.0 } else { error };
        allowed(self.dw, error, overflows(self.magnitude + error))
    }

    /// The error of dw beyond which an alarm is due, though [`dw`](Self::dw) may allow far more: what rounding at random does not
    /// reach but once in 4·10^13 columns. A model and no proof: nothing is judged by it. [§12]
    ///
    /// ```text
    /// λ·sqrt(u²D(dw² + ΣA²) + Σ(((1+ρ)(1+u) − 1)A)²) + |dw|·Σ((1+ρ)(1+u) − 1)A/ΣA + (1+γ)η(Σ|dy| + M),   λ = 8
    /// ```
    pub fn dw_alarm(&self, depth_column: u64) -> f64 {
        if self.magnitude + self.factors == 0.0 {
            return 0.0;
        }
        let (u, folded) = (F32.unit_roundoff(), gamma(depth_column));
        let walked = u * u * depth_column as f64 * (self.dw * self.dw + self.squares) + self.factor_squares;
        let in_common = if self.dw == 0.0 { 0.0 } else { self.dw.abs() * self.factors / self.magnitude };
        let underflowed = (1.0 + folded) * F32.half_smallest_subnormal() * self.underflowed;
        (LAMBDA * walked.sqrt() + in_common + underflowed) * SLACK
    }

    /// What is allowed for db: `e = γΣ|dy|`, γ of the roundings before the last, less one, since `fma(dy, 1, 0)` is exact.
    pub fn db(&self, depth_column: u64, format: Format) -> Allowed {
        if self.dy_not_finite {
            return Allowed::NotFinite;
        }
        let folded = gamma(before_last(depth_column, format).saturating_sub(1));
        let error = if self.dy_magnitude == 0.0 { 0.0 } else { folded * self.dy_magnitude };
        allowed(self.db, error, overflows(self.dy_magnitude + error))
    }
}

/// Deviations of a sum that rounds at random which are taken for a defect: with probability 2exp(−λ²/2) they are none. [§12]
const LAMBDA: f64 = 8.0;

/// ρ_d and η_d of `wdy = dy·w'`: `(1+o)(1+u) − 1` and η, both 0 without a weight. [§6]
fn wdy_errors(scale: Scale) -> (f64, f64) {
    if !scale.multiplies {
        return (0.0, 0.0);
    }
    let u = F32.unit_roundoff();
    (scale.relative + u + scale.relative * u, F32.half_smallest_subnormal())
}

/// An f32 operation whose operands carry the error `before`. Stored in f32 its rounding is the last, else the conversion's is. [§8]
fn rounded_once(exact: f64, before: f64, format: Format, may_overflow: bool) -> Allowed {
    allowed(exact, before_conversion(exact, before, format), may_overflow)
}

/// Before the conversion to a 16-bit format there is the rounding to f32.
fn before_conversion(exact: f64, before: f64, format: Format) -> f64 {
    match format {
        Format::F32 => before,
        _ => before + F32.rounding(exact.abs() + before),
    }
}

/// Roundings of a sum of this depth before the stored value's last: in f32 that is the sum's own. [§8]
fn before_last(depth: u64, format: Format) -> u64 {
    match format {
        Format::F32 => depth.saturating_sub(1),
        _ => depth,
    }
}

/// Whether an f32 intermediate of this magnitude, its error included, may round to infinity.
fn overflows(magnitude: f64) -> bool {
    magnitude * SLACK >= F32.overflow_threshold()
}

fn allowed(exact: f64, error: f64, may_overflow: bool) -> Allowed {
    Allowed::Near { exact, error: error * SLACK, may_overflow }
}
