//! "Looks like": known mistakes whose own formulas explain what the right ones do not.
//!
//! A mistake is named only if its formulas, under the same bound, explain all but a thousandth of what is outside.

use super::file::Case;
use super::findings::Findings;
use super::model::{Backward, Model, Statistic};
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
    RstdRounded,
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
            let better = |after: &Outputs, before: &Outputs, name: &&'static str, most: u64| {
                before[name].outside > 0
                    && after[name].outside * most <= before[name].outside
                    && after[name].unbounded == 0
                    // What may overflow by another formula is no evidence of it.
                    && after[name].may_overflow <= before[name].may_overflow
            };
            let after_few = judged(model, &few);
            if !by_row(open).iter().any(|name| better(&after_few, &before_few, name, 20)) {
                continue;
            }
            let after = judged(model, &many);
            // A bound that lets wdy be rounded to 16 bits allows much of dx: y is the evidence of that.
            let loose = kind == Kind::RoundedFirst && case.tensors.contains_key("y");
            if loose && !better(&after, &before, &"y", 1000) {
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
        if (open.contains(&"dw") || open.contains(&"db"))
            && (alone || any_rows)
            && changes_x_hat_or_conversion(&model, &base)
        {
            let all = Pass::new(case, model).run(&Scope { rows: None, columns: true, progress: &Progress::silent() });
            for name in
                ["dw", "db"].into_iter().filter(|name| open.contains(name) && (*name == "dw" || model.truncates))
            {
                let (after, before) = (&all[name], &outputs[name]);
                if after.outside * 1000 <= before.outside {
                    explained.push((name, format!("{name} ({})", tried(before, after))));
                }
            }
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

/// Mistakes with the model that each is, those without a free number first.
fn mistakes(case: &Case<'_>, base: Model, few: &[usize]) -> Vec<(Kind, Model, String)> {
    let Statistic::Right { eps } = base.statistic else { return vec![] };
    let mut list: Vec<(Kind, Model, String)> = Vec::new();
    let mut add = |kind, model, what: String| list.push((kind, model, what));
    let with = |statistic| Model { statistic, ..base };
    if eps > 0.0 {
        let what = "eps stands outside the root: 1/(sqrt(mean(x²)) + eps)";
        add(Kind::EpsOutsideRoot, with(Statistic::EpsOutside { eps }), what.into());
    }
    let what = "the mean is subtracted, as LayerNorm does";
    add(Kind::MeanSubtracted, with(Statistic::Centred { eps }), what.into());
    if case.weight.is_some() {
        if base.offset == 1.0 {
            let what = "weight + 1 was asked for and the weight alone was applied";
            add(Kind::WeightOffsetForgotten, Model { offset: 0.0, ..base }, what.into());
        } else {
            let what = "1 was added to the weight (if that is meant: --offset 1)";
            add(Kind::WeightOffsetAdded, Model { offset: 1.0, ..base }, what.into());
        }
        add(Kind::WeightIgnored, Model { weighted: false, ..base }, "the weight was not applied".into());
    }
    if case.tensor("dx").is_some() {
        let what = "the correction term is missing: dx = wdy·rstd, without x_hat·mean(wdy·x_hat)";
        add(Kind::CorrectionMissingInDx, Model { backward: Backward::NoCorrection, ..base }, what.into());
        if case.weight.is_some() {
            let what = "the weight is in dx twice: wdy = dy·w²";
            add(Kind::WeightTwiceInDx, Model { backward: Backward::WeightTwice, ..base }, what.into());
        }
    }
    let narrow = case.x().stored.narrow();
    if let Some(format) = narrow {
        if base.twice.is_some() {
            let what = "x_hat was not rounded before the weight (judge it with --rounding once)";
            add(Kind::NotRoundedFirst, Model { twice: None, ..base }, what.into());
        } else {
            let what = "x_hat was rounded to the type of x before the weight, as transformers' Llama does (if that is meant: --rounding twice)";
            add(Kind::RoundedFirst, Model { twice: Some(format), ..base }, what.into());
        }
        if case.tensor("residual").is_some() && !base.unrounded {
            let what = "x + residual was normalised before it was rounded to what is stored (if that is meant: --sum unrounded)";
            add(Kind::SumNotRounded, Model { unrounded: true, ..base }, what.into());
        }
    }
    if case.tensors.values().any(|tensor| tensor.stored.narrow().is_some()) {
        let what = "the conversion to 16 bits cuts off instead of rounding";
        add(Kind::Truncated, Model { truncates: true, ..base }, what.into());
    }
    squares(case, base, eps, few, &mut list);
    let mut add = |kind, model, what: String| list.push((kind, model, what));
    for format in [Format::Bf16, Format::F16] {
        let what = format!("rstd was rounded to {}", super::Stored::In(format));
        add(Kind::RstdRounded, with(Statistic::RoundedTo { format, eps }), what);
    }
    let n = case.hidden;
    for vector in [8, 4, 2, 16, 32].into_iter().filter(|k| *k < n && !n.is_multiple_of(*k)) {
        let columns = n - n % vector;
        let what = format!("the last N % {vector} = {} columns are left out of the sum over the row", n % vector);
        add(Kind::LastColumns, with(Statistic::First { columns, eps }), what);
    }
    for columns in (5..24).rev().map(|k| 1usize << k).filter(|columns| *columns < n) {
        let what = format!("columns past {columns} are left out of the sum over the row");
        add(Kind::ColumnsPast, with(Statistic::First { columns, eps }), what);
    }
    if n > 1 {
        let what = "the last column is left out of the sum over the row".to_owned();
        add(Kind::LastColumns, with(Statistic::First { columns: n - 1, eps }), what);
    }
    // Of the others the one that explains most.
    let outside = |other: f64| -> u64 {
        let pass = Pass::new(case, with(Statistic::Right { eps: other }));
        let found = pass.run(&Scope { rows: Some(few), columns: false, progress: &Progress::silent() });
        found.values().map(|found| found.outside).sum()
    };
    let others = eps_to_try(case, base, few).into_iter().filter(|other| *other != eps);
    if let Some((_, other)) = others.map(|other| (outside(other), other)).reduce(|a, b| if b.0 < a.0 { b } else { a }) {
        let what = format!("another eps: {} fits, {} was said", short(other), short(eps));
        add(Kind::AnotherEps, with(Statistic::Right { eps: other }), what);
    }
    list
}

/// A number of f32 as people write it.
pub(crate) fn short(value: f64) -> String {
    if f64::from(value as f32) == value { format!("{:e}", value as f32) } else { format!("{value:e}") }
}

/// Squares made in the type of x, and squares that f32 does not hold.
fn squares(case: &Case<'_>, base: Model, eps: f64, few: &[usize], list: &mut Vec<(Kind, Model, String)>) {
    let pass = Pass::new(case, base);
    let mut z = vec![0.0; case.hidden];
    // What became of the squares, if it is more than rounding.
    let lost = |format: Format, z: &[f64]| {
        let (found, right) = (Statistic::SquaresIn { format, eps }.of(z).v, Statistic::Right { eps }.of(z).v);
        match () {
            _ if found.is_infinite() && right.is_finite() => Some("overflowed"),
            _ if found == eps && right > 1.0001 * eps => Some("vanished"),
            _ if format == Format::F32 && (found - right).abs() > 1e-5 * right => Some("lost digits"),
            _ => None,
        }
    };
    for format in [case.x().stored.narrow(), Some(Format::F32)].into_iter().flatten() {
        let mut example = None;
        for &row in few {
            pass.load(row, &mut z);
            if let Some(what) = lost(format, &z) {
                let most = z.iter().fold(0f64, |most, z| most.max(z.abs()));
                example.get_or_insert((row, most, what));
            }
        }
        let model = Model { statistic: Statistic::SquaresIn { format, eps }, ..base };
        let stored = super::Stored::In(format);
        match example {
            Some((row, most, lost)) => {
                let square = format.round(most * most);
                let what = format!(
                    "squares {lost} in {stored}: row {row} has |x| up to {most:e}, whose square is {square:e} there"
                );
                list.push((Kind::SquaresOverflowed, model, what));
            }
            None if format != Format::F32 => {
                list.push((Kind::SquaresInX, model, format!("x² was rounded to {stored} before it was summed")));
            }
            None => {}
        }
    }
}

/// Usual values, and what the rows themselves say.
fn eps_to_try(case: &Case<'_>, base: Model, few: &[usize]) -> Vec<f64> {
    let mut list = USUAL.to_vec();
    let pass = Pass::new(case, base);
    let (mut z, mut y) = (vec![0.0; case.hidden], vec![0.0; case.hidden]);
    let mut told: Vec<(f64, f64)> = Vec::new();
    for &row in few {
        pass.load(row, &mut z);
        let mean_square = z.iter().map(|z| z * z).sum::<f64>() / case.hidden as f64;
        let rstd = match (case.tensor("rstd"), case.tensor("y")) {
            (Some(rstd), _) => rstd.get(row),
            (None, Some(tensor)) if case.bias.is_none() => {
                tensor.read(row * case.hidden, &mut y);
                let weight = |j: usize| case.weight.as_ref().map_or(1.0, |w| w[j] + base.offset);
                let sum = |of: &dyn Fn(usize) -> f64| (0..case.hidden).map(of).sum::<f64>();
                sum(&|j| y[j] * z[j] * weight(j)) / sum(&|j| (z[j] * weight(j)).powi(2))
            }
            _ => continue,
        };
        let eps = 1.0 / (rstd * rstd) - mean_square;
        if eps.is_finite() && eps > 0.0 {
            told.push((mean_square, eps));
        }
    }
    // The row with the least mean square knows eps best.
    told.sort_by(|a, b| a.0.total_cmp(&b.0));
    if let Some(&(_, eps)) = told.first() {
        let digits = 10f64.powi(eps.log10().floor() as i32 - 1);
        list.extend([(eps / digits).round() * digits, eps]);
    }
    list
}

/// What frameworks have: their defaults, and the epsilons of the types.
const USUAL: [f64; 11] =
    [1e-5, 1e-6, 1e-8, 1e-12, 0.0, 1e-3, 1e-4, 1e-7, 1.1920928955078125e-7, 0.0078125, 2.220446049250313e-16];

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
