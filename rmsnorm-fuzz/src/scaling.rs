//! Property 9: what must follow exactly when rows are permuted or operands are scaled by powers of two. No oracle, no
//! tolerance.

use crate::buffer::{Buffer, Fill};
use crate::case::{Case, DwKind, Name, WeightKind};
use crate::elements::Elements;
use crate::operands::{Doubling, Operands, Outputs};
use crate::property::{Evidence, Finding, Stop, demand_equal};
use crate::values::{mix, power_of_two};
use rmsnorm_cuda::{Dtype, Executor, WeightOffset};

/// *Permuting rows permutes y and dx; doubling dy doubles dx and dw; scaling x by 2^k and eps by 4^k keeps x_hat and shifts
/// rstd.* What leaves the range in which this is exact is excluded and counted.
pub(crate) fn scaling(executor: &dyn Executor, case: &Case) -> Finding {
    if case.rows == 0 {
        return Err(Stop::NotApplicable("there is no row".into()));
    }
    let mut evidence = Evidence::default();
    let mut operands = Operands::new(case, Fill::Nan);
    let outputs = operands.run(executor)?;
    permuted(executor, case, &outputs, &mut evidence)?;
    dy_doubled(executor, case, &operands, &outputs, &mut evidence)?;
    x_scaled(executor, case, &mut evidence)?;
    Ok(evidence)
}

fn permuted(executor: &dyn Executor, case: &Case, want: &Outputs, evidence: &mut Evidence) -> Result<(), Stop> {
    // A multiplier without a common divisor gives a permutation that moves neighbours apart.
    let step = (case.rows / 2 + 1..).find(|s| gcd(*s, case.rows) == 1).expect("1 is one");
    let source = |i: usize| (i * step + case.rows / 3) % case.rows;
    let got = Operands::with_rows(case, Fill::Nan, case.rows, source).run(executor)?;
    evidence.count(got.elements());
    demand_equal("rows permuted", want.row_difference(&got, source))
}

/// Nonzero |dy|, |w'| and |x_hat| within 2^±16 and rstd within 2^±30: then no sum, however it cancels, becomes subnormal
/// before its column or row is multiplied by rstd (a sum of products is a multiple of 2^-94, c of 2^-118).
fn dy_doubled(
    executor: &dyn Executor,
    case: &Case,
    operands: &Operands,
    want: &Outputs,
    evidence: &mut Evidence,
) -> Result<(), Stop> {
    let got = Operands::doubled(case, Fill::Nan, Doubling { x: 0, dy: 1 }).run(executor)?;
    evidence.comparisons += 1;
    let input = |name| operands.buffer(name).expect("always there");
    let (x, dy, weight) = (input(Name::X), input(Name::Dy), operands.buffer(Name::Weight));
    let offset = if case.weight_offset == WeightOffset::One { 1.0 } else { 0.0 };
    let ordinary = |v: f32| v == 0.0 || (v.abs() >= power_of_two(-16) && v.abs() <= power_of_two(14));
    let weights_are = weight.is_none_or(|w| (0..case.hidden).all(|j| ordinary(w.get(0, j) + offset)));
    let mut ordinary_columns = vec![true; case.hidden];
    for i in 0..case.rows {
        let rstd = want.rstd.get(i);
        let mut row_is = rstd >= power_of_two(-30) && rstd <= power_of_two(30);
        for (j, column_is) in ordinary_columns.iter_mut().enumerate() {
            let element_is = ordinary(dy.get(i, j)) && ordinary(x.get(i, j) * rstd);
            row_is &= element_is;
            *column_is &= element_is;
        }
        if !(row_is && weights_are) {
            evidence.exclude("dx of rows with dy, x_hat, w' or rstd beyond the range for doubling", case.hidden as u64);
            continue;
        }
        for j in 0..case.hidden {
            doubled("dx", (i, j), case.dtype, &want.dx, &got.dx, i * case.hidden + j, evidence)?;
        }
    }
    if let (Some(want), Some(got), Some(dtype)) = (&want.dw, &got.dw, case.dw_dtype()) {
        for (j, column_is) in ordinary_columns.into_iter().enumerate() {
            if column_is {
                doubled("dw", (0, j), dtype, want, got, j, evidence)?;
            } else {
                evidence.exclude("dw of columns with dy or x_hat beyond the range for doubling", 1);
            }
        }
    }
    Ok(())
}

