//! The bound for kernels whose order of summation is unknown. The numbers in brackets are those of docs/numerics.md, which proves it.
//!
//! It differs from [`bound`](crate::bound) in what is assumed: any tree over the summands, products fused or not, the mean by a
//! division or a reciprocal, rstd by a hardware approximation, the three factors of y and the terms of dx in any order.

use super::tensor::Stored;
use crate::Format;
use crate::bound::{SLACK, gamma};
use crate::format::power_of_two;

/// What is known of a kernel's sums: H, the most roundings that one product passes through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arithmetic {
    pub(crate) row: u64,
    pub(crate) column: u64,
    /// The deviations of random rounding that raise the alarm, in place of the bound's worst case.
    pub(crate) lambda: Option<f64>,
    /// Roundings that z's own sum adds to a row's squares and to x_hat: 2 and 1 where x + residual is normalised unrounded.
    pub(crate) unrounded: bool,
    /// x_hat, wdy and the products of dw may be rounded to this format.
    pub(crate) twice: Option<Format>,
}

/// κ: rstd's own error in units of u. `rsqrt.approx` is off by 2 ulp at most, which is 4; root and division by 2.
const KAPPA: f64 = 4.0;
const F32: Format = Format::F32;

fn u() -> f64 {
    F32.unit_roundoff()
}

fn eta() -> f64 {
    F32.half_smallest_subnormal()
}

/// (1 + a)(1 + b) − 1.
fn and(a: f64, b: f64) -> f64 {
    a + b + a * b
}

impl Arithmetic {
    /// γ_{h+more}, or for the alarm λu√h(1 + γ_h) with the `more` single roundings as they are. [§13.8]
    fn grown(&self, h: u64, more: u64) -> f64 {
        let bound = gamma(h + more);
        match self.lambda {
            Some(lambda) => bound.min(and(lambda * u() * (h as f64).sqrt() * (1.0 + gamma(h)), gamma(more))),
            None => bound,
        }
    }

    /// How far rstd may be off, relatively, and whether a plain kernel's squares leave the range of f32. [§13.3]
    pub(crate) fn rho(&self, v: f64, hidden: usize) -> (f64, bool) {
        if v.is_nan() || v == 0.0 || v.is_infinite() {
            return (0.0, false);
        }
        let rounded = self.grown(self.row, if self.unrounded { 5 } else { 3 });
        let beyond = v < power_of_two(-126) || (1.0 + rounded) * v * hidden as f64 >= F32.overflow_threshold();
        if rounded == f64::INFINITY {
            return (rounded, beyond);
        }
        let underflowed = if v < power_of_two(-127) {
            0.0
        } else if v < power_of_two(103) {
            2.0 * eta() * (1.0 + rounded) / v
        } else {
            power_of_two(-51)
        };
        let rho_v = rounded + underflowed;
        let rstd = 1.0 / v.sqrt();
        let subnormal = if rstd < power_of_two(-125) { eta() / rstd } else { 0.0 };
        (and(and(0.5 * rho_v / (1.0 - rho_v), KAPPA * u()), subnormal), beyond)
    }

    /// One more rounding of x_hat where z itself was not rounded to what is stored.
    fn of_x(&self, rho: f64) -> f64 {
        if self.unrounded { and(rho, u()) } else { rho }
    }

    /// e_x, of x_hat in f32 after its rounding. [§13.3]
    pub(crate) fn x_hat(&self, x_hat: f64, rho: f64) -> f64 {
        let rho = self.of_x(rho);
        rho * x_hat.abs() + F32.rounding((1.0 + rho) * x_hat.abs())
    }

    /// The error of y before its last rounding, and whether a product inside it may overflow. [§13.4]
    pub(crate) fn y(&self, at: &Element, stored: Stored) -> (f64, bool) {
        let Element { z, x_hat, rstd, rho, scale, bias } = *at;
        let rho = self.of_x(rho);
        let (product, before, overflows) = match scale {
            None => (x_hat, rho * x_hat.abs(), false),
            Some(Scale { weight, relative }) => {
                let product = x_hat * weight;
                let factors = and(and(rho, u()), relative);
                let underflow = eta() * (weight.abs() * (1.0 + relative)).max(z.abs()).max((1.0 + rho) * rstd);
                let before = if product == 0.0 { 0.0 } else { product.abs() * factors + underflow };
                let half = 0.5 * F32.overflow_threshold();
                (product, before, weight.abs() * rstd >= half || (z * weight).abs() >= half)
            }
        };
        let Some(bias) = bias else { return (self.converted(product, before, stored) * SLACK, overflows) };
        // The product may be rounded before the bias is added, or not.
        let before = before + F32.rounding(product.abs() + before);
        (self.converted(product + bias, before, stored) * SLACK, overflows)
    }

