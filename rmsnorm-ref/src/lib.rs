//! What is right, and how far off is allowed.
//!
//! This page holds RMSNorm, its gradients and LayerNorm (the control) as a textbook writes them, in f64. Nothing here is clever
//! and nothing is optimised: these formulas are what everything else is measured against. [`bound`] says how far a computed
//! value may be from them and [`check`] applies that to blocks of rows; every tolerance of the repository is in this crate. The
//! proofs are in `docs/numerics.md`.
//!
//! Source of RMSNorm: Zhang and Sennrich, *Root Mean Square Layer Normalization*, NeurIPS 2019, eq. 4, with eps inside the root
//! as every framework has it. Source of LayerNorm: Ba, Kiros and Hinton, 2016. The gradients are derived in
//! `docs/numerics.md` and tested against finite differences below.
//!
//! Operands are f32, f16 or bf16 values widened to f64, which is exact. Then **f64 neither overflows nor underflows here**: with
//! |operand| in 2^±149 and at most 2^24 columns, squares, rstd (≤ 2^161) and dot lie within 2^±600, and dx between 2^-1004 and
//! 2^430. Rows of subnormals and rows of f32::MAX need no scaling in f64.
//!
//! Degenerate rows come out of the formulas: a zero row with eps = 0 has rstd = +Inf and x_hat = 0·Inf = NaN; a row with a NaN is
//! NaN; a row with ±Inf has rstd = 0, NaN at the infinite elements and ±0 elsewhere.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

pub mod bound;
pub mod check;
pub mod format;
#[cfg(feature = "judge")]
pub mod judge;

pub use bound::{Allowed, Depth, depth};
pub use check::{Columns, ForwardTallies, Setting, check_backward_rows, check_forward};
pub use format::{Format, ulp_distance};
pub use rounded::Rounded;
pub use tally::{Failure, Tally};

mod rounded;
mod tally;

/// What [`forward`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// `1 / sqrt(mean(x²) + eps)`, one per row.
    pub rstd: Array1<f64>,
    /// `x · rstd`, rows × hidden.
    pub x_hat: Array2<f64>,
    /// `x_hat · (weight + weight_offset)`, rows × hidden.
    pub y: Array2<f64>,
}

/// RMSNorm of each row of `x` (rows × hidden):
///
/// ```text
/// rstd  = 1 / sqrt(mean(x²) + eps)
/// x_hat = x · rstd
/// y     = x_hat · (weight + weight_offset)        y = x_hat without a weight
/// ```
///
/// `weight_offset` is 1 for zero-centred weights, else 0. There may be no rows. Where an x_hat is rounded to a 16-bit format before the weight
/// multiplies it, y is that of the rounded one, and so is dw: [`Setting::rounded`], [`Rounded`]. A bias is added to y: [`Setting::bias`].
///
/// # Panics
/// If hidden is 0 or `weight` has another length.
pub fn forward(x: ArrayView2<f64>, weight: Option<ArrayView1<f64>>, weight_offset: f64, eps: f64) -> Forward {
    let scale = scale(x, weight, weight_offset);
    let rstd = mean_of_rows(&(&x * &x)).mapv(|mean_square| 1.0 / (mean_square + eps).sqrt());
    let x_hat = &x * &rstd.view().insert_axis(Axis(1));
    let y = &x_hat * &scale;
    Forward { rstd, x_hat, y }
}

/// What [`backward`] and [`layer_norm_backward`] return.
#[derive(Clone, Debug, PartialEq)]
pub struct Backward {
    /// Gradient of x, rows × hidden.
    pub dx: Array2<f64>,
    /// Gradient of the weight, one per column: sum over the rows of `dy · x_hat`.
    pub dw: Array1<f64>,
    /// Gradient of the bias, one per column: sum over the rows of `dy`.
    pub db: Array1<f64>,
}

/// Gradients of `sum(y · dy)` for [`forward`]:
///
/// ```text
/// wdy = dy · (weight + weight_offset)
/// c   = mean(wdy · x_hat)
/// dx  = (wdy − x_hat · c) · rstd
/// dw  = Σ over rows of dy · x_hat
/// db  = Σ over rows of dy
/// ```
///
/// # Panics
/// If hidden is 0 or shapes differ.
pub fn backward(
    x: ArrayView2<f64>,
    dy: ArrayView2<f64>,
    weight: Option<ArrayView1<f64>>,
    weight_offset: f64,
    eps: f64,
) -> Backward {
    assert_eq!(x.dim(), dy.dim(), "x and dy differ in shape");
    let Forward { rstd, x_hat, .. } = forward(x, weight, weight_offset, eps);
    let wdy = &dy * &scale(x, weight, weight_offset);
    let c = mean_of_rows(&(&wdy * &x_hat)).insert_axis(Axis(1));
    let dx = (&wdy - &(&x_hat * &c)) * rstd.insert_axis(Axis(1));
    Backward { dx, dw: (&dy * &x_hat).sum_axis(Axis(0)), db: dy.sum_axis(Axis(0)) }
}

/// LayerNorm of each row, the control: the mean is subtracted, the variance is the biased one, eps is inside the root.
///
/// ```text
/// rstd  = 1 / sqrt(mean((x − mean(x))²) + eps)
/// x_hat = (x − mean(x)) · rstd
/// y     = x_hat · weight + bias
/// ```
///
/// # Panics
/// If hidden is 0 or shapes differ.
pub fn layer_norm_forward(
    x: ArrayView2<f64>,
    weight: Option<ArrayView1<f64>>,
    bias: Option<ArrayView1<f64>>,
    eps: f64,
) -> Forward {
    let centred = &x - &mean_of_rows(&x.to_owned()).insert_axis(Axis(1));
    let mut norm = forward(centred.view(), weight, 0.0, eps);
    if let Some(bias) = bias {
        norm.y += &bias;
    }
    norm
}

/// Gradients of `sum(y · dy)` for [`layer_norm_forward`]:
///
/// ```text
/// wdy = dy · weight
/// dx  = (wdy − mean(wdy) − x_hat · mean(wdy · x_hat)) · rstd
/// dw  = Σ over rows of dy · x_hat,   db = Σ over rows of dy
/// ```
///
/// # Panics
/// If hidden is 0 or shapes differ.
pub fn layer_norm_backward(
    x: ArrayView2<f64>,
    dy: ArrayView2<f64>,
    weight: Option<ArrayView1<f64>>,
    eps: f64,
) -> Backward {
    // y depends on x through x − mean(x) alone, so its gradient is RMSNorm's, less its own mean.
    let centred = &x - &mean_of_rows(&x.to_owned()).insert_axis(Axis(1));
    let Backward { dx, dw, db } = backward(centred.view(), dy, weight, 0.0, eps);
    let dx = &dx - &mean_of_rows(&dx).insert_axis(Axis(1));
    Backward { dx, dw, db }
}

fn mean_of_rows(values: &Array2<f64>) -> Array1<f64> {
    values.sum_axis(Axis(1)) / values.ncols() as f64
}

/// The weight that multiplies: `weight + weight_offset`, or ones.
fn scale(x: ArrayView2<f64>, weight: Option<ArrayView1<f64>>, weight_offset: f64) -> Array1<f64> {
    assert!(x.ncols() > 0, "a row needs at least one column");
    match weight {
        Some(weight) => {
            assert_eq!(weight.len(), x.ncols(), "weight must have one value per column");
            &weight + weight_offset
        }
        None => Array1::ones(x.ncols()),
    }
}
