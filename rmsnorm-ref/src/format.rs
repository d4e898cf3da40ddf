//! The number formats of stored values, seen from f64.

/// A binary format that outputs are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE binary32: 24 significant bits, exponents −126…127.
    F32,
    /// IEEE binary16: 11 significant bits, exponents −14…15.
    F16,
    /// bfloat16: 8 significant bits, exponents −126…127.
    Bf16,
}

impl Format {
    /// u: rounding to nearest of a normal value is wrong by at most u·|value|. Half of what is called machine epsilon.
    pub fn unit_roundoff(self) -> f64 {
        power_of_two(-self.precision())
    }

    /// η: half the smallest subnormal. Below the normal range rounding is wrong by at most η.
    pub fn half_smallest_subnormal(self) -> f64 {
        // u · 2^(least normal exponent), as in every format with subnormals.
        self.unit_roundoff() * power_of_two(self.least_exponent())
    }

    /// Ω: the least magnitude that rounds to infinity, the largest finite value plus half its ulp.
    pub fn overflow_threshold(self) -> f64 {
        (2.0 - self.unit_roundoff()) * power_of_two(1 - self.least_exponent())
    }

    /// The most that one rounding to this format moves a value of magnitude `magnitude` or less: `max(u·magnitude, η)`, and
    /// nothing for 0. NaN for NaN.
    pub fn rounding(self, magnitude: f64) -> f64 {
        let (relative, least) = (self.unit_roundoff() * magnitude, self.half_smallest_subnormal());
        if relative < least && magnitude != 0.0 { least } else { relative }
    }

    /// The value rounded once, to nearest even, with subnormals, beyond Ω to infinity. (By way of f32 it would be rounded twice.)
    pub fn round(self, value: f64) -> f64 {
        if self == Format::F32 {
            return f64::from(value as f32);
        }
        // Where numbers lie `spacing` apart in f64, adding rounds to its multiples.
        let ruler = 1.5 * power_of_two(52) * self.spacing(value);
        let rounded = ((value + ruler) - ruler).copysign(value);
        if rounded.abs() >= self.overflow_threshold() { f64::INFINITY.copysign(value) } else { rounded }
    }

    /// The neighbour of a value of this format, away from zero or towards it. Infinity follows the largest number.
    pub(crate) fn next(self, value: f64, away: bool) -> f64 {
        let magnitude = value.abs();
        let moved = if away {
            magnitude + self.spacing(magnitude)
        } else if value.is_infinite() {
            let u = self.unit_roundoff();
            self.overflow_threshold() * (1.0 - u / (2.0 - u))
        } else {
            magnitude - self.spacing(magnitude.next_down())
        };
        self.round(moved).copysign(value)
    }

    /// How far `exact` is from the nearest number that rounds to `stored`, a value of this format: 0 if it rounds to it itself.
    pub fn distance_before_rounding(self, stored: f64, exact: f64) -> f64 {
        // Seen from above: the numbers that round to `stored`, now not negative, reach from `low` to `high`.
        let (stored, exact) = if stored.is_sign_negative() { (-stored, -exact) } else { (stored, exact) };
        if stored == f64::INFINITY {
            return (self.overflow_threshold() - exact).max(0.0);
        }
        let above = self.spacing(stored);
        // A power of two has the finer numbers of the next binade below it.
        let below = if stored == 0.0 { above } else { self.spacing(stored.next_down()) };
        let (low, high) = (stored - 0.5 * below, stored + 0.5 * above);
        (low - exact).max(exact - high).max(0.0)
    }

    /// The distance of neighbours in the binade of `value`, that of the subnormals below the normal range.
    fn spacing(self, value: f64) -> f64 {
        let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023;
        power_of_two(exponent.clamp(self.least_exponent(), 1 - self.least_exponent()) + 1 - self.precision())
    }

    fn precision(self) -> i32 {
        match self {
            Format::F32 => 24,
            Format::F16 => 11,
            Format::Bf16 => 8,
        }
    }

    fn least_exponent(self) -> i32 {
        match self {
            Format::F32 | Format::Bf16 => -126,
            Format::F16 => -14,
        }
    }
}

/// How many values of `format` lie between two of its values: 0 if they are equal (+0 equals −0), 1 if they are neighbours;
/// `u64::MAX` if either is NaN. Infinity follows the largest finite value. For reports only: nothing is judged by it.
pub fn ulp_distance(format: Format, a: f64, b: f64) -> u64 {
    if a.is_nan() || b.is_nan() {
        return u64::MAX;
    }
    position(format, a).abs_diff(position(format, b))
}

/// The index of a value in the ordered list of the format's values, 0 for zero.
fn position(format: Format, value: f64) -> i64 {
    let magnitude = value.abs().min(power_of_two(1 - format.least_exponent() + 1));
    let spacing_at_bottom = 2.0 * format.half_smallest_subnormal();
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(format.least_exponent());
    let binade = i64::from(exponent - format.least_exponent());
    let spacing = spacing_at_bottom * power_of_two(binade as i32);
    let index = (magnitude / spacing) as i64 + (binade << (format.precision() - 1));
    if value < 0.0 { -index } else { index }
}

