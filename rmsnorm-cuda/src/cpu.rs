//! The CPU executor: walks the orders of [`order`](crate::order) with the functions of [`arith`].
//!
//! Chains are neighbouring accumulators, so every loop below runs along neighbouring elements and the compiler vectorises it.
//! [`pulp`] compiles each loop for the instruction sets it knows and picks one at run time; without that, `mul_add` would be a
//! library call per element. Rayon shares the rows out. Neither reaches a bit, nor does what a thread or process came from:
//! `share` gives no job to a thread that would compute it otherwise, nor to threads that a fork left behind.

#![forbid(unsafe_code)]

use crate::arith::{
    self, Element, RowScale, SCALE_UP, centred, chain, effective_weight, environment, fold, gradient, mean, row_scale,
    scaled, scaled_root, statistic, total, weighted,
};
use crate::order::{column_order, row_order};
use crate::process::Process;
use crate::{
    Backward, Error, Executor, Forward, Rows, Slice, SliceMut, Vector, WeightGradient, WeightOffset, with_dtype,
};
use half::{bf16, f16};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The CPU executor. A call of up to 16384 elements, or of one row, is computed on the thread that calls; a larger one on rayon's
/// current thread pool.
///
/// A thread that flushes subnormals or does not round to nearest never computes a bit. On such a thread a call returns
/// [`Error::FloatingPoint`] before anything is written. The pool's threads may be such: what falls to them is computed on the
/// thread that calls, with the same bits, in the worst case all of it. (Should that thread be the pool's own, take on somebody
/// else's work meanwhile, and come out of it so changed, the same error comes with the outputs partly written.)
///
/// In a process that was forked after its parent had begun a pool, a call is computed on the thread that calls: the pool's threads
/// do not exist there. Where the parent used the pool for something else only, this is known on Linux.
///
/// It allocates an f32 per chain and thread, 64 KiB or a row of f32 per thread for dw, a slice per 16384 elements or row, and
/// a copy of the weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl Executor for Cpu {
    /// With the instruction set that was found and the number of threads: `cpu (x86_64 V3, 2 threads)`; V3 is AVX2 with FMA,
    /// V4 is AVX-512.
    fn name(&self) -> String {
        let simd = format!("{:?}", pulp::Arch::new());
        let simd = simd.split('(').next().unwrap_or_default();
        let (threads, s) = (threads(), if threads() == 1 { "" } else { "s" });
        format!("cpu ({} {simd}, {threads} thread{s})", std::env::consts::ARCH)
    }

    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        environment()?;
        let Forward { rows, hidden, eps, weight_offset, x, weight, y, rstd } = call;
        if rows == 0 {
            return Ok(());
        }
        let weight = &*effective_weights(weight, weight_offset, hidden);
        let rstd = rstd.map_or(&mut [][..], |rstd| floats_mut(rstd, rows));
        let at = Layout::new(&y, rows, hidden);
        with_dtype!(Slice(xs) = x.data, SliceMut(ys) = y.data => {
            forward(Read::new(xs, &x), weight, eps, at.of(ys), rstd)
        })
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        environment()?;
        let Backward { rows, hidden, weight_offset, x, weight, rstd, dy, dx, dw } = call;
        let weight = &*effective_weights(weight, weight_offset, hidden);
        let (dw, scratch) = match dw {
            Some(WeightGradient { dw, scratch }) => {
                (Some(dw), Some(floats_mut(scratch, column_order(rows, hidden).groups * hidden)))
            }
            None => (None, None),
        };
        let scratch = scratch.unwrap_or_default();
        if rows > 0 {
            let rstd = floats(rstd, rows);
            let at = Layout::new(&dx, rows, hidden);
            with_dtype!(Slice(xs) = x.data, Slice(dys) = dy.data, SliceMut(dxs) = dx.data => {
                backward(Read::new(xs, &x), weight, rstd, Read::new(dys, &dy), at.of(dxs), scratch)
            })?;
        }
        match dw {
            None => Ok(()),
            Some(Vector { data, offset }) => {
                with_dtype!(SliceMut(dw) = data => weight_gradient(scratch, &mut dw[offset..][..hidden]))
            }
        }
    }
}

// Threads -----------------------------------------------------------------------------------------------------------------

/// Does every job, with its number, on the threads of rayon's current pool, each of which begins with `begin`. A job that falls
/// to a thread in another floating-point mode comes back, and so do all where there is no pool: the caller's thread does them.
fn share<J: Send, S>(
    jobs: Vec<J>,
    begin: impl Fn() -> S + Send + Sync,
    work: impl Fn(&mut S, usize, J) + Send + Sync,
) -> Result<(), Error> {
    let left: Vec<(usize, J)> = if jobs.len() > 1 && pool_is_here() {
        let attempt = |state: &mut S, (i, job)| match environment() {
            Ok(()) => {
                work(state, i, job);
                None
            }
            Err(_) => Some((i, job)),
        };
        jobs.into_par_iter().enumerate().map_init(&begin, attempt).flatten_iter().collect()
    } else {
        jobs.into_iter().enumerate().collect()
    };
    if !left.is_empty() {
        environment()?;
        let mut state = begin();
        left.into_iter().for_each(|(i, job)| work(&mut state, i, job));
    }
    Ok(())
}

