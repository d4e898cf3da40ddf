//! Which elements of the buffers of a call are its operands.

use std::collections::VecDeque;
use std::ops::Range;

use crate::view::{Role, Table, TableLine};

/// Which elements of a buffer are the operand: `count` pieces of `len`, `stride` apart, the first after `offset`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) offset: usize,
    pub(super) stride: usize,
    pub(super) count: usize,
    pub(super) len: usize,
}

impl Extent {
    fn of(line: &TableLine) -> Extent {
        let TableLine { rows: count, len, row_stride: stride, offset, .. } = *line;
        match (count, stride) {
            // Nobody promises that scratch is written.
            _ if line.role == Role::Scratch => Extent { offset, stride, count: 0, len },
            (2.., 0) => Extent { offset, stride, count: 1, len },
            _ if stride == len => Extent { offset, stride, count: count.min(1), len: count * len },
            _ => Extent { offset, stride, count, len },
        }
    }

    /// The pieces, in bytes.
    pub(super) fn pieces(self, element_bytes: usize) -> impl Iterator<Item = Range<usize>> {
        let Extent { offset, stride, count, len } = self;
        let first = move |i| (offset + i * stride) * element_bytes;
        (0..count).map(move |i| first(i)..first(i) + len * element_bytes)
    }
}

/// Those of a call's operands, in the order in which `try_map` visits them.
#[derive(Default)]
pub(super) struct Extents {
    pub(super) read: VecDeque<Extent>,
    pub(super) written: VecDeque<Extent>,
}

impl Extents {
    pub(super) fn of(table: &Table) -> Extents {
        let (read, written): (Vec<_>, Vec<_>) = table.iter().partition(|line| line.role == Role::Read);
        let extents = |lines: Vec<&TableLine>| lines.into_iter().map(Extent::of).collect();
        Extents { read: extents(read), written: extents(written) }
    }
}
