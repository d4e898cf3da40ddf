//! Which order a problem is reduced in, and how it is launched.
//!
//! [`row_order`] and [`column_order`] decide bits. They know neither the GPU nor the element type nor the alignment, and
//! `row_order` does not know the number of rows: that is why none of these can change a bit, and why a row does not depend on
//! its neighbours. [`plan`] adds what decides only speed. Everything here is pure: no GPU is asked, no CUDA type appears.

use crate::problem::{Dtype, Error, check_hidden};

/// Version of every output bit. It rises with any change of [`row_order`], [`column_order`] or the specification
/// ([`arith`](crate::arith)), and with nothing else. 0: not frozen yet.
pub const BITS_VERSION: u32 = 0;

/// How a row is reduced (§2): decides the bits of `rstd`, `y` and `dx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowOrder {
    /// Number of chains, C. Chain c folds the elements c, c + C, c + 2C, …
    pub chains: usize,
}

/// How the rows are reduced (§7): decides the bits of `dw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnOrder {
    /// Number of row groups, G ≤ M. Group g folds the rows g, g + G, g + 2G, … No group is empty.
    pub groups: usize,
}

/// The order of a row of `hidden` elements.
///
/// Up to 2048 elements each has a chain of its own (in whole vectors of eight, which changes no bit); up to 16384 two
/// elements share one; beyond, 8192 chains or a power of two more, so that a cluster of blocks can share a row.
pub fn row_order(hidden: usize) -> RowOrder {
    let chains = match hidden {
        0..=2048 => hidden.next_multiple_of(8),
        2049..=16384 => hidden.div_ceil(2).next_multiple_of(256),
        16385..=32768 => 16384,
        32769..=65536 => 32768,
        _ => 65536,
    };
    RowOrder { chains }
}

/// The order of `rows` rows of `hidden` elements in the weight's gradient.
pub fn column_order(rows: usize, hidden: usize) -> ColumnOrder {
    let groups = match hidden {
        0..=256 => 528 * (BLOCK_THREADS_NARROW / narrow_lanes(hidden)) as usize,
        257..=1024 => 792,
        1025..=2048 => 528,
        2049..=6144 => 264,
        6145..=16384 => 132,
        _ => 30,
    };
    ColumnOrder { groups: groups.min(rows) }
}

/// Elements of f32 scratch that a backward call with `dw` needs: one partial row for each row group.
pub fn scratch_len(rows: usize, hidden: usize) -> Result<usize, Error> {
    check_hidden(hidden)?;
    // At most 135168 groups of 2^24 columns: no overflow.
    Ok(column_order(rows, hidden).groups * hidden)
}

/// What a plan needs to know of a GPU. Never reaches a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Number of multiprocessors.
    pub sm_count: u32,
    /// Most threads resident on one multiprocessor.
    pub threads_per_sm: u32,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
}

impl Arch {
    /// NVIDIA A100.
    pub const A100: Arch = Arch { sm_count: 108, threads_per_sm: 2048, compute_capability: (8, 0) };
    /// NVIDIA H200 (and H100 SXM).
    pub const H200: Arch = Arch { sm_count: 132, threads_per_sm: 2048, compute_capability: (9, 0) };
    /// NVIDIA B200.
    pub const B200: Arch = Arch { sm_count: 148, threads_per_sm: 2048, compute_capability: (10, 0) };
    /// NVIDIA GeForce RTX 5090.
    pub const RTX_5090: Arch = Arch { sm_count: 170, threads_per_sm: 1536, compute_capability: (12, 0) };
    /// Every architecture named here.
    pub const ALL: [(&'static str, Arch); 4] =
        [("A100", Arch::A100), ("H200", Arch::H200), ("B200", Arch::B200), ("RTX 5090", Arch::RTX_5090)];
}

/// How many threads share a row and what each of them holds: what a kernel is compiled for. `hidden`, `rows`, strides and
/// chains are arguments of the kernel, so a new width costs no compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    /// Lanes (threads) that share a row. Each owns eight neighbouring chains, or none.
    pub lanes: u32,
    /// Rows that a block works on at once: a power of two; more than one only while a row fits a warp.
    pub rows_per_block: u32,
    /// Vectors of eight elements that a lane keeps in registers. 0: the row is streamed, and read twice.
    pub vectors: u32,
}

impl Class {
    /// Threads of a block.
    pub const fn threads(self) -> u32 {
        self.lanes * self.rows_per_block
    }

    const fn narrow(lanes: u32) -> Class {
        Class { lanes, rows_per_block: BLOCK_THREADS_NARROW / lanes, vectors: 1 }
    }