/// Whether the threads of rayon's current pool are in this process; they are begun if there is no pool. A fork leaves them behind,
/// and the pool would wait for them for ever.
fn pool_is_here() -> bool {
    // Asked before rayon is touched: a fork while a pool begins would leave its lock closed.
    static FIRST: Process = Process::new();
    static SEEN: AtomicBool = AtomicBool::new(false);
    FIRST.is_this()
        && (SEEN.load(Relaxed) || {
            // A parent may have begun a pool without this crate.
            let threads = rayon::current_num_threads() + usize::from(rayon::current_thread_index().is_none());
            let here = std::fs::read_dir("/proc/self/task").map_or(true, |there| there.count() >= threads);
            SEEN.store(here, Relaxed);
            here
        })
}

fn threads() -> usize {
    if pool_is_here() { rayon::current_num_threads() } else { 1 }
}

/// Rows that make a job: several jobs for each thread, but each worth handing over.
fn rows_per_job(rows: usize, hidden: usize) -> usize {
    let worth = (JOB / hidden).max(1);
    if rows <= worth { worth } else { rows.div_ceil(8 * threads()).max(worth) }
}

/// Elements that are worth handing to a thread; as f32, a part of its cache.
const JOB: usize = 1 << 14;

// Operands ----------------------------------------------------------------------------------------------------------------

/// The weight in f32 with its offset added; ones where there is none, which multiply to the same bits.
fn effective_weights(weight: Option<Vector<Slice<'_>>>, offset: WeightOffset, hidden: usize) -> Aligned {
    fn widen<T: Packed>(weight: &[T], zero_centred: bool, to: &mut [f32]) {
        for (to, w) in to.iter_mut().zip(weight) {
            *to = effective_weight(w.unpack(), zero_centred);
        }
    }
    let zero_centred = offset == WeightOffset::One;
    let mut to = Aligned::new(hidden);
    match weight {
        None => to.fill(1.0),
        Some(Vector { data, offset }) => {
            with_dtype!(Slice(weight) = data => widen(&weight[offset..][..hidden], zero_centred, &mut to));
        }
    }
    to
}

/// Floats that begin with a cache line: a vector of 64 bytes that crosses two costs two accesses.
struct Aligned {
    values: Vec<f32>,
    at: Range<usize>,
}

impl Aligned {
    /// Zeros.
    fn new(len: usize) -> Self {
        let values = vec![0.0_f32; len + 15];
        let start = values.as_ptr().align_offset(64).min(15);
        Aligned { values, at: start..start + len }
    }
}

impl Deref for Aligned {
    type Target = [f32];
    #[inline(always)]
    fn deref(&self) -> &[f32] {
        &self.values[self.at.clone()]
    }
}

impl DerefMut for Aligned {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.at.clone()]
    }
}

fn floats<'a>(vector: Vector<Slice<'a>>, len: usize) -> &'a [f32] {
    match vector.data {
        Slice::F32(data) => &data[vector.offset..][..len],
        _ => unreachable!("checked: f32"),
    }
}

fn floats_mut<'a>(vector: Vector<SliceMut<'a>>, len: usize) -> &'a mut [f32] {
    match vector.data {
        SliceMut::F32(data) if len > 0 => &mut data[vector.offset..][..len],
        SliceMut::F32(_) => &mut [],
        _ => unreachable!("checked: f32"),
    }
}

/// Rows that are read, any stride.
#[derive(Clone, Copy)]
struct Read<'a, T> {
    data: &'a [T],
    row_stride: usize,
}

impl<'a, T> Read<'a, T> {
    fn new(data: &'a [T], view: &Rows<Slice<'_>>) -> Self {
        Read { data: &data[view.offset..], row_stride: view.row_stride }
    }

    #[inline(always)]
    fn row(&self, row: usize, hidden: usize) -> &'a [T] {
        &self.data[row * self.row_stride..][..hidden]
    }

    #[inline(always)]
    fn prefetch(&self, row: usize, column: usize) {
        prefetch(self.data, row.saturating_mul(self.row_stride).saturating_add(column));
    }
}

/// Rows that are written, from the first element of the first to the last element of the last: a chunk of k·row_stride
/// elements is k rows with the gaps behind them.
struct Written<'a, T> {
    data: &'a mut [T],
    row_stride: usize,
}

/// Where the rows of an output lie.
struct Layout {
    range: Range<usize>,
    row_stride: usize,
}

impl Layout {
    fn new(view: &Rows<SliceMut<'_>>, rows: usize, hidden: usize) -> Self {
        let row_stride = if rows < 2 { hidden } else { view.row_stride };
        Layout { range: view.offset..view.offset + (rows - 1) * row_stride + hidden, row_stride }
    }

    fn of<T>(self, data: &mut [T]) -> Written<'_, T> {
        Written { data: &mut data[self.range], row_stride: self.row_stride }
    }
}

// Forward -----------------------------------------------------------------------------------------------------------------

fn forward<T: Packed>(x: Read<T>, weight: &[f32], eps: f32, y: Written<T>, rstd: &mut [f32]) -> Result<(), Error> {
    let hidden = weight.len();
    let rows_per_job = rows_per_job(y.data.len().div_ceil(y.row_stride), hidden);
    let mut rstd = rstd.chunks_mut(rows_per_job);
    let y_stride = y.row_stride;
    let ys = y.data.chunks_mut(rows_per_job.saturating_mul(y_stride));
    let jobs = ys.map(|y| (y, rstd.next().unwrap_or_default())).collect();
    share(
        jobs,
        || Accumulators::new(hidden),
        |acc, job, (y, rstd)| {
            let first_row = job * rows_per_job;
            pulp::Arch::new().dispatch(ForwardJob { x, weight, eps, first_row, y, y_stride, rstd, acc });
        },
    )
}

