//! Where operands lie in device memory, and how kernels are told.

use crate::call::rows_of_head;
use crate::input::{Found, Place};
use crate::plan::Calls;
use crate::view::{Levels, Shape};
use crate::{Backward, Dtype, Error, Forward, Input, Operand, Rows, Vector};

/// A range of device memory as an operand.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    /// Element type.
    pub dtype: Dtype,
    /// Address of the first element.
    pub address: u64,
    /// Number of elements.
    pub elements: usize,
}

impl Operand for DeviceMemory {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn elements(&self) -> usize {
        self.elements
    }
    fn address(&self) -> u64 {
        self.address
    }
}

impl From<Place> for DeviceMemory {
    fn from(Place { dtype, address, elements }: Place) -> Self {
        DeviceMemory { dtype, address, elements }
    }
}

/// Where an input is.
fn memory(found: Found<DeviceMemory>) -> Result<DeviceMemory, Error> {
    match found {
        Found::Memory(data) => Ok(data),
        Found::Output(_, place) => Ok(place.into()),
    }
}

impl Forward<Input<DeviceMemory>, DeviceMemory> {
    /// The same call by addresses alone.
    pub(in crate::cuda) fn placed(self) -> Result<Forward<DeviceMemory, DeviceMemory>, Error> {
        self.found()?.try_map(memory, Ok)
    }
}

impl Backward<Input<DeviceMemory>, DeviceMemory> {
    /// The same call by addresses alone.
    pub(in crate::cuda) fn placed(self) -> Result<Backward<DeviceMemory, DeviceMemory>, Error> {
        self.found()?.try_map(memory, Ok)
    }
}

/// Where a matrix lies, as kernels are told (levels.cuh).
#[derive(Clone, Copy, Default)]
pub(super) struct Matrix {
    pub(super) pointer: u64,
    pub(super) stride: u64,
    pub(super) jump: u64,
}

impl Matrix {
    pub(super) fn of(rows: &Rows<DeviceMemory>, shape: Shape) -> Matrix {
        let pointer = rows.data.address + (rows.offset * rows.data.dtype.bytes()) as u64;
        match Levels::of(rows, shape) {
            Levels { inner: 1, stride, .. } => Matrix { pointer, stride: stride as u64, jump: 0 },
            Levels { inner, stride, inner_stride } => {
                let jump = (stride as u64).wrapping_sub((inner as u64).wrapping_mul(inner_stride as u64));
                Matrix { pointer, stride: inner_stride as u64, jump }
            }
        }
    }

    /// For kernels that take each head's rows by themselves: from one row of a head to the next, and from one head to the next.
    pub(super) fn of_heads(rows: &Rows<DeviceMemory>, shape: Shape, calls: &Calls) -> Matrix {
        match calls.per_head() {
            false => Matrix::of(rows, shape),
            true => Matrix {
                stride: rows_of_head(*rows, shape.inner, 0).row_stride as u64,
                jump: rows.row_stride as u64,
                ..Matrix::of(rows, shape)
            },
        }
    }

    /// Zeros where it is absent.
    pub(super) fn of_any(rows: Option<&Rows<DeviceMemory>>, shape: Shape) -> Matrix {
        rows.map_or(Matrix::default(), |rows| Matrix::of(rows, shape))
    }
}

/// Rows of a group, and what stands for dividing by them (levels.cuh).
pub(super) fn group(Shape { inner, .. }: Shape) -> (u64, u64) {
    (inner as u64, u64::MAX / inner as u64)
}

impl Vector<DeviceMemory> {
    pub(super) fn pointer(&self) -> u64 {
        self.data.address + (self.offset * self.data.dtype.bytes()) as u64
    }
}
