//! Column sums over part of the rows.

use super::file::Case;
use super::looks::Kind;
use super::pass::Pass;
use rayon::prelude::*;

/// Columns that a set of rows must explain: fewer of very many rows.
pub(crate) fn some_columns(case: &Case<'_>) -> Vec<usize> {
    let wanted = ((1 << 22) / case.rows.max(1)).clamp(4, 32);
    (0..case.hidden).step_by(case.hidden.div_ceil(wanted)).collect()
}

/// The exact sums of some columns of dw or db.
pub(crate) fn column_sums(case: &Case<'_>, pass: &Pass<'_>, name: &str, columns: &[usize]) -> Vec<f64> {
    let mut sums = vec![0.0; columns.len()];
    for row in products(case, pass, name, columns).chunks_exact(columns.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, product)| *sum += product);
    }
    sums
}

/// dy·x_hat, or dy, of some columns, row by row.
fn products(case: &Case<'_>, pass: &Pass<'_>, name: &str, columns: &[usize]) -> Vec<f64> {
    let dy = case.tensor("dy").expect("a column sum takes dy");
    let row = |row: usize| -> Vec<f64> {
        let (mut z, mut dys) = (vec![0.0; case.hidden], vec![0.0; case.hidden]);
        dy.read(row * case.hidden, &mut dys);
        if name == "db" {
            return columns.iter().map(|&column| dys[column]).collect();
        }
        pass.load(row, &mut z);
        let statistic = pass.model.statistic.of(&z);
        let x_hat = |column: usize| (z[column] - statistic.mean) * statistic.rstd;
        columns
            .iter()
            .map(|&column| dys[column] * pass.model.twice.map_or(x_hat(column), |t| t.round(x_hat(column))))
            .collect()
    };
    (0..case.rows).into_par_iter().flat_map_iter(row).collect()
}

/// Which rows a column sum must have left out.
pub(crate) fn explain(case: &Case<'_>, pass: &Pass<'_>, name: &str) -> Option<(Kind, String)> {
    let rows = case.rows;
    let columns = some_columns(case);
    let width = columns.len();
    let products = products(case, pass, name, &columns);
    let tensor = case.tensor(name)?;
    let computed: Vec<f64> = columns.iter().map(|column| tensor.get(*column)).collect();
    // Down the column: partial sums, and the error that any order may have.
    let mut sums = vec![0.0; width];
    let mut magnitudes = vec![0.0; width];
    let mut all = vec![0.0; width];
    for row in products.chunks_exact(width) {
        for (j, product) in row.iter().enumerate() {
            sums[j] += product;
            magnitudes[j] += product.abs();
        }
        all.extend_from_slice(&sums);
    }
    let tolerance: Vec<f64> = (0..width)
        .map(|j| 3e-7 * magnitudes[j] * (rows as f64).sqrt().clamp(4.0, 64.0) + tensor.stored.ulp(computed[j]))
        .collect();
    let fits = |sum: &dyn Fn(usize) -> f64| (0..width).all(|j| (sum(j) - computed[j]).abs() <= tolerance[j]);
    // A set of rows that explains nothing but sums near 0 is no evidence: neither left out, nor alone.
    let tells = |of: &dyn Fn(usize) -> f64| (0..width).any(|j| of(j).abs() > 8.0 * tolerance[j]);
    if !tells(&|j| sums[j] - computed[j]) || !tells(&|j| computed[j]) {
        return None;
    }
    let said =
        |what: String| Some((Kind::PartOfRows, format!("{name} is the sum {what}; {width} columns tried, all fit")));
    if let Some(last) = (1..rows).rev().find(|last| fits(&|j| all[*last * width + j])) {
        return said(format!("of the first {last} of {rows} rows"));
    }
    if let Some(first) = (1..rows).find(|first| fits(&|j| sums[j] - all[*first * width + j])) {
        return said(format!("of the rows from {first} on, without the first {first} of {rows}"));
    }
    for row in 0..rows {
        let product = |j: usize| products[row * width + j];
        if fits(&|j| sums[j] - product(j)) {
            return said(format!("of all rows but row {row}"));
        }
        if fits(&|j| sums[j] + product(j)) {
            return said(format!("of all rows with row {row} taken twice"));
        }
    }
    // Every k-th row, as when one of k blocks is lost, or is the only one that stored.
    for k in 2..=rows.min(256) {
        for phase in 0..k {
            let of_phase: Vec<f64> =
                (0..width).map(|j| (phase..rows).step_by(k).map(|row| products[row * width + j]).sum()).collect();
            if fits(&|j| sums[j] - of_phase[j]) {
                return said(format!("of all rows but those with row % {k} = {phase}"));
            }
            if fits(&|j| of_phase[j]) {
                return said(format!("of the rows with row % {k} = {phase} alone"));
            }
        }
    }
    // A run of rows: blocks of the sizes that kernels have.
    for block in (1..20).map(|k| 1usize << k).filter(|block| *block < rows) {
        for first in (0..rows).step_by(block) {
            let end = rows.min(first + block);
            if fits(&|j| sums[j] - (all[end * width + j] - all[first * width + j])) {
                return said(format!("of all rows but {first}–{}", end - 1));
            }
        }
    }
    None
}
