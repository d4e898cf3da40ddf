//! Property 13: exact where exactness is possible. An error bound cannot see one lost row among a million; integers can.

use crate::buffer::{Buffer, Fill};
use crate::case::{Case, DwKind, Name};
use crate::elements::{Elements, rounded};
use crate::finding::{Evidence, Finding, Stop};
use crate::operands::Operands;
use crate::subject::Subject;
use crate::values::Values;
use rmsnorm_cuda::WeightOffset;

/// *Rows of ±1 with eps 0 and small integers give exact integers*: rstd is 1, y, dw and db are integers, and where N is a power of
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
    let [dy, w, b] = [Values::Integers(largest); 3];
    // In a narrow type a sum over many rows would be rounded, and hide a lost row again.
    let [dw, db] = [case.dw, case.db].map(|kind| if kind != DwKind::Absent && rows > 32 { DwKind::F32 } else { kind });
    let residual = case.residual.map(|_| Values::Constant(0.0));
    let mut types = case.types;
    if rows > 32 {
        [Name::Dw, Name::Db].into_iter().for_each(|name| types[name as usize] = None);
    }
    let case =
        Case { x: Values::Signed(1.0), dy, w, b, dz: case.dz.map(|_| dy), residual, eps: 0.0, dw, db, types, ..*case };
    let mut operands = Operands::new(&case, Fill::Plausible);
    let outputs = operands.run(executor)?;
    let mut evidence = Evidence::default();
    let mut demand = |output: &str, i: usize, got: &Elements, want: Vec<f32>| {
        let (got, dtype) = (got.row(i, want.len()), got.dtype());
        evidence.elements += want.len() as u64;
        // Nearly every integer is a number of its type.
        let wrong = |(_, (got, want)): &(usize, (&f32, &f32))| got != want && **got != rounded(dtype, **want);
        match got.iter().zip(&want).enumerate().find(wrong) {
            None => Ok(()),
            Some((j, (got, want))) => {
                let want = rounded(dtype, *want);
                Err(Stop::Failed(format!("{output}[{i}][{j}]: expected exactly {want}, got {got}")))
            }
        }
    };

    let input = |name| operands.buffer(name).expect("always there");
    let (x, dy) = (input(Name::X), input(Name::Dy));
    let offset = i64::from(case.weight_offset == WeightOffset::One);
    let weight: Vec<i64> =
        (0..hidden).map(|j| operands.buffer(Name::Weight).map_or(1, |w| w.get(0, j) as i64 + offset)).collect();
    let bias: Vec<i64> = (0..hidden).map(|j| operands.buffer(Name::Bias).map_or(0, |b| b.get(0, j) as i64)).collect();
    let dx_is_exact =
        hidden.is_power_of_two() && 3 * hidden as i64 * i64::from(largest) * i64::from(largest + 1) <= EXACT;
    let [mut dw, mut db] = [(); 2].map(|()| vec![0_i64; hidden]);
    for i in 0..rows {
        let integers = |b: &Buffer| -> Vec<i64> { b.row(i).into_iter().map(|v| v as i64).collect() };
        let (x, dy) = (integers(x), integers(dy));
        demand("rstd", i, &outputs.rstd, vec![1.0])?;
        dw.iter_mut().zip(x.iter().zip(&dy)).for_each(|(dw, (x, dy))| *dw += x * dy);
        db.iter_mut().zip(&dy).for_each(|(db, dy)| *db += dy);
        let y = x.iter().zip(&weight).zip(&bias).map(|((x, w), bias)| (x * w + bias) as f32);
        demand("y", i, &outputs.y, y.collect())?;
        if dx_is_exact {
            let dot: i64 = x.iter().zip(&dy).zip(&weight).map(|((x, dy), w)| x * dy * w).sum();
            let dz = operands.buffer(Name::Dz).map(integers);
            let numerator =
                |j: usize| (dy[j] * weight[j] + dz.as_ref().map_or(0, |dz| dz[j])) * hidden as i64 - x[j] * dot;
            let dx = (0..hidden).map(|j| (numerator(j) as f64 / hidden as f64) as f32);
            demand("dx", i, &outputs.dx, dx.collect())?;
        }
    }
    for (name, got, want) in [("dw", &outputs.dw, dw), ("db", &outputs.db, db)] {
        if let Some(got) = got {
            demand(name, 0, got, want.into_iter().map(|sum| sum as f32).collect())?;
        }
    }
    if !dx_is_exact {
        evidence.exclude("dx where N is no power of two or too wide for exact sums", case.elements() as u64);
    }
    evidence.comparisons = 1;
    Ok(evidence)
}

const EXACT: i64 = 1 << 24;
