//! x_hat where it is rounded before the weight multiplies it.
//!
//! Rounding is monotone, so what a computed x_hat is rounded to lies between what the ends of its error are rounded to: nearly always that is one
//! value, else two. Each is a known number, which a bound of the size of a rounding would not be. [§5, §13.7]

use crate::format::Format;

/// The values that x_hat may be rounded to.
#[derive(Clone, Copy, Debug)]
pub struct Rounded {
    /// What the exact one is rounded to.
    pub nearest: f64,
    least: f64,
    most: f64,
    format: Format,
}

/// Values that are tried one by one. There are more only where nothing is known of the order of a long sum.
const CANDIDATES: usize = 16;

impl Rounded {
    /// An x_hat within `error` of the exact one, rounded to `format`.
    pub fn new(x_hat: f64, error: f64, format: Format) -> Self {
        let [nearest, least, most] = [x_hat, x_hat - error, x_hat + error].map(|value| format.round(value));
        Rounded { nearest, least, most, format }
    }

    /// How far another of the values may be from [`nearest`](Self::nearest): 0 where there is none.
    pub fn spread(&self) -> f64 {
        (self.most - self.nearest).max(self.nearest - self.least)
    }

    /// Where `of` gives, for one of the values, the exact result and its error before its last rounding, `round`: these two of the value that
    /// explains `computed`, or else of the one that comes nearest.
    pub fn explaining(&self, computed: f64, of: impl Fn(f64) -> (f64, f64), round: impl Fn(f64) -> f64) -> (f64, f64) {
        if !(self.most - self.least).is_finite() {
            return (of(self.nearest).0, f64::INFINITY);
        }
        let (mut h, mut best, mut outside) = (self.least, of(self.nearest), f64::INFINITY);
        for _ in 0..CANDIDATES {
            let (exact, error) = of(h);
            let past = (round(exact - error) - computed).max(computed - round(exact + error)).max(0.0);
            if past < outside {
                (best, outside) = ((exact, error), past);
            }
            if h >= self.most || outside == 0.0 {
                return best;
            }
            h = if h < 0.0 { self.format.next(h, false) } else { self.format.next(h.abs(), true) };
        }
        // The least and the largest span them all.
        let exact = of(self.nearest).0;
        let ends = [self.least, self.most].map(of);
        (exact, ends.map(|(end, error)| (end - exact).abs() + error).into_iter().fold(0.0, f64::max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_or_its_neighbour_explains() {
        let (one, next) = (1.0, 1.0 + 2f64.powi(-7));
        let tie = 0.5 * (one + next);
        for (x_hat, error, values) in [
            (1.001, 1e-6, &[one][..]),
            (tie, 1e-6, &[one, next]),
            (-tie - 1e-7, 1e-6, &[-one, -next]),
            (2f64.powi(-135), 2f64.powi(-134), &[0.0, 2f64.powi(-133), -0.0]),
        ] {
            let rounded = Rounded::new(x_hat, error, Format::Bf16);
            for &value in values {
                // Three times the value, exactly.
                let found = rounded.explaining(3.0 * value, |h| (3.0 * h, 0.0), |v| v);
                assert_eq!(found, (3.0 * value, 0.0), "{x_hat:e}");
            }
            let others = values.iter().map(|value| (value - rounded.nearest).abs()).fold(0.0, f64::max);
            assert_eq!(rounded.spread(), others, "{x_hat:e}");
            let between = rounded.explaining(3.0 * 1.003, |h| (3.0 * h, 0.0), |v| v).0;
            assert!(values.contains(&(between / 3.0)), "{x_hat:e}: a value that is none of them explains {between:e}");
        }
    }

    #[test]
    fn where_nothing_is_known_nothing_is_refused() {
        let unknown = Rounded::new(1.0, f64::INFINITY, Format::F16);
        assert_eq!(unknown.explaining(7.0, |h| (2.0 * h, 0.0), |v| v), (2.0, f64::INFINITY));
        // A hundred values: the two ends.
        let many = Rounded::new(1.0, 100.0 * 2f64.powi(-10), Format::F16);
        let (exact, error) = many.explaining(2.1, |h| (2.0 * h, 0.0), |v| v);
        assert_eq!((exact, error), (2.0, 0.1953125));
    }
}
