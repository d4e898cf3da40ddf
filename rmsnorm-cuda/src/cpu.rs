//! The CPU executor: walks the orders of [`order`](crate::order) with the functions of [`arith`](crate::arith).
//!
//! Chains are neighbouring accumulators, so every loop below runs along neighbouring elements and the compiler vectorises it.
//! [`pulp`] compiles each loop for the instruction sets it knows and picks one at run time; without that, `mul_add` would be a
//! library call per element. Rayon shares the rows out. Neither reaches a bit, nor does what a thread or process came from:
//! `share` gives no job to a thread that would compute it otherwise, nor to threads that a fork left behind.

#![forbid(unsafe_code)]

mod backward;
mod columns;
mod convert;
mod layer;
mod memory;
mod mixed;
mod row;
mod threads;

use self::backward::{Operands, backward};
use self::columns::{bias_partials, column_sums};
use self::convert::Packed;
pub use self::layer::Layer;
use self::memory::{Aligned, Layout, Pieces, Read, Written, effective_weights, floats, floats_mut, own};
use self::mixed::{AnyRead, AnyWritten};
use self::row::{Accumulators, Held, add_squares, ahead, normalise, prefetch, specialised, squares, tiles, tree};
use self::threads::{rows_per_job, share, threads};
use crate::arith::{Element, added, environment, statistic};
use crate::input::Found;
use crate::order::{column_order, row_order};
use crate::{
    Backward, BiasGradient, Error, Executor, Forward, Input, Operand, Output, Residual, Rounding, Slice, SliceMut,
    Vector, WeightGradient, WeightOffset, with_dtype,
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
/// a copy of the weight; for rows of two levels that are written, 40 bytes each; for rows of several types, two to four rows of f32 per thread. Heads with a weight each are computed one after another.
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
        self.forward_in_place(call.with_inputs())
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.backward_in_place(call.with_inputs())
    }

    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        let mut call = call.found()?;
        call.check()?;
        environment()?;
        if call.heads() == 1 {
            return of_forward(call);
        }
        // rstd of a head's rows lies between that of others.
        let (inner, rstd) = (call.inner, call.rstd.take());
        let mut of_head = Aligned::new(rstd.as_ref().map_or(0, |_| call.rows / inner));
        let mut rstd = rstd.map(|rstd| floats_mut(rstd, call.rows));
        for head in 0..inner {
            let stored = rstd.as_ref().map(|_| SliceMut::F32(&mut of_head).into());
            of_forward(call.of_head(head, stored, SliceMut::lend))?;
            let all = rstd.iter_mut().flat_map(|rstd| rstd.iter_mut().skip(head).step_by(inner));
            all.zip(of_head.iter()).for_each(|(rstd, of_head)| *rstd = *of_head);
        }
        Ok(())
    }

    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        let call = call.found()?;
        call.check()?;
        environment()?;
        if call.heads() == 1 {
            return of_backward(call);
        }
        let (inner, rstd) = (call.inner, floats(own(call.rstd), call.rows));
        let by_head: Vec<f32> = (0..inner).flat_map(|head| rstd.iter().skip(head).step_by(inner)).copied().collect();
        let mut call = call;
        for head in 0..inner {
            let rstd = Vector { data: Found::Memory(Slice::F32(&by_head)), offset: head * (call.rows / inner) };
            of_backward(call.of_head(head, rstd, SliceMut::lend))?;
        }
        Ok(())
    }
}

/// A checked call with one weight.
fn of_forward(call: Forward<Found<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
    let (shape, normalised) = (call.shape(), call.normalised());
    let Forward { rows, hidden, eps, weight_offset, rounding, x, residual, weight, bias, y, rstd, .. } = call;
    if rows == 0 {
        return Ok(());
    }
    let weight = &*effective_weights(weight.map(own), weight_offset, hidden);
    let bias = bias.map(|bias| effective_weights(Some(own(bias)), WeightOffset::Zero, hidden));
    let scale = (weight, bias.as_deref());
    let rstd = rstd.map_or(&mut [][..], |rstd| floats_mut(rstd, rows));
    let at = Layout::new(&y, shape);
    let sum_types = residual.iter().flat_map(|sum| [x.data.dtype(), sum.residual.data.dtype()]);
    if sum_types.chain([y.data.dtype()]).any(|dtype| dtype != normalised) {
        let sum = residual.map(|Residual { residual, z }| (AnyRead::new(residual, shape), AnyWritten::new(z, shape)));
        let rows = (AnyRead::new(x, shape), sum, normalised);
        return mixed::forward(rows, scale, (eps, rounding), AnyWritten::new(y, shape), rstd);
    }
    match residual {
        None => with_dtype!(SliceMut(ys) = y.data => {
            forward(Read::new(x, shape), None, scale, (eps, rounding), at.of(ys), rstd)
        }),
        Some(Residual { residual, z }) => {
            let z_at = Layout::new(&z, shape);
            with_dtype!(SliceMut(zs) = z.data, SliceMut(ys) = y.data => {
                let sum = (Read::new(residual, shape), z_at.of(zs));
                forward(Read::new(x, shape), Some(sum), scale, (eps, rounding), at.of(ys), rstd)
            })
        }
    }
}

