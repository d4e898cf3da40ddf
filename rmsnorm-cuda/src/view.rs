//! Where operands lie in their buffers, and which bytes of them a call touches. All sizes, offsets and strides are in elements.

use arrayvec::ArrayVec;

use crate::{Dtype, Error, Operand};

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

/// What a call does with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads it. Its row stride may be 0: one row seen many times.
    Read,
    /// Writes it. It shares memory with no other operand, unless the table says so.
    Written,
    /// The same, and what it holds before and after is irrelevant.
    Scratch,
}

/// Which element types an operand may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Types {
    /// Any.
    Any,
    /// This one.
    One(Dtype),
    /// This one or f32.
    OrF32(Dtype),
}

/// One operand of a call, as a line of the table that [`Forward::operands`](crate::Forward::operands) and
/// [`Backward::operands`](crate::Backward::operands) make: all that is checked of it, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLine {
    /// Its name in errors: that of the field.
    pub name: &'static str,
    /// What the call does with it.
    pub role: Role,
    /// What it may hold.
    pub types: Types,
    /// Whether kernels load or store it 16 bytes at once where it is aligned: so are rows and what is as long as one.
    pub in_packs: bool,
    /// Rows; of a vector 1, or 0 if it has no elements.
    pub rows: usize,
    /// Elements of a row.
    pub len: usize,
    /// From one row to the next.
    pub row_stride: usize,
    /// Where the first row begins in the buffer.
    pub offset: usize,
    /// What the buffer holds.
    pub dtype: Dtype,
    /// Elements of the buffer.
    pub elements: usize,
    /// Address of the buffer.
    pub address: u64,
    /// Of an output: the inputs whose rows may be its own.
    pub may_be: &'static [&'static str],
    /// Of an input: the output whose rows it said to be its own.
    pub lies_in: Option<&'static str>,
}

/// The operands of a call that are there, inputs first.
pub type Table = ArrayVec<TableLine, OPERANDS_MAX>;

const OPERANDS_MAX: usize = 10;

impl TableLine {
    pub(crate) fn rows<D: Operand>(
        name: &'static str,
        role: Role,
        types: Types,
        view: &Rows<D>,
        (rows, hidden): (usize, usize),
    ) -> Self {
        // The stride of a single row is irrelevant.
        let row_stride = if rows < 2 { hidden } else { view.row_stride };
        TableLine::of((name, role, types, true), &view.data, view.offset, (rows, hidden, row_stride))
    }

