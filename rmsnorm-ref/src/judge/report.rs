//! What is told: as text, and as JSON with the same content.

use super::compare::Comparison;
use super::file::Case;
use super::findings::{Findings, Map, Place};
use super::looks::LooksLike;
use super::mistakes::short;
use super::pass::{Outputs, Pass};
use super::{Height, Reach};
use serde::{Serialize, Serializer};
use std::fmt;

/// What became of a file.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// As it was given.
    pub file: String,
    /// Of all cases together.
    pub verdict: Verdict,
    /// In the order of their names.
    pub cases: Vec<CaseReport>,
    /// With the second file, if one was given.
    pub comparison: Option<Comparison>,
}

/// Right or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every element is within the bound.
    Right,
    /// Sums are too long for a bound: nothing is known. More is with `--chains` or `--height`.
    NoBound,
    /// Some element is not within it.
    Outside,
}

/// What became of a case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// The prefix of its tensors; empty where a file holds one case.
    pub name: String,
    /// Of its outputs together.
    pub verdict: Verdict,
    /// Rows, leading dimensions taken together.
    pub rows: usize,
    /// Columns.
    pub hidden: usize,
    /// Type of x.
    pub x: String,
    /// As given.
    pub eps: f64,
    /// As given.
    pub offset: f64,
    /// Whether x_hat is rounded before the weight.
    pub rounded_twice: bool,
    /// Most roundings along a row and down a column that the bound allows for, and whether that is any order.
    pub heights: (u64, u64),
    /// Whether nothing was said of the order of the row's sums.
    pub any_order: bool,
    /// Each output that the case holds.
    pub outputs: Vec<OutputReport>,
    /// Known mistakes that explain what is outside.
    pub looks_like: Vec<LooksLike>,
    /// What a reader should know of the verdict.
    pub notes: Vec<String>,
}

/// What was found in an output.
#[derive(Clone, Debug, Serialize)]
pub struct OutputReport {
    /// y, rstd, dx, dw, db or z.
    pub name: &'static str,
    /// Its type.
    pub stored: String,
    /// Right or not.
    pub verdict: Verdict,
    /// Elements judged.
    pub elements: u64,
    /// Those outside the bound.
    pub outside: u64,
    /// Elements of rows whose squares leave the range of f32, and those of them that are outside.
    pub beyond_plain_range: u64,
    /// Of these.
    pub beyond_plain_range_outside: u64,
    /// Elements without a bound.
    pub unbounded: u64,
    /// Elements of which an intermediate may overflow, so that Inf and NaN are right too.
    pub may_overflow: u64,
    /// Elements for which one value alone is right.
    pub one_value_allowed: u64,
    /// NaN among what was computed.
    pub nan: u64,
    /// Infinities.
    pub infinite: u64,
    /// Zeros outside the bound.
    pub zeros_outside: u64,
    /// The largest error as a fraction of the bound.
    pub worst: Option<Worst>,
    /// Signed error towards larger magnitudes, in ULP: about −0.5 where a conversion cuts off.
    pub mean_signed_ulp: Option<f64>,
    /// Of conversions alone, in units of half an ulp, and what chance leaves.
    pub conversion_bias: Option<(f64, f64)>,
    /// error/bound in sixteenths; the last of 17 is what is outside.
    pub histogram: Vec<u64>,
    /// Elements within the bound that random rounding would not explain: an alarm, no verdict.
    pub alarms: u64,
    /// The first of them.
    pub first_alarm: Option<Worst>,
    /// Rows with something outside: how many, the first and the last.
    pub rows_outside: Option<(usize, usize, usize)>,
    /// Columns likewise.
    pub columns_outside: Option<(usize, usize, usize)>,
    /// The largest error/bound of each cell of a coarse grid, above 1 where something is outside.
    pub map: MapReport,
}

/// A coarse grid over an output.
#[derive(Clone, Debug, Serialize)]
pub struct MapReport {
    /// Cells down.
    pub down: usize,
    /// Cells across.
    pub across: usize,
    /// Row by row.
    pub cells: Vec<f32>,
}

