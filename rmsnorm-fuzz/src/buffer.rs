//! One operand inside its buffer, with redzones before and after it and in the gaps between its rows.

use crate::case::{Case, Gap, Groups, Name};
use crate::elements::{Elements, PIECE, get, get_all, put_all};
use crate::values::{HostElement, Source, bell, mix};
use rayon::prelude::*;
use rmsnorm_cuda::{Dtype, Rows, Slice, SliceMut, Vector, with_dtype};
use std::sync::LazyLock;

/// What fills memory that is not an input: outputs and scratch before a call, redzones and gaps all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// NaNs, each position with another payload.
    Nan,
    /// Finite numbers as recycled memory holds them. (−316.2278 is rstd of a zero row at eps 1e-5, seen in issue #781.)
    Plausible,
    /// Zeros, and no redzones: a call gets no element that is not an operand's, so that a tool which watches memory sees an access
    /// past an end.
    Alone,
}

/// One operand inside its buffer.
pub(crate) struct Buffer {
    name: Name,
    elements: Elements,
    fill: Fill,
    /// What calls get begins here, at an address that is a multiple of 256 bytes, and has `len` elements.
    start: usize,
    len: usize,
    /// From there to the first element of the operand.
    offset: usize,
    /// Rows that are stored: 1 under a row stride of 0.
    stored_rows: usize,
    rows: usize,
    hidden: usize,
    /// Rows of a group, 1 where there is one level; from one to the next, and from one group to the next.
    inner: usize,
    stride: usize,
    outer: usize,
    /// The strides that calls are told.
    told: (usize, Option<usize>),
}

impl Buffer {
    /// That of an operand of `case`, filled with `fill`, and nothing written yet.
    pub(crate) fn new(name: Name, dtype: Dtype, (rows, hidden): (usize, usize), case: &Case, fill: Fill) -> Buffer {
        let place = case.place(name);
        let broadcast = name.may_broadcast() && place.gap == Gap::Broadcast;
        let stride = match place.gap {
            Gap::Elements(gap) if name.is_matrix() => hidden + usize::from(gap),
            _ => hidden,
        };
        let stored_rows = if broadcast { rows.min(1) } else { rows };
        let groups = if name.is_matrix() { case.groups[name as usize] } else { Groups::Even };
        let (inner, stride, outer) = match groups {
            _ if broadcast => (1, stride, stride),
            Groups::Even => (1, stride, stride),
            Groups::Apart(gap) => (case.inner, stride, case.inner * stride + usize::from(gap)),
            Groups::Across => (case.inner, rows / case.inner * stride, stride),
        };
        let told = match place.gap {
            Gap::Irrelevant if rows < 2 => (1 << 40, (groups != Groups::Even).then_some(1 << 40)),
            Gap::Broadcast if broadcast => (0, (groups != Groups::Even).then_some(0)),
            _ if groups == Groups::Even => (stride, None),
            _ if inner == 1 => (1 << 40, Some(outer)),
            _ if inner == rows => (stride, Some(1 << 40)),
            _ => (stride, Some(outer)),
        };
        let at = |row: usize| row / inner * outer + row % inner * stride;
        let redzone = if fill == Fill::Alone { 0 } else { REDZONE_BYTES / dtype.bytes() };
        let offset = redzone + usize::from(place.offset);
        let span = if stored_rows == 0 { 0 } else { at(stored_rows - 1) + hidden };
        let len = offset + span + redzone;
        let mut elements = Elements::zeros(dtype, len + ALIGNMENT_BYTES / dtype.bytes());
        let start = with_dtype!(Elements(v) = &mut elements => {
            let start = v.as_ptr().align_offset(ALIGNMENT_BYTES);
            if name.is_input() && span == stored_rows * hidden {
                // All between the redzones will be written.
                fill_with(&mut v[start..][..offset], 0, fill);
                fill_with(&mut v[start + offset + span..start + len], offset + span, fill);
            } else {
                fill_with(&mut v[start..start + len], 0, fill);
            }
            start
        });
        Buffer { name, elements, fill, start, len, offset, stored_rows, rows, hidden, inner, stride, outer, told }
    }

