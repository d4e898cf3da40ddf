//! The literal executor: the specification with plain loops. No SIMD, no threads, no blocks, and of the plan only the two
//! orders; none of the functions of `rmsnorm_cuda::arith`. Every executor must return its bits.

use crate::elements::{get, get_all, put, put_all, rounded};
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
        let heads = call.heads();
        let weights: Vec<_> =
            (0..heads).map(|head| effective(&call.weight, head, call.weight_offset, call.hidden)).collect();
        let biases: Option<Vec<_>> =
            call.bias.map(|bias| (0..heads).map(|head| of_head(&bias, head, call.hidden)).collect());
        for i in 0..call.rows {
            let (w, bias) = (&weights[i % heads], biases.as_ref().map(|biases| &biases[i % heads]));
            let mut z = elements(&call.x, i, call.inner, 0..call.hidden);
            if let Some(sum) = &mut call.residual {
                let residual = elements(&sum.residual, i, call.inner, 0..call.hidden);
                z.iter_mut().zip(residual).for_each(|(z, residual)| *z += residual);
                let at = first(&sum.z, i, call.inner);
                put_all(&mut sum.z.data, at, &z);
                z = get_all(sum.z.data.as_slice(), at..at + call.hidden);
            }
            let v = mean_square(&z, 1.0) + call.eps;
            let rstd = match v {
                f32::INFINITY => DOWN * (1.0 / (mean_square(&z, DOWN) + (call.eps * DOWN) * DOWN).sqrt()),
                _ if v < f32::MIN_POSITIVE => UP * (1.0 / (mean_square(&z, UP) + (call.eps * UP) * UP).sqrt()),
                _ => 1.0 / v.sqrt(),
            };
            let x_hat = normalised(&z, rstd).0.into_iter();
            let normalised = call.residual.as_ref().map_or(call.x.data.dtype(), |sum| sum.z.data.dtype());
            let h = x_hat.map(|x_hat| factor(x_hat, call.rounding, normalised));
            let y: Vec<f32> = match (&call.weight, bias) {
                (_, None) => h.zip(w).map(|(h, w)| h * w).collect(),
                (None, Some(bias)) => h.zip(bias).map(|(h, bias)| h + bias).collect(),
                (Some(_), Some(bias)) => h.zip(w).zip(bias).map(|((h, w), bias)| h.mul_add(*w, *bias)).collect(),
            };
            let at = first(&call.y, i, call.inner);
            put_all(&mut call.y.data, at, &y);
            call.rstd.iter_mut().for_each(|out| put(&mut out.data, out.offset + i, rstd));
        }
        Ok(())
    }

    fn backward(&self, mut call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        let (n, heads) = (call.hidden, call.heads());
        let weights: Vec<_> = (0..heads).map(|head| effective(&call.weight, head, call.weight_offset, n)).collect();
        for i in 0..call.rows {
            let w = &weights[i % heads];
            let z = elements(&call.x, i, call.inner, 0..n);
            let rstd = get(call.rstd.data, call.rstd.offset + i);
            let (x_hat, root) = normalised(&z, rstd);
            let wdy: Vec<f32> = elements(&call.dy, i, call.inner, 0..n).iter().zip(w).map(|(dy, w)| dy * w).collect();
            let dz = call.dz.as_ref().map(|dz| elements(dz, i, call.inner, 0..n));
            let c = reduce(row_order(n).dot_chains, n, 1, |j, _| (wdy[j], x_hat[j]))[0] / n as f32;
            let dx = |j: usize| {
                let t = (-x_hat[j]).mul_add(c, wdy[j]);
                match &dz {
                    None if rstd == f32::INFINITY => (t * root) * UP,
                    None => t * rstd,
                    Some(dz) if rstd == f32::INFINITY => (t * root).mul_add(UP, dz[j]),
                    Some(dz) => t.mul_add(rstd, dz[j]),
                }
            };
            let dx: Vec<f32> = (0..n).map(dx).collect();
            let at = first(&call.dx, i, call.inner);
            put_all(&mut call.dx.data, at, &dx);
        }
        if let Some(mut out) = call.dw.take() {
            let sums: Vec<f32> = (0..heads).flat_map(|head| dw_columns(&call, head, 0..n)).collect();
            put_all(&mut out.dw.data, out.dw.offset, &sums);
        }
        if let Some(mut out) = call.db.take() {
            let sums: Vec<f32> = (0..heads).flat_map(|head| db_columns(&call, head, 0..n)).collect();
            put_all(&mut out.db.data, out.db.offset, &sums);
        }
        Ok(())
    }
}

/// §7 for some of the columns of a head, before the one rounding to the type of `dw`.
pub(crate) fn dw_columns(call: &Backward<Slice<'_>, SliceMut<'_>>, head: usize, columns: Range<usize>) -> Vec<f32> {
    let heads = call.heads();
    let (mut row, mut h, mut dy) = (usize::MAX, Vec::new(), Vec::new());
    reduce(column_order(call.rows / heads, call.hidden).groups, call.rows / heads, columns.len(), |i, j| {
        let i = i * heads + head;
        if row != i {
            let rstd = get(call.rstd.data, call.rstd.offset + i);
            // Only a row whose rstd is +Inf must be read whole.
            let read = if rstd == f32::INFINITY { 0..call.hidden } else { columns.clone() };
            let z = elements(&call.x, i, call.inner, read.clone());
            let x_hat = &normalised(&z, rstd).0[columns.start - read.start..][..columns.len()];
            h = x_hat.iter().map(|x_hat| factor(*x_hat, call.rounding, call.x.data.dtype())).collect();
            (row, dy) = (i, elements(&call.dy, i, call.inner, columns.clone()));
        }
        (dy[j], h[j])
    })
}

/// The same for `db`.
pub(crate) fn db_columns(call: &Backward<Slice<'_>, SliceMut<'_>>, head: usize, columns: Range<usize>) -> Vec<f32> {
    let heads = call.heads();
    let (mut row, mut dy) = (usize::MAX, Vec::new());
    reduce(column_order(call.rows / heads, call.hidden).groups, call.rows / heads, columns.len(), |i, j| {
        let i = i * heads + head;
        if row != i {
            (row, dy) = (i, elements(&call.dy, i, call.inner, columns.clone()));
        }
        (dy[j], 1.0)
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

/// What a head has of a weight, or a bias.
fn of_head(vector: &Vector<Slice<'_>>, head: usize, n: usize) -> Vec<f32> {
    let first = vector.offset + head * n;
    get_all(vector.data, first..first + n)
}

/// §5 and §6: `w'` of every column; ones without a weight, since a product with one is exact.
fn effective(weight: &Option<Vector<Slice<'_>>>, head: usize, offset: WeightOffset, n: usize) -> Vec<f32> {
    let Some(weight) = weight else { return vec![1.0; n] };
    let mut w = of_head(weight, head, n);
    if offset == WeightOffset::One {
        w.iter_mut().for_each(|w| *w += 1.0);
    }
    w
}

/// Where row `i` begins.
fn first<D>(view: &Rows<D>, i: usize, inner: usize) -> usize {
    view.offset + view.outer_stride.map_or(i * view.row_stride, |outer| i / inner * outer + i % inner * view.row_stride)
}

/// Some of row `i`.
fn elements(view: &Rows<Slice<'_>>, i: usize, inner: usize, columns: Range<usize>) -> Vec<f32> {
    let first = first(view, i, inner);
    get_all(view.data, first + columns.start..first + columns.end)
}

const UP: f32 = f32::from_bits((127 + 100) << 23); // 2^100
const DOWN: f32 = f32::from_bits((127 - 100) << 23); // 2^-100
