//! The operands of a checked call as the executor sees them, and memory of its own.

use super::convert::Packed;
use super::row::prefetch;
use crate::arith::effective_weight;
use crate::input::{Found, Input};
use crate::view::{Levels, Shape};
use crate::{Rows, Slice, SliceMut, Vector, WeightOffset, with_dtype};
use std::ops::{Deref, DerefMut, Range};
use std::{slice, vec};

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

/// Rows that are read, wherever they lie.
pub(super) enum Read<'a, T> {
    /// From the start of a buffer.
    Memory(&'a [T], Levels),
    /// Those that were just written.
    Written(&'a Written<'a, T>),
}

impl<T> Clone for Read<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Read<'_, T> {}

impl<'a, T: Packed> Read<'a, T> {
    /// Those of a checked call.
    pub(super) fn new(view: Rows<Found<Slice<'a>>>, shape: Shape) -> Input<Self> {
        match view.data {
            Found::Memory(data) => Input::Memory(Read::of_rows(T::of(data), &view, shape)),
            Found::Output(output, _) => Input::Output(output),
        }
    }
}

impl<'a, T> Read<'a, T> {
    /// The rows of `view` in `data`.
    pub(super) fn of_rows<D>(data: &'a [T], view: &Rows<D>, shape: Shape) -> Self {
        Read::Memory(&data[view.offset..], Levels::of(view, shape))
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize, hidden: usize) -> &'a [T] {
        match self {
            Read::Memory(data, levels) => &data[levels.at(row)..][..hidden],
            Read::Written(rows) => rows.row(row, hidden),
        }
    }

    /// Asks for the lines of a tile that is read soon, if there is such a row.
    #[inline(always)]
    pub(super) fn prefetch(&self, row: usize, column: usize, len: usize) {
        match self {
            Read::Memory(data, levels) => prefetch(data, levels.at(row).saturating_add(column), len),
            Read::Written(rows) if row < rows.len() => prefetch(rows.row(row, 0), column, len),
            Read::Written(_) => {}
        }
    }
}

/// What a call reads as vectors lies in no output.
pub(super) fn own(vector: Vector<Found<Slice<'_>>>) -> Vector<Slice<'_>> {
    match vector.data {
        Found::Memory(data) => Vector { data, offset: vector.offset },
        Found::Output(..) => unreachable!("checked: memory of its own"),
    }
}

/// Neighbouring rows that are written.
pub(super) enum Written<'a, T> {
    /// Of one level, from the first element of the first to the last of the last: a chunk of as many elements as the stride is a row with the gap
    /// behind it.
    Even(&'a mut [T], usize),
    /// Of two levels, each by itself.
    Listed(Vec<&'a mut [T]>),
}

impl<'a, T> Written<'a, T> {
    pub(super) fn len(&self) -> usize {
        match self {
            Written::Even(data, stride) => data.len().div_ceil(*stride),
            Written::Listed(rows) => rows.len(),
        }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize, hidden: usize) -> &[T] {
        match self {
            Written::Even(data, stride) => &data[row * stride..][..hidden],
            Written::Listed(rows) => &rows[row][..hidden],
        }
    }

    #[inline(always)]
    pub(super) fn row_mut(&mut self, row: usize, hidden: usize) -> &mut [T] {
        self.two_rows(row, hidden).0
    }

    /// A row, and what begins with the next one, if there is one.
    #[inline(always)]
    pub(super) fn two_rows(&mut self, row: usize, hidden: usize) -> (&mut [T], &[T]) {
        match self {
            Written::Even(data, stride) => {
                let from = &mut data[row * *stride..];
                let end = if from.len() > *stride { *stride } else { hidden };
                let (row, next) = from.split_at_mut(end);
                (&mut row[..hidden], next)
            }
            Written::Listed(rows) => match &mut rows[row..] {
                [row, next, ..] => (row, next),
                [row] => (row, &[]),
                [] => (&mut [], &[]),
            },
        }
    }

    /// All, each from its first element on.
    pub(super) fn into_rows(self) -> EachRow<'a, T> {
        match self {
            Written::Even(data, stride) => EachRow::Even(data.chunks_mut(stride)),
            Written::Listed(rows) => EachRow::Listed(rows.into_iter()),
        }
    }
}

/// Rows that can be taken apart.
pub(super) trait Pieces: Sized {
    /// As many rows each, and the rest.
    fn pieces(self, rows: usize) -> Vec<Self>;
}

impl<T> Pieces for Written<'_, T> {
    fn pieces(self, rows: usize) -> Vec<Self> {
        match self {
            Written::Even(data, stride) => {
                data.chunks_mut(rows.saturating_mul(stride)).map(|data| Written::Even(data, stride)).collect()
            }
            Written::Listed(mut all) => {
                let mut pieces = Vec::with_capacity(all.len().div_ceil(rows));
                while all.len() > rows {
                    let rest = all.split_off(rows);
                    pieces.push(Written::Listed(std::mem::replace(&mut all, rest)));
                }
                pieces.push(Written::Listed(all));
                pieces
            }
        }
    }
}

pub(super) enum EachRow<'a, T> {
    Even(slice::ChunksMut<'a, T>),
    Listed(vec::IntoIter<&'a mut [T]>),
}

impl<'a, T> Iterator for EachRow<'a, T> {
    type Item = &'a mut [T];

    #[inline(always)]
    fn next(&mut self) -> Option<&'a mut [T]> {
        match self {
            EachRow::Even(rows) => rows.next(),
            EachRow::Listed(rows) => rows.next(),
        }
    }
}

/// Where the rows of an output lie.
pub(super) struct Layout {
    offset: usize,
    levels: Levels,
    shape: Shape,
}

impl Layout {
    pub(super) fn new(view: &Rows<SliceMut<'_>>, shape: Shape) -> Self {
        Layout { offset: view.offset, levels: Levels::of(view, shape), shape }
    }

    pub(super) fn of<T>(self, data: &mut [T]) -> Written<'_, T> {
        let Layout { offset, levels, shape: Shape { rows, hidden, .. } } = self;
        if levels.inner == 1 {
            return Written::Even(&mut data[offset..][..levels.at(rows - 1) + hidden], levels.stride);
        }
        let mut places: Vec<usize> = (0..rows).collect();
        places.sort_unstable_by_key(|row| levels.at(*row));
        let (mut rest, mut begins) = (&mut data[offset..], 0);
        let in_memory = places.into_iter().map(|row| {
            let (gap, at) = (levels.at(row) - begins, levels.at(row));
            let of_row;
            (of_row, rest) = std::mem::take(&mut rest)[gap..].split_at_mut(hidden);
            begins = at + hidden;
            (row, of_row)
        });
        let mut listed: Vec<_> = in_memory.collect();
        listed.sort_unstable_by_key(|(row, _)| *row);
        Written::Listed(listed.into_iter().map(|(_, of_row)| of_row).collect())
    }
}
