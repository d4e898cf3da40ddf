//! Where operands lie in their buffers, and which bytes of them a call touches. All sizes, offsets and strides are in elements.

use crate::{Error, Operand};

/// A matrix inside a buffer: row `r` is `data[offset + r·row_stride ..][..hidden]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<D> {
    /// The whole buffer.
    pub data: D,
    /// Where the first row begins, in elements. Any offset is allowed; it never changes a bit of the result.
    pub offset: usize,
    /// From one row to the next, in elements: at least `hidden`; 0 is allowed where the operand is only read (one row seen
    /// `rows` times). Irrelevant for fewer than two rows.
    pub row_stride: usize,
}

impl<D> Rows<D> {
    /// Rows without gaps from the start of `data`.
    pub fn contiguous(data: D, hidden: usize) -> Self {
        Rows { data, offset: 0, row_stride: hidden }
    }

    pub(crate) fn try_map<N, E>(self, mut f: impl FnMut(D) -> Result<N, E>) -> Result<Rows<N>, E> {
        Ok(Rows { data: f(self.data)?, offset: self.offset, row_stride: self.row_stride })
    }
}

/// A vector inside a buffer: element `i` is `data[offset + i]`.
#[derive(Clone, Copy, Debug)]
pub struct Vector<D> {
    /// The whole buffer.
    pub data: D,
    /// Where the vector begins, in elements.
    pub offset: usize,
}

impl<D> From<D> for Vector<D> {
    fn from(data: D) -> Self {
        Vector { data, offset: 0 }
    }
}

impl<D> Vector<D> {
    pub(crate) fn try_map<N, E>(self, mut f: impl FnMut(D) -> Result<N, E>) -> Result<Vector<N>, E> {
        Ok(Vector { data: f(self.data)?, offset: self.offset })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Read,
    Written,
}

/// The bytes an operand touches: `count` runs of `run` bytes, `stride` apart, from `start`.
pub(crate) struct Extent {
    operand: &'static str,
    role: Role,
    start: u64,
    run: u64,
    stride: u64,
    count: u64,
}

impl Extent {
    fn end(&self) -> u64 {
        self.start + (self.count - 1) * self.stride + self.run
    }

    /// Exact for two operands with the same stride (views of one matrix, interleaved), else by their outer ranges.
    fn overlaps(&self, other: &Extent) -> bool {
        if self.count == 0 || other.count == 0 || self.end() <= other.start || other.end() <= self.start {
            return false;
        }
        if self.stride != other.stride || self.stride == 0 {
            return true;
        }
        let ahead = (i128::from(other.start) - i128::from(self.start)).rem_euclid(i128::from(self.stride)) as u64;
        ahead < self.run || self.stride - ahead < other.run
    }
}

pub(crate) fn rows_extent<D: Operand>(
    operand: &'static str,
    view: &Rows<D>,
    role: Role,
    rows: usize,
    hidden: usize,
) -> Result<Extent, Error> {
    let stride = if rows < 2 { hidden } else { view.row_stride };
    let broadcast = role == Role::Read;
    if stride < hidden && !(stride == 0 && broadcast) {
        return Err(Error::RowStride { operand, got: stride, hidden, broadcast });
    }
    extent(operand, role, &view.data, view.offset, rows, stride, hidden)
}

pub(crate) fn vector_extent<D: Operand>(
    operand: &'static str,
    view: &Vector<D>,
    role: Role,
    len: usize,
) -> Result<Extent, Error> {
    extent(operand, role, &view.data, view.offset, usize::from(len > 0), len, len)
}

fn extent(
    operand: &'static str,
    role: Role,
    data: &impl Operand,
    offset: usize,
    count: usize,
    stride: usize,
    run: usize,
) -> Result<Extent, Error> {
    let bytes = data.dtype().bytes();
    let too_far = Error::AddressRange { operand, rows: count, row_stride: stride, offset };
    let needed = match count {
        0 => 0,
        _ => (count - 1)
            .checked_mul(stride)
            .and_then(|last| last.checked_add(run))
            .and_then(|span| span.checked_add(offset))
            .filter(|needed| *needed <= isize::MAX as usize / bytes)
            .ok_or_else(|| too_far.clone())?,
    };
    if needed > data.elements() {
        return Err(Error::Length { operand, needed, got: data.elements() });
    }
    let address = data.address();
    if !address.is_multiple_of(bytes as u64) {
        return Err(Error::Misaligned { operand, address, bytes });
    }
    // No sum below can overflow: `needed` elements lie inside a buffer that exists.
    if address.checked_add((needed * bytes) as u64).is_none() {
        return Err(too_far);
    }
    // The offset of an operand without elements was not compared with anything above: it may not even be countable in bytes.
    let [start, stride, run] = [offset, stride, run].map(|elements| elements.saturating_mul(bytes) as u64);
    Ok(Extent { operand, role, start: if count == 0 { 0 } else { address + start }, run, stride, count: count as u64 })
}

pub(crate) fn check_overlap(operands: &[Extent]) -> Result<(), Error> {
    for (i, output) in operands.iter().enumerate().filter(|(_, e)| e.role == Role::Written) {
        for (j, other) in operands.iter().enumerate() {
            // Of two outputs the earlier one is named first, and none is compared with itself.
            let seen = other.role == Role::Written && j <= i;
            if !seen && output.overlaps(other) {
                return Err(Error::Overlap { output: output.operand, other: other.operand });
            }
        }
    }
    Ok(())
}
