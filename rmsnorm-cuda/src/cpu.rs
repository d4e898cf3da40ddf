//! The CPU executor: walks the orders of [`order`](crate::order) with the functions of [`arith`](crate::arith).
//!
//! Chains are neighbouring accumulators, so every loop below runs along neighbouring elements and the compiler vectorises it.
//! [`pulp`] compiles each loop for the instruction sets it knows and picks one at run time; without that, `mul_add` would be a
//! library call per element. Rayon shares the rows out. Neither reaches a bit, nor does what a thread or process came from:
//! `share` gives no job to a thread that would compute it otherwise, nor to threads that a fork left behind.

#![forbid(unsafe_code)]

mod convert;
mod layer;
mod memory;
mod row;
mod threads;

use self::convert::Packed;
pub use self::layer::Layer;
use self::memory::{Aligned, Layout, Read, Written, effective_weights, floats, floats_mut};
use self::row::{
    Accumulators, Row, add_products, add_squares, ahead, gradients, normalise, prefetch, products, specialised,
    squares, tiles, tree,
};
use self::threads::{JOB, rows_per_job, share, threads};
use crate::arith::{Element, SCALE_UP, added, environment, fold, mean, row_scale, scaled_root, statistic, total};
use crate::order::{column_order, row_order};
use crate::{
    Backward, Error, Executor, Forward, Residual, Rounding, Slice, SliceMut, Vector, WeightGradient, with_dtype,
};
use pulp::{Simd, WithSimd};

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
        let Forward { rows, hidden, eps, weight_offset, rounding, x, residual, weight, y, rstd } = call;
        if rows == 0 {
            return Ok(());
        }
        let weight = &*effective_weights(weight, weight_offset, hidden);
        let rstd = rstd.map_or(&mut [][..], |rstd| floats_mut(rstd, rows));
        let at = Layout::new(&y, rows, hidden);
        match residual {
            None => with_dtype!(Slice(xs) = x.data, SliceMut(ys) = y.data => {
                forward(Read::new(xs, &x), None, weight, (eps, rounding), at.of(ys), rstd)
            }),
            Some(Residual { residual, z }) => {
                let z_at = Layout::new(&z, rows, hidden);
                with_dtype!(Slice(xs) = x.data, Slice(others) = residual.data, SliceMut(zs) = z.data, SliceMut(ys) = y.data => {
                    let sum = (Read::new(others, &residual), z_at.of(zs));
                    forward(Read::new(xs, &x), Some(sum), weight, (eps, rounding), at.of(ys), rstd)
                })
            }
        }
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        environment()?;
        let Backward { rows, hidden, weight_offset, rounding, x, weight, rstd, dy, dz, dx, dw } = call;
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
            let there = dz.is_some();
            let dz = dz.unwrap_or(dy);
            with_dtype!(Slice(xs) = x.data, Slice(dys) = dy.data, Slice(dzs) = dz.data, SliceMut(dxs) = dx.data => {
                let dz = there.then(|| Read::new(dzs, &dz));
                backward(Read::new(xs, &x), weight, rounding, rstd, Read::new(dys, &dy), dz, at.of(dxs), scratch)
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

// Forward -----------------------------------------------------------------------------------------------------------------

/// `sum`: what is added to x, and where the sums go.
fn forward<T: Packed>(
    x: Read<T>,
    sum: Option<(Read<T>, Written<T>)>,
    weight: &[f32],
    (eps, rounding): (f32, Rounding),
    y: Written<T>,
    rstd: &mut [f32],
) -> Result<(), Error> {
    let (hidden, twice) = (weight.len(), rounding == Rounding::Twice);
    let rows_per_job = rows_per_job(y.data.len().div_ceil(y.row_stride), hidden);
    let mut rstd = rstd.chunks_mut(rows_per_job);
    let y_stride = y.row_stride;
    let ys = y.data.chunks_mut(rows_per_job.saturating_mul(y_stride));
    let (residual, z) = sum.unzip();
    let z_stride = z.as_ref().map_or(1, |z| z.row_stride);
    let mut zs = z.map(|z| z.data.chunks_mut(rows_per_job.saturating_mul(z_stride)));
    let jobs = ys.map(|y| (y, rstd.next().unwrap_or_default(), zs.as_mut().and_then(Iterator::next))).collect();
    share(
        jobs,
        || Accumulators::new(row_order(hidden).chains, hidden),
        |acc, job, (y, rstd, z)| {
            let first_row = job * rows_per_job;
            let (x, first_row) = match (residual, z) {
                (Some(residual), Some(z)) => {
                    pulp::Arch::new().dispatch(Sums { x, residual, first_row, hidden, z: &mut *z, z_stride });
                    (Read::of_rows(z, z_stride), 0)
                }
                _ => (x, first_row),
            };
            pulp::Arch::new().dispatch(ForwardJob { x, weight, eps, twice, first_row, y, y_stride, rstd, acc });
        },
    )
}

/// §5 The sums of neighbouring rows, stored: a job is small enough to find them in its cache.
struct Sums<'a, T> {
    x: Read<'a, T>,
    residual: Read<'a, T>,
    first_row: usize,
    hidden: usize,
    z: &'a mut [T],
    z_stride: usize,
}

impl<T: Packed> WithSimd for Sums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Sums { x, residual, first_row, hidden, z, z_stride } = self;
        for (i, z) in z.chunks_mut(z_stride).enumerate() {
            let (x, residual) = (x.row(first_row + i, hidden), residual.row(first_row + i, hidden));
            for ((z, x), residual) in z.iter_mut().zip(x).zip(residual) {
                *z = T::pack(added(x.unpack(), residual.unpack()), false);
            }
        }
    }
}