    /// Where a row begins in what calls get.
    fn at(&self, row: usize) -> usize {
        let row = if self.stored_rows < self.rows { 0 } else { row };
        self.offset + row / self.inner * self.outer + row % self.inner * self.stride
    }

    pub(crate) fn rows(&self) -> Rows<Slice<'_>> {
        let (row_stride, outer_stride) = self.told;
        Rows { data: self.slice(), offset: self.offset, row_stride, outer_stride }
    }

    pub(crate) fn rows_mut(&mut self) -> Rows<SliceMut<'_>> {
        let (offset, (row_stride, outer_stride)) = (self.offset, self.told);
        Rows { data: self.slice_mut(), offset, row_stride, outer_stride }
    }

    pub(crate) fn vector(&self) -> Vector<Slice<'_>> {
        Vector { data: self.slice(), offset: self.offset }
    }

    pub(crate) fn vector_mut(&mut self) -> Vector<SliceMut<'_>> {
        let offset = self.offset;
        Vector { data: self.slice_mut(), offset }
    }

    pub(crate) fn slice(&self) -> Slice<'_> {
        with_dtype!(Elements(v) = &self.elements => v[self.start..self.start + self.len].into())
    }

    pub(crate) fn slice_mut(&mut self) -> SliceMut<'_> {
        with_dtype!(Elements(v) = &mut self.elements => (&mut v[self.start..self.start + self.len]).into())
    }

    /// Element (`row`, `column`) of the operand, widened.
    pub(crate) fn get(&self, row: usize, column: usize) -> f32 {
        get(self.slice(), self.at(row) + column)
    }

    /// Row `row` of the operand, widened.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let first = self.at(row);
        get_all(self.slice(), first..first + self.hidden)
    }

    /// Sums up every bit of the buffer, so that a change shows.
    pub(crate) fn fingerprint(&self) -> u64 {
        with_dtype!(Elements(v) = &self.elements => fingerprint(&v[self.start..self.start + self.len]))
    }

    /// Fills the operand anew with what it held before any call.
    pub(crate) fn refill(&mut self) {
        // Not the redzones: what happened to them must stay visible.
        let Buffer { start, fill, stored_rows, hidden, .. } = *self;
        let places: Vec<usize> = (0..stored_rows).map(|row| self.at(row)).collect();
        with_dtype!(Elements(v) = &mut self.elements => {
            for at in places {
                fill_with(&mut v[start + at..][..hidden], at, fill);
            }
        });
    }

    /// Writes the operand: row `i` is row `source(i)` of `data`, times `factor`.
    pub(crate) fn write(&mut self, data: &Source, source: impl Fn(usize) -> usize + Sync, factor: f32) {
        let Buffer { start, hidden, stored_rows, inner, outer, .. } = *self;
        let places: Vec<usize> = (0..if inner > 1 { stored_rows } else { 0 }).map(|row| self.at(row)).collect();
        let offset = self.offset;
        with_dtype!(Elements(v) = &mut self.elements => {
            if inner > 1 {
                let rows = places.into_iter().enumerate();
                rows.for_each(|(i, at)| fill_row(data, source(i), factor, &mut v[start + at..][..hidden]));
            } else {
                let rows = v[start + offset..].par_chunks_mut(outer).take(stored_rows).enumerate();
                let rows = rows.with_min_len((PIECE / 16 / hidden).max(1));
                rows.for_each(|(i, row)| fill_row(data, source(i), factor, &mut row[..hidden]));
            }
        });
    }

    /// Takes over what lies in the operand of another buffer of the same shape.
    pub(crate) fn overwrite(&mut self, other: &Buffer) {
        let span = if self.stored_rows == 0 { 0 } else { self.at(self.stored_rows - 1) + self.hidden - self.offset };
        self.elements.copy_from(self.start + self.offset, &other.elements, other.start + other.offset, span);
    }

    /// Takes over the rows of another operand, which may lie otherwise.
    pub(crate) fn take_rows(&mut self, other: &Buffer) {
        for row in 0..self.stored_rows {
            let [to, from] = [&*self, other].map(|buffer| buffer.start + buffer.at(row));
            self.elements.copy_from(to, &other.elements, from, self.hidden);
        }
    }

    /// Takes over the numbers of the same operand of another type, all of which this one has.
    pub(crate) fn take_numbers(&mut self, other: &Buffer) {
        for row in 0..self.stored_rows {
            let at = self.at(row);
            put_all(&mut self.slice_mut(), at, &other.row(row));
        }
    }

    /// A copy without gaps.
    pub(crate) fn copy(&self) -> Elements {
        debug_assert_eq!(self.stored_rows, self.rows, "no output is broadcast");
        let row = |i| self.start + self.at(i);
        let rows = (0..self.rows).map(|i| row(i)..row(i) + self.hidden);
        self.elements.pieces(rows, self.rows * self.hidden)
    }

    /// The first place outside of the operand whose content changed.
    pub(crate) fn damaged_redzone(&self) -> Option<String> {
        with_dtype!(Elements(v) = &self.elements => {
            let data = &v[self.start..self.start + self.len];
            let mut places: Vec<usize> = (0..self.stored_rows).map(|row| self.at(row)).collect();
            places.sort_unstable();
            // Before the first row, between rows, after the last row.
            let ends = std::iter::once(0).chain(places.iter().map(|at| at + self.hidden));
            let mut gaps = ends.zip(places.iter().copied().chain([self.len]));
            let i = gaps.find_map(|(from, to)| self.damage(data, from, to))?;
            Some(format!(
                "the buffer of {} changed {} elements {} its first element (bits now {:#x})",
                self.name,
                i.abs_diff(self.offset),
                if i < self.offset { "before" } else { "after" },
                data[i].bits(),
            ))
        })
    }

    fn damage<T: HostElement>(&self, data: &[T], from: usize, to: usize) -> Option<usize> {
        (from..to).find(|i| data[*i].bits() != guard::<T>(self.fill, *i))
    }
}

