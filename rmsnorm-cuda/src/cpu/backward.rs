//! Backward over rows: dx, and the partial rows of dw.

use super::convert::Packed;
use super::memory::{Aligned, Pieces, Read, Written};
use super::row::{
    Accumulators, Held, Row, add_products, ahead, gradients, prefetch, products, specialised, squares, tiles, tree,
};
use super::threads::{JOB, rows_per_job, share};
use super::{memory, vectorized};
use crate::arith::{SCALE_UP, mean, row_scale, scaled_root};
use crate::order::row_order;
use crate::{Error, Input, Rounding};
use pulp::{Simd, WithSimd};

/// What backward reads. Each of the matrices may lie in dx.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a, T> {
    pub(super) x: Input<Read<'a, T>>,
    pub(super) dy: Input<Read<'a, T>>,
    pub(super) dz: Option<Input<Read<'a, T>>>,
    pub(super) rstd: &'a [f32],
    pub(super) hidden: usize,
}

/// Each job takes some neighbouring row groups and walks all their rows, so that their sums stay in its cache and the rows it
/// touches are neighbours. `scratch` holds the partials; it is empty if dw is not wanted: then every row is a job's own.
pub(super) fn backward<T: Packed>(
    of: Operands<T>,
    weight: &[f32],
    rounding: Rounding,
    dx: Written<T>,
    scratch: &mut [f32],
) -> Result<(), Error> {
    let (hidden, twice) = (of.hidden, rounding == Rounding::Twice);
    let scratch_len = scratch.len();
    let (groups, per_job, jobs) = jobs(dx, scratch, of.rstd.len(), hidden);
    let sums_len = scratch_len.min(per_job * hidden);
    share(
        jobs,
        || {
            let order = row_order(hidden);
            let accumulators = [order.dot_chains, order.chains].map(|chains| Accumulators::new(chains, hidden));
            (accumulators, Aligned::new(sums_len))
        },
        |([acc, squares_acc], sums), job, (steps, partials)| {
            let first_group = job * per_job;
            let sums = &mut sums[..partials.len()];
            sums.fill(0.0); // Where chains start.
            let job =
                BackwardJob { of, weight, twice, groups, first_group, steps, partials: &mut *sums, acc, squares_acc };
            vectorized(job);
            partials.copy_from_slice(sums);
        },
    )
}

/// Number of row groups, and of those of a job; and of each job dx, step by step, and the partials, if there is scratch for them.
#[allow(clippy::type_complexity, reason = "said above")]
pub(super) fn jobs<W: Pieces>(
    dx: W,
    scratch: &mut [f32],
    rows: usize,
    hidden: usize,
) -> (usize, usize, Vec<(Vec<W>, &mut [f32])>) {
    let groups = if scratch.is_empty() { rows } else { scratch.len() / hidden };
    let per_job = if scratch.is_empty() { rows_per_job(groups, hidden) } else { (JOB / hidden).max(1) };
    let mut partials = scratch.chunks_mut(per_job * hidden);
    let mut jobs: Vec<_> =
        (0..groups.div_ceil(per_job)).map(|_| (Vec::new(), partials.next().unwrap_or_default())).collect();
    for step in dx.pieces(groups) {
        for (job, rows) in jobs.iter_mut().zip(step.pieces(per_job)) {
            job.0.push(rows);
        }
    }
    (groups, per_job, jobs)
}

