//! "Looks like": known mistakes whose own formulas explain what the right ones do not.
//!
//! A mistake is named only if its formulas, under the same bound, explain all but a thousandth of what is outside.

use super::file::Case;
use super::findings::Findings;
use super::mistakes::{eps_to_try, mistakes};
use super::model::{Model, Statistic};
use super::pass::{Outputs, Pass, Scope};
use super::progress::Progress;
use super::{accumulators, right, rows_left_out, structure};
use crate::Format;
use serde::Serialize;

/// A known mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is described by its sentence and in docs/judge.md")]
pub enum Kind {
    EpsOutsideRoot,
    AnotherEps,
    MeanSubtracted,
    WeightOffsetForgotten,
    WeightOffsetAdded,
    WeightIgnored,
    WeightTwiceInDx,
    CorrectionMissingInDx,
    RoundedFirst,
    NotRoundedFirst,
    Truncated,
    SumNotRounded,
    SquaresInX,
    SquaresOverflowed,
    CubesOverflowed,
    RstdRounded,
    RmsRounded,
    RowsPast,
    ColumnsPast,
    LastColumns,
    Tile,
    PartOfRows,
    NarrowAccumulator,
    Stale,
    Transposed,
}

/// A mistake that explains what is outside.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LooksLike {
    /// Which.
    pub kind: Kind,
    /// The outputs that it explains.
    pub outputs: Vec<&'static str>,
    /// It, with its evidence.
    pub sentence: String,
}

/// Elements that a mistake is tried on.
const SAMPLE: usize = 1 << 20;
const ROW_OUTPUTS: [&str; 3] = ["rstd", "y", "dx"];

/// The mistakes that explain what is outside; empty where nothing is, and where none fits.
pub(crate) fn looks_like(case: &Case<'_>, pass: &Pass<'_>, outputs: &Outputs) -> Vec<LooksLike> {
    let mut open: Vec<&'static str> =
        outputs.iter().filter(|(_, found)| found.outside > 0).map(|(&name, _)| name).collect();
    let mut found: Vec<LooksLike> = Vec::new();
    if open.is_empty() {
        return found;
    }
    by_formula(case, pass.model, outputs, &mut open, &mut found);
    for name in open.clone() {
        let found_here = &outputs[name];
        let explained = structure::memory(case, pass, name, found_here)
            .or_else(|| ["dw", "db"].contains(&name).then(|| rows_left_out::explain(case, pass, name)).flatten())
            .or_else(|| overflows(case, pass, name, found_here))
            .or_else(|| structure::place(case, name, found_here))
            .or_else(|| transposed(case, pass, name, found_here))
            .or_else(|| accumulators::explain(case, pass, name, found_here));
        if let Some((kind, sentence)) = explained {
            note(&mut found, kind, name, sentence);
        }
    }
    found
}

/// One sentence a mistake, for all outputs that it explains.
fn note(found: &mut Vec<LooksLike>, kind: Kind, output: &'static str, sentence: String) {
    match found.iter_mut().find(|l| l.kind == kind) {
        Some(same) => {
            same.outputs.push(output);
            same.sentence.push_str(&format!("; {sentence}"));
        }
        None => found.push(LooksLike { kind, outputs: vec![output], sentence }),
    }
}