/// Neighbouring rows; `rstd` is empty if it is not wanted.
struct ForwardJob<'a, T> {
    x: Read<'a, T>,
    weight: &'a [f32],
    eps: f32,
    first_row: usize,
    y: &'a mut [T],
    y_stride: usize,
    rstd: &'a mut [f32],
    acc: &'a mut Accumulators,
}

impl<T: Packed> WithSimd for ForwardJob<'_, T> {
    type Output = ();

    /// While a row is written the next one is read, tile by tile: in turns, the memory would idle half of the time. Reads come
    /// first, because a load waits for an unfinished store to the same place of another page.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let ForwardJob { x, weight, eps, first_row, y, y_stride, rstd, acc } = self;
        let hidden = weight.len();
        let rows = y.len().div_ceil(y_stride);
        let finite_weight = weight.iter().all(|w| w.is_finite());
        let mut row = x.row(first_row, hidden);
        let mut sum = squares(row, 1.0, acc);
        for i in 0..rows {
            let (stored, scale) = statistic(sum, hidden as f32, eps, |s| squares(row, s, acc));
            if let Some(rstd) = rstd.get_mut(i) {
                *rstd = f32::store(stored);
            }
            // A finite sum proves that x and rstd are finite, and x_hat² is not above `hidden`: only a weight could make a NaN.
            let numbers = finite_weight && sum.is_finite();
            let next = (i + 1 < rows).then(|| x.row(first_row + i + 1, hidden));
            acc.clear();
            for tile in tiles::<T>(hidden) {
                let (rows_on, column) = ahead::<T>(&tile, hidden);
                if let Some(next) = next {
                    x.prefetch(first_row + i + 1 + rows_on, column);
                    add_squares(&next[tile.clone()], 1.0, acc.chains(&tile));
                }
                prefetch(y, (i + rows_on) * y_stride + column);
                let y = &mut y[i * y_stride..][tile.clone()];
                let weight = &weight[tile.clone()];
                specialised(scale, numbers, |scale, numbers| normalise(&row[tile.clone()], scale, numbers, weight, y));
            }
            if let Some(next) = next {
                (sum, row) = (tree(acc), next);
            }
        }
    }
}

/// §5 One tile of y.
#[inline(always)]
fn normalise<T: Packed>(x: &[T], row: RowScale, number: bool, weight: &[f32], y: &mut [T]) {
    for ((y, &z), &w) in y.iter_mut().zip(x).zip(weight) {
        *y = T::pack(weighted(x_hat(z, row), w), number);
    }
}

// Backward ----------------------------------------------------------------------------------------------------------------

/// Each job takes some neighbouring row groups and walks all their rows, so that their sums stay in its cache and the rows it
/// touches are neighbours. `scratch` holds the partials; it is empty if dw is not wanted: then every row is a job's own.
fn backward<T: Packed>(
    x: Read<T>,
    weight: &[f32],
    rstd: &[f32],
    dy: Read<T>,
    dx: Written<T>,
    scratch: &mut [f32],
) -> Result<(), Error> {
    let hidden = weight.len();
    let groups = if scratch.is_empty() { rstd.len() } else { scratch.len() / hidden };
    let per_job = if scratch.is_empty() { rows_per_job(groups, hidden) } else { (JOB / hidden).max(1) };
    let sums_len = scratch.len().min(per_job * hidden);
    let mut partials = scratch.chunks_mut(per_job * hidden);
    let mut jobs: Vec<(Vec<&mut [T]>, &mut [f32])> =
        (0..groups.div_ceil(per_job)).map(|_| (Vec::new(), partials.next().unwrap_or_default())).collect();
    for step in dx.data.chunks_mut(groups.saturating_mul(dx.row_stride)) {
        for (job, rows) in jobs.iter_mut().zip(step.chunks_mut(per_job.saturating_mul(dx.row_stride))) {
            job.0.push(rows);
        }
    }
    share(
        jobs,
        || (Accumulators::new(hidden), Aligned::new(sums_len)),
        |(acc, sums), job, (steps, partials)| {
            let (first_group, dx_stride) = (job * per_job, dx.row_stride);
            let sums = &mut sums[..partials.len()];
            sums.fill(0.0); // Where chains start.
            let job = BackwardJob { x, weight, rstd, dy, groups, first_group, steps, dx_stride, partials: sums, acc };
            pulp::Arch::new().dispatch(job);
            partials.copy_from_slice(sums);
        },
    )
}

/// Neighbouring row groups. `steps[i]` is dx of the rows i·groups + first_group and following, one for each group (fewer in
/// the last step); `partials` has a row for each group, or is empty.
struct BackwardJob<'a, T> {
    x: Read<'a, T>,
    weight: &'a [f32],
    rstd: &'a [f32],
    dy: Read<'a, T>,
    groups: usize,
    first_group: usize,
    steps: Vec<&'a mut [T]>,
    dx_stride: usize,
    partials: &'a mut [f32],
    acc: &'a mut Accumulators,
}

