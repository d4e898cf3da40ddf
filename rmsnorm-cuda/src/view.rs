//! Where operands lie in their buffers, and which bytes of them a call touches. All sizes, offsets and strides are in elements.

use arrayvec::ArrayVec;

use crate::{Dtype, Error, Operand};

/// A matrix inside a buffer: row `r` is `data[offset + r·row_stride ..][..hidden]`.
///
/// Rows of two levels, such as the `[tokens, heads, hidden]` of a buffer that holds more than them, lie in groups of `inner` rows, a number of the
/// call: row `o·inner + i` is `data[offset + o·outer_stride + i·row_stride ..][..hidden]`. Those that are written must not overlap, and are refused
/// unless all rows of one level end before the next step of the other begins: any two dimensions of a tensor lie so.
#[derive(Clone, Copy, Debug)]
pub struct Rows<D> {
    /// The whole buffer.
    pub data: D,
    /// Where the first row begins, in elements. Any offset is allowed; it never changes a bit of the result.
    pub offset: usize,
    /// From one row to the next, in elements: at least `hidden`; 0 is allowed where the operand is only read (one row seen
    /// many times). Irrelevant where no row has a next one.
    pub row_stride: usize,
    /// From one group of `inner` rows to the next, likewise. Absent: as far as `inner` rows are, so that all are of one level.
    pub outer_stride: Option<usize>,
}

impl<D> Rows<D> {
    /// Rows without gaps from the start of `data`.
    pub fn contiguous(data: D, hidden: usize) -> Self {
        Rows::strided(data, 0, hidden)
    }

    /// Rows of one level.
    pub fn strided(data: D, offset: usize, row_stride: usize) -> Self {
        Rows { data, offset, row_stride, outer_stride: None }
    }

    pub(crate) fn try_map<N, E>(self, mut f: impl FnMut(D) -> Result<N, E>) -> Result<Rows<N>, E> {
        let Rows { data, offset, row_stride, outer_stride } = self;
        Ok(Rows { data: f(data)?, offset, row_stride, outer_stride })
    }
}

/// How many rows there are, and of which length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows, of both levels.
    pub rows: usize,
    /// Rows of a group, a divisor of `rows`; 1: there is one level.
    pub inner: usize,
    /// Length of a row.
    pub hidden: usize,
}

/// Where the rows of an operand begin, one level being told by `inner` 1: row `o·inner + i` at `o·stride + i·inner_stride`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Rows of a group.
    pub inner: usize,
    /// From one group to the next.
    pub stride: usize,
    /// From one row of a group to the next; 0 of one level.
    pub inner_stride: usize,
}

impl Levels {
    pub(crate) fn one(stride: usize) -> Levels {
        Levels { inner: 1, stride, inner_stride: 0 }
    }

    /// Those of a view: one, if there is a stride that tells the same.
    pub(crate) fn of<D>(view: &Rows<D>, shape: Shape) -> Levels {
        let Shape { rows, inner, hidden } = shape;
        let Rows { row_stride: inner_stride, outer_stride, .. } = *view;
        match outer_stride {
            // The stride of a single row is irrelevant.
            _ if rows < 2 => Levels::one(hidden),
            None => Levels::one(inner_stride),
            Some(stride) if inner < 2 => Levels::one(stride),
            Some(stride) if inner >= rows || inner.checked_mul(inner_stride) == Some(stride) => {
                Levels::one(inner_stride)
            }
            Some(stride) => Levels { inner, stride, inner_stride },
        }
    }

    /// Where a row begins; of one that is not there, as far away as can be counted.
    #[inline(always)]
    pub fn at(self, row: usize) -> usize {
        match self.inner {
            1 => row.saturating_mul(self.stride),
            inner => (row / inner).saturating_mul(self.stride).saturating_add(row % inner * self.inner_stride),
        }
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
    /// Rows; of a vector 1, or one for each head, or 0 if it has no elements.
    pub rows: usize,
    /// Elements of a row.
    pub len: usize,
    /// From one row to the next.
    pub levels: Levels,
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
    pub(crate) fn rows<D: Operand>(name: &'static str, role: Role, view: &Rows<D>, shape: Shape) -> Self {
        let levels = Levels::of(view, shape);
        TableLine::of((name, role, Types::Any, true), &view.data, view.offset, (shape.rows, shape.hidden, levels))
    }

    /// The same of an output that may have exactly the rows of these inputs. Every kernel, and the CPU, reads an element of them for the last time
    /// before it is written, in the thread that writes it (docs/determinism.md).
    pub(crate) fn in_place_of(self, may_be: &'static [&'static str]) -> Self {
        TableLine { may_be, ..self }
    }

    /// Vectors one behind the other: one, or one for each head.
    pub(crate) fn vector<D: Operand>(
        name: &'static str,
        role: Role,
        types: Types,
        view: &Vector<D>,
        (count, len): (usize, usize),
        in_packs: bool,
    ) -> Self {
        let count = if len > 0 { count } else { 0 };
        TableLine::of((name, role, types, in_packs), &view.data, view.offset, (count, len, Levels::one(len)))
    }