/// Other formulas, tried on a few rows and then on a sample of them.
fn by_formula(
    case: &Case<'_>,
    base: Model,
    outputs: &Outputs,
    open: &mut Vec<&'static str>,
    found: &mut Vec<LooksLike>,
) {
    let failing = |rows: usize| sample(case, outputs, rows);
    let few = failing(12);
    let many = failing((SAMPLE / case.hidden).max(12));
    let judged = |model: Model, rows: &[usize]| {
        Pass::new(case, model).run(&Scope { rows: Some(rows), columns: false, progress: &Progress::silent() })
    };
    let (before_few, before) = (judged(base, &few), judged(base, &many));
    let by_row = |open: &[&'static str]| -> Vec<&'static str> {
        open.iter().copied().filter(|name| ROW_OUTPUTS.contains(name)).collect()
    };
    // A fault of the statistic shows in every output that has it: a file of dw alone is tried as well.
    let any_rows = !by_row(open).is_empty();
    for (kind, model, what) in mistakes(case, base, &few) {
        if open.is_empty() {
            return;
        }
        let mut explained = Vec::new();
        if any_rows {
            let after_few = judged(model, &few);
            if !by_row(open).iter().any(|name| better(&after_few, &before_few, name, 20)) {
                continue;
            }
            let after = judged(model, &many);
            // A bound that lets wdy be rounded to 16 bits allows much of dx, and so does one more sum, or an infinite rstd: y is the evidence of these.
            let by_y = [Kind::RoundedFirst, Kind::RmsRounded, Kind::RstdRounded, Kind::MeanSubtracted];
            let loose = by_y.contains(&kind) && case.tensors.contains_key("y");
            if loose && !better(&after, &before, "y", 1000) {
                continue;
            }
            explained.extend(by_row(open).into_iter().filter(|name| better(&after, &before, name, 1000)).map(|name| {
                (name, format!("{} ({}; {})", name, tried(&before[name], &after[name]), case_rows(case, many.len())))
            }));
            if explained.is_empty() {
                continue;
            }
        }
        // dw alone is evidence where no output of the rows can say more, or of how it was converted.
        let alone =
            !any_rows && (model.truncates || !case.tensors.contains_key("y") && !case.tensors.contains_key("rstd"));
        if (alone || any_rows) && changes_x_hat_or_conversion(&model, &base) {
            explained.extend(explained_columns(case, model, outputs, open));
        }
        if explained.is_empty() {
            continue;
        }
        open.retain(|name| !explained.iter().any(|(explained, _)| explained == name));
        let evidence: Vec<String> = explained.iter().map(|(_, text)| text.clone()).collect();
        let sentence = format!("{what}. It explains {}", evidence.join(", "));
        found.push(LooksLike { kind, outputs: explained.into_iter().map(|(name, _)| name).collect(), sentence });
    }
}

/// Whether of what one formula has outside another has so many times less.
fn better(after: &Outputs, before: &Outputs, name: &str, times: u64) -> bool {
    let (after, before) = (&after[name], &before[name]);
    before.outside > 0
        && after.outside * times <= before.outside
        && after.unbounded == 0
        // What may overflow by another formula is no evidence of it.
        && after.may_overflow <= before.may_overflow
}

/// The column sums that a mistake explains, with its evidence.
fn explained_columns(
    case: &Case<'_>,
    model: Model,
    outputs: &Outputs,
    open: &[&'static str],
) -> Vec<(&'static str, String)> {
    let candidates = [("dw", true), ("db", model.truncates)];
    let candidates: Vec<_> = candidates.iter().filter(|(name, may)| *may && open.contains(name)).collect();
    if candidates.is_empty() {
        return vec![];
    }
    let all = Pass::new(case, model).run(&Scope { rows: None, columns: true, progress: &Progress::silent() });
    let mut explained = Vec::new();
    for (name, _) in candidates {
        let (after, before) = (&all[name], &outputs[name]);
        if after.outside * 1000 <= before.outside {
            explained.push((*name, format!("{name} ({})", tried(before, after))));
        }
    }
    explained
}

fn changes_x_hat_or_conversion(model: &Model, base: &Model) -> bool {
    model.statistic != base.statistic
        || model.twice != base.twice
        || model.truncates
        || model.unrounded != base.unrounded
}

fn tried(before: &Findings, after: &Findings) -> String {
    format!(
        "{} of {} outside the right formula's bound, {} outside this one's",
        before.outside, before.elements, after.outside
    )
}

fn case_rows(case: &Case<'_>, tried: usize) -> String {
    if tried >= case.rows { "all rows".into() } else { format!("{tried} of {} rows", case.rows) }
}

/// Rows to try: some that fail and some spread over all.
fn sample(case: &Case<'_>, outputs: &Outputs, most: usize) -> Vec<usize> {
    if most >= case.rows {
        return (0..case.rows).collect();
    }
    let mut rows: Vec<usize> = (0..most / 2).map(|i| i * case.rows / (most / 2)).collect();
    for name in ROW_OUTPUTS {
        let Some(found) = outputs.get(name) else { continue };
        let failing: Vec<usize> =
            (0..case.rows).filter(|row| found.row_outside.get(*row).is_some_and(|n| *n > 0)).collect();
        let wanted = (most / 6).max(2).min(failing.len());
        rows.extend((0..wanted).map(|i| failing[i * failing.len() / wanted]));
    }
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// The usual values with which every output is within the bound.
pub(crate) fn eps_that_fit(case: &Case<'_>) -> Vec<f64> {
    let rows = sample(case, &Outputs::new(), (SAMPLE / case.hidden).clamp(12, 4096));
    let few: Vec<usize> = rows.iter().copied().take(12).collect();
    let mut fits: Vec<f64> = Vec::new();
    for eps in eps_to_try(case, right(case, 0.0), &few) {
        let near = fits.iter().any(|known| (known - eps).abs() <= 0.02 * known);
        let by_row = ROW_OUTPUTS.iter().any(|name| case.tensor(name).is_some());
        if near || !by_row {
            continue;
        }
        let pass = Pass::new(case, right(case, eps));
        let found = pass.run(&Scope { rows: Some(&rows), columns: false, progress: &Progress::silent() });
        if found.values().all(|found| found.outside == 0) {
            fits.push(eps);
        }
    }
    fits
}

/// dx that is not finite in rows of which f32 does not hold rstd³, of which autograd makes it, or neither the squares nor Σ wdy·x, and wrong in
/// no other.
fn overflows(case: &Case<'_>, pass: &Pass<'_>, name: &str, found: &Findings) -> Option<(Kind, String)> {
    if name != "dx" || found.not_finite < found.outside {
        return None;
    }
    let Statistic::Right { eps } = pass.model.statistic else { return None };
    let (dy, omega) = (case.tensor("dy")?, Format::F32.overflow_threshold());
    let (mut z, mut dys) = (vec![0.0; case.hidden], vec![0.0; case.hidden]);
    let (mut cubes, mut squares, mut example) = (true, true, None);
    for row in (0..case.rows).filter(|row| found.row_outside[*row] > 0) {
        pass.load(row, &mut z);
        dy.read(row * case.hidden, &mut dys);
        let weight = |column: usize| case.weight.as_ref().map_or(1.0, |w| w[column] + pass.model.offset);
        let dot: f64 = (0..case.hidden).map(|column| (dys[column] * weight(column) * z[column]).abs()).sum();
        let rstd = pass.model.statistic.of(&z).rstd;
        cubes &= rstd.powi(3) >= omega;
        squares &= dot >= omega && Statistic::SquaresIn { format: Format::F32, eps }.of(&z).v.is_infinite();
        example.get_or_insert((row, rstd, dot));
    }
    let (row, rstd, dot) = example?;
    let (kind, what) = match (cubes, squares) {
        (true, _) => (Kind::CubesOverflowed, format!("rstd³ overflows in f32: row {row} has rstd {rstd:e}")),
        (_, true) => {
            let what =
                format!("squares and Σ |wdy·x| overflow in f32, and 0 meets ∞: the latter is {dot:.1e} in row {row}");
            (Kind::SquaresOverflowed, what)
        }
        _ => return None,
    };
    Some((kind, format!("dx is not finite where {what}; all {} wrong elements are in such rows", found.outside)))
}

/// A square matrix that is right where rows and columns change places.
fn transposed(case: &Case<'_>, pass: &Pass<'_>, name: &str, found: &Findings) -> Option<(Kind, String)> {
    let n = case.hidden;
    if case.rows != n || n < 4 || name != "y" || found.outside * 2 < found.elements {
        return None;
    }
    let tensor = case.tensor(name)?;
    let manner = |row: usize| -> Vec<f64> { (0..n).map(|column| tensor.get(column * n + row)).collect() };
    let (mut z, mut right, mut tried) = (vec![0.0; n], 0, 0);
    for row in (0..n).step_by(n.div_ceil(8)) {
        pass.load(row, &mut z);
        let statistic = pass.model.statistic.of(&z);
        for (column, computed) in manner(row).into_iter().enumerate() {
            let weight = case.weight.as_ref().map_or(1.0, |w| w[column] + pass.model.offset);
            let exact = z[column] * statistic.rstd * weight + case.bias.as_ref().map_or(0.0, |b| b[column]);
            tried += 1;
            right += usize::from((computed - exact).abs() <= 2.0 * tensor.stored.ulp(exact) + 1e-5 * exact.abs());
        }
    }
    let sentence = format!(
        "{name} is transposed: {right} of {tried} elements tried are right where rows and columns change places"
    );
    (right * 1000 >= tried * 999).then_some((Kind::Transposed, sentence))
}