/// One element.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Worst {
    /// Where.
    pub row: usize,
    /// Where.
    pub column: usize,
    /// What is in the file.
    #[serde(serialize_with = "number")]
    pub computed: f64,
    /// What the formulas give.
    #[serde(serialize_with = "number")]
    pub exact: f64,
    /// The least value that is right.
    #[serde(serialize_with = "number")]
    pub least: f64,
    /// The largest.
    #[serde(serialize_with = "number")]
    pub most: f64,
    /// The error before the last rounding over the bound.
    #[serde(serialize_with = "number")]
    pub of_bound: f64,
    /// Distance from the exact value in ULP of the output's type.
    #[serde(serialize_with = "number")]
    pub ulp: f64,
}

/// JSON has no NaN and no infinity: they are text.
fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.serialize_str(&value.to_string()) }
}

impl From<&Place> for Worst {
    fn from(place: &Place) -> Self {
        let Place { row, column, computed, exact, least, most, ratio, ulp } = *place;
        Worst { row, column, computed, exact, least, most, of_bound: ratio, ulp }
    }
}

impl Report {
    pub(crate) fn new(file: String, cases: Vec<CaseReport>, comparison: Option<Comparison>) -> Self {
        let verdict = cases.iter().map(|case| case.verdict).max().unwrap_or(Verdict::Right);
        Self { file, verdict, cases, comparison }
    }

    /// 0 where everything is right (and the second file equal, if there is one), else 1.
    pub fn exit_status(&self) -> u8 {
        u8::from(self.verdict != Verdict::Right || self.comparison.as_ref().is_some_and(|c| !c.equal))
    }
}

impl CaseReport {
    pub(crate) fn new(case: &Case<'_>, pass: &Pass<'_>, outputs: Outputs, looks_like: Vec<LooksLike>) -> Self {
        let options = &case.options;
        let outputs: Vec<OutputReport> = ["z", "rstd", "y", "dx", "dw", "db"]
            .into_iter()
            .filter_map(|name| Some(OutputReport::new(name, case, outputs.get(name)?, options.reach)))
            .collect();
        let mut notes = Vec::new();
        let heights = (pass.bound.row, pass.bound.column);
        let any_order = !matches!(options.row, Some(Height::Chains(_) | Height::Most(_)));
        if any_order && case.hidden > 4096 && outputs.iter().any(|o| o.name != "db") {
            notes.push(format!(
                "N = {}: with the order unknown one element left out of an ordinary row's sum cannot be seen; --chains or --height, or rows \
                 in which one element dominates (cargo xtask cases), show it",
                case.hidden
            ));
        }
        if !case.ignored.is_empty() {
            notes.push(format!("not understood and not judged: {}", case.ignored.join(", ")));
        }
        let verdict = outputs.iter().map(|output| output.verdict).max().unwrap_or(Verdict::Right);
        let eps = case.eps.unwrap_or(f64::NAN);
        let (x, offset) = (case.x().stored.to_string(), pass.model.offset);
        let rounded_twice = pass.model.twice.is_some();
        let (name, rows, hidden) = (case.name.clone(), case.rows, case.hidden);
        Self {
            name,
            verdict,
            rows,
            hidden,
            x,
            eps,
            offset,
            rounded_twice,
            heights,
            any_order,
            outputs,
            looks_like,
            notes,
        }
    }
}

impl OutputReport {
    fn new(name: &'static str, case: &Case<'_>, found: &Findings, reach: Reach) -> Self {
        let counted = if reach == Reach::Plain { found.outside - found.beyond_outside } else { found.outside };
        let verdict = match (counted, found.unbounded) {
            (0, 0) => Verdict::Right,
            (0, _) => Verdict::NoBound,
            _ => Verdict::Outside,
        };
        let spread = |counts: &[u32]| {
            let first = counts.iter().position(|n| *n > 0)?;
            let last = counts.iter().rposition(|n| *n > 0)?;
            Some((counts.iter().filter(|n| **n > 0).count(), first, last))
        };
        let Map { down, across, ref cells, .. } = found.map;
        Self {
            name,
            stored: case.tensors[name].stored.to_string(),
            verdict,
            elements: found.elements,
            outside: found.outside,
            beyond_plain_range: found.beyond,
            beyond_plain_range_outside: found.beyond_outside,
            unbounded: found.unbounded,
            may_overflow: found.may_overflow,
            one_value_allowed: found.single,
            nan: found.nan,
            infinite: found.infinite,
            zeros_outside: found.zero,
            worst: found.worst.as_ref().map(Worst::from),
            mean_signed_ulp: found.mean_signed(),
            conversion_bias: found.bias().map(|(bias, count)| (bias, 8.0 / (count as f64).sqrt())),
            histogram: found.histogram.to_vec(),
            alarms: found.alarms,
            first_alarm: found.first_alarm.as_ref().map(Worst::from),
            rows_outside: spread(&found.row_outside),
            columns_outside: spread(&found.column_outside),
            map: MapReport { down, across, cells: cells.iter().map(|c| c.min(f32::MAX)).collect() },
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Right => "right",
            Verdict::NoBound => "no bound",
            Verdict::Outside => "OUTSIDE",
        })
    }
}