    fn of<D: Operand>(
        (name, role, types, in_packs): (&'static str, Role, Types, bool),
        data: &D,
        offset: usize,
        (rows, len, levels): (usize, usize, Levels),
    ) -> Self {
        TableLine {
            name,
            role,
            types,
            in_packs,
            rows,
            len,
            levels,
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
        let Levels { stride, inner_stride, .. } = self.levels;
        let are_aligned = [stride, inner_stride].iter().all(|stride| (stride % 16 * bytes).is_multiple_of(16));
        first.is_multiple_of(16) && (self.rows < 2 || are_aligned)
    }

    /// Whether it has exactly the rows of another operand: element by element the same memory, of the same type.
    fn is(&self, other: &TableLine) -> bool {
        let rows = |line: &TableLine| {
            let first = line.offset.wrapping_mul(line.dtype.bytes()) as u64;
            (line.dtype, line.address.wrapping_add(first), line.rows, line.len, line.levels)
        };
        rows(self) == rows(other)
    }

    /// Whether it is an output, and the other an input whose rows it may have and has.
    fn is_in_place_of(&self, other: &TableLine) -> bool {
        self.may_be.contains(&other.name) && self.is(other)
    }

    /// What of it the call touches, if it may have the operand.
    fn check(&self) -> Result<Extent, Error> {
        let TableLine { name: operand, dtype: got, rows, len, levels, offset, elements, address, .. } = *self;
        if let Types::One(expected) = self.types
            && got != expected
        {
            return Err(Error::ElementType { operand, expected, got });
        }
        let Levels { inner, stride, inner_stride } = levels;
        let broadcast = self.role == Role::Read;
        for got in [Some(stride), (inner > 1).then_some(inner_stride)].into_iter().flatten() {
            if got < len && !(got == 0 && broadcast) {
                return Err(Error::RowStride { operand, got, hidden: len, broadcast });
            }
        }
        let bytes = got.bytes();
        let outer = rows / inner;
        let too_far = match outer.saturating_mul(stride) < inner.saturating_mul(inner_stride) {
            false => Error::AddressRange { operand, rows: outer, row_stride: stride, offset },
            true => Error::AddressRange { operand, rows: inner, row_stride: inner_stride, offset },
        };
        let needed = match rows {
            0 => 0,
            _ => (outer - 1)
                .checked_mul(stride)
                .and_then(|group| group.checked_add((inner - 1).checked_mul(inner_stride)?))
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
        let [start, run, stride, inner_stride] =
            [offset, len, stride, inner_stride].map(|elements| elements.saturating_mul(bytes) as u64);
        let start = if rows == 0 { 0 } else { address + start };
        let extent = Extent::new(start, run, [(outer as u64, stride), (inner as u64, inner_stride)]);
        if !broadcast && inner > 1 && !extent.is_nested() {
            let strides = [levels.stride, levels.inner_stride];
            return Err(Error::RowLevels { operand, counts: [outer, inner], strides, hidden: len });
        }
        Ok(extent)
    }
}

/// These operands, if a call may have them.
pub(crate) fn check(table: Table) -> Result<Table, Error> {
    let mut extents = ArrayVec::<Extent, OPERANDS_MAX>::new();
    for line in &table {
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
    Ok(table)
}

/// Whether an output of a checked call has the rows of an input.
#[cfg(feature = "cuda")]
pub(crate) fn is_in_place(table: &Table) -> bool {
    table.iter().any(|output| table.iter().any(|input| output.is_in_place_of(input)))
}

/// Whether an operand has rows of two levels that no stride tells.
#[cfg(feature = "cuda")]
pub(crate) fn has_two_levels(table: &Table) -> bool {
    table.iter().any(|line| line.levels.inner > 1)
}

/// The bytes that an operand touches: runs of `run` bytes, from `start`; of each level how many there are and how far apart, the larger stride first.
struct Extent {
    start: u64,
    run: u64,
    levels: [(u64, u64); 2],
}

impl Extent {
    fn new(start: u64, run: u64, mut levels: [(u64, u64); 2]) -> Extent {
        levels.sort_by_key(|(_, stride)| std::cmp::Reverse(*stride));
        Extent { start, run, levels }
    }

    fn end(&self) -> u64 {
        self.start + self.levels.iter().map(|(count, stride)| (count - 1) * stride).sum::<u64>() + self.run
    }

    /// Whether all runs of the inner level end before the next of the outer one begin.
    fn is_nested(&self) -> bool {
        let [(count, stride), (inner, inner_stride)] = self.levels;
        (count < 2 || (inner - 1) * inner_stride + self.run <= stride) && (inner < 2 || self.run <= inner_stride)
    }

    /// Exact for two operands with the same strides that nest (views of one matrix, interleaved), else by their outer ranges.
    fn overlaps(&self, other: &Extent) -> bool {
        let is_empty = |extent: &Extent| extent.levels.iter().any(|(count, _)| *count == 0);
        if is_empty(self) || is_empty(other) || self.end() <= other.start || other.end() <= self.start {
            return false;
        }
        if self.levels != other.levels || !self.is_nested() || !other.is_nested() {
            return true;
        }
        self.meets(other, i128::from(other.start) - i128::from(self.start), &self.levels)
    }

    /// Whether a run of the other meets one of these, its first being `ahead` of the first of these, and both having these levels.
    fn meets(&self, other: &Extent, ahead: i128, levels: &[(u64, u64)]) -> bool {
        match levels {
            [] => ahead < i128::from(self.run) && -ahead < i128::from(other.run),
            [(1, _), rest @ ..] => self.meets(other, ahead, rest),
            // Of two steps of this level, what nests in each is less than a stride.
            [(count, stride), rest @ ..] => {
                let steps = ahead.div_euclid(i128::from(*stride));
                let near = [steps, steps + 1].into_iter().filter(|steps| steps.unsigned_abs() < u128::from(*count));
                near.into_iter().any(|steps| self.meets(other, ahead - steps * i128::from(*stride), rest))
            }
        }
    }
}