    /// The same of an output that may have exactly the rows of these inputs. Every kernel, and the CPU, reads an element of them for the last time
    /// before it is written, in the thread that writes it (docs/determinism.md).
    pub(crate) fn in_place_of(self, may_be: &'static [&'static str]) -> Self {
        TableLine { may_be, ..self }
    }

    pub(crate) fn vector<D: Operand>(
        name: &'static str,
        role: Role,
        types: Types,
        view: &Vector<D>,
        len: usize,
        in_packs: bool,
    ) -> Self {
        TableLine::of((name, role, types, in_packs), &view.data, view.offset, (usize::from(len > 0), len, len))
    }

    fn of<D: Operand>(
        (name, role, types, in_packs): (&'static str, Role, Types, bool),
        data: &D,
        offset: usize,
        (rows, len, row_stride): (usize, usize, usize),
    ) -> Self {
        TableLine {
            name,
            role,
            types,
            in_packs,
            rows,
            len,
            row_stride,
            offset,
            dtype: data.dtype(),
            elements: data.elements(),
            address: data.address(),
            may_be: &[],
            lies_in: data.lies_in(),
        }
    }

    /// Whether every row begins on 16 bytes.
    pub fn is_aligned(&self) -> bool {
        let bytes = self.dtype.bytes();
        let first = self.address.wrapping_add(self.offset.wrapping_mul(bytes) as u64);
        first.is_multiple_of(16) && (self.rows < 2 || (self.row_stride % 16 * bytes).is_multiple_of(16))
    }

    /// Whether it has exactly the rows of another operand: element by element the same memory, of the same type.
    fn is(&self, other: &TableLine) -> bool {
        let rows = |line: &TableLine| {
            let first = line.offset.wrapping_mul(line.dtype.bytes()) as u64;
            (line.dtype, line.address.wrapping_add(first), line.rows, line.len, line.row_stride)
        };
        rows(self) == rows(other)
    }

    /// Whether it is an output, and the other an input whose rows it may have and has.
    fn is_in_place_of(&self, other: &TableLine) -> bool {
        self.may_be.contains(&other.name) && self.is(other)
    }

    /// What of it the call touches, if it may have the operand.
    fn check(&self) -> Result<Extent, Error> {
        let TableLine { name: operand, dtype: got, rows, len, row_stride, offset, elements, address, .. } = *self;
        let (allowed, or_f32) = match self.types {
            Types::Any => (got, false),
            Types::One(dtype) => (dtype, false),
            Types::OrF32(dtype) => (dtype, dtype != Dtype::F32),
        };
        if got != allowed && !(or_f32 && got == Dtype::F32) {
            let expected = if or_f32 { format!("{allowed} or f32") } else { allowed.to_string() };
            return Err(Error::ElementType { operand, expected, got });
        }
        let broadcast = self.role == Role::Read;
        if row_stride < len && !(row_stride == 0 && broadcast) {
            return Err(Error::RowStride { operand, got: row_stride, hidden: len, broadcast });
        }
        let bytes = got.bytes();
        let too_far = Error::AddressRange { operand, rows, row_stride, offset };
        let needed = match rows {
            0 => 0,
            _ => (rows - 1)
                .checked_mul(row_stride)
                .and_then(|last| last.checked_add(len))
                .and_then(|span| span.checked_add(offset))
                .filter(|needed| *needed <= isize::MAX as usize / bytes)
                .ok_or_else(|| too_far.clone())?,
        };
        if needed > elements {
            return Err(Error::Length { operand, needed, got: elements });
        }
        if !address.is_multiple_of(bytes as u64) {
            return Err(Error::Misaligned { operand, address, bytes });
        }
        // No sum below can overflow: `needed` elements lie inside a buffer that exists.
        if address.checked_add((needed * bytes) as u64).is_none() {
            return Err(too_far);
        }
        // The offset of an operand without elements was not compared with anything above: it may not even be countable in bytes.
        let [start, stride, run] = [offset, row_stride, len].map(|elements| elements.saturating_mul(bytes) as u64);
        Ok(Extent { start: if rows == 0 { 0 } else { address + start }, run, stride, count: rows as u64 })
    }
}

/// Whether a call may have these operands.
pub(crate) fn check(table: &Table) -> Result<(), Error> {
    let mut extents = ArrayVec::<Extent, OPERANDS_MAX>::new();
    for line in table {
        extents.push(line.check()?);
    }
    for (i, output) in table.iter().enumerate().filter(|(_, line)| line.role != Role::Read) {
        for (j, other) in table.iter().enumerate() {
            // Of two outputs the earlier one is named first, and none is compared with itself.
            let seen = other.role != Role::Read && j <= i;
            // One that was said to lie there does so with all its rows, or the call was not meant so.
            let meets = extents[i].overlaps(&extents[j]) || other.lies_in == Some(output.name);
            if !seen && meets && !output.is_in_place_of(other) {
                let in_place = output.may_be.contains(&other.name);
                return Err(Error::Overlap { output: output.name, other: other.name, in_place });
            }
        }
    }
    Ok(())
}

/// Whether an output of a checked call has the rows of an input.
#[cfg(feature = "cuda")]
pub(crate) fn is_in_place(table: &Table) -> bool {
    table.iter().any(|output| table.iter().any(|input| output.is_in_place_of(input)))
}

/// The bytes an operand touches: `count` runs of `run` bytes, `stride` apart, from `start`.
struct Extent {
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
