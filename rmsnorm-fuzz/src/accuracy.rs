//! Property 2: every output is within the bound of the f64 reference. What "within" means is decided in `rmsnorm-ref`; here
//! are only blocks of rows and the depths of the plan's orders.

use crate::buffer::{Buffer, Fill};
use crate::case::{Case, Name};
use crate::elements::Elements;
use crate::finding::{Evidence, Finding, Stop};
use crate::operands::{Operands, Outputs};
use crate::subject::Subject;
use ndarray::{Array1, Array2};
use rayon::prelude::*;
use rmsnorm_cuda::plan::{column_order, row_order};
use rmsnorm_cuda::{Dtype, Rounding, WeightOffset};
use rmsnorm_ref::{Columns, Depth, Format, ForwardTallies, Setting, Tally, check_backward_rows, check_forward, depth};

/// *Every element of every output is within the forward error bound of the f64 reference.*
pub(crate) fn accuracy(subject: &Subject, case: &Case) -> Finding {
    let mut operands = Operands::new(case, Fill::Nan);
    let outputs = operands.run(&*subject.executor)?;
    let Case { rows, hidden, dtype, .. } = *case;
    let input = |name| operands.buffer(name).expect("always there");
    // With a residual the stored sum is normalised. That it is the right one is no question of a bound: it has one value.
    let sum = operands.buffer(Name::Residual).map(|residual| (residual, input(Name::Z)));
    if let Some((residual, z)) = sum {
        demand_sums(case, input(Name::X), residual, z)?;
    }
    let (x, dy) = (sum.map_or(input(Name::X), |(_, z)| z), input(Name::Dy));
    let row = |w: &Buffer| (0..hidden).map(|j| f64::from(w.get(0, j))).collect();
    let [weight, bias]: [Option<Array1<f64>>; 2] =
        [Name::Weight, Name::Bias].map(|name| operands.buffer(name).map(row));
    let setting = Setting {
        weight: weight.as_ref().map(|w| w.view()),
        weight_offset: if case.weight_offset == WeightOffset::One { 1.0 } else { 0.0 },
        bias: bias.as_ref().map(|b| b.view()),
        // An f32 is what it is rounded to.
        rounded: (case.rounding == Rounding::Twice && dtype != Dtype::F32).then(|| format(dtype)),
        eps: f64::from(case.eps),
        depth: depths(rows, hidden),
    };
    let judged = by_rows(case, &operands, &outputs, &setting, (x, dy));
    let (forward, dx, columns) =
        judged.unwrap_or_else(|| (ForwardTallies::default(), Tally::default(), Columns::new(hidden)));

    let mut tallies = vec![("rstd", forward.rstd), ("y", forward.y), ("dx", dx)];
    if let (Some(dw), Some(dtype)) = (&outputs.dw, case.dw_dtype()) {
        let dw: Vec<f64> = (0..hidden).map(|j| f64::from(dw.get(j))).collect();
        tallies.push(("dw", columns.check_dw(setting.depth, format(dtype), &dw)));
    }
    if let (Some(db), Some(dtype)) = (&outputs.db, case.db_dtype()) {
        let db: Vec<f64> = (0..hidden).map(|j| f64::from(db.get(j))).collect();
        tallies.push(("db", columns.check_db(setting.depth, format(dtype), &db)));
    }
    let mut evidence = Evidence { comparisons: 1, ..Evidence::default() };
    for (output, tally) in tallies {
        if !tally.passed() {
            return Err(Stop::Failed(format!("{output}: {tally}")));
        }
        evidence.elements += tally.elements;
        evidence.accuracy.insert(output, tally);
    }
    Ok(evidence)
}

