//! The partial rows of db, and from partial rows to the gradients of weight and bias.

use super::convert::Packed;
use super::memory::Read;
use super::threads::{JOB, share};
use super::vectorized;
use crate::Error;
use crate::arith::{chain, fold, total};
use pulp::{Simd, WithSimd};

/// §7 The partials of db: a job takes some neighbouring row groups, as in backward, and reads dy once more.
pub(super) fn bias_partials<T: Packed>(
    dy: Read<T>,
    rows: usize,
    hidden: usize,
    partials: &mut [f32],
) -> Result<(), Error> {
    let (groups, per_job) = (partials.len() / hidden, (JOB / hidden).max(1));
    share(
        partials.chunks_mut(per_job * hidden).collect(),
        || (),
        |_, job, partials: &mut [f32]| {
            vectorized(BiasJob { dy, rows, hidden, groups, first_group: job * per_job, partials });
        },
    )
}

/// Neighbouring row groups, with a row of `partials` for each.
struct BiasJob<'a, T> {
    dy: Read<'a, T>,
    rows: usize,
    hidden: usize,
    groups: usize,
    first_group: usize,
    partials: &'a mut [f32],
}

impl<T: Packed> WithSimd for BiasJob<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let BiasJob { dy, rows, hidden, groups, first_group, partials } = self;
        partials.fill(0.0); // Where chains start.
        for step in (0..rows).step_by(groups) {
            for (i, partial) in partials.chunks_mut(hidden).enumerate() {
                let row = step + first_group + i;
                if row < rows {
                    let terms = partial.iter_mut().zip(dy.row(row, hidden));
                    terms.for_each(|(partial, dy)| *partial = chain(dy.unpack(), 1.0, *partial));
                }
            }
        }
    }
}

/// §7 The tree over the row groups, in place, and the one rounding, of dw or db. No groups: +0.0.
pub(super) fn column_sums<T: Packed>(partials: &mut [f32], dw: &mut [T]) -> Result<(), Error> {
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
