//! The literal executor: the specification with plain loops. No SIMD, no threads, no blocks, and of the plan only the two
//! orders; none of the functions of `rmsnorm_cuda::arith`. Every executor must return its bits.

use crate::elements::{get, put, rounded};
use rmsnorm_cuda::plan::{column_order, row_order};
use rmsnorm_cuda::{
    Backward, Dtype, Error, Executor, Forward, Operand, Rounding, Rows, Slice, SliceMut, Vector, WeightOffset,
};
use std::ops::Range;

/// The specification, read aloud.
#[derive(Clone, Copy, Debug, Default)]
pub struct Literal;

impl Executor for Literal {
    fn name(&self) -> String {
        "literal".into()
    }

    fn forward(&self, mut call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        for i in 0..call.rows {
            let mut z: Vec<f32> = (0..call.hidden).map(|j| element(&call.x, i, j)).collect();
            if let Some(sum) = &mut call.residual {
                for (j, z) in z.iter_mut().enumerate() {
                    let at = sum.z.offset + i * sum.z.row_stride + j;
                    put(&mut sum.z.data, at, *z + element(&sum.residual, i, j));
                    *z = get(sum.z.data.as_slice(), at);
                }
            }
            let v = mean_square(&z, 1.0) + call.eps;
            let rstd = match v {
                f32::INFINITY => DOWN * (1.0 / (mean_square(&z, DOWN) + (call.eps * DOWN) * DOWN).sqrt()),
                _ if v < f32::MIN_POSITIVE => UP * (1.0 / (mean_square(&z, UP) + (call.eps * UP) * UP).sqrt()),
                _ => 1.0 / v.sqrt(),
            };
            for (j, x_hat) in normalised(&z, rstd).0.into_iter().enumerate() {
                let y =
                    weighted(factor(x_hat, call.rounding, call.x.data.dtype()), &call.weight, call.weight_offset, j);
                put(&mut call.y.data, call.y.offset + i * call.y.row_stride + j, y);
            }
            call.rstd.iter_mut().for_each(|out| put(&mut out.data, out.offset + i, rstd));
        }
        Ok(())
    }

    fn backward(&self, mut call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        let n = call.hidden;
        for i in 0..call.rows {
            let z: Vec<f32> = (0..n).map(|j| element(&call.x, i, j)).collect();
            let rstd = get(call.rstd.data, call.rstd.offset + i);
            let (x_hat, root) = normalised(&z, rstd);
            let wdy = |j| weighted(element(&call.dy, i, j), &call.weight, call.weight_offset, j);
            let c = reduce(row_order(n).dot_chains, n, 1, |j, _| (wdy(j), x_hat[j]))[0] / n as f32;
            for (j, x_hat) in x_hat.iter().enumerate() {
                let t = (-x_hat).mul_add(c, wdy(j));
                let dx = match &call.dz {
                    None if rstd == f32::INFINITY => (t * root) * UP,
                    None => t * rstd,
                    Some(dz) if rstd == f32::INFINITY => (t * root).mul_add(UP, element(dz, i, j)),
                    Some(dz) => t.mul_add(rstd, element(dz, i, j)),
                };
                put(&mut call.dx.data, call.dx.offset + i * call.dx.row_stride + j, dx);
            }
        }
        if let Some(mut out) = call.dw.take() {
            let sums = dw_columns(&call, 0..n);
            (0..n).for_each(|j| put(&mut out.dw.data, out.dw.offset + j, sums[j]));
        }
        Ok(())
    }
}

/// §7 for some of the columns, before the one rounding to the type of `dw`.
pub(crate) fn dw_columns(call: &Backward<Slice<'_>, SliceMut<'_>>, columns: Range<usize>) -> Vec<f32> {
    let (mut row, mut x_hat) = (usize::MAX, Vec::new());
    reduce(column_order(call.rows, call.hidden).groups, call.rows, columns.len(), |i, j| {
        if row != i {
            let rstd = get(call.rstd.data, call.rstd.offset + i);
            // Only a row whose rstd is +Inf must be read whole.
            let read = if rstd == f32::INFINITY { 0..call.hidden } else { columns.clone() };
            let z: Vec<f32> = read.clone().map(|k| element(&call.x, i, k)).collect();
            (row, x_hat) = (i, normalised(&z, rstd).0.split_off(columns.start - read.start));
        }
        (element(&call.dy, i, columns.start + j), factor(x_hat[j], call.rounding, call.x.data.dtype()))
    })
}

/// §2 for `width` sums side by side: `term(i, j)` is the pair that sum `j` multiplies in step `i`.
fn reduce(chains: usize, steps: usize, width: usize, mut term: impl FnMut(usize, usize) -> (f32, f32)) -> Vec<f32> {
    let nodes = chains.next_power_of_two();
    let mut p = vec![0.0_f32; nodes * width];
    for i in 0..steps {
        for (j, chain) in p[i % chains * width..][..width].iter_mut().enumerate() {
            let (a, b) = term(i, j);
            *chain = a.mul_add(b, *chain);
        }
    }
    for distance in (0..nodes.ilog2()).map(|level| 1 << level) {
        for node in p.chunks_mut(2 * distance * width) {
            (0..width).for_each(|j| node[j] += node[distance * width + j]);
        }
    }
    p[..width].iter().map(|sum| sum + 0.0).collect()
}

/// §3 and §4: the mean of `(z·s)²`.
fn mean_square(z: &[f32], s: f32) -> f32 {
    reduce(row_order(z.len()).chains, z.len(), 1, |j, _| (z[j] * s, z[j] * s))[0] / z.len() as f32
}

/// §4 `x_hat`, and rstd or, if that is +Inf, `r'`.
fn normalised(z: &[f32], rstd: f32) -> (Vec<f32>, f32) {
    if rstd != f32::INFINITY {
        return (z.iter().map(|z| z * rstd).collect(), rstd);
    }
    let root = 1.0 / mean_square(z, UP).sqrt();
    (z.iter().map(|z| (z * UP) * root).collect(), root)
}

/// §5 and §7: what the weight, or dy, multiplies.
fn factor(x_hat: f32, rounding: Rounding, dtype: Dtype) -> f32 {
    if rounding == Rounding::Twice { rounded(dtype, x_hat) } else { x_hat }
}

/// §5 and §6: times `w'`.
fn weighted(value: f32, weight: &Option<Vector<Slice<'_>>>, offset: WeightOffset, j: usize) -> f32 {
    match weight {
        None => value,
        Some(w) if offset == WeightOffset::One => value * (get(w.data, w.offset + j) + 1.0),
        Some(w) => value * get(w.data, w.offset + j),
    }
}

fn element(view: &Rows<Slice<'_>>, i: usize, j: usize) -> f32 {
    get(view.data, view.offset + i * view.row_stride + j)
}

const UP: f32 = f32::from_bits((127 + 100) << 23); // 2^100
const DOWN: f32 = f32::from_bits((127 - 100) << 23); // 2^-100