/// What is found of rstd and y, of dx, and what the sums of the columns are, of rows in which x and dy are these. None without rows.
fn by_rows(
    case: &Case,
    operands: &Operands,
    outputs: &Outputs,
    setting: &Setting,
    (x, dy): (&Buffer, &Buffer),
) -> Option<(ForwardTallies, Tally, Columns)> {
    let Case { rows, hidden, .. } = *case;
    let [of_y, of_dx] = [Name::Y, Name::Dx].map(|name| format(case.type_of(name)));
    let rstd: Vec<f32> = (0..rows).map(|i| outputs.rstd.get(i)).collect();
    let wants_columns = outputs.dw.is_some() || outputs.db.is_some();
    // A few spans of rows, each with its own column sums, walked in blocks that fit a cache.
    let block = (BLOCK_ELEMENTS / hidden).max(1);
    let span = rows.div_ceil(2 * rayon::current_num_threads()).max(block);
    let spans: Vec<_> = (0..rows).step_by(span).map(|first| first..rows.min(first + span)).collect();
    let judged = spans.into_par_iter().map(|span| {
        let (mut forward, mut dx, mut columns) = (ForwardTallies::default(), Tally::default(), Columns::new(hidden));
        for first in span.clone().step_by(block) {
            let rows = block.min(span.end - first);
            let matrix = |row: &dyn Fn(usize) -> Vec<f32>| {
                let mut all = Vec::with_capacity(rows * hidden);
                (first..first + rows).for_each(|i| all.extend(row(i).into_iter().map(f64::from)));
                Array2::from_shape_vec((rows, hidden), all).expect("as many rows as wide")
            };
            let given = |b: &Buffer| matrix(&|i| b.row(i));
            let got = |e: &Elements| matrix(&|i| e.row(i, hidden));
            let (x, dy) = (given(x), given(dy));
            let rstd = Some(&rstd[first..first + rows]);
            forward.merge(&check_forward(setting, of_y, first, x.view(), rstd, got(&outputs.y).view()));
            let dz = operands.buffer(Name::Dz).map(given);
            let dz = dz.as_ref().map(|dz| dz.view());
            dx.merge(&check_backward_rows(setting, of_dx, first, x.view(), dy.view(), dz, got(&outputs.dx).view()));
            if wants_columns {
                columns.add_rows(setting, x.view(), dy.view());
            }
        }
        (forward, dx, columns)
    });
    judged.reduce_with(|mut a, b| {
        a.0.merge(&b.0);
        a.1.merge(&b.1);
        if wants_columns {
            a.2.merge(&b.2);
        }
        a
    })
}

/// z is x + residual in f64, rounded to f32 and then to its type: the sum of two f32 numbers, rounded through f64, is rounded once.
fn demand_sums(case: &Case, x: &Buffer, residual: &Buffer, z: &Buffer) -> Result<(), Stop> {
    let format = format(case.dtype);
    for i in 0..case.rows {
        let terms = x.row(i).into_iter().zip(residual.row(i)).zip(z.row(i));
        for (j, ((x, residual), got)) in terms.enumerate() {
            let sum = Format::F32.round(f64::from(x) + f64::from(residual));
            let (want, got) = (format.round(sum), f64::from(got));
            if got != want && !(got.is_nan() && want.is_nan()) {
                return Err(Stop::Failed(format!("z[{i}][{j}]: expected {want:e}, got {got:e}")));
            }
        }
    }
    Ok(())
}

/// Of the sums of a row and of a column.
fn depths(rows: usize, hidden: usize) -> Depth {
    let order = row_order(hidden);
    let [forward, backward] = [order.chains, order.dot_chains].map(|chains| depth(hidden as u64, chains as u64));
    Depth { forward, backward, column: depth(rows as u64, column_order(rows, hidden).groups as u64) }
}

fn format(dtype: Dtype) -> Format {
    match dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::Bf16 => Format::Bf16,
    }
}

/// A matrix of them in f64 takes 32 KiB: several fit a cache, and memory for them is not mapped anew each time.
const BLOCK_ELEMENTS: usize = 1 << 12;
