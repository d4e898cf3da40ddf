//! How a call is launched: all that decides speed, and no bit.
//!
//! The orders are those of [`order`](crate::order) whatever is chosen here. Everything is pure: no GPU is asked, no CUDA type
//! appears. The tables stand at the end, each line with what was measured for it.

use std::fmt;

pub use crate::order::{ColumnOrder, RowOrder, column_order, row_order};
use crate::order::{HELD_MAX, NARROW, WIDE_MAX};
use crate::{Dtype, HIDDEN_MAX, WeightOffset};

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
    /// NVIDIA A10.
    pub const A10: Arch = Arch {
        sm_count: 72,
        threads_per_sm: 1536,
        block_shared_bytes: 99 << 10,
        l2_bytes: 6 << 20,
        memory_bytes_per_us: 600_000,
        compute_capability: (8, 6),
    };
    /// NVIDIA L40S.
    pub const L40S: Arch = Arch {
        sm_count: 142,
        threads_per_sm: 1536,
        block_shared_bytes: 99 << 10,
        l2_bytes: 96 << 20,
        memory_bytes_per_us: 864_000,
        compute_capability: (8, 9),
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
    pub const ALL: [(&'static str, Arch); 6] = [
        ("A100", Arch::A100),
        ("A10", Arch::A10),
        ("L40S", Arch::L40S),
        ("H200", Arch::H200),
        ("B200", Arch::B200),
        ("RTX 5090", Arch::RTX_5090),
    ];
}

/// What decides how a call is launched: its shape, its types, and whether its rows are aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Number of rows.
    pub rows: usize,
    /// Length of a row.
    pub hidden: usize,
    /// Element type of x, y, dy and dx.
    pub dtype: Dtype,
    /// Element type of the weight, if there is one.
    pub weight: Option<Dtype>,
    /// As in the calls.
    pub weight_offset: WeightOffset,
    /// Element type of the weight's gradient, if it is computed.
    pub dw: Option<Dtype>,
    /// Whether forward is given a residual.
    pub residual: bool,
    /// Whether backward is given a `dz`.
    pub dz: bool,
    /// Whether every row of every operand, weight and scratch too, begins on 16 bytes. So it is in whole buffers of cudarc's
    /// with rows of a multiple of 16 bytes.
    pub aligned: bool,
}

impl Calls {
    /// Of aligned rows, without anything that may be absent: no weight, no gradient of it, no residual, no `dz`. The rest by struct update.
    pub const fn new((rows, hidden): (usize, usize), dtype: Dtype) -> Self {
        Calls {
            rows,
            hidden,
            dtype,
            weight: None,
            weight_offset: WeightOffset::Zero,
            dw: None,
            residual: false,
            dz: false,
            aligned: true,
        }
    }
}

/// The GPU to plan for, and what is chosen otherwise than by the plan: for measurements, and for checks that it changes no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// The GPU.
    pub arch: Arch,
    /// One of [`variants`] for forward; ignored for rows that it cannot work on.
    pub forward: Option<Class>,
    /// The same for backward.
    pub backward: Option<Class>,
    /// Stages of backward's ring, if so many fit. 0: no ring.
    pub stages: Option<u32>,
    /// Hundredths of the memory's nominal rate that backward keeps to. 0: no limit.
    pub rate_percent: Option<u32>,
    /// Blocks of each kernel over rows, rounded up to whole clusters. (Forward's have one row each, unless here
    /// stands what no grid can have.)
    pub blocks: Option<u32>,
    /// Whether backward of few rows may be one launch. It is not where anything else is chosen for backward.
    pub few_rows: bool,
}

impl Tuning {
    /// What the plan for `arch` chooses.
    pub const fn of(arch: Arch) -> Self {
        Tuning { arch, forward: None, backward: None, stages: None, rate_percent: None, blocks: None, few_rows: true }
    }
}

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// y and rstd.
    Forward,
    /// dx and dw.
    Backward,
}

impl Direction {
    /// Both.
    pub const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];
}

/// How threads share rows: what a kernel is compiled for. `hidden`, `rows`, strides and chains are arguments of the kernel, so
/// a new width costs no compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    /// Blocks that share a row, each with a team of its own: a cluster. 1: a row has one team.
    pub cluster: u32,
    /// Threads that share a row: a team. Of a cluster: those of one block.
    pub team: u32,
    /// Teams of a block: a power of two.
    pub teams: u32,
    /// Elements of a pack: 16 or 32 bytes.
    pub pack: u32,
    /// Packs that a thread has of a row, at most. 0: any number; the row is streamed, and read twice.
    pub packs: u32,
    /// Packs whose chains a thread owns: `team · pack · sets` chains in all. Of a cluster: where a block of backward needs the statistic of
    /// a whole row again (§4).
    pub sets: u32,
}

impl Class {
    /// Threads of a block.
    pub const fn threads(self) -> u32 {
        self.team * self.teams
    }

    /// Elements that a team holds of a row, at most. 0: any number.
    pub const fn holds(self) -> usize {
        (self.cluster * self.team * self.pack * self.packs) as usize
    }

    /// Whether its rows are streamed, instead of held by a team.
    pub const fn is_streamed(self) -> bool {
        self.packs == 0
    }

    /// Whether a cluster of blocks shares each row.
    pub const fn is_clustered(self) -> bool {
        self.cluster > 1
    }

    /// That of rows of `hidden` elements, more than [`NARROW`], held by `team` threads.
    fn held(hidden: usize, team: u32, teams: u32, pack: u32) -> Self {
        let chains = row_order(hidden).chains as u32;
        let packs = (hidden as u32).div_ceil(team * pack);
        Class { cluster: 1, team, teams, pack, packs, sets: chains / (team * pack) }
    }