/// The same.
fn of_backward(call: Backward<Found<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
    let shape = call.shape();
    let Backward { rows, hidden, weight_offset, rounding, x, weight, rstd, dy, dz, dx, dw, db, .. } = call;
    let weight = &*effective_weights(weight.map(own), weight_offset, hidden);
    // First, for dy may lie in dx.
    if let Some(BiasGradient { db: Vector { data, offset }, scratch }) = db {
        let scratch = floats_mut(scratch, column_order(rows, hidden).groups * hidden);
        if rows > 0 {
            let dys = match dy.data {
                Found::Memory(data) => data,
                Found::Output(..) => dx.data.as_slice(),
            };
            with_dtype!(Slice(dys) = dys => {
                bias_partials(Read::of_rows(dys, &dy, shape), rows, hidden, scratch)
            })?;
        }
        with_dtype!(SliceMut(db) = data => column_sums(scratch, &mut db[offset..][..hidden]))?;
    }
    let (dw, scratch) = match dw {
        Some(WeightGradient { dw, scratch }) => {
            (Some(dw), Some(floats_mut(scratch, column_order(rows, hidden).groups * hidden)))
        }
        None => (None, None),
    };
    let scratch = scratch.unwrap_or_default();
    if rows > 0 {
        let rstd = floats(own(rstd), rows);
        let normalised = x.data.dtype();
        let others = [dy.data.dtype(), dx.data.dtype()].into_iter().chain(dz.iter().map(|dz| dz.data.dtype()));
        if others.into_iter().any(|dtype| dtype != normalised) {
            let [x, dy] = [x, dy].map(|view| AnyRead::new(view, shape));
            let rows = mixed::Operands { x, normalised, dy, dz: dz.map(|dz| AnyRead::new(dz, shape)), rstd };
            mixed::backward(rows, weight, rounding, AnyWritten::new(dx, shape), scratch)?;
        } else {
            let at = Layout::new(&dx, shape);
            with_dtype!(SliceMut(dxs) = dx.data => {
                let [x, dy] = [x, dy].map(|view| Read::new(view, shape));
                let rows = Operands { x, dy, dz: dz.map(|dz| Read::new(dz, shape)), rstd, hidden };
                backward(rows, weight, rounding, at.of(dxs), scratch)
            })?;
        }
    }
    if let Some(Vector { data, offset }) = dw {
        with_dtype!(SliceMut(dw) = data => column_sums(scratch, &mut dw[offset..][..hidden]))?;
    }
    Ok(())
}

/// Runs a job with the widest instruction set that there is.
fn vectorized<J: WithSimd>(job: J) -> J::Output {
    pulp::Arch::new().dispatch(job)
}

// Forward -----------------------------------------------------------------------------------------------------------------

/// `sum`: what is added to x, and where the sums go. Beside the weight, the bias.
fn forward<T: Packed>(
    x: Input<Read<T>>,
    sum: Option<(Input<Read<T>>, Written<T>)>,
    (weight, bias): (&[f32], Option<&[f32]>),
    (eps, rounding): (f32, Rounding),
    y: Written<T>,
    rstd: &mut [f32],
) -> Result<(), Error> {
    let (hidden, twice) = (weight.len(), rounding == Rounding::Twice);
    let rows_per_job = rows_per_job(y.len(), hidden);
    let (residual, z) = sum.unzip();
    share(
        forward_jobs(rows_per_job, y, rstd, z),
        || Accumulators::new(row_order(hidden).chains, hidden),
        |acc, job, (mut y, rstd, mut z)| {
            let first_row = job * rows_per_job;
            let (x, first_row) = match (residual, z.as_mut()) {
                (Some(residual), Some(z)) => {
                    vectorized(Sums { x, residual, first_row, hidden, y: &y, z: &mut *z });
                    (Some(Read::Written(z)), 0)
                }
                _ => (memory(x), first_row),
            };
            vectorized(ForwardJob { x, weight, bias, eps, twice, first_row, y: &mut y, rstd, acc });
        },
    )
}

