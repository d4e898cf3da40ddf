//! Which order a problem is reduced in, and how it is launched.
//!
//! [`row_order`] and [`column_order`] decide bits. They know neither the GPU nor the element type nor the alignment, and
//! `row_order` does not know the number of rows: that is why none of these can change a bit, and why a row does not depend on
//! its neighbours. [`plan`] adds what decides only speed. Everything here is pure: no GPU is asked, no CUDA type appears.

use crate::problem::{Dtype, Error, HIDDEN_MAX, check_hidden};

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
/// Up to 256 elements each has a chain of its own. Beyond, a chain has at most four elements until 16384: a lane then holds
/// four packs of a row, and a warp or a few share it. Wider rows get a power of two more, so that a cluster of blocks can
/// share one.
pub fn row_order(hidden: usize) -> RowOrder {
    let chains = match hidden {
        0..=256 => hidden.next_multiple_of(8),
        257..=16384 => hidden.div_ceil(4).next_multiple_of(256),
        16385..=32768 => 8192,
        32769..=65536 => 16384,
        _ => 32768,
    };
    RowOrder { chains }
}

/// The order of `rows` rows of `hidden` elements in the weight's gradient.
///
/// 132 times a power of two, so many that each multiprocessor of an H200 holds the sums of 16384 columns.
pub fn column_order(rows: usize, hidden: usize) -> ColumnOrder {
    let groups = match hidden {
        0..=256 => 132 * previous_power_of_two(8192 / hidden.max(8)),
        257..=16384 => 132 * previous_power_of_two(16384 / hidden),
        16385..=32768 => 66,
        32769..=65536 => 30,
        _ => 15,
    };
    ColumnOrder { groups: groups.min(rows) }
}

/// Elements of f32 scratch that a backward call with `dw` needs: one partial row for each row group.
pub fn scratch_len(rows: usize, hidden: usize) -> Result<usize, Error> {
    check_hidden(hidden)?;
    // At most 2^18 groups of 2^24 columns: no overflow.
    Ok(column_order(rows, hidden).groups * hidden)
}

/// What a plan needs to know of a GPU. Never reaches a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Number of multiprocessors.
    pub sm_count: u32,
    /// Most threads resident on one multiprocessor.
    pub threads_per_sm: u32,
    /// Most shared memory that one block can have.
    pub block_shared_bytes: u32,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
}

impl Arch {
    /// NVIDIA A100.
    pub const A100: Arch =
        Arch { sm_count: 108, threads_per_sm: 2048, block_shared_bytes: 163 << 10, compute_capability: (8, 0) };
    /// NVIDIA H200 (and H100 SXM).
    pub const H200: Arch =
        Arch { sm_count: 132, threads_per_sm: 2048, block_shared_bytes: 227 << 10, compute_capability: (9, 0) };
    /// NVIDIA B200.
    pub const B200: Arch =
        Arch { sm_count: 148, threads_per_sm: 2048, block_shared_bytes: 227 << 10, compute_capability: (10, 0) };
    /// NVIDIA GeForce RTX 5090.
    pub const RTX_5090: Arch =
        Arch { sm_count: 170, threads_per_sm: 1536, block_shared_bytes: 99 << 10, compute_capability: (12, 0) };
    /// Every architecture named here.
    pub const ALL: [(&'static str, Arch); 4] =
        [("A100", Arch::A100), ("H200", Arch::H200), ("B200", Arch::B200), ("RTX 5090", Arch::RTX_5090)];
}

/// How threads share rows: what a kernel is compiled for. `hidden`, `rows`, strides and chains are arguments of the kernel, so
/// a new width costs no compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    /// Lanes (threads) that share a row: a team. Each owns the neighbouring chains of one pack.
    pub lanes: u32,
    /// Teams of a block: a power of two.
    pub teams: u32,
    /// Elements of a pack: 16 or 32 bytes.
    pub pack: u32,
    /// Packs that a lane holds of a row. 0: the row is streamed, and read twice.
    pub packs: u32,
}

impl Class {
    /// Threads of a block.
    pub const fn threads(self) -> u32 {
        self.lanes * self.teams
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.packs {
            0 => write!(f, "streamed-{}×{}", self.lanes, self.pack),
            packs => write!(f, "held-{}×{}×{}×{packs}", self.teams, self.lanes, self.pack),
        }
    }
}

/// The class that works on rows of `hidden` elements of type `dtype`.
pub fn class(hidden: usize, dtype: Dtype) -> Class {
    let chains = row_order(hidden).chains as u32;
    // 16 bytes, where that leaves a team small enough for its registers.
    let pack = if dtype == Dtype::F32 && chains <= 2048 { 4 } else { 8 };
    let lanes = chains / pack;
    match hidden {
        0..=256 => {
            let teams = 2048 / hidden.next_power_of_two().max(8) as u32;
            Class { lanes: lanes.next_power_of_two(), teams, pack, packs: 1 }
        }
        257..=16384 => {
            let teams = previous_power_of_two((512 / lanes) as usize) as u32;
            Class { lanes, teams, pack, packs: if hidden <= 512 { 2 } else { 4 } }
        }
        _ => Class { lanes: 1024, teams: 1, pack, packs: 0 },
    }
}

/// Every class of `dtype` that [`class`] can give.
pub fn classes(dtype: Dtype) -> Vec<Class> {
    let widths = (3..=8).map(|j| 1usize << j).chain([512]).chain((1..=16).map(|j| j * 1024)).chain([HIDDEN_MAX]);
    let mut classes: Vec<Class> = widths.map(|hidden| class(hidden, dtype)).collect();
    classes.dedup();
    classes
}

/// How a kernel over rows is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What it is compiled for.
    pub class: Class,
    /// Rows that each team fetches ahead into shared memory, if every row begins on 16 bytes. 0: none.
    pub stages: u32,
    /// Blocks.
    pub blocks: u32,
}