    /// That of rows of up to `hidden` elements, more than [`HELD_MAX`], shared by `cluster` blocks of `team` threads.
    fn clustered(direction: Direction, hidden: usize, cluster: u32, team: u32, pack: u32) -> Self {
        let order = row_order(hidden);
        let (chains, sets) = match direction {
            Direction::Forward => (order.chains, 1),
            Direction::Backward => (order.dot_chains, (order.chains as u32 / (team * pack)).max(1)),
        };
        Class { cluster, team, teams: 1, pack, packs: (hidden / chains) as u32, sets }
    }

    /// Shared memory that its kernels declare themselves, at most: two buffers for what teams hand to each other, two for the nodes of
    /// each, and barriers.
    const fn declared_bytes(self) -> u32 {
        let handing = if self.team < 32 { self.threads() / 32 } else { self.teams };
        let nodes = 2 * self.teams * self.sets * self.team.div_ceil(32);
        (2 * handing.div_ceil(2) * self.pack * self.team + nodes + 2 * (self.teams * RING_STAGES_MAX + 1)) * 4
    }
}

/// The class that works on rows of `hidden` elements of type `dtype`.
pub fn class(direction: Direction, hidden: usize, dtype: Dtype) -> Class {
    if hidden <= NARROW {
        let pack = 16 / dtype.bytes() as u32;
        let team = (row_order(hidden).chains as u32 / pack).next_power_of_two();
        let threads = if direction == Direction::Forward { 512 } else { 2048 / pack };
        return Class { cluster: 1, team, teams: threads / team, pack, packs: 1, sets: 1 };
    }
    let table: &[Line] = match (direction, dtype) {
        (Direction::Forward, Dtype::F32) => &FORWARD_F32,
        (Direction::Forward, _) => &FORWARD_16,
        (Direction::Backward, Dtype::F32) => &BACKWARD_F32,
        (Direction::Backward, _) => &BACKWARD_16,
    };
    if let Some(&(_, team, teams, pack)) = table.iter().find(|(hidden_max, ..)| hidden <= *hidden_max) {
        return Class::held(hidden, team, teams, pack);
    }
    let table: &[WideLine] = match (direction, dtype) {
        (Direction::Forward, Dtype::F32) => &FORWARD_WIDE_F32,
        (Direction::Forward, _) => &FORWARD_WIDE_16,
        (Direction::Backward, Dtype::F32) => &BACKWARD_WIDE_F32,
        (Direction::Backward, _) => &BACKWARD_WIDE_16,
    };
    let line = table.iter().find(|line| hidden <= line.0);
    line.map_or(STREAMED, |&(hidden_max, cluster, team, pack, _)| {
        Class::clustered(direction, hidden_max, cluster, team, pack)
    })
}

/// Every class that can work on rows of `hidden` elements of type `dtype` in the order of [`row_order`], those that [`class`] gives
/// among them. (A cluster's works in one direction.)
pub fn variants(hidden: usize, dtype: Dtype) -> Vec<Class> {
    if !(NARROW + 1..=HELD_MAX).contains(&hidden) {
        let mut classes = Direction::BOTH.map(|direction| class(direction, hidden, dtype)).to_vec();
        if hidden > HELD_MAX {
            classes.push(STREAMED);
        }
        classes.dedup();
        return classes;
    }
    let chains = row_order(hidden).chains as u32;
    let mut all = Vec::new();
    for pack in if dtype == Dtype::F32 { &[4, 8][..] } else { &[8] } {
        for team in (5..=10).map(|j| 1 << j).filter(|team| team * pack <= chains) {
            for teams in (0..=3).map(|j| 1 << j) {
                let class = Class::held(hidden, team, teams, *pack);
                // So that the sums of a row group fit the registers of a thread, and all threads those of a multiprocessor.
                let sums = class.packs * class.pack;
                let fits = sums <= 64 && class.threads() * sums <= 16384 && class.threads() <= 1024;
                if fits && (class.sets == 1 || team > 32) {
                    all.push(class);
                }
            }
        }
    }
    all
}

/// Every class of `dtype` that [`class`] can give.
pub fn classes(direction: Direction, dtype: Dtype) -> Vec<Class> {
    let widths =
        (3..=8).map(|j| 1usize << j).chain((2..=64).map(|j| j * 256)).chain([32768, 65536, WIDE_MAX, HIDDEN_MAX]);
    let mut classes: Vec<Class> = widths.map(|hidden| class(direction, hidden, dtype)).collect();
    classes.dedup();
    classes
}

/// How a kernel over rows is launched, and, with the types, what it is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// How threads share rows.
    pub class: Class,
    /// Whether every pack of every operand lies on 16 bytes.
    pub aligned: bool,
    /// Whether a row is all that the class holds: then the kernel knows its width.
    pub exact: bool,
    /// Blocks.
    pub blocks: u32,
}

/// Where backward has a row from in its two passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From memory, and from registers.
    Kept,
    /// From memory twice.
    Reread,
    /// From shared memory, where rows arrive ahead of their turn.
    Ring {
        /// Rows of x and dy for each team.
        stages: u32,
        /// Least time from one row of a team to its next, in 1/256 ns (source.cuh, Pace). 0: none.
        pace: u32,
        /// Shared memory of all stages of a block.
        shared_bytes: u32,
    },
    /// From shared memory, where slices of rows arrive ahead of their turn; a cluster shares a row.
    Cluster {
        /// Slices of x and dy for each block.
        stages: u32,
        /// Shared memory of a block.
        shared_bytes: u32,
    },
}

