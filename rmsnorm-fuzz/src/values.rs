//! Where the numbers come from: every element is a function of (values, seed, row, column), so a buffer can be made in
//! parallel, made again, and any row of it can be made alone.

use half::{bf16, f16};
use rmsnorm_cuda::Dtype;

/// A generator of the elements of one operand. Named for what it produces after conversion to the operand's type; values
/// beyond that type become infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Bell-shaped around 0 with variance 1.
    Normal,
    /// Integers from −n to n.
    Integers(u8),
    /// ±v, signs at random.
    Signed(f32),
    /// v everywhere.
    Constant(f32),
    /// v·|normal|: one sign.
    OneSided(f32),
    /// v·normal.
    Scaled(f32),
    /// normal·2^k with another k from this range in each row.
    RowScaled(i8, i8),
    /// v + normal: a large common offset.
    Offset(f32),
    /// Any finite bit pattern of the type: the whole range at once, subnormals included.
    Bits,
    /// ± the largest finite number of the type.
    Max,
    /// Any subnormal of the type.
    Subnormal,
    /// Rows whose mean square is between eps/4 and 4·eps (normal if eps is 0).
    NearEps,
    /// Normal, but some rows are zero.
    ZeroRows(Which),
    /// Another constant in each row.
    ConstantRows,
    /// Normal, and every row the same: rounding errors that all point the same way.
    EqualRows,
    /// Normal, but one element of some rows is v.
    Lane(Which, f32),
    /// One element of each row is 2^13 times the others, as in the activations of language models.
    Outlier,
    /// 0, −0, 1e-8, 1e4 and their negatives between ordinary numbers.
    Awkward,
}

/// Which rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Row 0.
    First,
    /// The last row.
    Last,
    /// The row in the middle.
    Middle,
    /// Every third row.
    Third,
    /// Every row.
    All,
}

impl Which {
    fn has(self, row: usize, rows: usize) -> bool {
        match self {
            Which::First => row == 0,
            Which::Last => row + 1 == rows,
            Which::Middle => row == rows / 2,
            Which::Third => row % 3 == 1,
            Which::All => true,
        }
    }
}

/// The matrix whose rows are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) values: Values,
    pub(crate) seed: u64,
    pub(crate) rows: usize,
    pub(crate) eps: f32,
}

impl Source {
    /// Writes row `row`.
    pub(crate) fn fill_row<T: HostElement>(&self, row: usize, out: &mut [T]) {
        let key = mix(self.seed ^ mix(row as u64));
        match self.values {
            Values::Normal => normal(key, 1.0, out),
            Values::Integers(n) => {
                each(key, out, |h| {
                    // An f32 of that size is an integer; the remainder is exact.
                    let drawn = (h >> 33) as f32 as u64 % (2 * u64::from(n) + 1);
                    T::round(drawn as f32 - f32::from(n))
                })
            }
            Values::Signed(v) => each(key, out, |h| T::round(if h >> 63 == 0 { v } else { -v })),
            Values::Constant(v) => out.fill(T::round(v)),
            Values::OneSided(v) => each(key, out, |h| T::round(bell(h).abs() * v)),
            Values::Scaled(v) => normal(key, v, out),
            Values::RowScaled(low, high) => {
                let span = (i32::from(high) - i32::from(low)).max(0) as u64 + 1;
                normal(key, power_of_two(i32::from(low) + (mix(key ^ 1) % span) as i32), out);
            }
            Values::Offset(v) => each(key, out, |h| T::round(v + bell(h))),
            Values::Bits => each(key, out, |h| {
                let bits = T::from_bits((h >> 32) as u32);
                // A biased exponent of all ones, halved, is a finite number.
                if bits.widen().is_finite() { bits } else { T::from_bits((h >> 32) as u32 & !T::TOP_EXPONENT) }
            }),
            Values::Max => each(key, out, |h| T::from_bits(T::MAX_BITS | if h >> 63 == 0 { 0 } else { T::SIGN })),
            Values::Subnormal => each(key, out, |h| T::from_bits((h >> 32) as u32 & (T::MANTISSA | T::SIGN))),
            Values::NearEps if self.eps > 0.0 => {
                let ratio = power_of_two((mix(key ^ 2) % 5) as i32 - 2);
                normal(key, (self.eps * ratio).sqrt(), out);
            }
            Values::NearEps => normal(key, 1.0, out),
            Values::ZeroRows(which) if which.has(row, self.rows) => out.fill(T::round(0.0)),
            Values::ZeroRows(_) => normal(key, 1.0, out),
            Values::ConstantRows => out.fill(T::round(bell(mix(key)))),
            Values::EqualRows => normal(mix(self.seed), 1.0, out),
            Values::Lane(which, v) => {
                normal(key, 1.0, out);
                if which.has(row, self.rows) {
                    let lane = (mix(key ^ 3) % out.len() as u64) as usize;
                    out[lane] = T::round(v);
                }
            }
            Values::Outlier => {
                normal(key, 0.01, out);
                let lane = (mix(key ^ 3) % out.len() as u64) as usize;
                out[lane] = T::round(out[lane].widen() * 8192.0);
            }
            Values::Awkward => each(key, out, |h| {
                let sign = if h >> 63 == 0 { 1.0 } else { -1.0 };
                T::round(match h >> 20 & 7 {
                    0 => 0.0 * sign,
                    1 => 1e-8 * sign,
                    2 => 1e4 * sign,
                    3 => -1.0,
                    _ => bell(h),
                })
            }),
        }
    }
}

