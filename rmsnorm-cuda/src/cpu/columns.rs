//! From the partial rows to the weight's gradient.

use super::convert::Packed;
use super::threads::{JOB, share};
use crate::Error;
use crate::arith::{fold, total};

/// §7 The tree over the row groups, in place, and the one rounding. No groups: +0.0.
pub(super) fn weight_gradient<T: Packed>(partials: &mut [f32], dw: &mut [T]) -> Result<(), Error> {
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