    /// Before the conversion of a 16-bit output there is a rounding to f32; what is kept in f64 is past it as well.
    fn converted(&self, exact: f64, before: f64, stored: Stored) -> f64 {
        match stored {
            Stored::In(Format::F32) => before,
            _ => before + F32.rounding(exact.abs() + before),
        }
    }

    /// y from one value of x_hat rounded to a format. [§13.7]
    pub(crate) fn y_of_rounded(&self, h: f64, scale: Option<Scale>, bias: Option<f64>, stored: Stored) -> (f64, f64) {
        let relative = scale.map_or(0.0, |s| s.relative);
        let product = h * scale.map_or(1.0, |s| s.weight);
        let mut before = relative * product.abs();
        let mut exact = product;
        if let Some(bias) = bias {
            before += F32.rounding(product.abs() + before);
            exact += bias;
        }
        let error = if scale.is_none() && bias.is_none() { 0.0 } else { self.converted(exact, before, stored) };
        (exact, error * SLACK)
    }
}

/// The weight that multiplies, w', and its own relative error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) weight: f64,
    pub(crate) relative: f64,
}

/// What y is made of at one place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Element {
    pub(crate) z: f64,
    pub(crate) x_hat: f64,
    pub(crate) rstd: f64,
    pub(crate) rho: f64,
    pub(crate) scale: Option<Scale>,
    pub(crate) bias: Option<f64>,
}

/// What all elements of a row of dx share. [§13.5]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gradient {
    pub(crate) rstd: f64,
    pub(crate) rho: f64,
    pub(crate) c: f64,
    /// Σ|wdy·x| / N.
    magnitude: f64,
    /// V, without and with |x| of the element as a factor.
    underflow: f64,
    shared: f64,
    alpha: f64,
    beta: f64,
    nothing: bool,
    may_overflow: bool,
    /// An intermediate that only some kernels have leaves the range of f32.
    pub(crate) beyond: bool,
}

impl Gradient {
    /// From (z, x_hat, wdy) of the row. `scaled`: there is a weight, whose relative error is `relative`.
    pub(crate) fn new(
        arithmetic: &Arithmetic,
        (rstd, rho): (f64, f64),
        relative: f64,
        row: impl Iterator<Item = (f64, f64, f64)>,
    ) -> Self {
        let (mut hidden, mut dot, mut sum, mut factors, mut most, mut with_z) = (0.0f64, 0.0, 0.0, 0.0, 0.0f64, 0.0);
        for (z, x_hat, wdy) in row {
            hidden += 1.0;
            let magnitude = (wdy * x_hat).abs();
            dot += wdy * x_hat;
            sum += magnitude;
            with_z += (wdy * z).abs();
            if magnitude > 0.0 {
                factors += wdy.abs() + x_hat.abs() + 1.0;
            }
            most = most.max(wdy.abs());
        }
        let own = u64::from(relative > 0.0);
        let narrow = arithmetic.twice.map_or(0.0, Format::unit_roundoff);
        let more = if arithmetic.unrounded { 2 } else { 0 };
        let alpha = and(gamma(6 + own), narrow);
        let beta = and(arithmetic.grown(arithmetic.row, 8 + own + more), narrow);
        let rho = arithmetic.of_x(rho);
        let eta_d = arithmetic.twice.map_or(eta(), Format::half_smallest_subnormal);
        let omega = F32.overflow_threshold();
        let within = |value: f64| value == 0.0 || (power_of_two(-126) <= value && value < omega);
        let grown = (1.0 + rho) * (1.0 + beta);
        let may_overflow = most * (1.0 + relative) * SLACK >= omega || (sum * grown) * SLACK >= omega;
        let beyond = !within(with_z) || most * hidden >= omega || !(within(rstd * rstd * rstd) || rstd.is_infinite());
        let magnitude = sum / hidden;
        let shared = 3.0 * rstd * eta_d * (factors / hidden + 2.0);
        Self {
            rstd,
            rho,
            c: dot / hidden,
            magnitude,
            shared,
            underflow: 3.0 * rstd * (eta_d + eta() * magnitude + 2.0 * eta()) + eta(),
            alpha,
            beta,
            nothing: sum == 0.0,
            may_overflow,
            beyond,
        }
    }

