//! How a problem is launched: all that decides speed, and no bit.
//!
//! The orders are those of [`order`](crate::order) whatever is chosen here. Everything is pure: no GPU is asked, no CUDA type
//! appears.

pub use crate::order::{ColumnOrder, RowOrder, column_order, row_order};
use crate::{Dtype, HIDDEN_MAX};

/// What a plan needs to know of a GPU. Never reaches a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Number of multiprocessors.
    pub sm_count: u32,
    /// Most threads resident on one multiprocessor.
    pub threads_per_sm: u32,
    /// Most shared memory that one block can have.
    pub block_shared_bytes: u32,
    /// Size of the L2 cache.
    pub l2_bytes: u32,
    /// What the memory's clock and width come to, in bytes a microsecond. 0: unknown.
    pub memory_bytes_per_us: u32,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
}

impl Arch {
    /// NVIDIA A100 (80 GB).
    pub const A100: Arch = Arch {
        sm_count: 108,
        threads_per_sm: 2048,
        block_shared_bytes: 163 << 10,
        l2_bytes: 40 << 20,
        memory_bytes_per_us: 2_039_000,
        compute_capability: (8, 0),
    };
    /// NVIDIA H200.
    pub const H200: Arch = Arch {
        sm_count: 132,
        threads_per_sm: 2048,
        block_shared_bytes: 227 << 10,
        l2_bytes: 60 << 20,
        memory_bytes_per_us: 4_814_000,
        compute_capability: (9, 0),
    };
    /// NVIDIA B200.
    pub const B200: Arch = Arch {
        sm_count: 148,
        threads_per_sm: 2048,
        block_shared_bytes: 227 << 10,
        l2_bytes: 126 << 20,
        memory_bytes_per_us: 8_000_000,
        compute_capability: (10, 0),
    };
    /// NVIDIA GeForce RTX 5090.
    pub const RTX_5090: Arch = Arch {
        sm_count: 170,
        threads_per_sm: 1536,
        block_shared_bytes: 99 << 10,
        l2_bytes: 96 << 20,
        memory_bytes_per_us: 1_792_000,
        compute_capability: (12, 0),
    };
    /// Every architecture named here.
    pub const ALL: [(&'static str, Arch); 4] =
        [("A100", Arch::A100), ("H200", Arch::H200), ("B200", Arch::B200), ("RTX 5090", Arch::RTX_5090)];
}

/// How threads share rows: what a kernel is compiled for. `hidden`, `rows`, strides and chains are arguments of the kernel, so
/// a new width costs no compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    /// Lanes (threads) that share a row: a team.
    pub lanes: u32,
    /// Teams of a block: a power of two.
    pub teams: u32,
    /// Elements of a pack: 16 or 32 bytes.
    pub pack: u32,
    /// Packs that a lane has of a row, at most. 0: any number; the row is streamed, and read twice.
    pub packs: u32,
    /// Packs whose chains a lane owns: `lanes · pack · sets` chains in all.
    pub sets: u32,
}

impl Class {
    /// Threads of a block.
    pub const fn threads(self) -> u32 {
        self.lanes * self.teams
    }

