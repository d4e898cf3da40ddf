//! How a call is launched: all that decides speed, and no bit.
//!
//! The orders are those of [`order`](crate::order) whatever is chosen here. Everything is pure: no GPU is asked, no CUDA type
//! appears. What is asked and answered is in `plan/types.rs`; the tables of classes are in `plan/class.rs`, each line with what was measured for it.

mod arch;
mod class;
pub(crate) mod cluster;
mod display;
mod types;

use crate::Dtype;
pub use crate::order::{ColumnOrder, RowOrder, column_order, row_order};
use crate::order::{HELD_MAX, NARROW};
pub use arch::Arch;
pub use class::{Class, class, class_mixed, class_unaligned, classes, variants};
use class::{STREAMED, class_planned, few_rows_forward};
use cluster::{CLUSTER_BYTES, slice_bytes, weight_bytes};
pub use types::{BackwardPlan, BiasPlan, Calls, Direction, Fold, ForwardPlan, Launch, Source, Tuning};

/// The launch of a forward call.
pub fn forward(calls: &Calls, tuning: &Tuning) -> ForwardPlan {
    if let Some((class, shares)) = few_rows_forward(calls, tuning) {
        let rows = launch(class, calls, blocks(calls.all_rows(), GRID_MAX) * shares);
        // 64 registers a thread, of which 4 packs of an f32 row and its weight take half.
        let blocks_per_sm = 1024 / class.threads();
        return ForwardPlan { rows, blocks_per_sm, rows_at_once: 1, shared_bytes: 0, shares: Some(shares) };
    }
    let class = chosen(Direction::Forward, calls, tuning, tuning.forward);
    if class.is_clustered() {
        // A cluster a row, so that the hardware hands the next one to whichever multiprocessors are done first.
        let planned = blocks(calls.all_rows(), GRID_MAX) * class.cluster;
        let forced = tuning.blocks.filter(|blocks| *blocks as usize > GRID_MAX);
        let rows = launch(class, calls, forced.unwrap_or(planned));
        let shared_bytes = CLUSTER_BYTES + class.packs * slice_bytes(class, calls.dtype);
        return ForwardPlan {
            rows,
            blocks_per_sm: 1024 / class.threads(),
            rows_at_once: 1,
            shared_bytes,
            shares: None,
        };
    }
    // On an H200, of rows of 64, 128 and 256: bf16 0.954, 0.962, 0.973, f32 0.966, 0.973, 0.972; eight at once 0.73 to 0.81. With two, of which each lane took
    // both roots, bf16 0.938, 0.938, 0.941, f32 0.957, 0.966, 0.947; with one row bf16 0.86.
    let rows_at_once = if calls.hidden <= NARROW && calls.residual.is_none() { 4 } else { 1 };
    let items = calls.all_rows().div_ceil((class.teams * rows_at_once) as usize);
    let rows = launch(class, calls, tuning.blocks.unwrap_or_else(|| blocks(items, GRID_MAX)));
    // Two blocks of 512 threads where 64 registers are enough: where z and the weight of a row take half of them. Narrow rows take 64.
    let little = rows.exact && class.packs <= 4 && calls.has_little_weight();
    let staged_bytes = staged_bytes(class, calls, tuning);
    let unaligned = UNALIGNED_THREADS.iter().find(|(packs_max, _)| !rows.aligned && class.packs <= *packs_max);
    let blocks_per_sm = match () {
        _ if class.is_streamed() || calls.adds() || !are_registers_known(tuning) => 1,
        _ if calls.hidden <= NARROW => 1024 / class.threads(),
        _ if staged_bytes.is_some() => staged_threads(class, calls) / class.threads(),
        _ if little => 1024 / class.threads(),
        _ => unaligned.filter(|_| calls.has_little_weight()).map_or(1, |(_, threads)| threads / class.threads()),
    };
    ForwardPlan { rows, blocks_per_sm, rows_at_once, shared_bytes: staged_bytes.unwrap_or(0), shares: None }
}

