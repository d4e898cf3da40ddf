//! The one list of element types, and host memory of one of them.

use half::{bf16, f16};
use zerocopy::IntoBytes;

/// The element types of operands: each has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

/// Host memory that is read.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "named for the element type")]
pub enum Slice<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// Host memory that is written.
#[derive(Debug)]
#[allow(missing_docs, reason = "named for the element type")]
pub enum SliceMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
}

/// A buffer that can be an operand of a call.
pub trait Operand {
    /// Element type.
    fn dtype(&self) -> Dtype;
    /// Number of elements.
    fn elements(&self) -> usize;
    /// Address of the first element, in bytes.
    fn address(&self) -> u64;
    /// The name of the output whose memory it is, if it was said to be one's.
    #[doc(hidden)]
    fn lies_in(&self) -> Option<&'static str> {
        None
    }
}

/// Compiles an expression for every element type.
///
/// `with_dtype!(dtype, T => …)` evaluates it with `T` as the type that a [`Dtype`] names. `with_dtype!(Slice(a) = x, SliceMut(b) = y
/// => …)` does so with what the values hold, whose types must be equal; any enum with a variant for each element type will do.
#[doc(hidden)]
#[macro_export]
macro_rules! with_dtype {
    ($($data:ident($name:ident) = $value:expr),+ => $body:expr) => {
        match ($($value,)+) {
            ($($data::F32($name),)+) => $body,
            ($($data::F16($name),)+) => $body,
            ($($data::Bf16($name),)+) => $body,
            #[allow(unreachable_patterns, reason = "a single value has one type")]
            _ => unreachable!("values of one element type are expected"),
        }
    };
    ($dtype:expr, $type:ident => $body:expr) => {
        match $dtype {
            $crate::Dtype::F32 => {
                type $type = f32;
                $body
            }
            $crate::Dtype::F16 => {
                type $type = $crate::f16;
                $body
            }
            $crate::Dtype::Bf16 => {
                type $type = $crate::bf16;
                $body
            }
        }
    };
}

impl Dtype {
    /// Every element type.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// Size of one element in bytes.
    pub const fn bytes(self) -> usize {
        with_dtype!(self, T => size_of::<T>())
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        })
    }
}

impl<'a> Slice<'a> {
    /// The same memory.
    pub fn bytes(self) -> &'a [u8] {
        with_dtype!(Slice(data) = self => data.as_bytes())
    }
}

impl SliceMut<'_> {
    /// The same memory, to read.
    pub fn as_slice(&self) -> Slice<'_> {
        with_dtype!(SliceMut(data) = self => (&**data).into())
    }

    /// The same memory, for a while.
    pub fn lend(&mut self) -> SliceMut<'_> {
        with_dtype!(SliceMut(data) = self => (&mut **data).into())
    }

    /// The same memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        with_dtype!(SliceMut(data) = self => data.as_mut_bytes())
    }
}

impl Operand for Slice<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Slice::F32(_) => Dtype::F32,
            Slice::F16(_) => Dtype::F16,
            Slice::Bf16(_) => Dtype::Bf16,
        }
    }
    fn elements(&self) -> usize {
        with_dtype!(Slice(data) = self => data.len())
    }
    fn address(&self) -> u64 {
        with_dtype!(Slice(data) = self => data.as_ptr() as u64)
    }
}

impl Operand for SliceMut<'_> {
    fn dtype(&self) -> Dtype {
        self.as_slice().dtype()
    }
    fn elements(&self) -> usize {
        self.as_slice().elements()
    }
    fn address(&self) -> u64 {
        self.as_slice().address()
    }
}

macro_rules! from_slices {
    ($($variant:ident: $element:ty),*) => {$(
        impl<'a> From<&'a [$element]> for Slice<'a> {
            fn from(data: &'a [$element]) -> Self {
                Slice::$variant(data)
            }
        }

        impl<'a> From<&'a mut [$element]> for SliceMut<'a> {
            fn from(data: &'a mut [$element]) -> Self {
                SliceMut::$variant(data)
            }
        }
    )*};
}

from_slices!(F32: f32, F16: f16, Bf16: bf16);