impl std::fmt::Display for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // One word, so that a case stays one line.
        let text = format!("{self:?}").replace(' ', "");
        f.write_str(&text)
    }
}

/// An element type as the generators, the redzones and the comparisons see it: bits.
pub(crate) trait HostElement: Copy + Send + Sync + Default + 'static {
    const DTYPE: Dtype;
    /// Largest finite number.
    const MAX_BITS: u32;
    const SIGN: u32;
    const MANTISSA: u32;
    /// The top bit of the exponent.
    const TOP_EXPONENT: u32;
    /// The NaN that stands for all (§0).
    const NAN: u32;
    fn round(value: f32) -> Self;
    fn widen(self) -> f32;
    fn from_bits(bits: u32) -> Self;
    fn bits(self) -> u32;
}

macro_rules! host_element {
    ($type:ty, $bits:ty, $dtype:ident, $mantissa_bits:literal, $round:expr, $widen:expr) => {
        impl HostElement for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            const SIGN: u32 = 1 << (<$bits>::BITS - 1);
            const MANTISSA: u32 = (1 << $mantissa_bits) - 1;
            const TOP_EXPONENT: u32 = Self::SIGN >> 1;
            const MAX_BITS: u32 = Self::SIGN - (1 << $mantissa_bits) - 1;
            const NAN: u32 = Self::SIGN - 1;
            #[inline(always)]
            fn round(value: f32) -> Self {
                $round(value)
            }
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }
            #[inline(always)]
            fn from_bits(bits: u32) -> Self {
                <$type>::from_bits(bits as $bits)
            }
            #[inline(always)]
            fn bits(self) -> u32 {
                self.to_bits().into()
            }
        }
    };
}

host_element!(f32, u32, F32, 23, std::convert::identity, std::convert::identity);
host_element!(f16, u16, F16, 10, f16::from_f32, f16::to_f32);
host_element!(bf16, u16, Bf16, 7, bf16::from_f32, bf16::to_f32);

/// 2^k, also where it is subnormal; +Inf or 0 beyond.
pub(crate) fn power_of_two(k: i32) -> f32 {
    2.0_f64.powi(k) as f32
}

/// Mixes 64 bits (the finalizer of SplitMix64).
#[inline(always)]
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        let next = mix(self.0);
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        next
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

#[inline(always)]
fn each<T: HostElement>(key: u64, out: &mut [T], element: impl Fn(u64) -> T) {
    for (j, out) in out.iter_mut().enumerate() {
        *out = element(mix(key.wrapping_add((j as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))));
    }
}

fn normal<T: HostElement>(key: u64, scale: f32, out: &mut [T]) {
    each(key, out, |h| T::round(bell(h) * scale));
}

/// Four uniform numbers of 16 bits, summed: mean 0, variance 1, at most ±3.47.
#[inline(always)]
pub(crate) fn bell(h: u64) -> f32 {
    let sum = (h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48);
    (sum as i32 - 131_070) as f32 * (1.0 / 37_837.23)
}
