//! Where the wrong elements are, and what stands there.

use super::file::Case;
use super::findings::Findings;
use super::looks::Kind;
use super::pass::Pass;
use super::tensor::Tensor;
use std::collections::HashMap;

/// The least rectangle that holds everything wrong.
pub(crate) struct Region {
    pub(crate) rows: std::ops::Range<usize>,
    pub(crate) columns: std::ops::Range<usize>,
    /// Rows and columns in it that have something wrong.
    wrong_rows: Vec<usize>,
    wrong_columns: usize,
    /// How much of these rows and columns is wrong.
    pub(crate) share: f64,
}

impl Region {
    pub(crate) fn of(found: &Findings) -> Option<Region> {
        let ends = |counts: &[u32]| {
            let first = counts.iter().position(|n| *n > 0)?;
            Some(first..counts.iter().rposition(|n| *n > 0)? + 1)
        };
        let (rows, columns) = (ends(&found.row_outside)?, ends(&found.column_outside)?);
        let wrong_rows: Vec<usize> = rows.clone().filter(|row| found.row_outside[*row] > 0).collect();
        let wrong_columns = columns.clone().filter(|column| found.column_outside[*column] > 0).count();
        let share = found.outside as f64 / (wrong_rows.len() * wrong_columns) as f64;
        Some(Region { rows, columns, wrong_rows, wrong_columns, share })
    }
}

/// What is wrong stands elsewhere, bit for bit, or was added to what was there.
pub(crate) fn memory(case: &Case<'_>, pass: &Pass<'_>, name: &'static str, found: &Findings) -> Option<(Kind, String)> {
    let region = Region::of(found)?;
    let content = content(case, name, case.tensor(name)?, &region, found.column_outside.len());
    if let Some(Content::Copied(evidence)) = &content {
        return Some((Kind::Stale, format!("{name} holds stale or recycled memory: {evidence}")));
    }
    if (name == "dw" || name == "db")
        && let Some(times) = multiple(case, pass, name, found)
    {
        let what = format!("{name} is {times} times what it should be: added to what an earlier call left there");
        return Some((Kind::Stale, what));
    }
    None
}

/// Mistakes that show by their place: rows, columns, tiles.
pub(crate) fn place(case: &Case<'_>, name: &'static str, found: &Findings) -> Option<(Kind, String)> {
    // Zeros, NaN and infinities are what a plain kernel computes beyond its range: where they stand says which rows are, not what was written.
    if found.beyond_outside == found.outside && found.not_finite + found.zero == found.outside {
        return None;
    }
    let region = Region::of(found)?;
    let (all_rows, all_columns) = (found.row_outside.len(), found.column_outside.len());
    let content = content(case, name, case.tensor(name)?, &region, all_columns);
    let holds = match &content {
        Some(Content::Constant(what)) => format!(", and all of it is {what}: {}", unwritten(what)),
        // One number that is off is no place.
        _ if found.outside == 1 => return None,
        _ => String::new(),
    };
    let dense = region.share >= 0.75;
    let closed_rows = region.wrong_rows.len() * 20 >= region.rows.len() * 19;
    let closed_columns = region.wrong_columns * 20 >= region.columns.len() * 19;
    let (from_row, to_last_row) = (region.rows.start, region.rows.end == all_rows);
    let (from_column, to_last_column) = (region.columns.start, region.columns.end == all_columns);
    let nearly = |part: usize, all: usize| part * 10 >= all * 9;
    let (whole_rows, whole_columns) =
        (nearly(region.wrong_columns, all_columns), nearly(region.wrong_rows.len(), all_rows));
    let counted = format!(
        "{} of the {} elements there are outside",
        found.outside,
        region.wrong_rows.len() * region.wrong_columns
    );
    if dense && closed_rows && to_last_row && from_row >= LEAST && whole_rows {
        return Some((
            Kind::RowsPast,
            format!("{name} is wrong from row {from_row} on and right before it ({counted}){holds}"),
        ));
    }
    let tail = |vector: usize| all_columns % vector != 0 && from_column == all_columns - all_columns % vector;
    if dense && closed_columns && to_last_column && from_column >= LEAST && (whole_columns || all_rows == 1) {
        if let Some(vector) = [8, 4, 2, 16, 32].into_iter().find(|vector| tail(*vector)) {
            let (n, last) = (all_columns, all_columns % vector);
            let what = format!(
                "the last N % {vector} = {last} columns of {name} are wrong, {n} = N, and no other ({counted}){holds}"
            );
            return Some((Kind::LastColumns, what));
        }
        return Some((
            Kind::ColumnsPast,
            format!("{name} is wrong from column {from_column} on and right before it ({counted}){holds}"),
        ));
    }
    let part = region.columns.len() < all_columns || region.rows.len() < all_rows;
    if dense && closed_rows && closed_columns && part && found.outside > 1 {
        let (rows, columns) = (&region.rows, &region.columns);
        let what = format!(
            "a tile of {name} is wrong: rows {}–{}, columns {}–{} ({counted}){holds}",
            rows.start,
            rows.end - 1,
            columns.start,
            columns.end - 1
        );
        return Some((Kind::Tile, what));
    }
    match content {
        Some(Content::Constant(what)) if found.outside > 1 => {
            let rows = region.wrong_rows.len();
            let which =
                if rows == all_rows { "every row".into() } else { format!("{rows} rows, the first {from_row}") };
            Some((Kind::Stale, format!("{name} in {which}: each wrong element is {what}, {}", unwritten(&what))))
        }
        _ => None,
    }
}

