//! The operands of a checked call as the executor sees them, and memory of its own.

use super::convert::Packed;
use super::row::prefetch;
use crate::arith::effective_weight;
use crate::input::{Found, Input};
use crate::{Rows, Slice, SliceMut, Vector, WeightOffset, with_dtype};
use std::ops::{Deref, DerefMut, Range};

/// The weight in f32 with its offset added; ones where there is none, which multiply to the same bits.
pub(super) fn effective_weights(weight: Option<Vector<Slice<'_>>>, offset: WeightOffset, hidden: usize) -> Aligned {
    fn widen<T: Packed>(weight: &[T], zero_centred: bool, to: &mut [f32]) {
        for (to, w) in to.iter_mut().zip(weight) {
            *to = effective_weight(w.unpack(), zero_centred);
        }
    }
    let zero_centred = offset == WeightOffset::One;
    let mut to = Aligned::new(hidden);
    match weight {
        None => to.fill(1.0),
        Some(Vector { data, offset }) => {
            with_dtype!(Slice(weight) = data => widen(&weight[offset..][..hidden], zero_centred, &mut to));
        }
    }
    to
}

/// Floats that begin with a cache line: a vector of 64 bytes that crosses two costs two accesses.
pub(super) struct Aligned {
    values: Vec<f32>,
    at: Range<usize>,
}

impl Aligned {
    /// Zeros.
    pub(super) fn new(len: usize) -> Self {
        let values = vec![0.0_f32; len + 15];
        let start = values.as_ptr().align_offset(64).min(15);
        Aligned { values, at: start..start + len }
    }
}

impl Deref for Aligned {
    type Target = [f32];
    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.values[self.at.clone()]
    }
}

impl DerefMut for Aligned {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.at.clone()]
    }
}

pub(super) fn floats<'a>(vector: Vector<Slice<'a>>, len: usize) -> &'a [f32] {
    match vector.data {
        Slice::F32(data) => &data[vector.offset..][..len],
        _ => unreachable!("checked: f32"),
    }
}

pub(super) fn floats_mut<'a>(vector: Vector<SliceMut<'a>>, len: usize) -> &'a mut [f32] {
    match vector.data {
        SliceMut::F32(data) if len > 0 => &mut data[vector.offset..][..len],
        SliceMut::F32(_) => &mut [],
        _ => unreachable!("checked: f32"),
    }
}

/// Rows that are read, any stride.
#[derive(Clone, Copy)]
pub(super) struct Read<'a, T> {
    data: &'a [T],
    row_stride: usize,
}

impl<'a, T: Packed> Read<'a, T> {
    /// Those of a checked call, wherever they lie.
    pub(super) fn new(view: Rows<Found<Slice<'a>>>) -> Input<Self> {
        match view.data {
            Found::Memory(data) => Input::Memory(Read::of_rows(&T::of(data)[view.offset..], view.row_stride)),
            Found::Output(output, _) => Input::Output(output),
        }
    }
}

impl<'a, T> Read<'a, T> {
    /// Rows from the start of `data`.
    pub(super) fn of_rows(data: &'a [T], row_stride: usize) -> Self {
        Read { data, row_stride }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize, hidden: usize) -> &'a [T] {
        &self.data[row * self.row_stride..][..hidden]
    }

    #[inline(always)]
    pub(super) fn prefetch(&self, row: usize, column: usize, len: usize) {
        prefetch(self.data, row.saturating_mul(self.row_stride).saturating_add(column), len);
    }
}

/// What a call reads as vectors lies in no output.
pub(super) fn own(vector: Vector<Found<Slice<'_>>>) -> Vector<Slice<'_>> {
    match vector.data {
        Found::Memory(data) => Vector { data, offset: vector.offset },
        Found::Output(..) => unreachable!("checked: memory of its own"),
    }
}

/// Rows that are written, from the first element of the first to the last element of the last: a chunk of k·row_stride
/// elements is k rows with the gaps behind them.
pub(super) struct Written<'a, T> {
    pub(super) data: &'a mut [T],
    pub(super) row_stride: usize,
}

/// Where the rows of an output lie.
pub(super) struct Layout {
    range: Range<usize>,
    row_stride: usize,
}

impl Layout {
    pub(super) fn new(view: &Rows<SliceMut<'_>>, rows: usize, hidden: usize) -> Self {
        let row_stride = if rows < 2 { hidden } else { view.row_stride };
        Layout { range: view.offset..view.offset + (rows - 1) * row_stride + hidden, row_stride }
    }

    pub(super) fn of<T>(self, data: &mut [T]) -> Written<'_, T> {
        Written { data: &mut data[self.range], row_stride: self.row_stride }
    }
}
