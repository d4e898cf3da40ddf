//! Calls whose rows have several types: a row is widened, computed as one of f32, and what is written of it is rounded once. What is done along a row is
//! done by the functions of rows of one type; no row is read ahead.

use super::backward::jobs;
use super::convert::Packed;
use super::memory::{Aligned, Layout, Pieces, Read, Written};
use super::row::{Accumulators, Row, gradients, normalise, products, squares};
use super::threads::{rows_per_job, share};
use super::{forward_jobs, vectorized};
use crate::arith::{Element, SCALE_UP, added, mean, row_scale, scaled_root, statistic};
use crate::input::Found;
use crate::order::row_order;
use crate::view::Shape;
use crate::{Dtype, Error, Input, Output, Rounding, Rows, Slice, SliceMut, bf16, f16, with_dtype};
use pulp::{Simd, WithSimd};

/// Rows that are read.
#[derive(Clone, Copy)]
pub(super) enum AnyRead<'a> {
    F32(Read<'a, f32>),
    F16(Read<'a, f16>),
    Bf16(Read<'a, bf16>),
}

/// Neighbouring rows that are written.
pub(super) enum AnyWritten<'a> {
    F32(Written<'a, f32>),
    F16(Written<'a, f16>),
    Bf16(Written<'a, bf16>),
}

impl<'a> AnyRead<'a> {
    /// Those of a checked call.
    pub(super) fn new(view: Rows<Found<Slice<'a>>>, shape: Shape) -> Input<Self> {
        match view.data {
            Found::Memory(Slice::F32(data)) => Input::Memory(AnyRead::F32(Read::of_rows(data, &view, shape))),
            Found::Memory(Slice::F16(data)) => Input::Memory(AnyRead::F16(Read::of_rows(data, &view, shape))),
            Found::Memory(Slice::Bf16(data)) => Input::Memory(AnyRead::Bf16(Read::of_rows(data, &view, shape))),
            Found::Output(output, _) => Input::Output(output),
        }
    }

    #[inline(always)]
    fn widen(&self, row: usize, to: &mut [f32]) {
        with_dtype!(AnyRead(rows) = self => widen(rows.row(row, to.len()), to))
    }
}

impl<'a> AnyWritten<'a> {
    /// Those of a checked call.
    pub(super) fn new(view: Rows<SliceMut<'a>>, shape: Shape) -> Self {
        let at = Layout::new(&view, shape);
        match view.data {
            SliceMut::F32(data) => AnyWritten::F32(at.of(data)),
            SliceMut::F16(data) => AnyWritten::F16(at.of(data)),
            SliceMut::Bf16(data) => AnyWritten::Bf16(at.of(data)),
        }
    }

    fn len(&self) -> usize {
        with_dtype!(AnyWritten(rows) = self => rows.len())
    }

    /// What a row holds.
    #[inline(always)]
    fn widen(&self, row: usize, to: &mut [f32]) {
        with_dtype!(AnyWritten(rows) = self => widen(rows.row(row, to.len()), to))
    }

    #[inline(always)]
    fn store(&mut self, row: usize, values: &[f32]) {
        with_dtype!(AnyWritten(rows) = self => store(values, rows.row_mut(row, values.len())))
    }
}

impl Pieces for AnyWritten<'_> {
    fn pieces(self, rows: usize) -> Vec<Self> {
        match self {
            AnyWritten::F32(all) => all.pieces(rows).into_iter().map(AnyWritten::F32).collect(),
            AnyWritten::F16(all) => all.pieces(rows).into_iter().map(AnyWritten::F16).collect(),
            AnyWritten::Bf16(all) => all.pieces(rows).into_iter().map(AnyWritten::Bf16).collect(),
        }
    }
}

#[inline(always)]
fn widen<T: Packed>(row: &[T], to: &mut [f32]) {
    to.iter_mut().zip(row).for_each(|(to, value)| *to = value.unpack());
}

#[inline(always)]
fn store<T: Packed>(values: &[f32], row: &mut [T]) {
    // A loop each: the search for NaN in the conversion would keep it from being done in vectors.
    match values.iter().fold(false, |any, value| any | value.is_nan()) {
        false => row.iter_mut().zip(values).for_each(|(to, value)| *to = T::pack(*value, true)),
        true => row.iter_mut().zip(values).for_each(|(to, value)| *to = T::pack(*value, false)),
    }
}

/// What is added to x, and where the sums go.
pub(super) type Sum<'a> = (Input<AnyRead<'a>>, AnyWritten<'a>);

/// As that of rows of one type; `normalised` is the type of what is normalised.
pub(super) fn forward(
    (x, sum, normalised): (Input<AnyRead>, Option<Sum>, Dtype),
    (weight, bias): (&[f32], Option<&[f32]>),
    (eps, rounding): (f32, Rounding),
    y: AnyWritten,
    rstd: &mut [f32],
) -> Result<(), Error> {
    let hidden = weight.len();
    let rows_per_job = rows_per_job(y.len(), hidden);
    let (residual, z) = sum.unzip();
    share(
        forward_jobs(rows_per_job, y, rstd, z),
        || (Accumulators::new(row_order(hidden).chains, hidden), [(); 2].map(|()| Aligned::new(hidden))),
        |(acc, [z, out]), job, (y, rstd, z_out)| {
            let sum = residual.zip(z_out);
            let (first_row, twice) = (job * rows_per_job, rounding == Rounding::Twice);
            vectorized(ForwardJob { x, sum, normalised, weight, bias, eps, twice, first_row, y, rstd, acc, z, out });
        },
    )
}

/// Neighbouring rows. `z` and `out` hold what is normalised, and y, of one of them.
struct ForwardJob<'a, 'b> {
    x: Input<AnyRead<'a>>,
    sum: Option<Sum<'a>>,
    normalised: Dtype,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    twice: bool,
    first_row: usize,
    y: AnyWritten<'a>,
    rstd: &'a mut [f32],
    acc: &'b mut Accumulators,
    z: &'b mut [f32],
    out: &'b mut [f32],
}

impl WithSimd for ForwardJob<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let ForwardJob { x, mut sum, normalised, weight, bias, eps, twice, first_row, mut y, rstd, acc, z, out } = self;
        for i in 0..y.len() {
            let read = |input: Input<AnyRead>, z: Option<&AnyWritten>, to: &mut [f32]| match (input, z) {
                (Input::Memory(rows), _) => rows.widen(first_row + i, to),
                (Input::Output(Output::Z), Some(z)) => z.widen(i, to),
                (Input::Output(_), _) => y.widen(i, to),
            };
            read(x, sum.as_ref().map(|(_, z)| z), z);
            if let Some((residual, z_out)) = &mut sum {
                read(*residual, Some(z_out), out);
                z.iter_mut().zip(&*out).for_each(|(z, residual)| *z = added(*z, *residual));
                z_out.store(i, z);
                z_out.widen(i, z);
            }
            let (stored, scale) = statistic(squares(z, 1.0, acc), weight.len() as f32, eps, |s| squares(z, s, acc));
            if let Some(rstd) = rstd.get_mut(i) {
                *rstd = f32::store(stored);
            }
            with_dtype!(normalised, H => normalise::<f32, H>(z, scale, (false, twice), weight, bias, out));
            y.store(i, out);
        }
    }
}

/// What backward reads.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) x: Input<AnyRead<'a>>,
    /// The type of x.
    pub(super) normalised: Dtype,
    pub(super) dy: Input<AnyRead<'a>>,
    pub(super) dz: Option<Input<AnyRead<'a>>>,
    pub(super) rstd: &'a [f32],
}