/// Neighbouring rows; `rstd` is empty if it is not wanted.
struct ForwardJob<'a, T> {
    x: Read<'a, T>,
    weight: &'a [f32],
    eps: f32,
    twice: bool,
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
        let ForwardJob { x, weight, eps, twice, first_row, y, y_stride, rstd, acc } = self;
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
                specialised(scale, numbers, |scale, numbers| {
                    normalise(&row[tile.clone()], scale, (numbers, twice), weight, y)
                });
            }
            if let Some(next) = next {
                (sum, row) = (tree(acc), next);
            }
        }
    }
}

// Backward ----------------------------------------------------------------------------------------------------------------

/// Each job takes some neighbouring row groups and walks all their rows, so that their sums stay in its cache and the rows it
/// touches are neighbours. `scratch` holds the partials; it is empty if dw is not wanted: then every row is a job's own.
#[allow(clippy::too_many_arguments, reason = "the operands of a call")]
fn backward<T: Packed>(
    x: Read<T>,
    weight: &[f32],
    rounding: Rounding,
    rstd: &[f32],
    dy: Read<T>,
    dz: Option<Read<T>>,
    dx: Written<T>,
    scratch: &mut [f32],
) -> Result<(), Error> {
    let (hidden, twice) = (weight.len(), rounding == Rounding::Twice);
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
        || {
            let order = row_order(hidden);
            let accumulators = [order.dot_chains, order.chains].map(|chains| Accumulators::new(chains, hidden));
            (accumulators, Aligned::new(sums_len))
        },
        |([acc, squares_acc], sums), job, (steps, partials)| {
            let (first_group, dx_stride) = (job * per_job, dx.row_stride);
            let sums = &mut sums[..partials.len()];
            sums.fill(0.0); // Where chains start.
            let job = BackwardJob {
                x,
                weight,
                twice,
                rstd,
                dy,
                dz,
                groups,
                first_group,
                steps,
                dx_stride,
                partials: sums,
                acc,
                squares_acc,
            };
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
    twice: bool,
    rstd: &'a [f32],
    dy: Read<'a, T>,
    dz: Option<Read<'a, T>>,
    groups: usize,
    first_group: usize,
    steps: Vec<&'a mut [T]>,
    dx_stride: usize,
    partials: &'a mut [f32],
    acc: &'a mut Accumulators,
    /// Of the statistic, which a row whose rstd is infinite needs again.
    squares_acc: &'a mut Accumulators,
}

impl<T: Packed> WithSimd for BackwardJob<'_, T> {
    type Output = ();

    /// As in forward, the next row is read while one is written.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let BackwardJob { x, weight, twice, rstd, dy, dz, groups, first_group, steps, dx_stride, partials, .. } = self;
        let (acc, squares_acc) = (self.acc, self.squares_acc);
        let hidden = weight.len();
        let rows = steps.into_iter().enumerate().flat_map(|(step, rows)| {
            rows.chunks_mut(dx_stride).enumerate().map(move |(i, dx)| (step * groups + first_group + i, i, dx))
        });
        let mut rows = rows.peekable();
        let operands = |r: usize, squares_acc: &mut Accumulators| {
            let x = x.row(r, hidden);
            let scale = row_scale(rstd[r], || scaled_root(squares(x, SCALE_UP, squares_acc), hidden as f32));
            Row { x, dy: dy.row(r, hidden), scale }
        };
        let mut row = operands(first_group, squares_acc);
        let mut sum = products(row, weight, acc);
        while let Some((r, i, dx)) = rows.next() {
            // If c is finite then every x_hat and wdy is, and with them no gradient is NaN: where rstd is 0, so is x_hat, and t
            // is wdy, finite.
            let c = mean(sum, hidden as f32);
            let next = rows.peek().map(|&(r, i, _)| {
                // After the row of the job's last group comes that of its first, a step of all groups further on.
                let after_next = if (i + 1) * hidden == partials.len() { r + groups - i } else { r + 1 };
                (operands(r, squares_acc), [r, after_next])
            });
            acc.clear();
            for tile in tiles::<T>(hidden) {
                let (rows_on, column) = ahead::<T>(&tile, hidden);
                if let Some((next, rows_ahead)) = &next {
                    x.prefetch(rows_ahead[rows_on], column);
                    dy.prefetch(rows_ahead[rows_on], column);
                    let (next, weight, chains) = (next.tile(&tile), &weight[tile.clone()], acc.chains(&tile));
                    specialised(next.scale, true, |scale, _| add_products(Row { scale, ..next }, weight, chains));
                }
                match rows.peek() {
                    Some((.., next_dx)) if rows_on == 1 => prefetch(next_dx, column),
                    _ => prefetch(dx, column),
                }
                let partial = partials.get_mut(i * hidden..(i + 1) * hidden).map(|p| &mut p[tile.clone()]);
                let (row, weight, dx) = (row.tile(&tile), &weight[tile.clone()], &mut dx[tile.clone()]);
                let dz = dz.map(|dz| &dz.row(r, hidden)[tile]);
                specialised(row.scale, c.is_finite(), |scale, number| {
                    gradients(Row { scale, ..row }, c, (number, twice), weight, dz, dx, partial)
                });
            }
            if let Some((next, _)) = next {
                (sum, row) = (tree(acc), next);
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