/// How the partial rows of a backward call are folded to dw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold {
    /// Partial rows.
    pub nodes: u32,
    /// A warp folds 2^level of them.
    pub level: u32,
    /// Blocks.
    pub blocks: u32,
}

/// What a forward call launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardPlan {
    /// The kernel.
    pub rows: Launch,
    /// So many blocks must fit a multiprocessor: the compiler may not take more registers.
    pub blocks_per_sm: u32,
    /// Rows that a team has on their way at once.
    pub rows_at_once: u32,
    /// Dynamic shared memory of a block: that of a cluster, where it holds its part of a row.
    pub shared_bytes: u32,
}

/// What a backward call launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackwardPlan {
    /// Decides the bits of dw.
    pub column: ColumnOrder,
    /// The kernel over rows.
    pub rows: Launch,
    /// Where it has them from.
    pub source: Source,
    /// So many blocks must fit a multiprocessor.
    pub blocks_per_sm: u32,
    /// Blocks of the kernel `columns`, which streamed rows need for dw.
    pub columns: Option<u32>,
    /// From partial rows to dw.
    pub fold: Fold,
    /// Row groups that a thread folds, where few rows are one launch: `rows` then computes dw as well, and there is no other.
    pub span: Option<u32>,
}

/// The launch of a forward call.
pub fn forward(calls: &Calls, tuning: &Tuning) -> ForwardPlan {
    let class = chosen(Direction::Forward, calls, tuning, tuning.forward);
    if class.is_clustered() {
        // A cluster a row, so that the hardware hands the next one to whichever multiprocessors are done first.
        let planned = blocks(calls.rows, GRID_MAX) * class.cluster;
        let forced = tuning.blocks.filter(|blocks| *blocks as usize > GRID_MAX);
        let rows = launch(class, calls, forced.unwrap_or(planned));
        let shared_bytes = CLUSTER_BYTES + class.packs * slice_bytes(class, calls.dtype);
        return ForwardPlan { rows, blocks_per_sm: 1024 / class.threads(), rows_at_once: 1, shared_bytes };
    }
    // Of bf16 rows of 64 and 128, 0.97 of the fastest copy on an H200; with one row at once 0.86.
    let rows_at_once = if calls.hidden <= NARROW && !calls.residual { 2 } else { 1 };
    let items = calls.rows.div_ceil((class.teams * rows_at_once) as usize);
    let rows = launch(class, calls, tuning.blocks.unwrap_or_else(|| blocks(items, GRID_MAX)));
    // Two blocks of 512 threads where 64 registers are enough: where z and the weight of a row take half of them. Narrow rows take 40.
    let little = rows.exact && class.packs <= 4 && calls.weight.is_none_or(|w| w.bytes() <= calls.dtype.bytes());
    let blocks_per_sm = match () {
        _ if class.is_streamed() || calls.residual => 1,
        _ if calls.hidden <= NARROW => 1536 / class.threads(),
        _ if little => 1024 / class.threads(),
        _ => 1,
    };
    ForwardPlan { rows, blocks_per_sm, rows_at_once, shared_bytes: 0 }
}

/// The launches of a backward call.
pub fn backward(calls: &Calls, tuning: &Tuning) -> BackwardPlan {
    let Calls { rows, hidden, .. } = *calls;
    let Arch { sm_count, threads_per_sm, .. } = tuning.arch;
    let column = column_order(rows, hidden);
    if let Some((class, span)) = few_rows(calls, &column, tuning) {
        let tile = (class.threads() / FEW_SLOTS * class.pack) as usize;
        let blocks = hidden.div_ceil(tile) + rows.div_ceil(class.teams as usize);
        let launch = launch(class, calls, blocks as u32);
        // 128 registers a thread: with 96 some of a wide weight are spilled. In the prototype, without that, 512 rows of 4096 take 5.67 and 5.74 µs.
        let blocks_per_sm = 512 / class.threads();
        let fold = Fold { nodes: 0, level: 0, blocks: 0 };
        let span = Some(span);
        return BackwardPlan { column, rows: launch, source: Source::Kept, blocks_per_sm, columns: None, fold, span };
    }
    let class = chosen(Direction::Backward, calls, tuning, tuning.backward);
    let teams = class.teams as usize;
    let nodes = column.groups.div_ceil(teams) as u32;
    let level = nodes.next_power_of_two().ilog2().saturating_sub(FOLD_WARPS.ilog2());
    let fold = Fold { nodes, level, blocks: hidden.div_ceil(FOLD_WARPS as usize) as u32 };
    let forced = |planned| tuning.blocks.unwrap_or(planned);
    if class.is_streamed() {
        let tiles = hidden.div_ceil((class.pack * class.threads()) as usize);
        let rows = launch(class, calls, forced(blocks(rows, GRID_MAX)));
        let columns = Some(forced(blocks(tiles * column.groups, GRID_MAX)));
        return BackwardPlan { column, rows, source: Source::Reread, blocks_per_sm: 1, columns, fold, span: None };
    }
    if class.is_clustered() {
        let stages = cluster_stages(class, calls, tuning);
        // A cluster takes whole groups, and no more clusters than are needed for as few turns.
        let turns = column.groups.div_ceil((sm_count / class.cluster) as usize).max(1);
        let clusters = blocks(column.groups.div_ceil(turns), GRID_MAX);
        let rows = launch(class, calls, forced(clusters * class.cluster).next_multiple_of(class.cluster));
        let shared_bytes = CLUSTER_BYTES + stages * 2 * slice_bytes(class, calls.dtype);
        let source = Source::Cluster { stages, shared_bytes };
        return BackwardPlan { column, rows, source, blocks_per_sm: 1, columns: None, fold, span: None };
    }
    let ring = ring(class, calls, tuning);
    let resident = sm_count * if ring.is_some() { 1 } else { (threads_per_sm / class.threads()).max(1) };
    let blocks = forced(blocks(column.groups.div_ceil(teams), resident as usize));
    let source = match ring {
        Some((stages, shared_bytes)) => {
            Source::Ring { stages, pace: pace(blocks.saturating_mul(class.teams), calls, tuning), shared_bytes }
        }
        None if class.packs * class.pack <= 16 => Source::Kept,
        None => Source::Reread,
    };
    // All blocks of narrow rows are to be resident: 512 on 132 multiprocessors.
    let blocks_per_sm = if hidden <= NARROW { 1024 / class.threads() } else { 1 };
    BackwardPlan { column, rows: launch(class, calls, blocks), source, blocks_per_sm, columns: None, fold, span: None }
}