impl<T: Packed> WithSimd for BackwardJob<'_, T> {
    type Output = ();

    /// As in forward, the next row is read while one is written.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let BackwardJob { x, weight, rstd, dy, groups, first_group, steps, dx_stride, partials, acc } = self;
        let hidden = weight.len();
        let rows = steps.into_iter().enumerate().flat_map(|(step, rows)| {
            rows.chunks_mut(dx_stride).enumerate().map(move |(i, dx)| (step * groups + first_group + i, i, dx))
        });
        let mut rows = rows.peekable();
        let operands = |r: usize, acc: &mut Accumulators| {
            let x = x.row(r, hidden);
            let scale = row_scale(rstd[r], || scaled_root(squares(x, SCALE_UP, acc), hidden as f32));
            Row { x, dy: dy.row(r, hidden), scale }
        };
        let mut row = operands(first_group, acc);
        let mut sum = products(row, weight, acc);
        while let Some((_, i, dx)) = rows.next() {
            // If c is finite then every x_hat and wdy is, and with them no gradient is NaN: where rstd is 0, so is x_hat, and t
            // is wdy, finite.
            let c = mean(sum, hidden as f32);
            let next = rows.peek().map(|&(r, i, _)| {
                let behind = if (i + 1) * hidden == partials.len() { r + groups - i } else { r + 1 };
                (operands(r, acc), [r, behind])
            });
            acc.clear();
            for tile in tiles::<T>(hidden) {
                let (rows_on, column) = ahead::<T>(&tile, hidden);
                if let Some((next, read)) = &next {
                    x.prefetch(read[rows_on], column);
                    dy.prefetch(read[rows_on], column);
                    let (next, weight, chains) = (next.tile(&tile), &weight[tile.clone()], acc.chains(&tile));
                    specialised(next.scale, true, |scale, _| add_products(Row { scale, ..next }, weight, chains));
                }
                match rows.peek() {
                    Some((.., next_dx)) if rows_on == 1 => prefetch(next_dx, column),
                    _ => prefetch(dx, column),
                }
                let partial = partials.get_mut(i * hidden..(i + 1) * hidden).map(|p| &mut p[tile.clone()]);
                let (row, weight, dx) = (row.tile(&tile), &weight[tile.clone()], &mut dx[tile]);
                specialised(row.scale, c.is_finite(), |scale, number| {
                    gradients(Row { scale, ..row }, c, number, weight, dx, partial)
                });
            }
            if let Some((next, _)) = next {
                (sum, row) = (tree(acc), next);
            }
        }
    }
}

/// What backward reads of a row, or of a tile of it.
#[derive(Clone, Copy)]
struct Row<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    scale: RowScale,
}

impl<T> Row<'_, T> {
    #[inline(always)]
    fn tile(&self, tile: &Range<usize>) -> Self {
        Row { x: &self.x[tile.clone()], dy: &self.dy[tile.clone()], scale: self.scale }
    }
}

/// §6 One tile of dx, and §7 of the group's partial if there is one.
#[inline(always)]
fn gradients<T: Packed>(row: Row<T>, c: f32, number: bool, weight: &[f32], dx: &mut [T], partial: Option<&mut [f32]>) {
    let columns = dx.iter_mut().zip(row.x).zip(row.dy).zip(weight);
    match partial {
        Some(partial) => {
            for ((((dx, &x), &dy), &w), partial) in columns.zip(partial) {
                let (x_hat, dy) = (x_hat(x, row.scale), dy.unpack());
                *partial = chain(dy, x_hat, *partial);
                *dx = T::pack(gradient(centred(x_hat, c, weighted(dy, w)), row.scale), number);
            }
        }
        None => {
            for (((dx, &x), &dy), &w) in columns {
                *dx = T::pack(gradient(centred(x_hat(x, row.scale), c, weighted(dy.unpack(), w)), row.scale), number);
            }
        }
    }
}

/// §7 The tree over the row groups, in place, and the one rounding. No groups: +0.0.
fn weight_gradient<T: Packed>(partials: &mut [f32], dw: &mut [T]) -> Result<(), Error> {
    let hidden = dw.len();
    if partials.is_empty() {
        dw.fill(T::store(total(0.0)));
        return Ok(());
    }
    let mut node = hidden; // Elements of the partials below one node: its first row holds its value.
    while node < partials.len() {
        if hidden < JOB {
            let pairs = 2 * node * (JOB / node).max(1);
            let fold_pairs =
                |chunk: &mut [f32]| chunk.chunks_mut(2 * node).map(|p| halves(p, node, hidden)).for_each(fold_all);
            share(partials.chunks_mut(pairs).collect(), || (), |_, _, chunk| fold_pairs(chunk))?;
        } else {
            let pairs = partials.chunks_mut(2 * node).map(|pair| halves(pair, node, hidden));
            let columns = pairs.flat_map(|(left, right)| left.chunks_mut(JOB).zip(right.chunks(JOB)));
            share(columns.collect(), || (), |_, _, columns| fold_all(columns))?;
        }
        node *= 2;
    }
    let jobs = dw.chunks_mut(JOB).zip(partials.chunks(JOB)).collect();
    share(
        jobs,
        || (),
        |_, _, (dw, root): (&mut [T], &[f32])| {
            for (dw, &root) in dw.iter_mut().zip(root) {
                *dw = T::pack(total(root), false);
            }
        },
    )
}

/// The values of two neighbouring nodes; none where the right one is a pad: adding +0.0 changes no bit.
fn halves(pair: &mut [f32], node: usize, hidden: usize) -> (&mut [f32], &[f32]) {
    let (left, right) = pair.split_at_mut(node.min(pair.len()));
    let columns = hidden.min(right.len());
    (&mut left[..columns], &right[..columns])
}

fn fold_all((left, right): (&mut [f32], &[f32])) {
    for (left, &right) in left.iter_mut().zip(right) {
        *left = fold(*left, right);
    }
}

// The reduction along a row -----------------------------------------------------------------------------------------------

/// One accumulator for each chain that has elements, and pads for [`tree`].
struct Accumulators {
    values: Aligned,
    chains: usize,
}

impl Accumulators {
    fn new(hidden: usize) -> Self {
        let chains = row_order(hidden).chains.min(hidden);
        Accumulators { values: Aligned::new(chains.next_multiple_of(16)), chains }
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.values.fill(0.0);
    }

