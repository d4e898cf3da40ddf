//! Numbers of one of the element types, whichever it is: made, read, written and compared by bits.

use crate::values::HostElement;
use half::{bf16, f16};
use rayon::prelude::*;
use rmsnorm_cuda::{Dtype, Slice, SliceMut, with_dtype};
use std::ops::Range;

/// Numbers of one of the element types.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "named for the element type")]
pub enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Elements {
    /// `len` zeros.
    pub fn zeros(dtype: Dtype, len: usize) -> Elements {
        match dtype {
            Dtype::F32 => Elements::F32(vec![0.0; len]),
            Dtype::F16 => Elements::F16(vec![f16::ZERO; len]),
            Dtype::Bf16 => Elements::Bf16(vec![bf16::ZERO; len]),
        }
    }

    /// Their type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Elements::F32(_) => Dtype::F32,
            Elements::F16(_) => Dtype::F16,
            Elements::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        with_dtype!(Elements(v) = self => v.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `i`, widened.
    pub fn get(&self, i: usize) -> f32 {
        with_dtype!(Elements(v) = self => v[i].widen())
    }

    /// The same numbers as another type has them.
    pub(crate) fn rounded(&self, dtype: Dtype) -> Elements {
        let mut all = Elements::zeros(dtype, self.len());
        put_all(&mut all.slice_mut(), 0, &get_all(self.slice(), 0..self.len()));
        all
    }

    /// Row `i` of rows of `width` elements, widened.
    pub(crate) fn row(&self, i: usize, width: usize) -> Vec<f32> {
        get_all(self.slice(), i * width..(i + 1) * width)
    }

    /// The bits of element `i`, every NaN being the canonical one (§0).
    pub fn bits(&self, i: usize) -> u32 {
        with_dtype!(Elements(v) = self => canonical(v[i]))
    }

    /// For a call that reads.
    pub fn slice(&self) -> Slice<'_> {
        with_dtype!(Elements(v) = self => v[..].into())
    }

    /// For a call that writes.
    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        with_dtype!(Elements(v) = self => (&mut v[..]).into())
    }

    /// In pieces of `len` elements.
    pub(crate) fn pieces_mut(&mut self, len: usize) -> Vec<SliceMut<'_>> {
        with_dtype!(Elements(v) = self => v.chunks_mut(len).map(SliceMut::from).collect())
    }

    /// A copy of some of them, piece by piece.
    pub(crate) fn pieces(&self, pieces: impl Iterator<Item = Range<usize>>, len: usize) -> Elements {
        fn copied<T: Copy>(all: &[T], pieces: impl Iterator<Item = Range<usize>>, len: usize) -> Vec<T> {
            let mut copy = Vec::with_capacity(len);
            pieces.for_each(|piece| copy.extend_from_slice(&all[piece]));
            copy
        }
        match self {
            Elements::F32(v) => Elements::F32(copied(v, pieces, len)),
            Elements::F16(v) => Elements::F16(copied(v, pieces, len)),
            Elements::Bf16(v) => Elements::Bf16(copied(v, pieces, len)),
        }
    }

    /// Copies `len` elements of `other`, which is of the same type, from `from` to `at`.
    pub(crate) fn copy_from(&mut self, at: usize, other: &Elements, from: usize, len: usize) {
        with_dtype!(Elements(to) = self, Elements(other) = other => {
            to[at..at + len].copy_from_slice(&other[from..from + len]);
        });
    }

    fn value_of(dtype: Dtype, bits: u32) -> f32 {
        with_dtype!(dtype, T => <T as HostElement>::from_bits(bits).widen())
    }

    pub(crate) fn mapped_difference(
        &self,
        got: &Elements,
        width: usize,
        source: impl Fn(usize) -> usize + Sync,
    ) -> Option<Difference> {
        with_dtype!(Elements(want) = self, Elements(got) = got => difference(want, got, width, source))
    }
}

/// §1 of one element of host memory.
pub fn get(data: Slice<'_>, i: usize) -> f32 {
    with_dtype!(Slice(data) = data => data[i].widen())
}

/// The same of neighbouring elements.
pub(crate) fn get_all(data: Slice<'_>, range: Range<usize>) -> Vec<f32> {
    with_dtype!(Slice(data) = data => data[range].iter().map(|e| e.widen()).collect())
}

/// §1 of one element of host memory: one rounding, NaN to the canonical one.
pub fn put(data: &mut SliceMut<'_>, i: usize, value: f32) {
    with_dtype!(SliceMut(data) = data => data[i] = store(value));
}

/// The same of neighbouring elements, the first of them at `at`.
pub(crate) fn put_all(data: &mut SliceMut<'_>, at: usize, values: &[f32]) {
    with_dtype!(SliceMut(data) = data => {
        data[at..][..values.len()].iter_mut().zip(values).for_each(|(out, value)| *out = store(*value));
    });
}

/// §1 What a value is once it is stored as an element of this type.
pub(crate) fn rounded(dtype: Dtype, value: f32) -> f32 {
    with_dtype!(dtype, T => store::<T>(value).widen())
}

fn store<T: HostElement>(value: f32) -> T {
    if value.is_nan() { T::from_bits(T::NAN) } else { T::round(value) }
}

/// Where two outputs first differ.
pub(crate) struct Difference {
    row: usize,
    column: usize,
    want: u32,
    got: u32,
    dtype: Dtype,
}

impl Difference {
    pub(crate) fn describe(&self, output: &str) -> String {
        let Difference { row, column, want, got, dtype } = *self;
        let width = 2 + 2 * dtype.bytes();
        let [w, g] = [want, got].map(|bits| Elements::value_of(dtype, bits));
        format!("{output}[{row}][{column}]: expected {want:#0width$x} ({w:e}), got {got:#0width$x} ({g:e})")
    }
}

fn canonical<T: HostElement>(element: T) -> u32 {
    if element.widen().is_nan() { T::NAN } else { element.bits() }
}

fn difference<T: HostElement>(
    want: &[T],
    got: &[T],
    width: usize,
    source: impl Fn(usize) -> usize + Sync,
) -> Option<Difference> {
    let per_piece = PIECE.div_ceil(width) * width;
    got.par_chunks(per_piece).enumerate().find_map_first(|(p, piece)| {
        piece.chunks(width).enumerate().find_map(|(r, got)| {
            let row = p * (per_piece / width) + r;
            let want = &want[source(row) * width..][..width];
            // Nearly always; and this is done in vectors.
            if want.iter().zip(got).fold(0, |differ, (want, got)| differ | (want.bits() ^ got.bits())) == 0 {
                return None;
            }
            let column = (0..width).find(|j| canonical(want[*j]) != canonical(got[*j]))?;
            let [want, got] = [want[column], got[column]].map(canonical);
            Some(Difference { row, column, want, got, dtype: T::DTYPE })
        })
    })
}

/// Elements that one task handles.
pub(crate) const PIECE: usize = 1 << 16;