fn doubled(
    output: &str,
    (i, j): (usize, usize),
    dtype: Dtype,
    want: &Elements,
    got: &Elements,
    at: usize,
    evidence: &mut Evidence,
) -> Result<(), Stop> {
    let (want, got) = (want.get(at), got.get(at));
    let (least, most) = match dtype {
        Dtype::F16 => (power_of_two(-14), 32752.0),
        Dtype::F32 | Dtype::Bf16 => (power_of_two(-80), power_of_two(126)),
    };
    let rounded_to_a_grid = want.abs() <= least && got.abs() <= 2.0 * least && !(want == 0.0 && got == 0.0);
    if want.abs() > most || rounded_to_a_grid {
        evidence.exclude("results whose double leaves the normal range", 1);
        return Ok(());
    }
    evidence.elements += 1;
    if (want * 2.0).to_bits() == got.to_bits() {
        return Ok(());
    }
    Err(Stop::Failed(format!("{output}[{i}][{j}] with dy doubled: expected 2·{want:e}, got {got:e}")))
}

/// Without a weight y is x_hat, rounded to its type. Excluded are rows that the multiplication changes otherwise, rows whose
/// rstd is not normal, and rows whose mean square is a little above the least normal number, where squares underflow.
fn x_scaled(executor: &dyn Executor, case: &Case, evidence: &mut Evidence) -> Result<(), Stop> {
    let case =
        Case { weight: WeightKind::Absent, weight_offset: WeightOffset::Zero, dw: DwKind::Absent, rstd: true, ..*case };
    let mut plain = Operands::new(&case, Fill::Nan);
    plain.forward(executor)?;
    let want = plain.outputs();
    let x = plain.buffer(Name::X).expect("always there");
    let reach = if case.dtype == Dtype::F16 { 12 } else { 123 };
    let exact_eps = |k: &i32| {
        let scaled = f64::from(case.eps) * 4.0_f64.powi(*k);
        f64::from(scaled as f32) == scaled
    };
    let factors: Vec<i32> = (-reach..=reach).filter(|k| *k != 0).filter(exact_eps).collect();
    for n in 0..FACTORS.min(factors.len() as u64) {
        let k = factors[(mix(case.seed ^ n << 32) % factors.len() as u64) as usize];
        let mut scaled = Operands::doubled(&case, Fill::Nan, Doubling { x: k, dy: 0 });
        scaled.forward(executor)?;
        let got = scaled.outputs();
        let scaled_x = scaled.buffer(Name::X).expect("always there");
        evidence.comparisons += 1;
        for i in 0..case.rows {
            if !shifts_exactly(&case, i, k, x, scaled_x) {
                evidence.exclude("rows that 2^k takes out of the range in which x_hat stays", 1);
                continue;
            }
            let rstd = [want.rstd.get(i) * power_of_two(-k), got.rstd.get(i)];
            if rstd[0].to_bits() != rstd[1].to_bits() {
                return Err(Stop::Failed(format!("rstd[{i}] with x·2^{k}: expected {:e}, got {:e}", rstd[0], rstd[1])));
            }
            let row = i * case.hidden..(i + 1) * case.hidden;
            if let Some(j) = row.clone().find(|j| want.y.bits(*j) != got.y.bits(*j)) {
                let (j, want, got) = (j - row.start, want.y.get(j), got.y.get(j));
                return Err(Stop::Failed(format!("y[{i}][{j}] with x·2^{k}: expected {want:e}, got {got:e}")));
            }
            evidence.elements += 1 + case.hidden as u64;
        }
    }
    Ok(())
}

fn shifts_exactly(case: &Case, row: usize, k: i32, x: &Buffer, scaled: &Buffer) -> bool {
    let factor = 2.0_f64.powi(k);
    let mut squares = 0.0;
    for j in 0..case.hidden {
        let (x, scaled) = (f64::from(x.get(row, j)), f64::from(scaled.get(row, j)));
        if scaled != x * factor || !scaled.is_finite() {
            return false;
        }
        squares += x * x;
    }
    let v = squares / case.hidden as f64 + f64::from(case.eps);
    let ordinary = |v: f64| {
        let rstd = v.sqrt().recip();
        let rstd_is_normal = rstd >= 2.0_f64.powi(-125) && rstd <= 2.0_f64.powi(127);
        rstd_is_normal && !(v > 2.0_f64.powi(-127) && v < 2.0_f64.powi(-90))
    };
    ordinary(v) && ordinary(v * factor * factor)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Powers of two that a case is scaled by.
const FACTORS: u64 = 4;