/// The class and the span, where few rows are one launch: aligned held rows with dw, if nothing else is asked for.
fn few_rows(calls: &Calls, column: &ColumnOrder, tuning: &Tuning) -> Option<(Class, u32)> {
    let Calls { rows, hidden, dtype, .. } = *calls;
    let Tuning { backward, stages, rate_percent, blocks, few_rows, .. } = *tuning;
    let is_other = backward.is_some() || stages.is_some() || rate_percent.is_some() || blocks.is_some();
    if !few_rows || is_other || calls.dw.is_none() || hidden <= NARROW {
        return None;
    }
    let (_, bytes_max) = FEW_BYTES.iter().find(|(hidden_max, _)| hidden <= *hidden_max)?;
    if rows > FEW_ROWS_MAX as usize || rows * hidden * dtype.bytes() > *bytes_max {
        return None;
    }
    // A thread has the chains of one pack; a tile is 32 columns wide, or more.
    let pack = 16 / dtype.bytes() as u32;
    let team = row_order(hidden).chains as u32 / pack;
    let class = Class::held(hidden, team, (1024 / pack / team).max(1), pack);
    let span = FEW_SPANS.into_iter().find(|span| column.groups <= (FEW_SLOTS * span) as usize)?;
    (class.threads() <= 512 && is_aligned(class, calls)).then_some((class, span))
}

/// Stages, and their shared memory, where there is to be a ring.
fn ring(class: Class, calls: &Calls, tuning: &Tuning) -> Option<(u32, u32)> {
    let arch = &tuning.arch;
    if !is_aligned(class, calls) || calls.hidden <= NARROW || arch.compute_capability < (9, 0) {
        return None;
    }
    let pitch = (calls.hidden * calls.dtype.bytes()).next_multiple_of(128);
    let stage_bytes = class.teams as usize * stage_rows(calls.dz) as usize * pitch;
    // 96 KiB ahead hide the memory's latency; a lone team computes with one of four stages, while the others fill.
    let wanted = if class.teams == 1 { 4 } else { (96usize << 10).div_ceil(stage_bytes).max(2) };
    let fit = arch.block_shared_bytes.saturating_sub(class.declared_bytes() + (1 << 10)) as usize / stage_bytes;
    let stages = tuning.stages.map_or(wanted, |stages| stages as usize).min(fit).min(RING_STAGES_MAX as usize);
    (stages >= 2).then(|| (stages as u32, (stages * stage_bytes) as u32))
}

/// Nine tenths of what the memory's clock and width come to, shared by all teams. Where the tensors fit the cache, or nobody has
/// measured, no limit.
fn pace(teams: u32, calls: &Calls, tuning: &Tuning) -> u32 {
    let arch = &tuning.arch;
    let rate = u64::from(arch.memory_bytes_per_us) * u64::from(tuning.rate_percent.unwrap_or(90)) / 100;
    let row_bytes = (1 + stage_rows(calls.dz) as usize) * calls.hidden * calls.dtype.bytes();
    if arch.compute_capability != (9, 0) || rate == 0 || calls.rows.saturating_mul(row_bytes) <= arch.l2_bytes as usize
    {
        return 0;
    }
    (row_bytes as u64 * u64::from(teams) * 256_000 / rate).try_into().unwrap_or(u32::MAX)
}

fn chosen(direction: Direction, calls: &Calls, tuning: &Tuning, other: Option<Class>) -> Class {
    let Calls { hidden, dtype, .. } = *calls;
    let planned = class(direction, hidden, dtype);
    let works = |other: &Class| variants(hidden, dtype).contains(other) && (!other.is_clustered() || *other == planned);
    let class = other.filter(works).unwrap_or(planned);
    let has_ring = direction == Direction::Forward || tuning.stages != Some(0);
    if class.is_clustered() && !(has_ring && fits_cluster(class, calls, &tuning.arch)) { STREAMED } else { class }
}

/// Whether clusters of this class can work on such rows on this GPU: not before compute capability 9.0, nor from 12.0 on, where blocks have
/// too little shared memory. How many are resident at once is the GPU's affair: the tables say how many an H200 holds. One that
/// holds fewer takes longer in proportion, and one with fewer multiprocessors is planned for as many as share the groups equally.
fn fits_cluster(class: Class, calls: &Calls, arch: &Arch) -> bool {
    is_aligned(class, calls)
        && ((9, 0)..(12, 0)).contains(&arch.compute_capability)
        && arch.block_shared_bytes >= CLUSTER_SHARED_BYTES
        && arch.sm_count >= class.cluster
        && calls.rows <= GRID_MAX / class.cluster as usize
}

/// Bytes that a block of a cluster has of a row in one pack of each thread.
fn slice_bytes(class: Class, dtype: Dtype) -> u32 {
    class.team * class.pack * dtype.bytes() as u32
}

