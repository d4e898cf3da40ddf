//! Two files of the same kernel's outputs, bit by bit.

use super::Unreadable;
use super::file::{Case, OUTPUTS};
use super::tensor::Stored;
use crate::ulp_distance;
use serde::Serialize;

/// How the outputs of a second file differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The second file.
    pub second: String,
    /// Whether every output that both have is the same, bit for bit; a NaN is a NaN.
    pub equal: bool,
    /// One for each output that both have.
    pub outputs: Vec<Difference>,
    /// What the places say of the cause, where they say something.
    pub pattern: Option<String>,
}

/// How one output differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The case's prefix.
    pub case: String,
    /// The output.
    pub output: &'static str,
    /// Elements compared.
    pub elements: u64,
    /// Those whose bits differ.
    pub different: u64,
    /// Row and column of the first, with both values as text.
    pub first: Option<(usize, usize, String, String)>,
    /// The largest distance in ULP.
    pub most_ulp: Option<u64>,
    /// Rows and columns that have a difference.
    pub rows: usize,
    /// Of these.
    pub columns: usize,
    /// Of the differing rows' differing elements, the share that moved the way most of their row moved: 1 where one factor changed.
    pub one_way: f64,
}

pub(crate) fn compare(
    first: &str,
    ours: &[Case<'_>],
    second: &str,
    theirs: &[Case<'_>],
) -> Result<Comparison, Unreadable> {
    let mut outputs = Vec::new();
    let mut why = Vec::new();
    for a in ours {
        let Some(b) = theirs.iter().find(|b| b.name == a.name) else {
            why.push(format!("`{}` is in the first alone", a.name));
            continue;
        };
        for name in OUTPUTS {
            let (Some(x), Some(y)) = (a.tensor(name), b.tensor(name)) else { continue };
            if x.stored != y.stored || x.len() != y.len() {
                why.push(format!("{name} is {} {:?} and {} {:?}", x.stored, x.shape, y.stored, y.shape));
                continue;
            }
            let width = if name == "rstd" { 1 } else { a.hidden };
            outputs.push(difference(a, b, name, width));
        }
    }
    if outputs.is_empty() {
        let why = if why.is_empty() { "none".into() } else { why.join("; ") };
        return Err(Unreadable::NothingInCommon { first: first.into(), second: second.into(), why });
    }
    let equal = outputs.iter().all(|d| d.different == 0);
    let pattern = pattern(&outputs);
    Ok(Comparison { second: second.into(), equal, outputs, pattern })
}

fn difference(a: &Case<'_>, b: &Case<'_>, name: &'static str, width: usize) -> Difference {
    let (x, y) = (&a.tensors[name], &b.tensors[name]);
    let size = x.stored.bytes();
    let mut found = Difference {
        case: a.name.clone(),
        output: name,
        elements: x.len() as u64,
        different: 0,
        first: None,
        most_ulp: None,
        rows: 0,
        columns: 0,
        one_way: 0.0,
    };
    let mut columns = vec![false; width];
    let mut one_way = 0;
    for row in 0..x.len() / width.max(1) {
        let (mine, theirs) = (x.slice(row * width, width), y.slice(row * width, width));
        if mine == theirs {
            continue;
        }
        let (mut up, mut down) = (0u64, 0u64);
        for (column, (p, q)) in mine.chunks_exact(size).zip(theirs.chunks_exact(size)).enumerate() {
            if p == q {
                continue;
            }
            let (p, q) = (x.get(row * width + column), y.get(row * width + column));
            if p.is_nan() && q.is_nan() {
                continue;
            }
            columns[column] = true;
            if q.abs() > p.abs() {
                up += 1;
            } else {
                down += 1;
            }
            found.first.get_or_insert_with(|| (row, column, format!("{p:e}"), format!("{q:e}")));
            if let (Stored::In(format), false) = (x.stored, p.is_nan() || q.is_nan()) {
                found.most_ulp = found.most_ulp.max(Some(ulp_distance(format, p, q)));
            }
        }
        found.different += up + down;
        found.rows += usize::from(up + down > 0);
        one_way += up.max(down);
    }
    found.columns = columns.iter().filter(|differs| **differs).count();
    found.one_way = if found.different == 0 { 0.0 } else { one_way as f64 / found.different as f64 };
    found
}

fn pattern(outputs: &[Difference]) -> Option<String> {
    let by_row: Vec<&Difference> = outputs.iter().filter(|d| ["rstd", "y", "dx"].contains(&d.output)).collect();
    let rows_differ = by_row.iter().any(|d| d.different > 0);
    if let Some(d) = by_row.iter().find(|d| d.different > 0) {
        let coherent = by_row
            .iter()
            .filter(|d| d.output != "dx" && d.different > 1)
            .all(|d| d.one_way > 0.95 || d.output == "rstd");
        let small = by_row.iter().all(|d| d.most_ulp.is_none_or(|ulp| ulp < 1 << 16));
        if coherent && small && by_row.iter().any(|d| d.output != "dx" && d.different > 0) {
            return Some(format!(
                "row order: within a row everything moves one way, as when its sum of squares was added in another order ({} rows of {})",
                d.rows, d.output
            ));
        }
        return None;
    }
    let sums: Vec<&Difference> = outputs.iter().filter(|d| ["dw", "db"].contains(&d.output)).collect();
    let (different, elements) = sums.iter().fold((0, 0), |(a, b), d| (a + d.different, b + d.elements));
    if different == 0 || rows_differ {
        return None;
    }
    let share = different as f64 / elements as f64;
    let with_rows = if by_row.is_empty() { "" } else { ", and nothing along the rows" };
    Some(if share >= 0.5 {
        format!(
            "split: {different} of {elements} column sums differ{with_rows}, as when the rows are divided among blocks otherwise"
        )
    } else {
        format!(
            "atomics: {different} of {elements} column sums differ{with_rows}, here and there, as when partial sums are added in the order in which they arrive"
        )
    })
}
