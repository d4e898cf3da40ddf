//! Which elements of the buffers of a call are its operands.

use std::collections::VecDeque;
use std::ops::Range;

use crate::view::{Levels, Role, Table, TableLine};

/// Which elements of a buffer are the operand: `count` pieces of `len`, which begin where `levels` says after `offset`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    offset: usize,
    levels: Levels,
    count: usize,
    len: usize,
}

impl Extent {
    fn of(line: &TableLine) -> Extent {
        let TableLine { rows: count, len, levels, offset, .. } = *line;
        match (count, levels) {
            // Nobody promises that scratch is written.
            _ if line.role == Role::Scratch => Extent { offset, levels, count: 0, len },
            (2.., Levels { inner: 1, stride: 0, .. }) => Extent { offset, levels, count: 1, len },
            (_, Levels { inner: 1, stride, .. }) if stride == len => {
                Extent { offset, levels, count: count.min(1), len: count * len }
            }
            _ => Extent { offset, levels, count, len },
        }
    }

    /// So many elements from the start of the buffer.
    pub(super) fn whole(len: usize) -> Extent {
        Extent { offset: 0, levels: Levels::one(0), count: 1, len }
    }

    /// The pieces, in bytes.
    pub(super) fn pieces(self, element_bytes: usize) -> impl Iterator<Item = Range<usize>> {
        let Extent { offset, levels, count, len } = self;
        let first = move |i| (offset + levels.at(i)) * element_bytes;
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