    /// Shared memory that its kernels declare themselves, at most: two buffers for what teams hand to each other, two for the nodes of
    /// each, and barriers.
    const fn declared_bytes(self) -> u32 {
        let handing = if self.lanes < 32 { self.threads() / 32 } else { self.teams };
        let nodes = 2 * self.teams * self.sets * self.lanes.div_ceil(32);
        (2 * handing.div_ceil(2) * self.pack * self.lanes + nodes + 2 * (self.teams * RING_STAGES_MAX + 1)) * 4
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Class { lanes, teams, pack, packs, sets } = *self;
        match packs {
            0 => write!(f, "streamed-{lanes}×{pack}")?,
            _ => write!(f, "held-{teams}×{lanes}×{pack}×{packs}")?,
        }
        if sets > 1 { write!(f, "/{sets}") } else { Ok(()) }
    }
}

/// The class that works on rows of `hidden` elements of type `dtype`.
///
/// Measured on an H200 in backward, where the sums of all rows of a team stay in registers: a block of 8 to 16 warps reaches the
/// memory's rate where each team is 1, 2, 4 or 8 of them; 10 or 14 warps fall to 0.8 of it.
pub fn class(hidden: usize, dtype: Dtype) -> Class {
    let chains = row_order(hidden).chains as u32;
    let pack = if dtype == Dtype::F32 { 4 } else { 8 }; // 16 bytes
    match hidden {
        0..=256 => {
            let teams = 2048 / hidden.next_power_of_two().max(8) as u32;
            Class { lanes: (chains / pack).next_power_of_two(), teams, pack, packs: 1, sets: 1 }
        }
        257..=16384 => {
            let lanes = (chains / pack).min(if hidden > 8192 && pack == 4 { 512 } else { 256 });
            let groups = column_order(usize::MAX, hidden).groups as u32;
            let teams = (groups / 128).min(512 / lanes);
            Class { lanes, teams, pack, packs: (hidden as u32).div_ceil(lanes * pack), sets: chains / (lanes * pack) }
        }
        _ => Class { lanes: 1024, teams: 1, pack: 8, packs: 0, sets: 4 },
    }
}

/// Every class that can work on rows of `hidden` elements of type `dtype` in the order of [`row_order`], the one that [`class`] gives
/// among them.
pub fn variants(hidden: usize, dtype: Dtype) -> Vec<Class> {
    if !(257..=16384).contains(&hidden) {
        return vec![class(hidden, dtype)];
    }
    let chains = row_order(hidden).chains as u32;
    let mut all = Vec::new();
    for pack in if dtype == Dtype::F32 { &[4, 8][..] } else { &[8] } {
        for lanes in (5..=10).map(|j| 1 << j).filter(|lanes| lanes * pack <= chains) {
            let (packs, sets) = ((hidden as u32).div_ceil(lanes * pack), chains / (lanes * pack));
            for teams in (0..=3).map(|j| 1 << j) {
                // So that the sums of a row group fit the registers of a lane, and all lanes those of a multiprocessor.
                let fits = packs * pack <= 64 && lanes * teams * packs * pack <= 16384 && lanes * teams <= 1024;
                if fits && (sets == 1 || lanes > 32) {
                    all.push(Class { lanes, teams, pack: *pack, packs, sets });
                }
            }
        }
    }
    all
}

/// Every class of `dtype` that [`class`] can give.
pub fn classes(dtype: Dtype) -> Vec<Class> {
    let widths = (3..=8).map(|j| 1usize << j).chain((2..=64).map(|j| j * 256)).chain([HIDDEN_MAX]);
    let mut classes: Vec<Class> = widths.map(|hidden| class(hidden, dtype)).collect();
    classes.dedup();
    classes
}

/// How a kernel over rows is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// What it is compiled for.
    pub class: Class,
    /// Rows of x and dy in shared memory for each team, if every row begins on 16 bytes. 0: none.
    pub stages: u32,
    /// Blocks.
    pub blocks: u32,
    /// Least time from one row of a team to its next, in 1/256 ns (backward.cu, Pace). 0: none.
    pub pace: u32,
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

/// What [`plan`] would choose, chosen otherwise: for measurements, and for checks that it changes no bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// One of [`variants`]; ignored for rows that it cannot work on.
    pub class: Option<Class>,
    /// Stages of the ring, if so many fit. 0: no ring.
    pub stages: Option<u32>,
    /// Hundredths of the memory's nominal rate that backward keeps to. 0: no limit.
    pub rate_percent: Option<u32>,
}

/// The plan for `rows` rows of `hidden` elements of type `dtype` on `arch`.
pub fn plan(rows: usize, hidden: usize, dtype: Dtype, arch: &Arch) -> Plan {
    plan_variant(rows, hidden, dtype, arch, &Variant::default())
}