fn fill_row<T: HostElement>(data: &Source, i: usize, factor: f32, row: &mut [T]) {
    data.fill_row(i, row);
    if factor != 1.0 {
        row.iter_mut().for_each(|e| *e = T::round(e.widen() * factor));
    }
}

/// The bits that `fill` puts at position `i` of a buffer.
#[inline(always)]
fn guard<T: HostElement>(fill: Fill, i: usize) -> u32 {
    guard_of::<T>(fill, HASHES[i % HASHES.len()])
}

#[inline(always)]
fn guard_of<T: HostElement>(fill: Fill, h: u64) -> u32 {
    match fill {
        Fill::Nan => T::NAN ^ (h as u32 & T::MANTISSA >> 1),
        Fill::Plausible => match h & 3 {
            0 => T::round(-316.2278).bits(),
            1 => T::round(-1.0).bits(),
            _ => T::round(bell(h)).bits(),
        },
        Fill::Alone => 0,
    }
}

/// Fills `data`, whose first element is at position `first` of a buffer.
fn fill_with<T: HostElement>(data: &mut [T], first: usize, fill: Fill) {
    data.par_chunks_mut(PIECE).enumerate().for_each(|(p, piece)| {
        let (mut rest, mut at) = (piece, (first + p * PIECE) % HASHES.len());
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(rest.len().min(HASHES.len() - at));
            now.iter_mut().zip(&HASHES[at..]).for_each(|(e, h)| *e = T::from_bits(guard_of::<T>(fill, *h)));
            (rest, at) = (later, 0);
        }
    });
}

fn fingerprint<T: HostElement>(data: &[T]) -> u64 {
    let piece = |(p, piece): (usize, &[T])| {
        let sum =
            piece.iter().fold(p as u64, |h, e| (h ^ u64::from(e.bits())).wrapping_mul(0x100_0000_01b3).rotate_left(29));
        mix(sum ^ mix(p as u64))
    };
    data.par_chunks(PIECE).enumerate().map(piece).reduce(|| 0, u64::wrapping_add)
}

/// What the guards of as many neighbouring places are made of. A prime, so that no stride comes to the same place soon.
static HASHES: LazyLock<[u64; 16_381]> = LazyLock::new(|| std::array::from_fn(|i| mix(i as u64 ^ 0x5ca7_c4ed)));

/// Redzone either side of an operand: wider than the widest vector access and than any row tail.
const REDZONE_BYTES: usize = 1024;
const ALIGNMENT_BYTES: usize = 256;