    /// The chains of a tile: a tile never reaches past the last one and round to the first.
    #[inline(always)]
    fn chains(&mut self, tile: &Range<usize>) -> &mut [f32] {
        &mut self.values[tile.start % self.chains..]
    }
}

#[inline(always)]
fn tiles<T>(hidden: usize) -> impl Iterator<Item = Range<usize>> {
    (0..hidden).step_by(tile_len::<T>()).map(move |start| start..(start + tile_len::<T>()).min(hidden))
}

/// Elements that are read and written in turns: a divisor of every number of chains above 256.
const fn tile_len<T>() -> usize {
    64 * size_of::<T>() // Measured; twice as many cost 16-bit types 7 %, half as many cost f32 as much.
}

/// §2 `reduce(scaled(z, s)²)`.
#[inline(always)]
fn squares<T: Packed>(row: &[T], s: f32, acc: &mut Accumulators) -> f32 {
    acc.clear();
    for tile in tiles::<T>(row.len()) {
        add_squares(&row[tile.clone()], s, acc.chains(&tile));
    }
    tree(acc)
}

#[inline(always)]
fn add_squares<T: Packed>(row: &[T], s: f32, acc: &mut [f32]) {
    for (acc, z) in acc.iter_mut().zip(row) {
        let z = scaled(z.unpack(), s);
        *acc = chain(z, z, *acc);
    }
}

/// §6 `reduce(wdy·x_hat)`.
#[inline(always)]
fn products<T: Packed>(row: Row<T>, weight: &[f32], acc: &mut Accumulators) -> f32 {
    acc.clear();
    for tile in tiles::<T>(weight.len()) {
        add_products(row.tile(&tile), &weight[tile.clone()], acc.chains(&tile));
    }
    tree(acc)
}

#[inline(always)]
fn add_products<T: Packed>(row: Row<T>, weight: &[f32], acc: &mut [f32]) {
    for (((acc, &x), dy), &w) in acc.iter_mut().zip(row.x).zip(row.dy).zip(weight) {
        *acc = chain(weighted(dy.unpack(), w), x_hat(x, row.scale), *acc);
    }
}

/// §2 The tree over the accumulators, and the end of the reduction. Halving the values level by level, each with its
/// neighbour, folds the same nodes as distance 1, 2, 4, … does, in place and with whole vectors. Each level is padded with
/// +0.0 to whole vectors, here more and there fewer times than the leaves would ask for: no bit depends on that.
#[inline(always)]
fn tree(acc: &mut Accumulators) -> f32 {
    let p = &mut acc.values[..];
    let mut len = p.len();
    while len > 8 {
        let padded = len.next_multiple_of(16);
        p[len..padded].fill(0.0);
        for k in 0..padded / 16 {
            // An array, so that the compiler sees two vectors become one.
            let v: [f32; 16] = p[16 * k..][..16].try_into().unwrap();
            let nodes: [f32; 8] = std::array::from_fn(|i| fold(v[2 * i], v[2 * i + 1]));
            p[8 * k..][..8].copy_from_slice(&nodes);
        }
        len = padded / 2;
    }
    let [a, b, c, d, e, f, g, h] = p[..8].try_into().unwrap();
    total(fold(fold(fold(a, b), fold(c, d)), fold(fold(e, f), fold(g, h))))
}

/// §4 The normalised element.
#[inline(always)]
fn x_hat<T: Packed>(z: T, row: RowScale) -> f32 {
    arith::x_hat(z.unpack(), row)
}

// Conversions that vectorise ----------------------------------------------------------------------------------------------

/// [`Element::widen`] and [`Element::store`] without a library call.
trait Packed: Element {
    #[inline(always)]
    fn unpack(self) -> f32 {
        self.widen()
    }
    /// `number` promises that the value is not NaN.
    fn pack(value: f32, number: bool) -> Self;
}

impl Packed for f32 {
    #[inline(always)]
    fn pack(value: f32, number: bool) -> Self {
        if number { value } else { Self::store(value) }
    }
}

impl Packed for bf16 {
    #[inline(always)]
    fn pack(value: f32, number: bool) -> Self {
        let bits = value.to_bits();
        let rounded = bf16::from_bits((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16);
        if number { rounded } else { Self::store(value) }
    }
}

/// `half` asks for every element what the processor can do. These are the same conversions as arithmetic on bits.
impl Packed for f16 {
    #[inline(always)]
    fn unpack(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // The exponent is rebased by 112, and once more for Inf and NaN. A subnormal gets the exponent of the least normal
        // number and a leading one, which the subtraction takes away again.
        let rebased = magnitude + if magnitude < 0x1f << 23 { 112 << 23 } else { 224 << 23 };
        let subnormal = f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23);
        let value = if magnitude < 1 << 23 { subnormal.to_bits() } else { rebased };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }
    #[inline(always)]
    fn pack(value: f32, number: bool) -> Self {
        let sign = value.to_bits() >> 16 & 0x8000;
        let magnitude = value.to_bits() & 0x7fff_ffff;
        // As for bf16; 65520 and more become infinite. Below 2^-14 an addition rounds: 0.5 has its last place at 2^-24.
        let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5_f32.to_bits();
        let finite = if magnitude < 113 << 23 { subnormal } else { normal.min(0x7c00) };
        f16::from_bits(if !number && magnitude > 0x7f80_0000 { 0x7fff } else { (sign | finite) as u16 })
    }
}

