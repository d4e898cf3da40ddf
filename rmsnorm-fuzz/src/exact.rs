//! Property 13: exact where exactness is possible. An error bound cannot see one lost row among a million; integers can.

use crate::buffer::Fill;
use crate::case::{Case, DwKind, Name};
use crate::elements::{Elements, rounded};
use crate::finding::{Evidence, Finding, Stop};
use crate::operands::Operands;
use crate::subject::Subject;
use crate::values::Values;
use rmsnorm_cuda::WeightOffset;

/// *Rows of ±1 with eps 0 and small integers give exact integers*: rstd is 1, y and dw are integers, and where N is a power of
/// two dx is an integer over N. The shape, the types and the layout are those of the case; the oracle counts in i64; an output
/// in a narrow type is the integer rounded once.
pub(crate) fn exact(subject: &Subject, case: &Case) -> Finding {
    let executor = &*subject.executor;
    let (rows, hidden) = (case.rows, case.hidden);
    // Every sum stays below 2^24, where f32 counts exactly.
    let largest: u8 = if hidden > 1 << 15 || rows > 1 << 20 { 2 } else { 8 };
    if rows as i64 * i64::from(largest) > EXACT {
        return Err(Stop::NotApplicable("a column sum may exceed 2^24".into()));
    }
    let (dy, w) = (Values::Integers(largest), Values::Integers(largest));
    // In a narrow type a sum over many rows would be rounded, and hide a lost row again.
    let dw = if case.dw != DwKind::Absent && rows > 32 { DwKind::F32 } else { case.dw };
    let residual = case.residual.map(|_| Values::Constant(0.0));
    let case = Case { x: Values::Signed(1.0), dy, w, dz: case.dz.map(|_| dy), residual, eps: 0.0, dw, ..*case };
    let mut operands = Operands::new(&case, Fill::Plausible);
    let outputs = operands.run(executor)?;
    let mut evidence = Evidence::default();
    let mut demand = |output: &str, i: usize, j: usize, got: &Elements, at: usize, want: f64| {
        evidence.elements += 1;
        let (got, want) = (got.get(at), rounded(got.dtype(), want as f32));
        if got == want {
            Ok(())
        } else {
            Err(Stop::Failed(format!("{output}[{i}][{j}]: expected exactly {want}, got {got}")))
        }
    };

    let input = |name| operands.buffer(name).expect("always there");
    let (x, dy) = (input(Name::X), input(Name::Dy));
    let offset = i64::from(case.weight_offset == WeightOffset::One);
    let weight: Vec<i64> =
        (0..hidden).map(|j| operands.buffer(Name::Weight).map_or(1, |w| w.get(0, j) as i64 + offset)).collect();
    let dx_is_exact =
        hidden.is_power_of_two() && 3 * hidden as i64 * i64::from(largest) * i64::from(largest + 1) <= EXACT;
    let mut dw = vec![0_i64; hidden];
    for i in 0..rows {
        let row: Vec<(i64, i64)> = (0..hidden).map(|j| (x.get(i, j) as i64, dy.get(i, j) as i64)).collect();
        demand("rstd", i, 0, &outputs.rstd, i, 1.0)?;
        let dot: i64 = row.iter().zip(&weight).map(|((x, dy), w)| x * dy * w).sum();
        for (j, (x, dy)) in row.into_iter().enumerate() {
            dw[j] += x * dy;
            demand("y", i, j, &outputs.y, i * hidden + j, (x * weight[j]) as f64)?;
            if dx_is_exact {
                let dz = operands.buffer(Name::Dz).map_or(0, |dz| dz.get(i, j) as i64);
                let numerator = (dy * weight[j] + dz) * hidden as i64 - x * dot;
                demand("dx", i, j, &outputs.dx, i * hidden + j, numerator as f64 / hidden as f64)?;
            }
        }
    }
    if let Some(got) = &outputs.dw {
        for (j, sum) in dw.into_iter().enumerate() {
            demand("dw", 0, j, got, j, sum as f64)?;
        }
    }
    if !dx_is_exact {
        evidence.exclude("dx where N is no power of two or too wide for exact sums", case.elements() as u64);
    }
    evidence.comparisons = 1;
    Ok(evidence)
}

const EXACT: i64 = 1 << 24;