/// Neighbouring row groups. `steps[i]` is dx of the rows i·groups + first_group and following, one for each group (fewer in
/// the last step); `partials` has a row for each group, or is empty.
struct BackwardJob<'a, T> {
    of: Operands<'a, T>,
    weight: &'a [f32],
    twice: bool,
    groups: usize,
    first_group: usize,
    steps: Vec<Written<'a, T>>,
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
        let BackwardJob { of, weight, twice, groups, first_group, steps, partials, .. } = self;
        let (acc, squares_acc) = (self.acc, self.squares_acc);
        let hidden = weight.len();
        let (x, dy, dz) = (memory(of.x), memory(of.dy), of.dz.map(memory));
        let mut held = Held::new();
        let rows = steps.into_iter().enumerate().flat_map(|(step, rows)| {
            rows.into_rows().enumerate().map(move |(i, dx)| (step * groups + first_group + i, i, dx))
        });
        let mut rows = rows.peekable();
        let Some((r, _, dx)) = rows.peek() else { return };
        let first = of.row(*r, dx, squares_acc);
        let (mut sum, mut scale) = (products(first, weight, acc), first.scale);
        while let Some((r, i, dx)) = rows.next() {
            // If c is finite then every x_hat and wdy is, and with them no gradient is NaN: where rstd is 0, so is x_hat, and t
            // is wdy, finite.
            let c = mean(sum, hidden as f32);
            let next = rows.peek().map(|(r, i, dx)| {
                // After the row of the job's last group comes that of its first, a step of all groups further on.
                let after_next = if (i + 1) * hidden == partials.len() { r + groups - i } else { r + 1 };
                (of.row(*r, dx, squares_acc), [*r, after_next], &**dx)
            });
            let [x_row, dy_row] = [x, dy].map(|read| read.map(|rows| rows.row(r, hidden)));
            let dz_row = dz.map(|read| read.map(|rows| rows.row(r, hidden)));
            acc.clear();
            for tile in tiles::<T>(hidden) {
                let (rows_on, column) = ahead::<T>(&tile, hidden);
                if let Some((next, rows_ahead, _)) = &next {
                    [x, dy].iter().flatten().for_each(|read| read.prefetch(rows_ahead[rows_on], column, tile.len()));
                    let (next, weight, chains) = (next.tile(&tile), &weight[tile.clone()], acc.chains(&tile));
                    specialised(
                        next.scale,
                        true,
                        #[inline(always)]
                        |scale, _| add_products(Row { scale, ..next }, weight, chains),
                    );
                }
                match &next {
                    Some((.., next_dx)) if rows_on == 1 => prefetch(next_dx, column, tile.len()),
                    _ => prefetch(dx, column, tile.len()),
                }
                let partial = partials.get_mut(i * hidden..(i + 1) * hidden).map(|p| &mut p[tile.clone()]);
                let (weight, dx) = (&weight[tile.clone()], &mut dx[tile.clone()]);
                // What lies in dx is all the same.
                let is_there = [x_row, dy_row, dz_row.unwrap_or(x_row)].iter().all(Option::is_some);
                let held = if is_there { &[][..] } else { held.copy(dx) };
                let [x, dy] = [x_row, dy_row].map(|row| row.map_or(held, |row| &row[tile.clone()]));
                let (row, dz) = (Row { x, dy, scale }, dz_row.map(|row| row.map_or(held, |row| &row[tile.clone()])));
                specialised(
                    scale,
                    c.is_finite(),
                    #[inline(always)]
                    |scale, number| {
                        gradients::<T, T>(Row { scale, ..row }, c, (number, twice), weight, dz, dx, partial)
                    },
                );
            }
            if let Some((next, ..)) = next {
                (sum, scale) = (tree(acc), next.scale);
            }
        }
    }
}

impl<'a, T: Packed> Operands<'a, T> {
    /// What is read of row `r` for its dot product; `dx` is what the row of dx holds before it is written.
    #[inline(always)]
    fn row<'b>(&self, r: usize, dx: &'b [T], squares_acc: &mut Accumulators) -> Row<'b, T>
    where
        'a: 'b,
    {
        let row = |input| memory(input).map_or(&dx[..self.hidden], |rows| rows.row(r, self.hidden));
        let x = row(self.x);
        let root = || scaled_root(squares(x, SCALE_UP, squares_acc), self.hidden as f32);
        Row { x, dy: row(self.dy), scale: row_scale(self.rstd[r], root) }
    }
}
