//! Rows of two levels that are refused, and their neighbours that are not.

use super::{CLAIM_HIDDEN, CLAIM_ROWS, Claim, Judge};
use crate::finding::Stop;
use rmsnorm_cuda::{Backward, BiasGradient, Dtype, Error, Forward, Rows, Vector, WeightGradient, scratch_len};

/// Rows of two levels in 3 groups of 2: what is written must nest, and is compared with other operands level by level.
pub(super) fn two_levels(judge: &mut Judge<'_>) -> Result<(), Stop> {
    let (rows, hidden) = (CLAIM_ROWS, CLAIM_HIDDEN);
    let data = Claim { dtype: Dtype::F32, elements: 1 << 10, address: 1 << 20 };
    let elsewhere = Claim { address: 1 << 30, ..data };
    let view = |data, outer, row_stride| Rows { outer_stride: Some(outer), ..Rows::strided(data, 0, row_stride) };
    let check = |x, y| Forward { inner: 2, ..Forward::with_rows((rows, hidden), 0.0, x, y) }.check();
    let good = |what: &str, checked: Result<(), Error>| checked.map_err(|e| Stop::Failed(format!("{what}: {e}")));
    // One behind the other, side by side, with gaps between both; each with an element less.
    let of_y = |outer, row_stride| check(Rows::contiguous(elsewhere, hidden), view(data, outer, row_stride));
    for (outer, row_stride) in [(2 * hidden, hidden), (hidden, 3 * hidden), (2 * hidden + 1, hidden + 1)] {
        good(&format!("groups of y {outer} apart, their rows {row_stride}"), of_y(outer, row_stride))?;
    }
    let stride: &dyn Fn(&Error) -> bool = &|e| matches!(e, Error::RowStride { operand: "y", .. });
    let levels: &dyn Fn(&Error) -> bool = &|e| matches!(e, Error::RowLevels { operand: "y", counts: [3, 2], .. });
    judge("groups of y that overlap", of_y(2 * hidden - 1, hidden), levels)?;
    judge("groups of y that overlap, with gaps", of_y(2 * hidden, hidden + 1), levels)?;
    judge("rows of groups of y that overlap", of_y(3 * hidden, hidden - 1), stride)?;
    judge("rows of y side by side that overlap", of_y(hidden, 3 * hidden - 1), levels)?;
    judge("groups of y side by side that overlap", of_y(hidden - 1, 3 * hidden), stride)?;
    judge("groups of y at one place", of_y(0, hidden), stride)?;
    // No two rows overlap here, and neither level nests in the other: only what is read may lie so.
    judge("y that does not nest", of_y(2 * hidden, 3 * hidden), levels)?;
    let of_x = |outer, row_stride| check(view(data, outer, row_stride), Rows::contiguous(elsewhere, hidden));
    for (outer, row_stride) in [(2 * hidden, 3 * hidden), (0, hidden), (hidden, 0), (0, 0)] {
        good(&format!("groups of x {outer} apart, their rows {row_stride}"), of_x(outer, row_stride))?;
    }
    // Of five heads in one buffer x has two and y others, or not.
    let heads = |first: usize| Rows { offset: first * hidden, ..view(data, 5 * hidden, hidden) };
    let overlap: &dyn Fn(&Error) -> bool = &|e| matches!(e, Error::Overlap { output: "y", other: "x", .. });
    for y in [0, 2, 3] {
        good(&format!("x at head 0, y at head {y}"), check(heads(0), heads(y)))?;
    }
    for y in [1, 4, 6] {
        judge(&format!("x at head 0, y at head {y}"), check(heads(0), heads(y)), overlap)?;
    }
    for offset in [2 * hidden - 1, 3 * hidden + 1] {
        let y = Rows { offset, ..heads(0) };
        judge("heads of x and y that share one element", check(heads(0), y), overlap)?;
    }
    Ok(())
}

/// What there is once a head, of two heads: each has all its elements, or the call is refused.
pub(super) fn heads(judge: &mut Judge<'_>) -> Result<(), Stop> {
    let (rows, hidden, inner) = (CLAIM_ROWS, CLAIM_HIDDEN, 2);
    let claim = |i: u64, elements| Claim { dtype: Dtype::F32, elements, address: i << 30 };
    let all = rows * hidden;
    let scratch = inner * scratch_len(rows / inner, hidden).expect("a legal width");
    let needed = [inner * hidden, inner * hidden, inner * hidden, scratch, inner * hidden, scratch];
    let check = |elements: [usize; 6]| {
        let vector = |i: usize| Vector::from(claim(10 + i as u64, elements[i]));
        let forward = Forward {
            inner,
            per_head: true,
            weight: Some(vector(0)),
            bias: Some(vector(1)),
            ..Forward::new((rows, hidden), 0.0, claim(1, all), claim(2, all))
        };
        let backward = Backward {
            inner,
            per_head: true,
            weight: Some(vector(0)),
            dw: Some(WeightGradient { dw: vector(2), scratch: vector(3) }),
            db: Some(BiasGradient { db: vector(4), scratch: vector(5) }),
            ..Backward::new((rows, hidden), claim(1, all), claim(4, rows), claim(2, all), claim(3, all))
        };
        forward.check().and_then(|()| backward.check())
    };
    check(needed).map_err(|e| Stop::Failed(format!("heads: {e}")))?;
    for (i, name) in ["weight", "bias", "dw", "scratch", "db", "db_scratch"].into_iter().enumerate() {
        let mut short = needed;
        short[i] -= 1;
        let is_it: &dyn Fn(&Error) -> bool =
            &|e| matches!(e, Error::Length { operand, needed: n, .. } if *operand == name && *n == needed[i]);
        judge(&format!("{name} of two heads, an element too short"), check(short), is_it)?;
    }
    Ok(())
}
