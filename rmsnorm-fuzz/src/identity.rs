//! Property 1: every executor equals the literal one.

use crate::buffer::Fill;
use crate::case::{Case, Name};
use crate::elements::{Elements, put};
use crate::finding::{Evidence, Finding, Outcome, Stop, demand_equal};
use crate::literal::{Literal, db_columns, dw_columns};
use crate::operands::{Operands, Outputs};
use crate::subject::{Subject, Tried};
use rayon::prelude::*;
use rmsnorm_cuda::{Backward, Executor, Forward, Residual, Rows, Slice, SliceMut, Vector};
use std::ops::Range;

/// *Every output equals the literal executor's, bit for bit*, NaNs being equal.
pub(crate) fn identity(subject: &Subject, trial: &mut Trial) -> Finding {
    let mut evidence = Evidence::default();
    evidence.count(trial.demand(&*subject.executor, "")?);
    Ok(evidence)
}

/// As property 1, with every operand [alone](Fill::Alone) in its memory.
pub fn identity_alone(subject: &Subject, case: &Case) -> Outcome {
    let mut trial = Trial { fill: Fill::Alone, ..Trial::new(case) };
    Outcome::of("identity", &*subject.executor, &format!(" [{case}]"), || identity(subject, &mut trial))
}

/// As [`identity`], of a forward call by itself.
pub(crate) fn forward(subject: &Subject, case: &Case) -> Finding {
    let run = |executor, fill| -> Result<_, Stop> {
        let mut operands = Operands::new(case, fill);
        operands.forward(executor)?;
        Ok(operands.outputs())
    };
    let (mut got, want) = (run(&*subject.executor, Fill::Nan)?, run(&Literal, Fill::Plausible)?);
    // Forward does not write dx.
    got.dx.clone_from(&want.dx);
    demand_equal("against the literal executor", want.row_difference(&got, |row| row))?;
    let mut evidence = Evidence::default();
    evidence.count((want.y.len() + want.rstd.len()) as u64);
    Ok(evidence)
}

/// A case, and for all that is compared with it: its operands, and what the literal executor makes of them.
pub(crate) struct Trial {
    pub(crate) case: Case,
    /// Launches that are tried as often as this, or more.
    pub(crate) launches: Tried,
    fill: Fill,
    literal: Option<(Operands, Outputs)>,
}

impl Trial {
    pub(crate) fn new(case: &Case) -> Trial {
        Trial { case: *case, launches: Tried::Seldom, fill: Fill::Nan, literal: None }
    }

    /// The operands, which any executor may be run on, and the outputs that each must give. Made when they are first asked for.
    pub(crate) fn literal(&mut self) -> (&mut Operands, &Outputs) {
        let (operands, want) = self.literal.get_or_insert_with(|| {
            let operands = Operands::new(&self.case, self.fill);
            let want = literal_outputs(&operands);
            (operands, want)
        });
        (operands, want)
    }

    /// Frees them.
    pub(crate) fn forget(&mut self) {
        self.literal = None;
    }

    /// Runs `executor`, over memory that holds nothing of an earlier call, and demands the literal bits of every output. Returns
    /// how many elements these have; a failure begins with `how`.
    pub(crate) fn demand(&mut self, executor: &dyn Executor, how: &str) -> Result<u64, Stop> {
        let (operands, want) = self.literal();
        operands.refill_outputs();
        let got = operands.run(executor).map_err(|error| match Stop::from(error) {
            Stop::Failed(refused) => Stop::Failed(format!("{how}{refused}")),
            not_applicable => not_applicable,
        })?;
        demand_equal(format_args!("{how}against the literal executor"), want.difference(&got))?;
        Ok(got.elements())
    }
}

