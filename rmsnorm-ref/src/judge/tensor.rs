//! Tensors as a file holds them: bytes of one of four types, read as f64.

use crate::Format;
use half::{bf16, f16};
use std::fmt;

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// One of the formats that a kernel's arithmetic or conversions end in.
    In(Format),
    /// f64: what is judged in it was not converted at the end.
    F64,
}

impl Stored {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Stored::F64 => 8,
            Stored::In(Format::F32) => 4,
            Stored::In(Format::F16 | Format::Bf16) => 2,
        }
    }

    /// The conversion to a 16-bit format, if there is one.
    pub fn narrow(self) -> Option<Format> {
        match self {
            Stored::In(format @ (Format::F16 | Format::Bf16)) => Some(format),
            _ => None,
        }
    }

    /// The value rounded once to what is stored.
    pub fn round(self, value: f64) -> f64 {
        match self {
            Stored::F64 => value,
            Stored::In(format) => format.round(value),
        }
    }

    /// The value cut off towards zero, as a conversion without rounding leaves it.
    pub fn truncate(self, value: f64) -> f64 {
        let Stored::In(format) = self else { return value };
        let rounded = format.round(value);
        if rounded.abs() <= value.abs() || value.is_nan() {
            return rounded;
        }
        format.next(rounded, false)
    }

    /// The distance of neighbours where `value` lies; of f32 for f64, in which arithmetic in f32 is judged.
    pub fn ulp(self, value: f64) -> f64 {
        let format = if let Stored::In(format) = self { format } else { Format::F32 };
        let (u, least) = (format.unit_roundoff(), 2.0 * format.half_smallest_subnormal());
        let magnitude = value.abs();
        if !(magnitude > 0.0 && magnitude.is_finite()) {
            return least;
        }
        let power = f64::from_bits(magnitude.to_bits() & (0x7ff << 52));
        (2.0 * u * power).max(least)
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stored::F64 => "f64",
            Stored::In(Format::F32) => "f32",
            Stored::In(Format::F16) => "f16",
            Stored::In(Format::Bf16) => "bf16",
        })
    }
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<'a> {
    pub(crate) stored: Stored,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / self.stored.bytes()
    }

    /// Elements `from..from + out.len()`, widened.
    pub(crate) fn read(&self, from: usize, out: &mut [f64]) {
        let bytes = self.slice(from, out.len());
        match self.stored {
            Stored::F64 => each(bytes, out, f64::from_le_bytes),
            Stored::In(Format::F32) => each(bytes, out, |b| f64::from(f32::from_le_bytes(b))),
            Stored::In(Format::F16) => each(bytes, out, |b| f64::from(f16::from_le_bytes(b).to_f32())),
            Stored::In(Format::Bf16) => each(bytes, out, |b| f64::from(bf16::from_le_bytes(b).to_f32())),
        }
    }

    pub(crate) fn get(&self, i: usize) -> f64 {
        let mut one = [0.0];
        self.read(i, &mut one);
        one[0]
    }

    pub(crate) fn values(&self) -> Vec<f64> {
        let mut all = vec![0.0; self.len()];
        self.read(0, &mut all);
        all
    }

    /// The bytes of elements `from..from + count`.
    pub(crate) fn slice(&self, from: usize, count: usize) -> &'a [u8] {
        let size = self.stored.bytes();
        &self.bytes[from * size..(from + count) * size]
    }
}

fn each<const SIZE: usize>(bytes: &[u8], out: &mut [f64], widen: impl Fn([u8; SIZE]) -> f64) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<SIZE>().0) {
        *out = widen(*bytes);
    }
}