/// Everything that was decided for one problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Decides the bits of every row.
    pub row: RowOrder,
    /// Decides the bits of the weight's gradient.
    pub column: ColumnOrder,
    /// The forward kernel. Speed only.
    pub forward: Launch,
    /// The backward kernel. Speed only.
    pub backward: Launch,
}

/// The plan for `rows` rows of `hidden` elements of type `dtype` on `arch`.
pub fn plan(rows: usize, hidden: usize, dtype: Dtype, arch: &Arch) -> Plan {
    let (row, column) = (row_order(hidden), column_order(rows, hidden));
    let class = class(hidden, dtype);
    let launch = |work: usize, tensors: usize, blocks_per_sm: u32| {
        let blocks_per_sm = blocks_per_sm.min(arch.threads_per_sm / class.threads()).max(1);
        let stage_bytes = class.teams as usize * tensors * hidden * dtype.bytes();
        // What a block may have, less what the kernels declare themselves.
        let ring_bytes = (arch.block_shared_bytes / blocks_per_sm - (10 << 10)) as usize;
        let stages = (ring_bytes / stage_bytes).min(RING_STAGES_MAX as usize) as u32;
        let ring = class.lanes >= 32 && class.packs > 0 && arch.compute_capability >= (9, 0) && stages >= 2;
        let resident = (arch.sm_count * blocks_per_sm) as usize;
        let blocks = work.div_ceil(class.teams as usize).clamp(1, resident) as u32;
        Launch { class, stages: if ring { stages } else { 0 }, blocks }
    };
    let narrow = hidden <= 256;
    let backward_work = if class.packs == 0 { rows } else { column.groups };
    Plan {
        row,
        column,
        forward: launch(rows, 1, if narrow { 8 } else { 2 }),
        backward: launch(backward_work, 2, if narrow { 8 } else { 1 }),
    }
}

impl std::fmt::Display for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ring {} ×{}", self.class, self.stages, self.blocks)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Plan { row, column, forward, backward } = self;
        write!(f, "C{} G{} forward {forward} backward {backward}", row.chains, column.groups)
    }
}

/// Most stages of a ring (rows.cuh, STAGES_MAX).
pub const RING_STAGES_MAX: u32 = 8;

fn previous_power_of_two(n: usize) -> usize {
    if n == 0 { 1 } else { 1 << n.ilog2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths either side of every step of the tables.
    fn widths() -> Vec<usize> {
        let mut w: Vec<usize> = (1..=2100).collect();
        w.extend((2100..=140_000).step_by(61));
        w.extend([256, 2048, 16384, 32768, 65536].iter().flat_map(|e| [e - 1, *e, e + 1]));
        w.push(HIDDEN_MAX);
        w
    }

    #[test]
    fn a_class_holds_every_chain() {
        for dtype in Dtype::ALL {
            for hidden in widths() {
                let (class, chains) = (class(hidden, dtype), row_order(hidden).chains);
                let owned = (class.lanes * class.pack) as usize;
                if class.packs == 0 {
                    assert!(hidden > 16384 && chains % owned == 0 && chains <= 32768, "{hidden}");
                } else {
                    assert!(chains <= owned && hidden <= chains * class.packs as usize, "{hidden}");
                }
                assert!(class.teams.is_power_of_two() && class.threads() <= 1024, "{hidden}");
                // Hardware barriers 1 to 15 are the teams' own.
                assert!(class.lanes <= 32 || class.teams < 16, "{hidden}");
                assert!(classes(dtype).contains(&class), "{hidden}");
            }
        }
    }

    #[test]
    fn the_fold_reaches_every_node() {
        for dtype in Dtype::ALL {
            for hidden in widths() {
                let plan = plan(usize::MAX, hidden, dtype, &Arch::H200);
                assert!(plan.column.groups.div_ceil(plan.backward.class.teams as usize) <= 1024, "{hidden} {plan}");
            }
        }
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