/// As that of rows of one type.
pub(super) fn backward(
    of: Operands,
    weight: &[f32],
    rounding: Rounding,
    dx: AnyWritten,
    scratch: &mut [f32],
) -> Result<(), Error> {
    let (hidden, twice) = (weight.len(), rounding == Rounding::Twice);
    let (groups, per_job, jobs) = jobs(dx, scratch, of.rstd.len(), hidden);
    share(
        jobs,
        || {
            let order = row_order(hidden);
            let accumulators = [order.dot_chains, order.chains].map(|chains| Accumulators::new(chains, hidden));
            (accumulators, [(); 4].map(|()| Aligned::new(hidden)))
        },
        |(accumulators, rows), job, (steps, partials)| {
            partials.fill(0.0); // Where chains start.
            let first_group = job * per_job;
            vectorized(BackwardJob { of, weight, twice, groups, first_group, steps, partials, accumulators, rows });
        },
    )
}

/// Neighbouring row groups, as those of rows of one type.
struct BackwardJob<'a, 'b> {
    of: Operands<'a>,
    weight: &'a [f32],
    twice: bool,
    groups: usize,
    first_group: usize,
    steps: Vec<AnyWritten<'a>>,
    partials: &'a mut [f32],
    accumulators: &'b mut [Accumulators; 2],
    /// Of x, dy, dz and dx.
    rows: &'b mut [Aligned; 4],
}

impl WithSimd for BackwardJob<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let BackwardJob { of, weight, twice, groups, first_group, steps, partials, .. } = self;
        let ([acc, squares_acc], [x, dy, dz, out]) = (self.accumulators, self.rows);
        let hidden = weight.len();
        for (step, mut dx) in steps.into_iter().enumerate() {
            for i in 0..dx.len() {
                let r = step * groups + first_group + i;
                let read = |input: Input<AnyRead>, to: &mut [f32]| match input {
                    Input::Memory(rows) => rows.widen(r, to),
                    Input::Output(_) => dx.widen(i, to),
                };
                read(of.x, x);
                read(of.dy, dy);
                let dz = of.dz.map(|input| {
                    read(input, dz);
                    &**dz
                });
                let root = || scaled_root(squares(x, SCALE_UP, squares_acc), hidden as f32);
                let row = Row { x, dy, scale: row_scale(of.rstd[r], root) };
                let c = mean(products(row, weight, acc), hidden as f32);
                let partial = partials.get_mut(i * hidden..(i + 1) * hidden);
                with_dtype!(of.normalised, H => {
                    gradients::<f32, H>(row, c, (false, twice), weight, dz, out, partial)
                });
                dx.store(i, out);
            }
        }
    }
}