/// Packs of the next row that a block of a cluster takes before the second pass over this one: half of them, or one where the ring has no
/// room for more.
pub(crate) fn lead(class: Class, dtype: Dtype) -> u32 {
    if class.pack as usize * dtype.bytes() > 16 { 1 } else { class.packs.div_ceil(2) }
}

/// Stages of the ring of a block of a cluster: at least as many as it has to hold at once.
fn cluster_stages(class: Class, calls: &Calls, tuning: &Tuning) -> u32 {
    let table = if calls.dtype == Dtype::F32 { &BACKWARD_WIDE_F32 } else { &BACKWARD_WIDE_16 };
    let planned = table.iter().find(|line| calls.hidden <= line.0).map_or(0, |line| line.4);
    let fit = (CLUSTER_SHARED_BYTES - CLUSTER_BYTES) / (2 * slice_bytes(class, calls.dtype));
    let most = fit.min(CLUSTER_STAGES_MAX);
    tuning.stages.unwrap_or(planned).clamp(class.packs + lead(class, calls.dtype), most)
}

fn is_aligned(class: Class, calls: &Calls) -> bool {
    calls.aligned && calls.hidden.is_multiple_of(class.pack as usize)
}

fn launch(class: Class, calls: &Calls, blocks: u32) -> Launch {
    let aligned = is_aligned(class, calls);
    Launch { class, aligned, exact: aligned && calls.hidden == class.holds(), blocks }
}

fn blocks(items: usize, most: usize) -> u32 {
    items.min(most).max(1) as u32
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Class { cluster, team, teams, pack, packs, sets } = *self;
        if self.is_streamed() {
            write!(f, "streamed-{team}×{pack}")?;
        } else if self.is_clustered() {
            write!(f, "cluster-{cluster}×{team}×{pack}×{packs}")?;
        } else {
            write!(f, "held-{teams}×{team}×{pack}×{packs}")?;
        }
        if sets > 1 { write!(f, "/{sets}") } else { Ok(()) }
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { class, aligned, exact, blocks } = self;
        let kind = match (*exact, *aligned) {
            (true, _) => " exact",
            (_, true) => "",
            _ => " unaligned",
        };
        write!(f, "{class} ×{blocks}{kind}")
    }
}

impl fmt::Display for ForwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ForwardPlan { rows, blocks_per_sm, rows_at_once, shared_bytes: _ } = self;
        write!(f, "{rows}")?;
        if *rows_at_once > 1 {
            write!(f, " {rows_at_once} at once")?;
        }
        if *blocks_per_sm > 1 { write!(f, " {blocks_per_sm}/SM") } else { Ok(()) }
    }
}

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BackwardPlan { column, rows, source, blocks_per_sm, columns, fold, span } = self;
        write!(f, "G{} {rows}", column.groups)?;
        if let Some(span) = span {
            return write!(f, " {blocks_per_sm}/SM one launch, span {span}");
        }
        match source {
            Source::Cluster { stages, .. } => write!(f, " ring {stages}")?,
            Source::Kept => f.write_str(" kept")?,
            Source::Reread => f.write_str(" reread")?,
            Source::Ring { stages, pace: 0, .. } => write!(f, " ring {stages}")?,
            Source::Ring { stages, pace, .. } => write!(f, " ring {stages} pace {:.2} µs", f64::from(*pace) / 256e3)?,
        }
        if *blocks_per_sm > 1 {
            write!(f, " {blocks_per_sm}/SM")?;
        }
        if let Some(blocks) = columns {
            write!(f, " columns ×{blocks}")?;
        }
        write!(f, " fold {}", fold.nodes)
    }
}

/// A line of a table: the widest row, threads of a team, teams of a block, elements of a pack.
type Line = (usize, u32, u32, u32);

/// Forward. Fractions of the fastest copy on an H200, of bf16 (f16 alike) or f32 in as many rows as make 256 MiB; and of other classes.
#[rustfmt::skip]
const FORWARD_16: [Line; 9] = [
    (512, 32, 2, 8),       // 0.96; 8 teams 0.90
    (1024, 32, 2, 8),      // 0.97; 8 teams 0.95
    (2048, 64, 1, 8),      // 0.97; 4 teams 0.88, 2 teams 0.72
    (3072, 64, 1, 8),      // 0.99; 2 teams 0.98
    (4096, 64, 2, 8),      // 0.98; 1 team 0.91, 128 threads 0.95
    (5120, 128, 2, 8),     // 0.99; 256 threads 0.91
    (6144, 256, 1, 8),     // 0.98; 128 threads 0.95
    (8192, 128, 2, 8),     // 0.98; 256 threads 0.91. 7168: 0.98
    (HELD_MAX, 256, 1, 8), // 16384: 0.99; 512 threads 0.79
];
#[rustfmt::skip]
const FORWARD_F32: [Line; 5] = [
    (1024, 64, 1, 4),      // 0.98; 2 teams 0.92. 512: 0.98; 2 teams 0.70
    (2048, 128, 8, 4),     // 0.98; 2 teams 0.97
    (4096, 256, 2, 4),     // 0.98; others as fast
    (8192, 256, 1, 4),     // 0.99; 2 teams 0.93
    (HELD_MAX, 512, 1, 4), // 16384: 0.93; others as fast or slower
];