/// What the literal executor computes from the inputs of `operands`. Blocks of rows, and for `dw` blocks of columns, are
/// independent of each other by the specification: they are given to it in parallel.
pub fn literal_outputs(operands: &Operands) -> Outputs {
    let Case { rows, inner, hidden, eps, weight_offset, rounding, .. } = *operands.case();
    let zeros = |name, len| Elements::zeros(operands.case().type_of(name), len);
    let view = |name| operands.buffer(name).expect("always there").rows();
    let (x, dy, per_head) = (view(Name::X), view(Name::Dy), operands.is_per_head());
    let [weight, bias] = [Name::Weight, Name::Bias].map(|name| operands.buffer(name).map(|w| w.vector()));
    let dz = operands.buffer(Name::Dz).map(|dz| dz.rows());
    let residual = operands.buffer(Name::Residual).map(|residual| residual.rows());
    let mut z = zeros(Name::Z, if residual.is_some() { rows * hidden } else { 0 });
    let mut y = zeros(Name::Y, rows * hidden);
    let mut dx = zeros(Name::Dx, rows * hidden);
    let mut rstd = zeros(Name::Rstd, rows);
    // Whole groups.
    let block = (BLOCK_ELEMENTS / hidden).max(1).next_multiple_of(inner);
    let mut zs = z.pieces_mut(block * hidden).into_iter();
    let mut pieces: Vec<_> = (y.pieces_mut(block * hidden).into_iter().zip(rstd.pieces_mut(block)))
        .map(|(y, rstd)| (y, rstd, zs.next()))
        .collect();
    pieces.par_iter_mut().enumerate().for_each(|(b, (y, rstd, z))| {
        let rows = rmsnorm_cuda::Operand::elements(rstd);
        let sum = residual.as_ref().zip(z.as_mut()).map(|(residual, z)| Residual {
            residual: from_row(residual, b * block, inner),
            z: Rows::contiguous(reborrow(z), hidden),
        });
        let call = Forward {
            inner,
            per_head,
            weight_offset,
            rounding,
            residual: sum,
            weight,
            bias,
            rstd: Some(reborrow(rstd).into()),
            ..Forward::with_rows(
                (rows, hidden),
                eps,
                from_row(&x, b * block, inner),
                Rows::contiguous(reborrow(y), hidden),
            )
        };
        Literal.forward(call).expect("a good call");
    });
    // What forward has normalised.
    let x = if residual.is_some() { Rows::contiguous(z.slice(), hidden) } else { x };
    let backward = |first: usize, rows: usize, dx| Backward {
        inner,
        per_head,
        weight_offset,
        rounding,
        weight,
        dz: dz.as_ref().map(|dz| from_row(dz, first, inner)),
        ..Backward::with_rows(
            (rows, hidden),
            from_row(&x, first, inner),
            Vector { data: rstd.slice(), offset: first },
            from_row(&dy, first, inner),
            Rows::contiguous(dx, hidden),
        )
    };
    dx.pieces_mut(block * hidden).into_par_iter().enumerate().for_each(|(b, dx)| {
        let rows = rmsnorm_cuda::Operand::elements(&dx) / hidden;
        Literal.backward(backward(b * block, rows, dx)).expect("a good call");
    });
    let call = backward(0, rows, SliceMut::F32(&mut []));
    let dw = operands.case().dw_dtype().map(|dtype| columns(&call, dtype, dw_columns));
    let db = operands.case().db_dtype().map(|dtype| columns(&call, dtype, db_columns));
    let z = residual.is_some().then_some(z);
    Outputs { rows, hidden, z, y, rstd, dx, dw, db }
}

/// Sums down some columns of a head.
type ColumnSums = fn(&Backward<Slice<'_>, SliceMut<'_>>, usize, Range<usize>) -> Vec<f32>;

/// Sums down the columns, blocks of columns in parallel.
fn columns(call: &Backward<Slice<'_>, SliceMut<'_>>, dtype: rmsnorm_cuda::Dtype, of: ColumnSums) -> Elements {
    let (hidden, heads) = (call.hidden, call.heads());
    let width = hidden.div_ceil(2 * rayon::current_num_threads()).max(64);
    let blocks = || (0..hidden).step_by(width).map(|j| j..hidden.min(j + width));
    let blocks: Vec<_> = (0..heads).flat_map(|head| blocks().map(move |columns| (head, columns))).collect();
    let sums: Vec<f32> = blocks.into_par_iter().flat_map_iter(|(head, columns)| of(call, head, columns)).collect();
    let mut all = Elements::zeros(dtype, heads * hidden);
    sums.into_iter().enumerate().for_each(|(j, sum)| put(&mut all.slice_mut(), j, sum));
    all
}

/// From this row on, the first of a group.
fn from_row<'a>(view: &Rows<Slice<'a>>, row: usize, inner: usize) -> Rows<Slice<'a>> {
    let before = view.outer_stride.map_or(row * view.row_stride, |outer| row / inner * outer);
    Rows { offset: view.offset + before, ..*view }
}

fn reborrow<'a>(slice: &'a mut SliceMut<'_>) -> SliceMut<'a> {
    match slice {
        SliceMut::F32(s) => SliceMut::F32(s),
        SliceMut::F16(s) => SliceMut::F16(s),
        SliceMut::Bf16(s) => SliceMut::Bf16(s),
    }
}

const BLOCK_ELEMENTS: usize = 1 << 14;