/// Shared memory of a block that stages rows in forward, where it does: held rows that are not aligned, from compute capability 9.0 on. (Not wider ones,
/// of which too few fit a multiprocessor at once; nor with a residual, for which there would be twice as much, or a bias: none is measured.)
fn staged_bytes(class: Class, calls: &Calls, tuning: &Tuning) -> Option<u32> {
    let is_narrow_or_wide = calls.hidden <= NARROW || class.is_streamed() || class.is_clustered();
    let is_other = calls.adds() || calls.are_mixed(Direction::Forward);
    if is_narrow_or_wide || is_other || is_aligned(class, calls) || tuning.arch.compute_capability < (9, 0) {
        return None;
    }
    let bytes = 2 * class.teams as usize * pitch(class, calls);
    (bytes <= STAGED_BYTES_MAX).then_some(bytes as u32)
}

/// Threads of a multiprocessor that stage rows in forward: as many as spill nothing, which makes as many rows on their way. On an H200: bf16 4097 (five
/// packs of 16 bytes) with 768, 1024, 1280 threads 0.84, 0.90, 0.89; 8191 (four) with 1024, 1280, 1536 0.84, 0.91, 0.94; 2047 (four) 0.89, 0.92, 0.94;
/// f32 4097 (five) 0.93, 0.95, 0.90; bf16 1001, whose warps keep x, with 1024 0.93. (With wider weights more registers are taken than these leave:
/// then it is the compiler's choice.)
fn staged_threads(class: Class, calls: &Calls) -> u32 {
    match class.packs {
        _ if !calls.has_little_weight() => class.threads(),
        ..=4 if class.team > 32 => 1536,
        5 if calls.dtype == Dtype::F32 => 1280,
        _ => 1024,
    }
}

/// Shared memory from one row to the next: of a row that is not aligned, all words of 16 bytes that it lies in.
fn pitch(class: Class, calls: &Calls) -> usize {
    let beyond = if is_aligned(class, calls) { 0 } else { BEYOND as usize };
    (calls.hidden * calls.dtype.bytes() + beyond).next_multiple_of(128)
}

/// The launches of a backward call.
pub fn backward(calls: &Calls, tuning: &Tuning) -> BackwardPlan {
    BackwardPlan { bias: calls.db.map(|_| bias(calls, tuning)), ..of_rows(calls, tuning) }
}

/// As many threads a row as it has packs, up to a warp, so that a warp reads neighbouring bytes. Not timed.
fn bias(calls: &Calls, tuning: &Tuning) -> BiasPlan {
    let Calls { rows, hidden, dy, .. } = *calls;
    let pack = 16 / dy.bytes();
    let aligned = calls.aligned && hidden.is_multiple_of(pack);
    let packs = if aligned { hidden / pack } else { hidden };
    let lanes = packs.next_power_of_two().min(32);
    let nodes = column_order(rows, hidden).groups.div_ceil(BIAS_THREADS as usize / lanes);
    let fold = fold(nodes as u32, hidden, tuning.arch.sm_count);
    BiasPlan { aligned, lanes: lanes as u32, blocks: blocks(packs.div_ceil(lanes) * nodes, GRID_MAX), fold }
}