/// Asks for the lines of a tile that is read or written soon.
#[inline(always)]
fn prefetch<T>(data: &[T], start: usize) {
    #[cfg(target_arch = "x86_64")]
    if let (true, Some(sse)) = (start < data.len(), pulp::core_arch::x86::Sse::try_new()) {
        for line in data[start..].chunks(64 / size_of::<T>()).take(tile_len::<T>() * size_of::<T>() / 64) {
            sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, start);
}

/// How many rows on (0 or 1), and at which column, the tile begins that is prefetched while `tile` is worked on: 2 KiB ahead.
/// The processor's own prefetching ends with each page, and memory takes longer than a tile.
#[inline(always)]
fn ahead<T>(tile: &Range<usize>, hidden: usize) -> (usize, usize) {
    let column = tile.start + (2048 / size_of::<T>()).min(hidden);
    if column < hidden { (0, column) } else { (1, column - hidden) }
}

/// Works on a tile. Ordinary rows of numbers, nearly all, get code without the multiplications by 1 and the search for NaN.
#[inline(always)]
fn specialised(row: RowScale, numbers: bool, tile: impl FnOnce(RowScale, bool)) {
    if numbers && row.pre == 1.0 { tile(RowScale { pre: 1.0, post: row.post }, true) } else { tile(row, false) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, scratch_len};

    #[test]
    fn conversions_are_those_of_element() {
        fn check(v: f32) {
            for number in [false, !v.is_nan()] {
                assert_eq!(f16::pack(v, number).to_bits(), f16::store(v).to_bits(), "{v:e}");
                assert_eq!(bf16::pack(v, number).to_bits(), bf16::store(v).to_bits(), "{v:e}");
                assert_eq!(f32::pack(v, number).to_bits(), f32::store(v).to_bits(), "{v:e}");
            }
        }
        for bits in 0..=u16::MAX {
            let v = f16::from_bits(bits);
            assert_eq!(canonical(v.unpack()), canonical(v.widen()), "{bits:#x}");
            // Around every f16 and bf16 and around every half-way point between two.
            for (value, half) in [(v.widen(), 1 << 12), (bf16::from_bits(bits).widen(), 1 << 15)] {
                for near in [0, half].into_iter().flat_map(|by| [-1, 0, 1].map(|step| by + step)) {
                    check(f32::from_bits(value.to_bits().wrapping_add_signed(near)));
                }
            }
        }
        for bits in (0..=u32::MAX).step_by(1009) {
            check(f32::from_bits(bits));
        }
    }

    /// Every width of the tables and around their steps, each with every type, weight and offset.
    #[test]
    fn same_bits_as_plain_loops() {
        let mut random = Random(1);
        for hidden in (1..=64).chain([129, 256, 257, 1000, 2048, 2049, 2520, 4097, 16384, 16385, 70000]) {
            for rows in 0..=3 {
                check_all_types(hidden, rows, &mut random);
            }
        }
    }

    /// Either side of the number of row groups, and several rows a group.
    #[test]
    fn same_bits_around_the_number_of_groups() {
        let mut random = Random(2);
        for hidden in [1, 5, 9, 64, 256, 1000, 2048, 2049, 6146, 16385] {
            let groups = column_order(usize::MAX, hidden).groups;
            for rows in [groups - 1, groups, groups + 1, 2 * groups + groups / 3] {
                let dtype = Dtype::ALL[random.below(3)];
                let weight = [None, Some(Dtype::F32), Some(dtype)][random.below(3)];
                Case { rows, hidden, dtype, weight, zero_centred: random.flip(), dense: random.flip() }
                    .check(&mut random);
            }
        }
    }

    fn check_all_types(hidden: usize, rows: usize, random: &mut Random) {
        for dtype in Dtype::ALL {
            for weight in [None, Some(Dtype::F32), Some(dtype)] {
                for zero_centred in [false, true] {
                    let dense = random.flip();
                    Case { rows, hidden, dtype, weight, zero_centred, dense }.check(random);
                }
            }
        }
    }

    #[derive(Debug, Clone, Copy)]
    struct Case {
        rows: usize,
        hidden: usize,
        dtype: Dtype,
        weight: Option<Dtype>,
        zero_centred: bool,
        dense: bool,
    }

    impl Case {
        fn check(self, random: &mut Random) {
            let Case { rows, hidden, dtype, weight, zero_centred, dense } = self;
            let eps = [0.0, 1e-5, f32::from_bits(1)][random.below(3)];
            let mut layout = |read: bool| match (dense, read, random.below(4)) {
                (true, ..) => (0, hidden),
                (_, true, 0) => (random.below(9), 0),
                _ if rows < 2 => (random.below(9), usize::MAX),
                _ => (random.below(9), hidden + random.below(9)),
            };
            let layouts = [layout(true), layout(true), layout(false), layout(false)];
            let x = Matrix::new(dtype, rows, hidden, layouts[0], |r, _| random.element(r));
            let dy = Matrix::new(dtype, rows, hidden, layouts[1], |r, _| random.element(r / 7));
            let mut y = Matrix::new(dtype, rows, hidden, layouts[2], |_, _| random.pattern());
            let mut dx = Matrix::new(dtype, rows, hidden, layouts[3], |_, _| random.pattern());
            let w = weight.map(|t| Buffer::new(t, hidden + 3, |_| random.element(0)));
            let offset = if zero_centred { WeightOffset::One } else { WeightOffset::Zero };
            let weight_vector = || w.as_ref().map(|w| Vector { data: w.slice(), offset: 3 });
            let mut rstd = vec![7.0_f32; rows + 2];
            let forward = Forward {
                rows,
                hidden,
                eps,
                weight_offset: offset,
                x: x.read(),
                weight: weight_vector(),
                y: y.written(),
                rstd: Some(Vector { data: (&mut rstd[..]).into(), offset: 1 }),
            };
            Cpu.forward(forward).unwrap();
            assert_eq!((rstd[0], rstd[rows + 1]), (7.0, 7.0));
            let rstd = &mut rstd[1..=rows];

            let z = |r: usize, c: usize| x.get(r, c);
            let wt = |c: usize| match &w {
                None => 1.0,
                Some(w) if zero_centred => w.get(3 + c) + 1.0,
                Some(w) => w.get(3 + c),
            };
            let plain: Vec<_> = (0..rows).map(|r| plain::statistic(hidden, eps, |c| z(r, c))).collect();
            for r in 0..rows {
                assert_eq!(canonical(rstd[r]), canonical(plain[r].rstd), "{self:?} eps {eps} rstd of row {r}");
            }
            y.assert(|r, c| plain[r].x_hat(z(r, c)) * wt(c), &format!("{self:?} eps {eps} y"));

            // Backward also has to do with an rstd that is not its row's.
            let mut plain = plain;
            for r in 0..rows {
                if random.below(16) == 0 {
                    rstd[r] = [f32::INFINITY, f32::NAN, 1e38, 1e-40, 0.0][random.below(5)];
                }
                plain[r] = plain::from_stored(hidden, rstd[r], |c| z(r, c));
            }
            let groups = column_order(rows, hidden).groups;
            let fill = [f32::NAN, -3e38][random.below(2)];
            let mut scratch = vec![fill; scratch_len(rows, hidden).unwrap() + 5];
            let dw_type = [Dtype::F32, weight.unwrap_or(Dtype::F32)][random.below(2)];
            let mut dw = Matrix::new(dw_type, 1, hidden, (1, hidden), |_, _| random.pattern());
            let wanted = random.below(5) > 0;
            let backward = Backward {
                rows,
                hidden,
                weight_offset: offset,
                x: x.read(),
                weight: weight_vector(),
                rstd: Vector { data: (&*rstd).into(), offset: 0 },
                dy: dy.read(),
                dx: dx.written(),
                dw: wanted.then(|| WeightGradient {
                    dw: Vector { data: dw.buffer.slice_mut(), offset: 1 },
                    scratch: Vector { data: (&mut scratch[..]).into(), offset: 5 },
                }),
            };
            Cpu.backward(backward).unwrap();
            let c: Vec<_> = (0..rows)
                .map(|r| {
                    let terms = (0..hidden).map(|c| (dy.get(r, c) * wt(c), plain[r].x_hat(z(r, c))));
                    plain::reduce(row_order(hidden).chains, terms) / hidden as f32
                })
                .collect();
            let gradient = |r: usize, col: usize| {
                let t = (-plain[r].x_hat(z(r, col))).mul_add(c[r], dy.get(r, col) * wt(col));
                if plain[r].rstd == f32::INFINITY { t * plain[r].root * plain::UP } else { t * plain[r].rstd }
            };
            dx.assert(gradient, &format!("{self:?} dx"));
            if wanted {
                let column = |_: usize, c: usize| {
                    plain::reduce(groups, (0..rows).map(|r| (dy.get(r, c), plain[r].x_hat(z(r, c)))))
                };
                dw.assert(column, &format!("{self:?} dw"));
                assert!(scratch[..5].iter().all(|v| v.to_bits() == fill.to_bits()));
            }
        }
    }

    /// The specification once more, as plain loops.
    mod plain {
        use crate::order::row_order;

        pub(super) const UP: f32 = 1.2676506e30; // 2^100

        pub(super) fn reduce(chains: usize, terms: impl Iterator<Item = (f32, f32)>) -> f32 {
            let mut p = vec![0.0_f32; chains.next_power_of_two()];
            for (i, (a, b)) in terms.enumerate() {
                p[i % chains] = a.mul_add(b, p[i % chains]);
            }
            let mut d = 1;
            while d < p.len() {
                for c in (0..p.len()).step_by(2 * d) {
                    p[c] += p[c + d];
                }
                d *= 2;
            }
            p[0] + 0.0
        }

        #[derive(Clone, Copy)]
        pub(super) struct Row {
            pub(super) rstd: f32,
            pub(super) root: f32,
        }

        impl Row {
            pub(super) fn x_hat(&self, z: f32) -> f32 {
                if self.rstd == f32::INFINITY { (z * UP) * self.root } else { z * self.rstd }
            }
        }

        pub(super) fn statistic(hidden: usize, eps: f32, z: impl Fn(usize) -> f32) -> Row {
            let mean_square = |s: f32| {
                let terms = (0..hidden).map(|c| (z(c) * s, z(c) * s));
                reduce(row_order(hidden).chains, terms) / hidden as f32
            };
            let v = mean_square(1.0) + eps;
            let s = if v == f32::INFINITY {
                1.0 / UP
            } else if v < 2.0_f32.powi(-126) {
                UP
            } else {
                return Row { rstd: 1.0 / v.sqrt(), root: f32::NAN };
            };
            let root = 1.0 / (mean_square(s) + (eps * s) * s).sqrt();
            Row { rstd: s * root, root }
        }

        pub(super) fn from_stored(hidden: usize, rstd: f32, z: impl Fn(usize) -> f32) -> Row {
            let terms = (0..hidden).map(|c| (z(c) * UP, z(c) * UP));
            let root = if rstd == f32::INFINITY {
                1.0 / (reduce(row_order(hidden).chains, terms) / hidden as f32).sqrt()
            } else {
                f32::NAN
            };
            Row { rstd, root }
        }
    }

    /// NaNs unified.
    fn canonical(v: f32) -> u32 {
        if v.is_nan() { 0x7fff_ffff } else { v.to_bits() }
    }

    enum Buffer {
        F32(Vec<f32>),
        F16(Vec<f16>),
        Bf16(Vec<bf16>),
    }

    impl Buffer {
        fn new(dtype: Dtype, len: usize, mut element: impl FnMut(usize) -> f32) -> Buffer {
            match dtype {
                Dtype::F32 => Buffer::F32((0..len).map(&mut element).collect()),
                Dtype::F16 => Buffer::F16((0..len).map(|i| f16::from_f32(element(i))).collect()),
                Dtype::Bf16 => Buffer::Bf16((0..len).map(|i| bf16::from_f32(element(i))).collect()),
            }
        }
        fn slice(&self) -> Slice<'_> {
            match self {
                Buffer::F32(v) => (&v[..]).into(),
                Buffer::F16(v) => (&v[..]).into(),
                Buffer::Bf16(v) => (&v[..]).into(),
            }
        }
        fn slice_mut(&mut self) -> SliceMut<'_> {
            match self {
                Buffer::F32(v) => (&mut v[..]).into(),
                Buffer::F16(v) => (&mut v[..]).into(),
                Buffer::Bf16(v) => (&mut v[..]).into(),
            }
        }
        fn get(&self, i: usize) -> f32 {
            match self {
                Buffer::F32(v) => v[i],
                Buffer::F16(v) => v[i].to_f32(),
                Buffer::Bf16(v) => v[i].to_f32(),
            }
        }
        fn len(&self) -> usize {
            match self {
                Buffer::F32(v) => v.len(),
                Buffer::F16(v) => v.len(),
                Buffer::Bf16(v) => v.len(),
            }
        }
        /// The bits that are stored, and those that `v` would be stored as.
        fn bits(&self, i: usize, v: f32) -> (u32, u32) {
            match self {
                Buffer::F32(s) => (s[i].to_bits(), canonical(v)),
                Buffer::F16(s) => {
                    (s[i].to_bits().into(), if v.is_nan() { 0x7fff } else { f16::from_f32(v).to_bits().into() })
                }
                Buffer::Bf16(s) => {
                    (s[i].to_bits().into(), if v.is_nan() { 0x7fff } else { bf16::from_f32(v).to_bits().into() })
                }
            }
        }
    }

    struct Matrix {
        buffer: Buffer,
        before: Vec<f32>,
        rows: usize,
        hidden: usize,
        offset: usize,
        row_stride: usize,
    }

    impl Matrix {
        fn new(
            dtype: Dtype,
            rows: usize,
            hidden: usize,
            (offset, row_stride): (usize, usize),
            mut element: impl FnMut(usize, usize) -> f32,
        ) -> Matrix {
            let stride = if rows < 2 { hidden } else { row_stride };
            let len = if rows == 0 { 0 } else { offset + (rows - 1) * stride + hidden + 2 };
            let buffer = Buffer::new(dtype, len, |i| element(i / stride.max(hidden), i % stride.max(hidden)));
            let before = (0..buffer.len()).map(|i| buffer.get(i)).collect();
            Matrix { buffer, before, rows, hidden, offset, row_stride }
        }
        fn read(&self) -> Rows<Slice<'_>> {
            Rows { data: self.buffer.slice(), offset: self.offset, row_stride: self.row_stride }
        }
        fn written(&mut self) -> Rows<SliceMut<'_>> {
            Rows { data: self.buffer.slice_mut(), offset: self.offset, row_stride: self.row_stride }
        }
        fn get(&self, r: usize, c: usize) -> f32 {
            self.buffer.get(self.offset + r.checked_mul(self.row_stride).unwrap() + c)
        }
        /// Every element of every row is as `expected` says, every other one as it was.
        fn assert(&self, expected: impl Fn(usize, usize) -> f32, what: &str) {
            for i in 0..self.buffer.len() {
                let inside = i.checked_sub(self.offset).map(|i| (i / self.row_stride, i % self.row_stride));
                let (got, bits) = match inside {
                    Some((r, c)) if r < self.rows && c < self.hidden => self.buffer.bits(i, expected(r, c)),
                    _ => self.buffer.bits(i, self.before[i]),
                };
                assert_eq!(
                    got, bits,
                    "{what}: element {i}, row and column {inside:?}: got {got:#x}, expected {bits:#x}"
                );
            }
        }
    }

    /// SplitMix64.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }
        fn below(&mut self, n: usize) -> usize {
            (self.next() >> 33) as usize % n
        }
        fn flip(&mut self) -> bool {
            self.below(2) == 0
        }
        fn pattern(&mut self) -> f32 {
            [f32::from_bits(0x7fff_ffff), 5.0][self.below(2)]
        }
        /// An element of row `row`, which decides the magnitude; now and then a special value.
        fn element(&mut self, row: usize) -> f32 {
            let scale = [1.0, 1e-30, 1e30, 1e-40, 3e38, 0.0, 1.0, 1e-5, 1e-4, 4e4, 1.0]
                [(row * 5 + self.0 as usize % 2 * 3) % 11];
            let unit = (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
            match self.below(3000) {
                0 => f32::INFINITY,
                1 => f32::from_bits(0xffc0_1234),
                2..30 => -0.0,
                30..40 => f32::from_bits(3),
                _ => unit * scale,
            }
        }
    }
}