/// Backward: fractions of the fastest two reads and one write. All rows of a team add to sums in its registers: a block of 8 to 16 warps
/// reaches the memory's rate where each team is 1, 2, 4 or 8 of them; 10 or 14 warps fall to 0.8 of it.
#[rustfmt::skip]
const BACKWARD_16: [Line; 5] = [
    (1024, 32, 8, 8),      // 0.96
    (2048, 64, 4, 8),      // 0.93
    (4096, 128, 4, 8),     // 0.95. 3072: 0.94
    (6144, 128, 1, 8),     // 0.96; 256 threads 0.91. 5120: 0.96; 0.83
    (HELD_MAX, 256, 1, 8), // 8192: 0.95. 7168: 0.94. 16384: 0.88
];
#[rustfmt::skip]
const BACKWARD_F32: [Line; 6] = [
    (1024, 64, 8, 4),      // 0.97. 512: 0.97
    (2048, 64, 4, 4),      // 0.96; 128 threads 0.95
    (4096, 256, 2, 4),     // 0.93; 128 threads as fast
    (6144, 128, 1, 4),     // 0.95; 256 threads 0.93
    (8192, 256, 1, 4),     // 0.91; 512 threads 0.93 at another pace
    (HELD_MAX, 256, 1, 8), // 16384: 0.80; 512 threads 0.66
];

/// (Widest row, most bytes of x) of a backward call that is one launch. On an H200, prototype, bf16, µs in one launch and in two:
///
/// | rows × 4096 | one | two |
/// | --- | --- | --- |
/// | 8 | 1.97 | 4.0 |
/// | 64 | 2.41 | 4.6 |
/// | 256 | 3.90 | |
/// | 512 | 5.67 | 7.7 |
/// | 1024 | 10.59 | 11.13 |
/// | 2048 | 22.9 | 16.7 |
///
/// Wider rows have fewer groups, of which a thread would fold more rows one after another: not measured but at 8 × 8192 (2.31).
const FEW_BYTES: [(usize, usize); 2] = [(4096, 8 << 20), (HELD_MAX, 4 << 20)];

/// Most rows of such a call.
pub(crate) const FEW_ROWS_MAX: u32 = 1024;

/// Threads that share a column of such a call, and the row groups that each can fold: as few as hold all of them.
const FEW_SLOTS: u32 = 32;
const FEW_SPANS: [u32; 4] = [2, 4, 8, 16];

/// Numbers of rows that stand for all: calls of a kind launch no other modules than with these.
pub const ROW_COUNTS: [usize; 5] = [1, 65, 129, 257, 1025];

/// A line of a table of rows that a cluster shares: the widest row, blocks of a cluster, threads of a block, elements of a pack, stages of
/// backward's ring.
type WideLine = (usize, u32, u32, u32, u32);

/// Fractions as above, of bf16 or f32, of a prototype of these kernels on an H200, each timed once; f16 and what is not named were not. As many
/// blocks fit a multiprocessor as make 1024 threads.
#[rustfmt::skip]
const FORWARD_WIDE_16: [WideLine; 3] = [
    (32768, 2, 256, 8, 0),    // not timed; one block of 512 threads 0.96, this one with the row in registers 0.96
    (65536, 4, 256, 8, 0),    // 0.96
    (WIDE_MAX, 4, 512, 8, 0), // 0.945
];
#[rustfmt::skip]
const FORWARD_WIDE_F32: [WideLine; 3] = [
    (32768, 2, 512, 4, 0),    // not timed
    (65536, 4, 512, 4, 0),    // 0.965
    (WIDE_MAX, 8, 512, 4, 0), // not timed
];

/// A shallow ring keeps clusters from running ahead of others, of which the slowest would end late. An H200 holds 30 clusters of four such
/// blocks, or 15 of eight.
#[rustfmt::skip]
const BACKWARD_WIDE_16: [WideLine; 3] = [
    (32768, 4, 1024, 8, 5),    // 0.956; 7 stages 0.94, 6 stages 0.93
    (65536, 4, 1024, 8, 5),    // 0.93
    (WIDE_MAX, 8, 512, 8, 11), // 0.93
];
#[rustfmt::skip]
const BACKWARD_WIDE_F32: [WideLine; 3] = [
    (32768, 8, 512, 8, 5),   // not timed
    (65536, 8, 512, 8, 5),   // 0.94 with half as many elements a pack, 9 stages of them, 15 row groups
    (WIDE_MAX, 8, 512, 8, 7), // not timed
];

/// That of other rows of more than [`HELD_MAX`] elements, on any GPU: four sets are the chains of the widest.
const STREAMED: Class = Class { cluster: 1, team: 1024, teams: 1, pack: 8, packs: 0, sets: 4 };

/// Most shared memory of a block of a cluster: what it can have on the GPUs that these kernels are for.
const CLUSTER_SHARED_BYTES: u32 = 227 << 10;

/// What lies in front of the slices of rows in it (cluster.cuh).
pub(crate) const CLUSTER_BYTES: u32 = 2 << 10;

/// Most stages of a cluster's ring, and slices of a row in forward.
pub(crate) const CLUSTER_STAGES_MAX: u32 = 16;

/// Most stages of a ring.
pub(crate) const RING_STAGES_MAX: u32 = 8;

/// Rows of a stage: x, dy and, if it is given, dz.
pub(crate) const fn stage_rows(dz: bool) -> u32 {
    2 + dz as u32
}

/// Warps of a block of the fold, and columns that it folds.
pub(crate) const FOLD_WARPS: u32 = 32;

/// Highest level of a fold.
#[cfg(any(feature = "cuda", test))]
pub(crate) const FOLD_LEVEL_MAX: u32 = 5;