    /// The error of one element before conversions, dz apart, and whether an intermediate may overflow.
    pub(crate) fn dx(&self, x_hat: f64, wdy: f64) -> (f64, bool) {
        let Self { rstd, rho, c, .. } = *self;
        let xc = x_hat * c;
        let shared = rho * (wdy - 3.0 * xc).abs() + (3.0 + rho) * rho * rho * xc.abs();
        let cube = (1.0 + rho) * (1.0 + rho) * (1.0 + rho);
        let own = (1.0 + rho) * self.alpha * wdy.abs() + cube * self.beta * x_hat.abs() * self.magnitude;
        let underflow = if wdy == 0.0 && self.nothing { 0.0 } else { self.underflow + x_hat.abs() * self.shared };
        let t = (wdy - xc).abs() + shared + own;
        (rstd * (shared + own) + underflow, self.may_overflow || t * SLACK >= F32.overflow_threshold())
    }
}

/// dz is added last, fused or not; then comes what is stored.
pub(crate) fn with_dz(exact: f64, error: f64, dz: Option<f64>) -> (f64, f64) {
    match dz {
        Some(dz) => (exact + dz, (error + u() * ((exact + dz).abs() + error)) * SLACK),
        None => (exact, error * SLACK),
    }
}

/// One column's sums, from which dw and db and their bounds are made. [§13.6, §13.7]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Column {
    pub(crate) dw: f64,
    magnitude: f64,
    /// Σ of what the factors are off.
    factors: f64,
    alarmed: f64,
    underflowed: f64,
    pub(crate) db: f64,
    dy_magnitude: f64,
    pub(crate) x_hat_nan: bool,
    /// By the formula of a mistake: squares that vanished.
    pub(crate) x_hat_infinite: bool,
    pub(crate) dy_not_finite: bool,
    /// A row whose squares leave f32 has a share in it.
    pub(crate) beyond: bool,
}

impl Column {
    /// Takes one row's element: x_hat or what it was rounded to, its error, and the error that random rounding would reach.
    pub(crate) fn add(&mut self, x_hat: f64, (error, alarmed): (f64, f64), dy: f64, beyond: bool) {
        self.x_hat_nan |= x_hat.is_nan();
        self.x_hat_infinite |= x_hat.is_infinite();
        self.dy_not_finite |= !dy.is_finite();
        self.beyond |= beyond && dy != 0.0;
        self.db += dy;
        self.dy_magnitude += dy.abs();
        let product = dy * x_hat;
        self.dw += product;
        self.magnitude += product.abs();
        self.factors += dy.abs() * error;
        self.alarmed += dy.abs() * alarmed;
        self.underflowed += if product == 0.0 { 0.0 } else { dy.abs() + 1.0 };
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.dw += other.dw;
        self.magnitude += other.magnitude;
        self.factors += other.factors;
        self.alarmed += other.alarmed;
        self.underflowed += other.underflowed;
        self.db += other.db;
        self.dy_magnitude += other.dy_magnitude;
        self.x_hat_nan |= other.x_hat_nan;
        self.x_hat_infinite |= other.x_hat_infinite;
        self.dy_not_finite |= other.dy_not_finite;
        self.beyond |= other.beyond;
    }

    pub(crate) fn dw_error(&self, arithmetic: &Arithmetic) -> (f64, bool) {
        let folded = and(arithmetic.grown(arithmetic.column, 0), arithmetic.twice.map_or(0.0, Format::unit_roundoff));
        let factors = if arithmetic.lambda.is_some() { self.alarmed } else { self.factors };
        let least = arithmetic.twice.map_or(eta(), Format::half_smallest_subnormal);
        let error = if self.magnitude + factors == 0.0 {
            0.0
        } else {
            (1.0 + folded) * (factors + least * self.underflowed) + folded * self.magnitude
        };
        (error * SLACK, (self.magnitude + error) * SLACK >= F32.overflow_threshold())
    }

    pub(crate) fn db_error(&self, arithmetic: &Arithmetic) -> (f64, bool) {
        let error = if self.dy_magnitude == 0.0 {
            0.0
        } else {
            arithmetic.grown(arithmetic.column.saturating_sub(1), 0) * self.dy_magnitude
        };
        (error * SLACK, (self.dy_magnitude + error) * SLACK >= F32.overflow_threshold())
    }
}