/// What each job writes: so many rows of y, of rstd if it is wanted, and of z if there is one.
fn forward_jobs<W: Pieces>(rows: usize, y: W, rstd: &mut [f32], z: Option<W>) -> Vec<(W, &mut [f32], Option<W>)> {
    let mut rstd = rstd.chunks_mut(rows);
    let mut zs = z.map(|z| z.pieces(rows).into_iter());
    let ys = y.pieces(rows).into_iter();
    ys.map(|y| (y, rstd.next().unwrap_or_default(), zs.as_mut().and_then(Iterator::next))).collect()
}

/// The rows of an input that does not lie in an output.
fn memory<T>(input: Input<Read<T>>) -> Option<Read<T>> {
    match input {
        Input::Memory(rows) => Some(rows),
        Input::Output(_) => None,
    }
}

/// §5 The sums of neighbouring rows, stored: a job is small enough to find them in its cache. x may lie in `y`, each of both in `z`.
struct Sums<'a, 'b, T> {
    x: Input<Read<'a, T>>,
    residual: Input<Read<'a, T>>,
    first_row: usize,
    hidden: usize,
    y: &'a Written<'a, T>,
    z: &'a mut Written<'b, T>,
}

impl<T: Packed> WithSimd for Sums<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Sums { x, residual, first_row, hidden, y, z } = self;
        let [mut held_x, mut held_residual] = [Held::new(), Held::new()];
        for i in 0..z.len() {
            let z = z.row_mut(i, hidden);
            let row = |input| match input {
                Input::Memory(rows) => Some(Read::row(&rows, first_row + i, hidden)),
                Input::Output(Output::Y) => Some(y.row(i, hidden)),
                Input::Output(_) => None,
            };
            let (x, residual) = (row(x), row(residual));
            for tile in tiles::<T>(hidden) {
                let (x, residual) = (held_x.tile(x, &tile, z), held_residual.tile(residual, &tile, z));
                for ((z, x), residual) in z[tile].iter_mut().zip(x).zip(residual) {
                    *z = T::pack(added(x.unpack(), residual.unpack()), false);
                }
            }
        }
    }
}

/// Neighbouring rows; `rstd` is empty if it is not wanted. Without `x` the rows lie in `y`.
struct ForwardJob<'a, 'b, T> {
    x: Option<Read<'a, T>>,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    twice: bool,
    first_row: usize,
    y: &'a mut Written<'b, T>,
    rstd: &'a mut [f32],
    acc: &'a mut Accumulators,
}

impl<T: Packed> WithSimd for ForwardJob<'_, '_, T> {
    type Output = ();

    /// While a row is written the next one is read, tile by tile: in turns, the memory would idle half of the time. Reads come
    /// first, because a load waits for an unfinished store to the same place of another page.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let ForwardJob { x, weight, bias, eps, twice, first_row, y, rstd, acc } = self;
        let hidden = weight.len();
        let rows = y.len();
        // Without a way out of the middle, so that it vectorises: a job may have few rows beside the weight.
        let finite = |scale: &[f32]| scale.iter().fold(true, |finite, w| finite & w.is_finite());
        let finite_scale = finite(weight) && finite(bias.unwrap_or_default());
        let mut held = Held::new();
        let mut sum = squares(x.map_or(y.row(0, hidden), |x| x.row(first_row, hidden)), 1.0, acc);
        for i in 0..rows {
            let (y, later) = y.two_rows(i, hidden);
            let row = x.map(|x| x.row(first_row + i, hidden));
            let of_row = row.unwrap_or(y);
            let (stored, scale) = statistic(sum, hidden as f32, eps, |s| squares(of_row, s, acc));
            if let Some(rstd) = rstd.get_mut(i) {
                *rstd = f32::store(stored);
            }
            // A finite sum proves that x and rstd are finite, and x_hat² is not above `hidden`: only a weight or a bias could make a NaN.
            let numbers = finite_scale && sum.is_finite();
            let next = (i + 1 < rows).then(|| x.map_or(&later[..hidden], |x| x.row(first_row + i + 1, hidden)));
            acc.clear();
            for tile in tiles::<T>(hidden) {
                let (rows_on, column) = ahead::<T>(&tile, hidden);
                if let Some(next) = next {
                    if let Some(x) = x {
                        x.prefetch(first_row + i + 1 + rows_on, column, tile.len());
                    }
                    add_squares(&next[tile.clone()], 1.0, acc.chains(&tile));
                }
                if rows_on == 0 {
                    prefetch(y, column, tile.len())
                } else {
                    prefetch(later, column, tile.len())
                }
                let (x, weight) = (held.tile(row, &tile, y), &weight[tile.clone()]);
                let bias = bias.map(|bias| &bias[tile.clone()]);
                specialised(
                    scale,
                    numbers,
                    #[inline(always)]
                    |scale, numbers| normalise::<T, T>(x, scale, (numbers, twice), weight, bias, &mut y[tile.clone()]),
                );
            }
            if next.is_some() {
                sum = tree(acc);
            }
        }
    }
}