/// Most blocks of a grid.
const GRID_MAX: usize = i32::MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths either side of every step of the tables.
    fn widths() -> Vec<usize> {
        let mut w: Vec<usize> = (1..=2100).collect();
        w.extend((2100..=140_000).step_by(61));
        w.extend([256, 2048, 16384, 32768, 65536, WIDE_MAX].iter().flat_map(|e| [e - 1, *e, e + 1]));
        w.push(HIDDEN_MAX);
        w
    }

    fn calls(hidden: usize, dtype: Dtype) -> Calls {
        Calls { weight: Some(dtype), dw: Some(dtype), ..Calls::new((usize::MAX, hidden), dtype) }
    }

    #[test]
    fn a_class_holds_every_chain() {
        for (dtype, direction) in Dtype::ALL.into_iter().flat_map(|dtype| Direction::BOTH.map(|d| (dtype, d))) {
            let classes = classes(direction, dtype);
            for hidden in widths() {
                let (class, order) = (class(direction, hidden, dtype), row_order(hidden));
                let chains = order.chains;
                let owned = (class.team * class.pack) as usize;
                let all = owned * class.sets as usize;
                if class.is_streamed() {
                    let most = chains.max(order.dot_chains);
                    assert!(hidden > WIDE_MAX && chains.is_multiple_of(class.pack as usize) && most <= all, "{hidden}");
                } else if class.is_clustered() {
                    // A block has an aligned power of two of the chains, every pack begins where chains do, and all lie on 16 bytes.
                    let shared = class.cluster as usize * owned;
                    let expected = if direction == Direction::Forward { chains } else { order.dot_chains };
                    assert!(
                        shared == expected && owned.is_power_of_two() && class.cluster.is_power_of_two(),
                        "{hidden}"
                    );
                    assert!(hidden > HELD_MAX && hidden <= class.holds() && class.teams == 1, "{hidden}");
                    assert!(
                        all >= chains || direction == Direction::Forward,
                        "{hidden}: a row that a block folds alone"
                    );
                    assert!(class.pack as usize * dtype.bytes() <= 32 && class.cluster <= 8, "{hidden}");
                } else {
                    assert!(hidden <= class.holds(), "{hidden}");
                    assert!(
                        if hidden <= NARROW { chains <= all && class.packs == 1 } else { chains == all },
                        "{hidden}"
                    );
                    assert!(class.sets == 1 || class.team > 32, "{hidden}");
                }
                assert!(class.teams.is_power_of_two() && class.threads() <= 1024, "{hidden}");
                // Hardware barriers 1 to 15 are the teams' own.
                assert!(class.team <= 32 || class.teams < 16, "{hidden}");
                assert!(classes.contains(&class) && variants(hidden, dtype).contains(&class), "{hidden} {class}");
            }
        }
    }

    #[test]
    fn the_fold_reaches_every_node() {
        for dtype in Dtype::ALL {
            for hidden in widths() {
                let plan = backward(&calls(hidden, dtype), &Tuning::of(Arch::H200));
                assert!(plan.fold.nodes <= FOLD_WARPS << plan.fold.level, "{hidden} {plan}");
                assert!(plan.fold.level <= FOLD_LEVEL_MAX, "{hidden} {plan}");
            }
        }
    }

    /// Of clusters: where they work and where rows are streamed; that what they need fits; that all clusters have as many row groups.
    #[test]
    fn clusters_are_launched_where_they_work() {
        for (dtype, (name, arch)) in Dtype::ALL.into_iter().flat_map(|dtype| Arch::ALL.map(|arch| (dtype, arch))) {
            for hidden in [HELD_MAX + 8, 20480, 32768, 53248, 65536, 100_000, WIDE_MAX, WIDE_MAX + 8] {
                let aligned = Calls { rows: 4099, ..calls(hidden, dtype) };
                let tuning = Tuning::of(arch);
                let plans = |calls: &Calls, tuning: &Tuning| (forward(calls, tuning), backward(calls, tuning));
                let (f, b) = plans(&aligned, &tuning);
                let expected = ["H200", "B200"].contains(&name) && hidden <= WIDE_MAX;
                assert_eq!(
                    [f.rows.class.is_clustered(), b.rows.class.is_clustered()],
                    [expected; 2],
                    "{name} {hidden}"
                );
                let unaligned = Calls { aligned: false, ..aligned };
                for (calls, tuning) in [(&unaligned, tuning), (&Calls { hidden: hidden + 1, ..aligned }, tuning)] {
                    let (f, b) = plans(calls, &tuning);
                    assert!(f.rows.class.is_streamed() && b.rows.class.is_streamed(), "{name} {hidden}");
                }
                let streamed = Tuning { forward: Some(STREAMED), backward: Some(STREAMED), ..tuning };
                let (sf, sb) = plans(&aligned, &streamed);
                assert!(sf.rows.class.is_streamed() && sb.rows.class.is_streamed(), "{name} {hidden}");
                // The other direction's class is no variant of this one, nor is a cluster without a ring.
                let crossed = Tuning { forward: Some(b.rows.class), backward: Some(f.rows.class), ..tuning };
                assert_eq!(plans(&aligned, &crossed), (f, b), "{name} {hidden}");
                assert!(backward(&aligned, &Tuning { stages: Some(0), ..tuning }).rows.class.is_streamed());
                if !expected {
                    continue;
                }
                assert_eq!(f.rows.blocks, 4099 * f.rows.class.cluster);
                assert!(
                    f.shared_bytes * f.blocks_per_sm <= arch.block_shared_bytes
                        && f.rows.class.packs <= CLUSTER_STAGES_MAX
                );
                for stages in [None, Some(1), Some(9), Some(u32::MAX)] {
                    let b = backward(&aligned, &Tuning { stages, ..tuning });
                    let Source::Cluster { stages, shared_bytes } = b.source else { panic!("{b}") };
                    let class = b.rows.class;
                    assert!(stages >= class.packs + lead(class, dtype) && stages <= CLUSTER_STAGES_MAX, "{b}");
                    assert!(shared_bytes <= CLUSTER_SHARED_BYTES && b.columns.is_none(), "{b}");
                    let clusters = b.rows.blocks / class.cluster;
                    assert_eq!((b.rows.blocks, b.column.groups as u32 % clusters), (120, 0), "{b}");
                }
            }
        }
        // Fewer multiprocessors: as many clusters as take equally many groups; too few for one, or too many rows: streamed.
        let wide = Calls { rows: 4099, ..calls(65536, Dtype::Bf16) };
        let of = |calls: &Calls, sm_count| backward(calls, &Tuning::of(Arch { sm_count, ..Arch::H200 })).to_string();
        assert_eq!(of(&wide, 132), "G30 cluster-4×1024×8×2 ×120 exact ring 5 fold 30");
        assert_eq!(of(&wide, 114), "G30 cluster-4×1024×8×2 ×60 exact ring 5 fold 30");
        assert_eq!(of(&Calls { rows: 7, ..wide }, 16), "G7 cluster-4×1024×8×2 ×16 exact ring 5 fold 7");
        assert!(of(&wide, 3).contains("streamed") && of(&Calls { rows: GRID_MAX, ..wide }, 132).contains("streamed"));
        let first = forward(&wide, &Tuning::of(Arch::H200)).to_string();
        assert_eq!(first, "cluster-4×256×8×8 ×16396 exact 4/SM");
        let forced = Tuning { blocks: Some(7), ..Tuning::of(Arch::H200) };
        assert_eq!((backward(&wide, &forced).rows.blocks, forward(&wide, &forced).rows.blocks), (8, 16396));
        // More than a grid can have is refused by the driver, as property 12 wants to see.
        let refused = Tuning { blocks: Some(u32::MAX), ..Tuning::of(Arch::H200) };
        assert!(forward(&wide, &refused).rows.blocks as usize > GRID_MAX);
    }

    /// One launch has a slot for every row group, and the kernels are those of [`ROW_COUNTS`].
    #[test]
    fn few_rows_are_one_launch() {
        let tuning = Tuning::of(Arch::H200);
        for (dtype, aligned) in Dtype::ALL.into_iter().flat_map(|dtype| [(dtype, true), (dtype, false)]) {
            for hidden in widths().into_iter().filter(|hidden| *hidden <= HELD_MAX + 8) {
                let plan = |rows| backward(&Calls { rows, aligned, ..calls(hidden, dtype) }, &tuning);
                let kind = |rows| (plan(rows).span, plan(rows).rows.class, plan(rows).source == Source::Kept);
                let prepared = ROW_COUNTS.map(kind);
                for rows in
                    [1, 2, 31, 32, 33, 64, 65, 100, 128, 129, 200, 256, 257, 300, 512, 513, 700, 1024, 1025, 1 << 20]
                {
                    let plan = plan(rows);
                    assert!(prepared.contains(&kind(rows)), "{rows}×{hidden} {plan}");
                    let Some(span) = plan.span else { continue };
                    let class = plan.rows.class;
                    assert!(aligned && hidden > NARROW && rows <= FEW_ROWS_MAX as usize, "{rows}×{hidden} {plan}");
                    assert!(plan.column.groups <= (FEW_SLOTS * span) as usize, "{rows}×{hidden} {plan}");
                    assert!(variants(hidden, dtype).contains(&class) && class.sets == 1, "{rows}×{hidden} {plan}");
                    // A warp's slots share out the columns of a pack.
                    assert!(class.pack * class.threads() >= 1024, "{rows}×{hidden} {plan}");
                }
            }
        }
        let one = |rows, hidden, dtype| backward(&Calls { rows, ..calls(hidden, dtype) }, &tuning).span;
        assert_eq!((one(1, 16_384, Dtype::Bf16), one(64, 8192, Dtype::F32)), (Some(2), Some(2)));
        let dx_alone = Calls { rows: 1, dw: None, ..calls(4096, Dtype::Bf16) };
        assert_eq!(backward(&dx_alone, &tuning).span, None);
    }

    /// What a plan says is all that distinguishes it.
    #[test]
    fn a_plan_says_all() {
        let of = |rows, tuning| {
            let calls = Calls { rows, ..calls(4096, Dtype::Bf16) };
            (forward(&calls, &tuning).to_string(), backward(&calls, &tuning).to_string())
        };
        let tuning = Tuning::of(Arch::H200);
        let expected = ("held-2×64×8×8/2 ×50 exact", "G100 held-1×128×8×4 ×228 exact 4/SM one launch, span 4");
        assert_eq!(of(100, tuning), (expected.0.into(), expected.1.into()));
        let two_launches = Tuning { few_rows: false, ..tuning };
        assert_eq!(of(100, two_launches).1, "G100 held-4×128×8×4 ×25 exact ring 2 fold 25");
        assert_eq!(of(1024, tuning).1, "G512 held-1×128×8×4 ×1152 exact 4/SM one launch, span 16");
        assert_eq!(of(1025, tuning).1, "G512 held-4×128×8×4 ×128 exact ring 2 fold 128");
        assert!(
            of(100_000, tuning).1.ends_with("×128 exact ring 2 pace 2.90 µs fold 128"),
            "{}",
            of(100_000, tuning).1
        );
        let unringed = Tuning { stages: Some(0), blocks: Some(7), ..tuning };
        assert_eq!(of(100, unringed).1, "G100 held-4×128×8×4 ×7 exact reread fold 25");
    }
}
