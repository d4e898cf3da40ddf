//! Sums in 16 bits: errors of the size that such sums make.

use super::file::Case;
use super::findings::Findings;
use super::looks::Kind;
use super::pass::Pass;
use crate::Format;

/// Rows or columns whose sums are made again.
const TRIED: usize = 48;
/// How far the size of the errors may be from that of the sums made again.
const NEAR: f64 = 3.0;

/// Whether errors are what an accumulator of 16 bits makes of these very operands.
pub(crate) fn explain(
    case: &Case<'_>,
    pass: &Pass<'_>,
    name: &'static str,
    found: &Findings,
) -> Option<(Kind, String)> {
    let narrow = case.x().stored.narrow();
    let formats = [narrow, Some(Format::Bf16), Some(Format::F16)].into_iter().flatten();
    let sums = match name {
        "dw" | "db" => columns(case, pass, name)?,
        "y" | "rstd" => rows(case, pass, name, found)?,
        _ => return None,
    };
    let size = |errors: &[f64]| {
        let mut sizes: Vec<f64> = errors.iter().map(|e| e.abs()).filter(|e| e.is_finite()).collect();
        sizes.sort_by(f64::total_cmp);
        sizes.get(sizes.len() / 2).copied().unwrap_or(0.0)
    };
    let measured = size(&sums.iter().map(|sum| sum.error).collect::<Vec<_>>());
    // What one conversion of the result does alone is no evidence of how it was summed.
    let converted = size(&sums.iter().map(|sum| sum.conversion).collect::<Vec<_>>());
    if measured == 0.0 || measured < 1.2 * converted {
        return None;
    }
    for format in formats {
        for chains in [1usize, 4, 32, 128, 256, 1024] {
            let again: Vec<f64> = sums
                .iter()
                .map(|sum| sum.power * (summed(&sum.products, chains, format) - sum.exact) / sum.scale)
                .collect();
            let expected = size(&again);
            if expected > 0.0 && measured / expected < NEAR && expected / measured < NEAR {
                let stored = super::Stored::In(format);
                let what = format!(
                    "{name} has errors as large as sums accumulated in {stored} have: {measured:.1e} of the sum of magnitudes in the middle, where {chains} chain{} \
                     in {stored} make {expected:.1e} of these operands and f32 makes some 1e-7",
                    if chains == 1 { "" } else { "s" }
                );
                return Some((Kind::NarrowAccumulator, what));
            }
        }
    }
    None
}

/// A sum that the kernel made.
struct Summed {
    products: Vec<f64>,
    exact: f64,
    /// The error seen, relative to `scale`; the most that the conversion of the result adds.
    error: f64,
    conversion: f64,
    scale: f64,
    /// What an error of the sum is multiplied by to be seen.
    power: f64,
}

fn summed(products: &[f64], chains: usize, format: Format) -> f64 {
    let mut sums = vec![0.0; chains];
    for (i, product) in products.iter().enumerate() {
        sums[i % chains] = format.round(sums[i % chains] + format.round(*product));
    }
    while sums.len() > 1 {
        sums = sums.chunks(2).map(|pair| format.round(pair.iter().sum())).collect();
    }
    sums[0]
}

fn columns(case: &Case<'_>, pass: &Pass<'_>, name: &str) -> Option<Vec<Summed>> {
    let tensor = case.tensor(name)?;
    let dy = case.tensor("dy")?;
    let step = case.hidden.div_ceil(TRIED);
    let chosen: Vec<usize> = (0..case.hidden).step_by(step).collect();
    let mut products = vec![Vec::with_capacity(case.rows); chosen.len()];
    let (mut z, mut dys) = (vec![0.0; case.hidden], vec![0.0; case.hidden]);
    for row in 0..case.rows {
        pass.load(row, &mut z);
        dy.read(row * case.hidden, &mut dys);
        let statistic = pass.model.statistic.of(&z);
        for (products, &column) in products.iter_mut().zip(&chosen) {
            let factor = if name == "dw" { (z[column] - statistic.mean) * statistic.rstd } else { 1.0 };
            products.push(dys[column] * factor);
        }
    }
    let sum = |(products, &column): (Vec<f64>, &usize)| {
        let (exact, scale) = (products.iter().sum::<f64>(), products.iter().map(|p| p.abs()).sum::<f64>());
        let conversion = 0.5 * tensor.stored.ulp(exact) / scale;
        Summed { error: (tensor.get(column) - exact) / scale, conversion, exact, scale, products, power: 1.0 }
    };
    Some(products.into_iter().zip(&chosen).map(sum).filter(|s| s.scale > 0.0).collect())
}

/// The sums of squares that rstd, or a row of y as a whole, tells.
fn rows(case: &Case<'_>, pass: &Pass<'_>, name: &str, found: &Findings) -> Option<Vec<Summed>> {
    let tensor = case.tensor(name)?;
    let wrong: Vec<usize> = (0..case.rows).filter(|row| found.row_outside[*row] > 0).collect();
    let (mut z, mut y) = (vec![0.0; case.hidden], vec![0.0; case.hidden]);
    let mut sums = Vec::new();
    for &row in wrong.iter().step_by(wrong.len().div_ceil(TRIED)) {
        pass.load(row, &mut z);
        let statistic = pass.model.statistic.of(&z);
        let factor = if name == "rstd" {
            tensor.get(row) / statistic.rstd
        } else {
            tensor.read(row * case.hidden, &mut y);
            let (mut with, mut without) = (0.0, 0.0);
            let mut exacts = Vec::with_capacity(case.hidden);
            for (column, (y, z)) in y.iter().zip(&z).enumerate() {
                let weight = case.weight.as_ref().map_or(1.0, |w| w[column] + pass.model.offset);
                let exact = z * statistic.rstd * weight;
                with += (y - case.bias.as_ref().map_or(0.0, |bias| bias[column])) * exact;
                without += exact * exact;
                exacts.push(exact);
            }
            let factor = with / without;
            // A wrong statistic multiplies the whole row by one number.
            let close = |(y, exact): (&f64, &f64)| {
                let wanted = exact * factor;
                (y - wanted).abs() <= 4.0 * tensor.stored.ulp(wanted) + 1e-5 * wanted.abs()
            };
            let alike = case.bias.is_some()
                || y.iter().zip(&exacts).filter(|pair| close((pair.0, pair.1))).count() * 20 >= case.hidden * 19;
            if !alike {
                return None;
            }
            factor
        };
        let products: Vec<f64> = z.iter().map(|z| z * z).collect();
        let scale = products.iter().sum::<f64>();
        // rstd goes with the root of the sum: half its relative error, and the other way.
        let conversion = if name == "rstd" {
            0.5 * tensor.stored.ulp(1.0)
        } else {
            tensor.stored.ulp(1.0) / (case.hidden as f64).sqrt()
        };
        sums.push(Summed { error: factor - 1.0, conversion, exact: scale, scale, products, power: -0.5 });
    }
    Some(sums)
}