    const fn block(lanes: u32, vectors: u32) -> Class {
        Class { lanes, rows_per_block: 1, vectors }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.vectors {
            0 => write!(f, "streamed-{}", self.lanes),
            v => write!(f, "held-{}x{v}x{}", self.lanes, self.rows_per_block),
        }
    }
}

/// Every class, narrowest first: a row is worked on by the first one that holds all its chains.
pub const CLASSES: [Class; 20] = [
    Class::narrow(1),
    Class::narrow(2),
    Class::narrow(4),
    Class::narrow(8),
    Class::narrow(16),
    Class::narrow(32),
    Class::block(64, 1),
    Class::block(128, 1),
    Class::block(192, 1),
    Class::block(256, 1),
    Class::block(160, 2),
    Class::block(192, 2),
    Class::block(256, 2),
    Class::block(320, 2),
    Class::block(384, 2),
    Class::block(448, 2),
    Class::block(512, 2),
    Class::block(768, 2),
    Class::block(1024, 2),
    Class::block(1024, 0),
];

/// The class that works on rows of `hidden` elements.
pub fn class(hidden: usize) -> Class {
    let chains = row_order(hidden).chains;
    let holds = |c: &&Class| c.vectors as usize * chains >= hidden && c.lanes as usize * 8 >= chains;
    *CLASSES.iter().find(holds).unwrap_or(&CLASSES[CLASSES.len() - 1])
}

/// Everything that was decided for one problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Decides the bits of every row.
    pub row: RowOrder,
    /// Decides the bits of the weight's gradient.
    pub column: ColumnOrder,
    /// What the kernels are compiled for. Speed only.
    pub class: Class,
    /// Blocks of the forward kernel. Speed only.
    pub forward_blocks: u32,
    /// Blocks of the backward kernel. Speed only.
    pub backward_blocks: u32,
}

/// The plan for `rows` rows of `hidden` elements of type `dtype` on `arch`.
pub fn plan(rows: usize, hidden: usize, dtype: Dtype, arch: &Arch) -> Plan {
    let _ = dtype; // No number in the tables depends on it yet.
    let class = class(hidden);
    let column = column_order(rows, hidden);
    let resident = (arch.sm_count * (arch.threads_per_sm / class.threads()).max(1)) as usize;
    let blocks = |work: usize| work.div_ceil(class.rows_per_block as usize).clamp(1, resident) as u32;
    let backward = if class.vectors == 0 { rows } else { column.groups };
    Plan { row: row_order(hidden), column, class, forward_blocks: blocks(rows), backward_blocks: blocks(backward) }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Plan { row, column, class, forward_blocks, backward_blocks } = self;
        write!(f, "C{} G{} {class} forward×{forward_blocks} backward×{backward_blocks}", row.chains, column.groups)
    }
}

const BLOCK_THREADS_NARROW: u32 = 256;

/// Lanes that share a row of up to 256 elements: a power of two, eight elements each.
const fn narrow_lanes(hidden: usize) -> u32 {
    (hidden.next_power_of_two() as u32).div_ceil(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths either side of every step of the tables.
    fn widths() -> Vec<usize> {
        let mut w: Vec<usize> = (1..=2100).collect();
        w.extend((2100..=140_000).step_by(61));
        w.extend([256, 2048, 16384, 32768, 65536].iter().flat_map(|e| [e - 1, *e, e + 1]));
        w.push(crate::HIDDEN_MAX);
        w
    }

    #[test]
    fn a_class_holds_every_chain() {
        for hidden in widths() {
            let (class, chains) = (class(hidden), row_order(hidden).chains);
            if class.vectors == 0 {
                assert!(hidden > 16384, "{hidden} needs no streaming");
                assert_eq!(chains % (8 * class.lanes as usize), 0, "{hidden}");
            } else {
                assert!(chains <= 8 * class.lanes as usize && hidden <= chains * class.vectors as usize, "{hidden}");
            }
            assert!(class.rows_per_block.is_power_of_two() && class.threads() <= 1024);
        }
    }

    #[test]
    fn every_class_is_used() {
        let used: std::collections::BTreeSet<Class> = widths().into_iter().map(class).collect();
        assert_eq!(used, CLASSES.into_iter().collect());
    }

    #[test]
    fn no_group_is_empty() {
        for hidden in widths() {
            for rows in [0, 1, 2, 131, 132, 133, 100_000] {
                let groups = column_order(rows, hidden).groups;
                assert!(groups <= rows && (groups > 0) == (rows > 0));
            }
        }
    }
}