/// All but db.
fn of_rows(calls: &Calls, tuning: &Tuning) -> BackwardPlan {
    let Calls { rows, hidden, .. } = *calls;
    let Arch { sm_count, threads_per_sm, .. } = tuning.arch;
    let column = column_order(rows, hidden);
    let plan = |rows, source, fold| {
        let (blocks_per_sm, columns, span, bias) = (1, None, None, None);
        BackwardPlan { column, rows, source, blocks_per_sm, columns, fold, span, bias }
    };
    if let Some((class, span)) = few_rows(calls, &column, tuning) {
        let tile = (class.threads() / FEW_SLOTS * class.pack) as usize;
        let blocks = hidden.div_ceil(tile) + rows.div_ceil(class.teams as usize);
        let launch = launch(class, calls, blocks as u32);
        // 128 registers a thread: with 96 some of a wide weight are spilled. In the prototype, without that, 512 rows of 4096 take 5.67 and 5.74 µs.
        let blocks_per_sm = 512 / class.threads();
        let fold = Fold { nodes: 0, level: 0, warps: 0, blocks: 0 };
        return BackwardPlan { blocks_per_sm, span: Some(span), ..plan(launch, Source::Kept, fold) };
    }
    let class = chosen(Direction::Backward, calls, tuning, tuning.backward);
    let teams = class.teams as usize;
    let nodes = column.groups.div_ceil(teams) as u32;
    let fold = fold(nodes, hidden, sm_count);
    let forced = |planned| tuning.blocks.unwrap_or(planned);
    if class.is_streamed() {
        let tiles = hidden.div_ceil((class.pack * class.threads()) as usize);
        let rows = launch(class, calls, forced(blocks(rows, of_head(GRID_MAX, calls))));
        let columns = Some(forced(blocks(tiles * column.groups, of_head(GRID_MAX, calls))));
        return BackwardPlan { columns, ..plan(rows, Source::Reread, fold) };
    }
    if class.is_clustered() {
        let stages = cluster::stages(class, calls, tuning);
        // A cluster takes whole groups, and no more clusters than are needed for as few turns.
        let turns = column.groups.div_ceil((sm_count / class.cluster) as usize).max(1);
        let clusters = blocks(column.groups.div_ceil(turns), GRID_MAX);
        let rows = launch(class, calls, forced(clusters * class.cluster).next_multiple_of(class.cluster));
        let shared_bytes = CLUSTER_BYTES + weight_bytes(class, calls) + stages * 2 * slice_bytes(class, calls.dtype);
        let source = Source::Cluster { stages, shared_bytes };
        return plan(rows, source, fold);
    }
    let ring = ring(class, calls, tuning);
    // Of heads no more than are there at once whatever registers they take: the rows of different heads lie beside each other.
    let threads = if calls.per_head() { 1024 } else { threads_per_sm };
    let resident = sm_count * if ring.is_some() { 1 } else { (threads / class.threads()).max(1) };
    let blocks = forced(blocks(column.groups.div_ceil(teams), of_head(resident as usize, calls)));
    let in_ring = |(stages, shared_bytes)| {
        let pace = pace(blocks.saturating_mul(class.teams * ring_rows(class, calls)), calls, tuning);
        let (rows, apart) = (ring_rows(class, calls), are_sums_apart(class, calls));
        Source::Ring { stages, rows, pace, shared_bytes, apart }
    };
    let source = ring.map_or(Source::in_memory(class), in_ring);
    // All blocks of narrow rows are to be resident: 512 on 132 multiprocessors.
    let is_held_to = hidden <= NARROW && calls.dz.is_none() && are_registers_known(tuning);
    let blocks_per_sm = if is_held_to { 1024 / class.threads() } else { 1 };
    BackwardPlan { blocks_per_sm, ..plan(launch(class, calls, blocks), source, fold) }
}

/// As many warps a column as give each multiprocessor 1024 threads, and each thread several loads on their way: one block after another of
/// 1024 threads with a load each took 10 to 20 µs of a call of wide rows.
fn fold(nodes: u32, hidden: usize, sm_count: u32) -> Fold {
    let all = nodes.next_power_of_two();
    let wanted = 1 << (sm_count as usize * 1024 / hidden).max(1).ilog2();
    let warps = (wanted as u32).max(all >> FOLD_LEVEL_MAX).min(FOLD_WARPS_MAX).min(all);
    Fold { nodes, level: (all / warps).ilog2(), warps, blocks: hidden.div_ceil(FOLD_COLUMNS as usize) as u32 }
}