/// What a constant says.
fn unwritten(constant: &str) -> &'static str {
    if constant.starts_with("NaN") { "nothing was written, or NaN was computed" } else { "it was not written" }
}

enum Content {
    /// The same bits everywhere; 0 or NaN where it is one element.
    Constant(String),
    /// What stands elsewhere.
    Copied(String),
}

/// Right rows or columns before a threshold that make it one.
const LEAST: usize = 4;
/// Rows that are looked up.
const ROWS: usize = 1 << 16;

fn content(case: &Case<'_>, name: &str, tensor: &Tensor<'_>, region: &Region, width: usize) -> Option<Content> {
    let (first, count) = (region.columns.start, region.columns.len());
    let size = tensor.stored.bytes();
    let constant = tensor.slice(region.wrong_rows[0] * width + first, 1);
    let rows = &region.wrong_rows[..region.wrong_rows.len().min(ROWS)];
    let is_constant = |bytes: &[u8]| bytes.chunks_exact(size).filter(|one| *one == constant).count() * 50 >= count * 49;
    if region.share >= 0.5 && rows.iter().all(|row| is_constant(tensor.slice(row * width + first, count))) {
        let value = tensor.get(rows[0] * width + first);
        if rows.len() * count == 1 && value != 0.0 && !value.is_nan() {
            return None;
        }
        let bits: String = constant.iter().rev().map(|byte| format!("{byte:02x}")).collect();
        return Some(Content::Constant(if value == 0.0 { "0".into() } else { format!("{value} (bits {bits})") }));
    }
    if count < 4 || region.share < 0.5 {
        return None;
    }
    // Where each piece of memory of this width stands otherwise.
    let mut places: HashMap<&[u8], (&str, usize)> = HashMap::new();
    for other in ["x", "residual", "dy", "dz", "y", "dx", "dw", "db", "weight", "bias"] {
        let Some(theirs) = case.tensor(other).filter(|t| t.stored == tensor.stored && t.len() % width == 0) else {
            continue;
        };
        for row in 0..(theirs.len() / width).min(ROWS) {
            // What is right in the output itself may have been copied over what is wrong, not the other way.
            if other != name || region.wrong_rows.binary_search(&row).is_err() {
                places.entry(theirs.slice(row * width + first, count)).or_insert((other, row));
            }
        }
    }
    let varied = |bytes: &[u8]| bytes.chunks_exact(size).any(|one| one != &bytes[..size]);
    let copied: Vec<(usize, (&str, usize))> = rows
        .iter()
        .filter_map(|row| {
            let piece = tensor.slice(row * width + first, count);
            Some((*row, *places.get(piece).filter(|_| varied(piece))?))
        })
        .collect();
    let &(row, (from, at)) = copied.first()?;
    let enough = copied.len() * 10 >= rows.len() * 9;
    enough.then(|| {
        let part = if count == width { String::new() } else { format!(", columns {first}–{},", first + count - 1) };
        let of = if name == "dw" || name == "db" {
            format!("it is {from}, bit for bit")
        } else {
            format!(
                "row {row}{part} is row {at} of {from}, bit for bit; so it is with {} of {} wrong rows",
                copied.len(),
                rows.len()
            )
        };
        Content::Copied(of)
    })
}

/// Whether a column sum is two or three times the right one everywhere.
fn multiple(case: &Case<'_>, pass: &Pass<'_>, name: &str, found: &Findings) -> Option<u32> {
    if found.outside < 2 {
        return None;
    }
    let columns = super::rows_left_out::some_columns(case);
    let exact = super::rows_left_out::column_sums(case, pass, name, &columns);
    let computed: Vec<f64> = columns.iter().map(|&column| case.tensor(name).map_or(0.0, |t| t.get(column))).collect();
    let stored = case.tensor(name)?.stored;
    [2u32, 3].into_iter().find(|times| {
        let near = |(exact, computed): (&f64, &f64)| {
            let wanted = f64::from(*times) * exact;
            (computed - wanted).abs() <= 4.0 * stored.ulp(wanted) + 1e-4 * wanted.abs()
        };
        let fits = exact.iter().zip(&computed).filter(|pair| near((pair.0, pair.1))).count();
        fits * 100 >= exact.len() * 98
    })
}
