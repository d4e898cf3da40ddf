//! The mistakes that have formulas of their own, and what is said of each.

use super::file::Case;
use super::looks::Kind;
use super::model::{Backward, Model, Statistic};
use super::pass::{Pass, Scope};
use super::progress::Progress;
use crate::Format;

/// A mistake, the model that it is, and what is said of it.
pub(crate) type Mistake = (Kind, Model, String);

/// Mistakes with the model that each is, those without a free number first.
pub(crate) fn mistakes(case: &Case<'_>, base: Model, few: &[usize]) -> Vec<Mistake> {
    let Statistic::Right { eps } = base.statistic else { return vec![] };
    let mut list = of_formulas(case, base, eps);
    list.extend(of_roundings(case, base));
    list.extend(squares(case, base, eps, few));
    list.extend(of_rounded_statistics(case, base, eps));
    list.extend(of_columns(case.hidden, base, eps));
    list.extend(another_eps(case, base, eps, few));
    list
}

/// Other formulas than the right ones.
fn of_formulas(case: &Case<'_>, base: Model, eps: f64) -> Vec<Mistake> {
    let mut list: Vec<Mistake> = Vec::new();
    let mut add = |kind, model, what: &str| list.push((kind, model, what.into()));
    let with = |statistic| Model { statistic, ..base };
    if eps > 0.0 {
        let what = "eps stands outside the root: 1/(sqrt(mean(x²)) + eps)";
        add(Kind::EpsOutsideRoot, with(Statistic::EpsOutside { eps }), what);
    }
    let what = "the mean is subtracted, as LayerNorm does";
    add(Kind::MeanSubtracted, with(Statistic::Centred { eps }), what);
    if case.weight.is_some() {
        if base.offset == 1.0 {
            let what = "weight + 1 was asked for and the weight alone was applied";
            add(Kind::WeightOffsetForgotten, Model { offset: 0.0, ..base }, what);
        } else {
            let what = "1 was added to the weight (if that is meant: --offset 1)";
            add(Kind::WeightOffsetAdded, Model { offset: 1.0, ..base }, what);
        }
        add(Kind::WeightIgnored, Model { weighted: false, ..base }, "the weight was not applied");
    }
    if case.tensor("dx").is_some() {
        let what = "the correction term is missing: dx = wdy·rstd, without x_hat·mean(wdy·x_hat)";
        add(Kind::CorrectionMissingInDx, Model { backward: Backward::NoCorrection, ..base }, what);
        if case.weight.is_some() {
            let what = "the weight is in dx twice: wdy = dy·w²";
            add(Kind::WeightTwiceInDx, Model { backward: Backward::WeightTwice, ..base }, what);
        }
    }
    list
}

/// Roundings that are one too many or too few, or none.
fn of_roundings(case: &Case<'_>, base: Model) -> Vec<Mistake> {
    let mut list: Vec<Mistake> = Vec::new();
    let mut add = |kind, model, what: &str| list.push((kind, model, what.into()));
    if let Some(format) = case.x().stored.narrow() {
        if base.twice.is_some() {
            let what = "x_hat was not rounded before the weight (judge it with --rounding once)";
            add(Kind::NotRoundedFirst, Model { twice: None, ..base }, what);
        } else {
            let what = "x_hat was rounded to the type of x before the weight, as transformers' Llama does (if that is meant: --rounding twice)";
            add(Kind::RoundedFirst, Model { twice: Some(format), ..base }, what);
        }
        if case.tensor("residual").is_some() && !base.unrounded {
            let what = "x + residual was normalised before it was rounded to what is stored (if that is meant: --sum unrounded)";
            add(Kind::SumNotRounded, Model { unrounded: true, ..base }, what);
        }
    }
    if case.tensors.values().any(|tensor| tensor.stored.narrow().is_some()) {
        let what = "the conversion to 16 bits cuts off instead of rounding";
        add(Kind::Truncated, Model { truncates: true, ..base }, what);
    }
    list
}

/// Statistics that are rounded to 16 bits.
fn of_rounded_statistics(case: &Case<'_>, base: Model, eps: f64) -> Vec<Mistake> {
    let mut list: Vec<Mistake> = Vec::new();
    let with = |statistic| Model { statistic, ..base };
    if let Some(format) = case.x().stored.narrow() {
        let stored = super::Stored::In(format);
        let what = format!(
            "the root of the mean square was rounded to {stored} and x divided by it, the quotient rounded before the weight, as candle's fused kernel does"
        );
        let model = Model { twice: Some(format), ..with(Statistic::RmsRoundedTo { format, eps }) };
        list.push((Kind::RmsRounded, model, what));
    }
    for format in [Format::Bf16, Format::F16] {
        let what = format!("rstd was rounded to {}", super::Stored::In(format));
        list.push((Kind::RstdRounded, with(Statistic::RoundedTo { format, eps }), what));
    }
    list
}

/// Columns that are left out of the sum over a row of so many.
fn of_columns(hidden: usize, base: Model, eps: f64) -> Vec<Mistake> {
    let mut list: Vec<Mistake> = Vec::new();
    let mut add = |kind, columns, what: String| {
        list.push((kind, Model { statistic: Statistic::First { columns, eps }, ..base }, what));
    };
    for vector in [8, 4, 2, 16, 32].into_iter().filter(|k| *k < hidden && !hidden.is_multiple_of(*k)) {
        let last = hidden % vector;
        let what = format!("the last N % {vector} = {last} columns are left out of the sum over the row");
        add(Kind::LastColumns, hidden - last, what);
    }
    for columns in (5..24).rev().map(|k| 1usize << k).filter(|columns| *columns < hidden) {
        add(Kind::ColumnsPast, columns, format!("columns past {columns} are left out of the sum over the row"));
    }
    if hidden > 1 {
        add(Kind::LastColumns, hidden - 1, "the last column is left out of the sum over the row".into());
    }
    list
}

/// Of the other values the one that explains most.
fn another_eps(case: &Case<'_>, base: Model, eps: f64, few: &[usize]) -> Option<Mistake> {
    let with = |eps| Model { statistic: Statistic::Right { eps }, ..base };
    let outside = |other: f64| -> u64 {
        let pass = Pass::new(case, with(other));
        let found = pass.run(&Scope { rows: Some(few), columns: false, progress: &Progress::silent() });
        found.values().map(|found| found.outside).sum()
    };
    let others = eps_to_try(case, base, few).into_iter().filter(|other| *other != eps);
    let (_, other) = others.map(|other| (outside(other), other)).reduce(|a, b| if b.0 < a.0 { b } else { a })?;
    let what = format!("another eps: {} fits, {} was said", short(other), short(eps));
    Some((Kind::AnotherEps, with(other), what))
}

/// A number of f32 as people write it.
pub(crate) fn short(value: f64) -> String {
    if f64::from(value as f32) == value { format!("{:e}", value as f32) } else { format!("{value:e}") }
}

/// Squares made in the type of x, and squares that f32 does not hold.
fn squares(case: &Case<'_>, base: Model, eps: f64, few: &[usize]) -> Vec<Mistake> {
    let mut list = Vec::new();
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
    // f32 first: what it explains needs no narrower squares.
    for format in [Some(Format::F32), case.x().stored.narrow()].into_iter().flatten() {
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
    list
}

/// Usual values, and what the rows themselves say.
pub(crate) fn eps_to_try(case: &Case<'_>, base: Model, few: &[usize]) -> Vec<f64> {
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
