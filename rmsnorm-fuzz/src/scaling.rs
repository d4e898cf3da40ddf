//! Property 9: what must follow exactly when rows are permuted or operands are scaled by powers of two. No oracle, no
//! tolerance.

use crate::buffer::{Buffer, Fill};
use crate::case::{Case, DwKind, Name, WeightKind};
use crate::elements::Elements;
use crate::finding::{Evidence, Finding, Stop, demand_equal};
use crate::operands::{Doubling, Operands, Outputs};
use crate::subject::Subject;
use crate::values::{mix, power_of_two};
use rmsnorm_cuda::{Dtype, Executor, WeightOffset};

/// *Permuting rows permutes y and dx; doubling dy doubles dx, dw and db; scaling x by 2^k and eps by 4^k keeps x_hat and shifts
/// rstd.* What leaves the range in which this is exact is excluded and counted.
pub(crate) fn scaling(subject: &Subject, case: &Case) -> Finding {
    let executor = &*subject.executor;
    if case.rows == 0 {
        return Err(Stop::NotApplicable("there is no row".into()));
    }
    let mut evidence = Evidence::default();
    let mut operands = Operands::new(case, Fill::Nan);
    let mut outputs = operands.run(executor)?;
    permuted(executor, case, &outputs, &mut evidence)?;
    // A dz does not double with dy, nor a residual with x.
    let case = Case { dz: None, residual: None, ..*case };
    if operands.case().dz.is_some() || operands.case().residual.is_some() {
        operands = Operands::new(&case, Fill::Nan);
        outputs = operands.run(executor)?;
    }
    dy_doubled(executor, &case, &operands, &outputs, &mut evidence)?;
    x_scaled(executor, &case, &mut evidence)?;
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

/// Doubling commutes with every rounding as long as nothing becomes subnormal or infinite. Sums can cancel, but only down to a
/// multiple of the last places of their products, 2^-46 of the smallest product: so the smallest and the largest of the nonzero
/// |wdy|, |x_hat| and |dy| decide which rows and columns are compared.
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
    let (x, dy) = (input(Name::X), input(Name::Dy));
    let offset = if case.weight_offset == WeightOffset::One { 1.0 } else { 0.0 };
    let weight = operands.buffer(Name::Weight).map(|w| w.row(0));
    let w: Vec<f64> = weight.map_or(vec![1.0; case.hidden], |w| w.into_iter().map(|w| f64::from(w + offset)).collect());
    let mut columns = vec![(Magnitudes::default(), Magnitudes::default()); case.hidden];
    for i in 0..case.rows {
        let rstd = want.rstd.get(i);
        let (mut wdys, mut x_hats) = (Magnitudes::default(), Magnitudes::default());
        for ((column_dys, column_x_hats), ((dy, x), w)) in
            columns.iter_mut().zip(dy.row(i).into_iter().zip(x.row(i)).zip(&w))
        {
            let x_hat = x * rstd;
            // A dy without a double spoils its row and its column.
            let dy = if dy.abs() <= largest_half(case.type_of(Name::Dy)) { dy } else { f32::INFINITY };
            wdys.add(f64::from(dy) * w);
            x_hats.add(f64::from(x_hat));
            column_dys.add(f64::from(dy));
            column_x_hats.add(f64::from(x_hat));
        }
        if !(rstd.is_normal() && wdys.double_in_sums_with(&x_hats, case.hidden)) {
            evidence.exclude("dx of rows in which doubling may not be exact", case.hidden as u64);
            continue;
        }
        // Below this, t may be subnormal.
        let least = power_of_two(-120) * rstd.max(1.0);
        for j in 0..case.hidden {
            doubled("dx", (i, j), least, case.type_of(Name::Dx), &want.dx, &got.dx, i * case.hidden + j, evidence)?;
        }
    }
    if let (Some(want), Some(got), Some(dtype)) = (&want.db, &got.db, case.db_dtype()) {
        for (j, (dys, _)) in columns.iter().enumerate() {
            // Sums of f32 numbers do not round where they are subnormal; their conversion does.
            let least = if dtype == Dtype::F32 { 0.0 } else { power_of_two(-125) };
            if dys.largest * (case.rows as f64) < LARGE {
                doubled("db", (0, j), least, dtype, want, got, j, evidence)?;
            } else {
                evidence.exclude("db of columns in which doubling may not be exact", 1);
            }
        }
    }
    if let (Some(want), Some(got), Some(dtype)) = (&want.dw, &got.dw, case.dw_dtype()) {
        for (j, (dys, x_hats)) in columns.into_iter().enumerate() {
            if dys.double_in_sums_with(&x_hats, 1) && dys.largest * x_hats.largest * (case.rows as f64) < LARGE {
                doubled("dw", (0, j), power_of_two(-120), dtype, want, got, j, evidence)?;
            } else {
                evidence.exclude("dw of columns in which doubling may not be exact", 1);
            }
        }
    }
    Ok(())
}

/// The smallest and the largest magnitude, zeros apart.
#[derive(Clone, Copy)]
struct Magnitudes {
    smallest: f64,
    largest: f64,
}

impl Default for Magnitudes {
    fn default() -> Self {
        Magnitudes { smallest: f64::INFINITY, largest: 0.0 }
    }
}

impl Magnitudes {
    fn add(&mut self, value: f64) {
        if value.is_nan() {
            self.largest = f64::INFINITY;
        } else if value != 0.0 {
            self.smallest = self.smallest.min(value.abs());
            self.largest = self.largest.max(value.abs());
        }
    }

    /// Whether a sum of `count` products of these and `others`, and that sum divided by `count`, doubles with these.
    fn double_in_sums_with(&self, others: &Magnitudes, count: usize) -> bool {
        let least = 2.0_f64.powi(-125);
        let smallest = self.smallest.min(1.0) * others.smallest.min(1.0) * 2.0_f64.powi(-46) / count as f64;
        let largest = self.largest.max(1.0) * others.largest.max(1.0) * count as f64;
        self.smallest > least && others.smallest > least && smallest > least && largest < LARGE
    }
}

#[allow(clippy::too_many_arguments, reason = "two elements, and where they are")]
fn doubled(
    output: &str,
    (i, j): (usize, usize),
    least: f32,
    dtype: Dtype,
    want: &Elements,
    got: &Elements,
    at: usize,
    evidence: &mut Evidence,
) -> Result<(), Stop> {
    let (want, got) = (want.get(at), got.get(at));
    let least = if dtype == Dtype::F16 { least.max(power_of_two(-14)) } else { least };
    let rounded_to_a_grid = want.abs() <= least && got.abs() <= 2.0 * least && !(want == 0.0 && got == 0.0);
    if want.abs() > largest_half(dtype) || rounded_to_a_grid {
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
    let case = Case {
        weight: WeightKind::Absent,
        bias: WeightKind::Absent,
        weight_offset: WeightOffset::Zero,
        dw: DwKind::Absent,
        rstd: true,
        ..*case
    };
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
    for (x, scaled) in x.row(row).into_iter().zip(scaled.row(row)) {
        let (x, scaled) = (f64::from(x), f64::from(scaled));
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

/// Up to here numbers of this type can be doubled.
fn largest_half(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => 32752.0,
        Dtype::F32 | Dtype::Bf16 => power_of_two(126),
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Products and sums below this can be doubled in f32.
const LARGE: f64 = (1_u128 << 120) as f64;
/// Powers of two that a case is scaled by.
const FACTORS: u64 = 4;
