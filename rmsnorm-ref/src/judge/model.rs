//! What a kernel may have computed: the right formulas, and those of known mistakes.

use crate::Format;

/// What a kernel may have computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) statistic: Statistic,
    /// Added to the weight.
    pub(crate) offset: f64,
    /// Whether the weight is applied at all.
    pub(crate) weighted: bool,
    pub(crate) backward: Backward,
    /// x_hat is rounded to this format before the weight.
    pub(crate) twice: Option<Format>,
    /// x + residual is normalised before it is rounded to what is stored.
    pub(crate) unrounded: bool,
    /// Conversions cut off.
    pub(crate) truncates: bool,
}

/// How rstd is made of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Statistic {
    /// `1/sqrt(mean(z²) + eps)`.
    Right { eps: f64 },
    /// `1/(sqrt(mean(z²)) + eps)`.
    EpsOutside { eps: f64 },
    /// LayerNorm's: the mean is subtracted.
    Centred { eps: f64 },
    /// Squares are rounded to a format, sums are in f32: both may overflow, vanish or lose digits below the normal range.
    SquaresIn { format: Format, eps: f64 },
    /// Only the first columns are summed.
    First { columns: usize, eps: f64 },
    /// rstd is rounded to a format.
    RoundedTo { format: Format, eps: f64 },
    /// Its reciprocal is, the root of the mean square, and x divided by that.
    RmsRoundedTo { format: Format, eps: f64 },
}

/// What of dx is left out or done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backward {
    Right,
    /// `dx = wdy·rstd`.
    NoCorrection,
    /// `wdy = dy·w'²`.
    WeightTwice,
}

/// A row's statistic.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowStatistic {
    pub(crate) mean: f64,
    pub(crate) rstd: f64,
    /// 1/rstd², what rstd's error depends on.
    pub(crate) v: f64,
    /// rstd may be one of two neighbours this far apart, relatively.
    pub(crate) spread: f64,
    /// mean|z|, by which the error of a subtracted mean goes; 0 where none is.
    pub(crate) level: f64,
}

impl Statistic {
    pub(crate) fn of(self, z: &[f64]) -> RowStatistic {
        let hidden = z.len() as f64;
        let mean_square = |z: &[f64]| z.iter().map(|z| z * z).sum::<f64>() / hidden;
        let plain = |v: f64| RowStatistic { mean: 0.0, rstd: 1.0 / v.sqrt(), v, spread: 0.0, level: 0.0 };
        match self {
            Statistic::Right { eps } => plain(mean_square(z) + eps),
            Statistic::EpsOutside { eps } => {
                let rms = mean_square(z).sqrt() + eps;
                RowStatistic { rstd: 1.0 / rms, ..plain(rms * rms) }
            }
            Statistic::Centred { eps } => {
                let mean = z.iter().sum::<f64>() / hidden;
                let v = z.iter().map(|z| (z - mean) * (z - mean)).sum::<f64>() / hidden + eps;
                let level = z.iter().map(|z| z.abs()).sum::<f64>() / hidden;
                RowStatistic { mean, level, ..plain(v) }
            }
            Statistic::SquaresIn { format, eps } => {
                let sum: f64 = z.iter().map(|z| format.round(z * z)).sum();
                let mean = sum / hidden;
                // Sums of subnormals are exact, their mean has as few digits as they.
                let mean = if mean < LEAST_NORMAL { Format::F32.round(mean) } else { mean };
                plain(if sum >= Format::F32.overflow_threshold() { f64::INFINITY } else { mean + eps })
            }
            Statistic::First { columns, eps } => plain(mean_square(&z[..columns]) + eps),
            Statistic::RoundedTo { format, eps } => {
                let (rstd, spread) = rounded(1.0 / (mean_square(z) + eps).sqrt(), format, hidden);
                RowStatistic { rstd, spread, ..plain(1.0 / (rstd * rstd)) }
            }
            Statistic::RmsRoundedTo { format, eps } => {
                let (rms, spread) = rounded((mean_square(z) + eps).sqrt(), format, hidden);
                RowStatistic { spread, ..plain(rms * rms) }
            }
        }
    }
}

/// A statistic of a row of so many elements, rounded to a format; and how far apart, relatively, its values may be where it lies in the middle between two, or so.
fn rounded(right: f64, format: Format, hidden: f64) -> (f64, f64) {
    let rounded = format.round(right);
    let (u, near) = (format.unit_roundoff(), 16.0 * (64.0 + hidden) * Format::F32.unit_roundoff());
    let off = ((right - rounded) / right).abs();
    let at_a_tie = off + near.min(u / 8.0) > u / 2.0 && off > 0.4 * u;
    (rounded, if at_a_tie { 2.0 * u } else { 0.0 })
}

/// 2^-126.
const LEAST_NORMAL: f64 = f32::MIN_POSITIVE as f64;