/// A ratio for readers.
pub(crate) fn figure(value: f64) -> String {
    match value {
        v if v.abs() < 1e4 => format!("{v:.3}"),
        v => format!("{v:.1e}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            write!(f, "{case}")?;
        }
        if let Some(comparison) = &self.comparison {
            writeln!(f, "beside {}:", comparison.second)?;
            for d in &comparison.outputs {
                let name = if d.case.is_empty() { d.output.to_owned() } else { format!("{}.{}", d.case, d.output) };
                match &d.first {
                    None => writeln!(f, "  {name:<5} bit-equal ({} elements)", d.elements)?,
                    Some((row, column, a, b)) => {
                        write!(f, "  {name:<5} {} of {} elements differ, in {} rows", d.different, d.elements, d.rows)?;
                        write!(f, "; first at row {row}, column {column}: {a} and {b}")?;
                        writeln!(f, "{}", d.most_ulp.map_or(String::new(), |ulp| format!("; at most {ulp} ULP")))?;
                    }
                }
            }
            if let Some(pattern) = &comparison.pattern {
                writeln!(f, "  the pattern says {pattern}")?;
            }
        }
        writeln!(f, "verdict: {}", self.verdict)
    }
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, rows, hidden, x, eps, .. } = self;
        let name = if name.is_empty() { String::new() } else { format!("{name}: ") };
        write!(f, "{name}{rows} × {hidden}, x in {x}, eps {}", short(*eps))?;
        if self.offset != 0.0 {
            write!(f, ", weight + {}", self.offset)?;
        }
        if self.rounded_twice {
            write!(f, ", x_hat rounded before the weight")?;
        }
        match (self.any_order, self.heights) {
            (true, _) => writeln!(f, ", sums in any order")?,
            (false, (row, column)) => writeln!(f, ", at most {row} roundings along a row and {column} down a column")?,
        }
        for output in &self.outputs {
            write!(f, "{output}")?;
        }
        for looks in &self.looks_like {
            writeln!(f, "  looks like: {}", looks.sentence)?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for OutputReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {:<5}{:<5}{:<9}", self.name, self.stored, self.verdict.to_string())?;
        write!(f, "{} of {} outside", self.outside, self.elements)?;
        if let Some(worst) = &self.worst {
            let Worst { row, column, computed, exact, of_bound, ulp, .. } = worst;
            let (of_bound, ulp) = (figure(*of_bound), figure(*ulp));
            write!(
                f,
                "; worst {of_bound} of the bound, {ulp} ULP, at row {row}, column {column}: {computed:e}, exact {exact:e}"
            )?;
        }
        if let Some(signed) = self.mean_signed_ulp {
            let sign = if signed < 0.0 { "−" } else { "+" };
            write!(f, "; mean error {sign}{} ULP", figure(signed.abs()))?;
        }
        for (count, what) in [
            (self.beyond_plain_range, "where a plain kernel's intermediates leave the range of f32"),
            (self.beyond_plain_range_outside, "of these outside"),
            (self.unbounded, "without a bound (say more of the order: --chains, --height)"),
            (self.may_overflow, "may overflow"),
            (self.nan, "NaN"),
            (self.infinite, "infinite"),
            (self.zeros_outside, "0 outside the bound"),
            (self.alarms, "alarms (no verdict): more than random rounding explains"),
        ] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        match self.conversion_bias {
            Some((bias, chance)) if bias.abs() > chance => {
                writeln!(f, "; conversions are biased: {bias:+.3} of half an ulp on average, {chance:.3} may be chance")
            }
            _ => writeln!(f),
        }
    }
}