/// The class and the span, where few rows are one launch: aligned held rows with dw, if nothing else is asked for. Not in place: blocks with a
/// tile of columns read rows of which others write dx.
fn few_rows(calls: &Calls, column: &ColumnOrder, tuning: &Tuning) -> Option<(Class, u32)> {
    let Calls { rows, hidden, dtype, .. } = *calls;
    let Tuning { backward, stages, rate_percent, blocks, few_rows, .. } = *tuning;
    let is_forced = backward.is_some() || stages.is_some() || rate_percent.is_some() || blocks.is_some();
    let is_other = is_forced || calls.are_mixed(Direction::Backward);
    if !few_rows || is_other || calls.in_place || calls.per_head() || calls.dw.is_none() || hidden <= NARROW {
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
    // A bulk copy of a row that is aligned takes whole words of 16 bytes, and a pack of four 16-bit elements is half of one.
    let is_in_words = (calls.hidden * calls.dtype.bytes()).is_multiple_of(16) || !is_aligned(class, calls);
    let has_copies = arch.compute_capability >= (9, 0) && !calls.are_mixed(Direction::Backward);
    if calls.hidden <= NARROW || !has_copies || !is_in_words {
        return None;
    }
    let rows = class.teams * ring_rows(class, calls) * stage_rows(calls.dz.is_some());
    let stage_bytes = rows as usize * pitch(class, calls);
    // 96 KiB ahead hide the memory's latency; more let some blocks run ahead of others. A lone team computes with one of three or four stages,
    // while the others fill. (On an H200, bf16: 8192 with three 0.96, with four 0.94; 7168 with three 0.92, with four 0.94; 3072 with three 0.95,
    // with two 0.93; 4096 with two.)
    let wanted = (96usize << 10).div_ceil(stage_bytes);
    let wanted = match class.teams {
        1 if are_sums_apart(class, calls) => 6,
        1 if !is_aligned(class, calls) => 4,
        1 => wanted.clamp(3, 4),
        _ => wanted.max(if stage_bytes <= 48 << 10 { 3 } else { 2 }),
    };
    let fit = arch.block_shared_bytes.saturating_sub(class.declared_bytes() + (1 << 10)) as usize / stage_bytes;
    let stages = tuning.stages.map_or(wanted, |stages| stages as usize).min(fit).min(RING_STAGES_MAX as usize);
    (stages >= 2).then(|| (stages as u32, (stages * stage_bytes) as u32))
}

/// Rows of a stage: two where a team is a warp, which waits for nobody but itself while it has only one. (On an H200, bf16 512: two 0.955, one 0.89; 1024:
/// 0.948 and 0.955.)
fn ring_rows(class: Class, calls: &Calls) -> u32 {
    if class.team == 32 && class.packs <= 2 && is_aligned(class, calls) { 2 } else { 1 }
}

/// Whether dw's sums have a team of their own: where a multiprocessor has one row group, and a row takes long for other reasons than its bytes.
fn are_sums_apart(class: Class, calls: &Calls) -> bool {
    let fits = class.team == 128 && class.packs * class.pack <= 40 && calls.dtype != Dtype::F32;
    fits && class.teams == 1 && !is_aligned(class, calls) && calls.dw.is_some() && !calls.per_head()
}

/// 89 % of what the memory's clock and width come to, shared by all teams: on an H200, fractions of the ceiling at 90 % and at 89 %: bf16 4096 0.945 and
/// 0.948, 16384 0.89 and 0.90; f32 8192 0.93 and 0.94. (Of 512 bf16 an H200 reaches 0.92 without a limit and 0.89 with it, an H100 0.86 and
/// 0.97.) Where the tensors fit the cache, or nobody has measured, no limit.
fn pace(teams: u32, calls: &Calls, tuning: &Tuning) -> u32 {
    let arch = &tuning.arch;
    let rate = u64::from(arch.memory_bytes_per_us) * u64::from(tuning.rate_percent.unwrap_or(PACE_PERCENT)) / 100;
    let row_bytes = (1 + stage_rows(calls.dz.is_some()) as usize) * calls.hidden * calls.dtype.bytes();
    if calls.per_head()
        || arch.compute_capability != (9, 0)
        || rate == 0
        || calls.rows.saturating_mul(row_bytes) <= arch.l2_bytes as usize
    {
        return 0;
    }
    (row_bytes as u64 * u64::from(teams) * 256_000 / rate).try_into().unwrap_or(u32::MAX)
}

fn chosen(direction: Direction, calls: &Calls, tuning: &Tuning, other: Option<Class>) -> Class {
    let (hidden, dtype) = (calls.hidden, calls.widest(direction));
    let planned = class_planned(direction, calls, tuning);
    let works = |other: &Class| variants(hidden, dtype).contains(other) && (!other.is_clustered() || *other == planned);
    let class = other.filter(works).unwrap_or(planned);
    let has_ring = direction == Direction::Forward || tuning.stages != Some(0);
    // Backward of heads, and rows of several types, have the kernels of rows that a block holds, or that are streamed.
    let is_other = direction == Direction::Backward && calls.per_head() || calls.are_mixed(direction);
    match class {
        class if !class.is_clustered() || has_ring && !is_other && cluster::fits(class, calls, &tuning.arch) => class,
        _ if hidden <= HELD_MAX => class::class(direction, hidden, dtype),
        _ => STREAMED,
    }
}

/// Whether the compiler is held to the registers that were measured: elsewhere it would spill for them.
fn are_registers_known(tuning: &Tuning) -> bool {
    tuning.arch.compute_capability == (9, 0)
}

fn is_aligned(class: Class, calls: &Calls) -> bool {
    calls.aligned && calls.hidden.is_multiple_of(class.pack as usize)
}

fn launch(class: Class, calls: &Calls, blocks: u32) -> Launch {
    let aligned = is_aligned(class, calls);
    Launch { class, aligned, exact: aligned && calls.hidden == class.holds(), blocks }
}

/// A head's share of so many blocks.
fn of_head(blocks: usize, calls: &Calls) -> usize {
    (blocks / calls.heads).max(1)
}

fn blocks(items: usize, most: usize) -> u32 {
    items.min(most).max(1) as u32
}

/// (Packs, threads of a multiprocessor) of forward over rows that are not aligned: as many as spill nothing; without a limit the compiler takes
/// registers of which too few threads are left. (Of three packs 1280 threads would spill 40 bytes.) Not timed.
const UNALIGNED_THREADS: [(u32, u32); 3] = [(4, 1024), (5, 768), (8, 512)];

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

/// Most rows of such a call, and of one in forward.
pub(crate) const FEW_ROWS_MAX: u32 = 1024;

/// Threads that share a column of such a call, and the row groups that each can fold: as few as hold all of them.
const FEW_SLOTS: u32 = 32;
const FEW_SPANS: [u32; 4] = [2, 4, 8, 16];

/// Numbers of rows that stand for all: calls of a kind launch no other modules than with these.
pub const ROW_COUNTS: [usize; 6] = [1, 16, 65, 129, 257, 1025];

/// What a ring's pace comes to, of the memory's rate.
const PACE_PERCENT: u32 = 89;

/// Most stages of a ring.
pub(crate) const RING_STAGES_MAX: u32 = 8;

/// Bytes of the 16-byte words of a row that is not aligned which are not the row's, at most.
pub(crate) const BEYOND: u32 = 30;

/// Most shared memory of a block that stages rows in forward: two rows of 32 KiB.
const STAGED_BYTES_MAX: usize = 66 << 10;

/// Most elements of a row that a thread keeps between backward's two passes, of x and of dy each.
const KEPT_MAX: u32 = 16;

/// Rows of a stage: x, dy and, if it is given, dz.
pub(crate) const fn stage_rows(dz: bool) -> u32 {
    2 + dz as u32
}

/// Threads of a block that sums dy.
pub(crate) const BIAS_THREADS: u32 = 1024;

/// Columns that a block of the fold folds: one a lane.
pub(crate) const FOLD_COLUMNS: u32 = 32;

/// Most warps of a block of the fold.
pub(crate) const FOLD_WARPS_MAX: u32 = 32;

/// Highest level of a fold.
pub(crate) const FOLD_LEVEL_MAX: u32 = 5;

/// Most blocks of a grid.
const GRID_MAX: usize = i32::MAX as usize;

#[cfg(test)]
mod tests;