/// The same with some of it chosen already. The orders are always those of [`plan`].
pub fn plan_variant(rows: usize, hidden: usize, dtype: Dtype, arch: &Arch, variant: &Variant) -> Plan {
    let (row, column) = (row_order(hidden), column_order(rows, hidden));
    let chosen = variant.class.filter(|chosen| variants(hidden, dtype).contains(chosen));
    let class = chosen.unwrap_or_else(|| class(hidden, dtype));
    let teams = class.teams as usize;
    let blocks = |items: usize, most: usize| items.min(most).max(1) as u32;
    let forward = Launch { class, stages: 0, blocks: blocks(rows.div_ceil(teams), GRID_MAX), pace: 0 };
    if class.packs == 0 {
        return Plan { row, column, forward, backward: Launch { blocks: blocks(rows, GRID_MAX), ..forward } };
    }
    // A stage holds a row of x and one of dy. 96 KiB ahead hide the memory's latency; three stages let a lone team compute with
    // one, while the others fill.
    let row_bytes = hidden * dtype.bytes();
    let stage_bytes = teams * 2 * row_bytes;
    let wanted = if teams == 1 { 3 } else { (96usize << 10).div_ceil(stage_bytes) };
    let fit = arch.block_shared_bytes.saturating_sub(class.declared_bytes() + (1 << 10)) as usize / stage_bytes;
    let stages = variant.stages.map_or(wanted, |stages| stages as usize).min(fit).min(RING_STAGES_MAX as usize) as u32;
    let ring = hidden > 256 && arch.compute_capability >= (9, 0) && stages >= 2;
    let resident = arch.sm_count * if ring { 1 } else { (arch.threads_per_sm / class.threads()).max(1) };
    let blocks = blocks(column.groups.div_ceil(teams), resident as usize);
    // Nine tenths of what the memory's clock and width come to, shared by all teams. Where the tensors fit the cache, or nobody
    // has measured, no limit.
    let rate = u64::from(arch.memory_bytes_per_us) * u64::from(variant.rate_percent.unwrap_or(90)) / 100;
    let paced = ring
        && arch.compute_capability == (9, 0)
        && rate > 0
        && rows.saturating_mul(3 * row_bytes) > arch.l2_bytes as usize;
    let row_bytes_of_all = 3 * row_bytes as u64 * u64::from(blocks) * teams as u64;
    let pace = if paced { row_bytes_of_all * 256_000 / rate } else { 0 };
    let backward =
        Launch { class, stages: if ring { stages } else { 0 }, blocks, pace: pace.try_into().unwrap_or(u32::MAX) };
    Plan { row, column, forward, backward }
}

impl std::fmt::Display for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Launch { class, stages, blocks, pace } = self;
        write!(f, "{class} ×{blocks}")?;
        if *stages > 0 {
            write!(f, " ring {stages}")?;
        }
        if *pace > 0 { write!(f, " pace {:.2} µs", f64::from(*pace) / 256e3) } else { Ok(()) }
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Plan { row, column, forward, backward } = self;
        write!(f, "C{} G{} forward {forward} backward {backward}", row.chains, column.groups)
    }
}

/// Most stages of a ring.
pub const RING_STAGES_MAX: u32 = 8;

/// Most blocks of a grid.
const GRID_MAX: usize = i32::MAX as usize;

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
                    assert!(
                        hidden > 16384 && chains.is_multiple_of(owned) && chains <= owned * class.sets as usize,
                        "{hidden}"
                    );
                } else {
                    assert!(hidden <= owned * class.packs as usize, "{hidden}");
                    let all = owned * class.sets as usize;
                    assert!(if hidden <= 256 { chains <= all && class.packs == 1 } else { chains == all }, "{hidden}");
                    assert!(class.sets == 1 || class.lanes > 32, "{hidden}");
                }
                assert!(class.teams.is_power_of_two() && class.threads() <= 1024, "{hidden}");
                // Hardware barriers 1 to 15 are the teams' own.
                assert!(class.lanes <= 32 || class.teams < 16, "{hidden}");
                assert!(classes(dtype).contains(&class) && variants(hidden, dtype).contains(&class), "{hidden}");
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
}
