//! How threads share rows, and the tables that say which class works on which rows, each line with what was measured for it.

use std::fmt;

use super::{
    Calls, Direction, FEW_ROWS_MAX, GRID_MAX, KEPT_MAX, RING_STAGES_MAX, Tuning, are_registers_known, is_aligned,
};
use crate::order::{HELD_MAX, NARROW, WIDE_MAX, row_order};
use crate::{Dtype, HIDDEN_MAX};

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
    /// Elements of a pack: 16 or 32 bytes; 8 of 16-bit types where rows are few.
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

    /// That of a block in which dw's sums have a team, and dx the others.
    #[cfg(feature = "cuda")]
    pub(crate) const fn apart(self) -> Self {
        Class { teams: 3, ..self }
    }

    /// That of the widest row with as many chains, which works on all of them.
    #[cfg(feature = "cuda")]
    pub(crate) const fn widest(self) -> Self {
        // Four elements of each chain; narrow rows have one, and streamed ones any number.
        if self.packs > 1 { Class { packs: 4 * self.sets, ..self } } else { self }
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
    pub(super) fn held(hidden: usize, team: u32, teams: u32, pack: u32) -> Self {
        let chains = row_order(hidden).chains as u32;
        let packs = (hidden as u32).div_ceil(team * pack);
        Class { cluster: 1, team, teams, pack, packs, sets: chains / (team * pack) }
    }

    /// That of few rows of `hidden` elements, more than [`NARROW`], in forward: four chains a thread, of whatever type.
    pub(super) fn of_few(hidden: usize) -> Self {
        Class::held(hidden, row_order(hidden).chains as u32 / 4, 1, 4)
    }

    /// Whether `blocks` blocks can share a row of few: one, or as many for each pack.
    pub(super) fn can_be_shared_by(self, blocks: u32) -> bool {
        blocks == 1
            || blocks > 0 && blocks.is_multiple_of(self.packs) && (self.team / 32).is_multiple_of(blocks / self.packs)
    }

    /// Blocks that share each of `rows` rows of few, as the table says.
    pub(super) fn shares_in_table(self, rows: usize) -> u32 {
        let line = FEW_SHARES.iter().find(|(rows_max, team, _)| rows <= *rows_max && self.team >= *team);
        line.map_or(1, |(_, _, of_a_pack)| self.packs * of_a_pack)
    }

    /// That of rows of up to `hidden` elements shared by `cluster` blocks of `team` threads.
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
    pub(super) const fn declared_bytes(self) -> u32 {
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

/// That of rows that are not aligned, where an H200 is to have another than [`class`] gives: more threads a row, with fewer packs each.
pub fn class_unaligned(direction: Direction, hidden: usize, dtype: Dtype) -> Class {
    let table: &[Line] = match (direction, dtype) {
        (Direction::Forward, Dtype::F32) => &FORWARD_UNALIGNED_F32,
        (Direction::Forward, _) => &FORWARD_UNALIGNED_16,
        (Direction::Backward, Dtype::F32) => &BACKWARD_UNALIGNED_F32,
        (Direction::Backward, _) => &BACKWARD_UNALIGNED_16,
    };
    match table.iter().find(|(hidden_max, ..)| hidden <= *hidden_max) {
        Some(&(_, team, teams, pack)) if hidden > UNALIGNED_ABOVE => Class::held(hidden, team, teams, pack),
        _ => class(direction, hidden, dtype),
    }
}

/// That of backward over rows of several types, which no ring brings: where 512 threads are enough, so many that they keep the rows in registers between the two
/// passes. On an H200, of a residual stream in f32 around bf16, so and in the classes of f32: 2048 0.82 and 0.51, 5120 0.74 and 0.28, 6144 0.78 and 0.30, 8192 0.79
/// and 0.49, 2047 0.70 and 0.46; up to 1024, at 3072 and 4096 these are the same, 0.79 to 0.83. With 24 elements a thread 5120 and 6144 are at 0.56 and 0.52, with 32 all below 0.6.
pub fn class_mixed(hidden: usize, dtype: Dtype) -> Class {
    let pack = 16 / dtype.bytes() as u32;
    let keeps = |class: &Class| class.pack == pack && class.packs * pack <= KEPT_MAX && class.threads() <= 512;
    let kept = variants(hidden, dtype).into_iter().filter(|class| !class.is_clustered() && keeps(class));
    let most = kept.max_by_key(|class| (class.packs, class.threads()));
    most.unwrap_or_else(|| class(Direction::Backward, hidden, dtype))
}

/// That of these calls, if nothing else is chosen. On compute capability 9.0, to which the tables are tuned, two are not [`class`]'s: that of rows
/// that are not aligned, and that of backward of f32 rows of which a block's ring would have no room for a second one. (There a cluster shares
/// a row.)
pub(super) fn class_planned(direction: Direction, calls: &Calls, tuning: &Tuning) -> Class {
    let (hidden, dtype) = (calls.hidden, calls.widest(direction));
    if direction == Direction::Backward && calls.are_mixed(direction) {
        return class_mixed(hidden, dtype);
    }
    let of_width = class(direction, hidden, dtype);
    if !are_registers_known(tuning) || hidden > HELD_MAX {
        return of_width;
    }
    if !is_aligned(of_width, calls) {
        return class_unaligned(direction, hidden, dtype);
    }
    let (widest, cluster, team, pack, _) = BACKWARD_WIDE_F32[0];
    let is_large = direction == Direction::Backward && dtype == Dtype::F32 && hidden > widest / 2;
    if is_large { Class::clustered(direction, widest, cluster, team, pack) } else { of_width }
}

/// Every class that can work on rows of `hidden` elements of type `dtype` in the order of [`row_order`], those that [`class`] and
/// [`class_unaligned`] give among them. (A cluster's works in one direction.)
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
    for pack in [4, 8] {
        for team in (5..=10).map(|j| 1 << j).filter(|team| team * pack <= chains) {
            for teams in (0..=3).map(|j| 1 << j) {
                let class = Class::held(hidden, team, teams, pack);
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

/// The class and the blocks that share a row, where rows are few: aligned held ones, if nothing else is asked for. In place each row has one block:
/// of several, each reads the whole row, whatever of it others have written.
pub(super) fn few_rows_forward(calls: &Calls, tuning: &Tuning) -> Option<(Class, u32)> {
    let (rows, hidden) = (calls.all_rows(), calls.hidden);
    let Tuning { forward, blocks, few_rows, shares, .. } = *tuning;
    let is_other = forward.is_some() || blocks.is_some() || calls.are_mixed(Direction::Forward);
    if !few_rows || is_other || !(NARROW + 1..=HELD_MAX).contains(&hidden) {
        return None;
    }
    let class = Class::of_few(hidden);
    let forced = shares.filter(|blocks| class.can_be_shared_by(*blocks) && rows <= GRID_MAX / *blocks as usize);
    let are_few = rows <= FEW_ROWS_MAX as usize && rows * hidden <= FEW_ELEMENTS && are_registers_known(tuning);
    let shares = forced.or_else(|| are_few.then(|| class.shares_in_table(rows)))?;
    let shares = if calls.in_place { 1 } else { shares };
    is_aligned(class, calls).then_some((class, shares))
}

/// Stages of backward's ring for rows of `hidden` elements that a cluster shares, as the table says.
pub(super) fn stages_in_table(hidden: usize, dtype: Dtype) -> u32 {
    let table: &[WideLine] = if dtype == Dtype::F32 { &BACKWARD_WIDE_F32 } else { &BACKWARD_WIDE_16 };
    table.iter().find(|line| hidden <= line.0).map_or(0, |line| line.4)
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

/// Most elements of x in a forward call of few rows: with one block a row, 128 multiprocessors hold all of them at once. On an H200, prototype
/// and the classes of many rows, bf16, µs: 64 rows of 4096 2.10 and 2.90, 256 rows 2.80 and 3.37, 512 rows 3.65 and 4.36. More are not measured.
const FEW_ELEMENTS: usize = 512 * 4096;

/// Most rows, fewest threads that share a row, and blocks that share each pack of it: where a row is much work for one multiprocessor. Others have
/// a block each. On an H200, a prototype, bf16, µs; numbers of rows that are not named, and odd widths, f16 and f32, are not measured.
#[rustfmt::skip]
const FEW_SHARES: [(usize, u32, u32); 3] = [
    (4, 1024, 4),          // 1×16384: 1.85; one block 2.47
    (4, 256, 2),           // 1×4096: 1.60; one block 1.67
    (16, 256, 1),          // 8×8192: 1.90; one block 2.11. 8×4096: 1.78 either way. 64×4096: one block is as fast
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

/// Rows that are not aligned, wider than this: narrower ones have four packs a thread and 8 to 16 warps a multiprocessor in any case.
const UNALIGNED_ABOVE: usize = 2048;

/// What they have instead. On an H200; in forward, rows are staged (plan.rs). Backward of 4097 has one row at a time in a multiprocessor, whose passes
/// wait for each other; with four warps it reached 0.48.
#[rustfmt::skip]
const FORWARD_UNALIGNED_16: [Line; 2] = [
    (5120, 128, 1, 8), // 4097: 0.90. 4096: 0.96
    (8192, 256, 1, 8), // 8191: 0.94
];
#[rustfmt::skip]
const FORWARD_UNALIGNED_F32: [Line; 1] = [
    (8192, 256, 1, 4), // 4097: 0.95, 8191: 0.93
];
#[rustfmt::skip]
const BACKWARD_UNALIGNED_16: [Line; 3] = [
    (4096, 128, 4, 8), // as aligned
    (5120, 128, 1, 8), // 4097: 0.66 with sums apart, 0.57 with 256 threads and without
    (8192, 256, 1, 8), // 8191: 0.79; with sums apart 0.66
];
#[rustfmt::skip]
const BACKWARD_UNALIGNED_F32: [Line; 2] = [
    (4096, 256, 2, 4), // as aligned
    (8192, 256, 1, 4), // 4097: 0.83; with four warps 0.78
];

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
    (32768, 4, 1024, 8, 5),   // 0.93. 24576: 0.70
    (65536, 4, 1024, 8, 5),   // 0.87; 4 stages 0.87, 6 stages 0.84. 40960: 0.62
    (WIDE_MAX, 8, 512, 8, 9), // 0.92; 8 stages 0.87, 10 stages 0.88
];
#[rustfmt::skip]
const BACKWARD_WIDE_F32: [WideLine; 4] = [
    (HELD_MAX, 2, 512, 4, 8), // 0.93; 7 stages 0.78, 9 stages 0.88; one block 0.80
    (32768, 8, 512, 8, 4),    // 0.92; 5 stages 0.91
    (65536, 8, 512, 8, 5),    // 0.90; 4 and 6 stages 0.89
    (WIDE_MAX, 8, 512, 8, 7), // 0.52: room for five stages is too little
];

/// That of other rows of more than [`HELD_MAX`] elements, on any GPU: four sets are the chains of the widest.
pub(super) const STREAMED: Class = Class { cluster: 1, team: 1024, teams: 1, pack: 8, packs: 0, sets: 4 };