/// 2^exponent for a normal f64, cheaply: bounds ask for it several times per element.
pub(crate) const fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_those_of_the_formats() {
        assert_eq!(Format::F32.unit_roundoff(), f64::from(f32::EPSILON) / 2.0);
        assert_eq!(Format::F32.half_smallest_subnormal(), f64::from(f32::from_bits(1)) / 2.0);
        let next = f64::from(f32::MAX) + 2f64.powi(103);
        assert_eq!(Format::F32.overflow_threshold(), next);
        assert_eq!(Format::F16.unit_roundoff(), 2f64.powi(-11));
        assert_eq!(Format::F16.half_smallest_subnormal(), 2f64.powi(-25));
        assert_eq!(Format::F16.overflow_threshold(), 65520.0);
        assert_eq!(Format::Bf16.unit_roundoff(), 2f64.powi(-8));
        assert_eq!(Format::Bf16.half_smallest_subnormal(), 2f64.powi(-134));
        assert_eq!(Format::Bf16.overflow_threshold(), (2.0 - 2f64.powi(-8)) * 2f64.powi(127));
    }

    /// Every value of the format, the middle between two and the numbers beside it, against the definition of rounding.
    #[test]
    fn rounding_is_to_nearest_even_and_its_inverse_is_the_distance() {
        for (format, infinity) in [(Format::F16, 0x7c00u32), (Format::Bf16, 0x7f80)] {
            let value = |bits: u32| {
                let (mantissa_bits, least) = if format == Format::F16 { (10, -14) } else { (7, -126) };
                let (exponent, mantissa) =
                    ((bits >> mantissa_bits) as i32, f64::from(bits & ((1 << mantissa_bits) - 1)));
                let fraction = mantissa / f64::from(1 << mantissa_bits);
                if exponent == 0 {
                    fraction * 2f64.powi(least)
                } else {
                    (1.0 + fraction) * 2f64.powi(least + exponent - 1)
                }
            };
            for bits in 0..infinity {
                let (here, next) = (value(bits), if bits + 1 == infinity { f64::INFINITY } else { value(bits + 1) });
                // Beyond the largest value the next one would be a power of two.
                let middle = 0.5 * (here + value(bits + 1));
                let even = if bits % 2 == 0 { here } else { next };
                for sign in [1.0, -1.0] {
                    for (number, expected) in
                        [(here, here), (middle.next_down(), here), (middle, even), (middle.next_up(), next)]
                    {
                        let rounded = format.round(sign * number);
                        assert_eq!(rounded.to_bits(), (sign * expected).to_bits(), "{format:?} {number:e}");
                        assert_eq!(
                            format.distance_before_rounding(rounded, sign * number),
                            0.0,
                            "{format:?} {number:e}"
                        );
                    }
                    let quarter = 0.25 * (middle - here);
                    let past = format.distance_before_rounding(sign * here, sign * (middle + quarter));
                    assert_eq!(past, quarter, "{format:?} above {here:e}");
                    let past = format.distance_before_rounding(sign * next, sign * (middle - quarter));
                    assert_eq!(past, quarter, "{format:?} below {next:e}");
                }
            }
            assert!(format.round(f64::NAN).is_nan());
            assert_eq!(format.round(-f64::MAX), -f64::INFINITY);
        }
        for number in [1.0, 1.0 + 2f64.powi(-24), 1.0 + 2f64.powi(-24) + 2f64.powi(-52), 2f64.powi(-150), 3e38, 4e38] {
            assert_eq!(Format::F32.round(number), f64::from(number as f32));
            assert_eq!(Format::F32.distance_before_rounding(f64::from(number as f32), number), 0.0);
        }
        assert_eq!(Format::F32.distance_before_rounding(0.0, -2f64.powi(-149)), 2f64.powi(-150));
    }

    #[test]
    fn neighbours_are_those_of_the_bits() {
        for bits in (0..0x7f80u32).chain([0x7f7f]) {
            let [here, above] = [bits, bits + 1].map(|bits| f64::from(f32::from_bits(bits << 16)));
            for sign in [1.0, -1.0] {
                assert_eq!(Format::Bf16.next(sign * here, true), sign * above);
                assert_eq!(Format::Bf16.next(sign * above, false), sign * here);
            }
        }
    }

    #[test]
    fn one_rounding_of_nothing_is_nothing_and_of_nan_unknown() {
        assert_eq!(Format::F16.rounding(0.0), 0.0);
        assert_eq!(Format::F16.rounding(1e-30), 2f64.powi(-25));
        assert_eq!(Format::F16.rounding(3.0), 3.0 * 2f64.powi(-11));
        assert!(Format::F16.rounding(f64::NAN).is_nan());
    }

    #[test]
    fn ulp_distance_counts_f32_neighbours() {
        let bits = [0u32, 1, 2, 0x007f_ffff, 0x0080_0000, 0x3f80_0000, 0x7f7f_ffff, 0x7f80_0000];
        for a in bits {
            for b in bits {
                let (x, y) = (f64::from(f32::from_bits(a)), f64::from(f32::from_bits(b)));
                assert_eq!(ulp_distance(Format::F32, x, y), u64::from(a.abs_diff(b)), "{a:x} {b:x}");
                assert_eq!(ulp_distance(Format::F32, -x, y), u64::from(a + b), "-{a:x} {b:x}");
            }
        }
        assert_eq!(ulp_distance(Format::F32, f64::NAN, 1.0), u64::MAX);
        assert_eq!(ulp_distance(Format::Bf16, 1.0, 1.0 + 2f64.powi(-7)), 1);
        assert_eq!(ulp_distance(Format::F16, 65504.0, f64::INFINITY), 1);
    }
}
