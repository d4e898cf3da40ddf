//! A folder of outputs for the cases that `cargo xtask cases` wrote.

use super::looks::Kind;
use super::report::{CaseReport, Verdict};
use super::{Options, Unreadable, judge_pair};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// `manifest.json`: what each case is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// How the files came to be.
    pub command: String,
    /// One for each file.
    pub cases: Vec<Entry>,
}

/// A case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its inputs are in NAME.safetensors; outputs are expected in NAME.out.safetensors.
    pub name: String,
    /// Class of the bug zoo.
    pub class: String,
    /// What it is for.
    pub reason: String,
    /// Type of x.
    pub dtype: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub hidden: usize,
    /// Added to the mean square.
    pub eps: f64,
    /// Added to the weight.
    pub offset: f64,
}

/// What became of a folder.
#[derive(Clone, Debug, Serialize)]
pub struct FolderReport {
    /// The outputs.
    pub folder: String,
    /// Of all cases with outputs together.
    pub verdict: Verdict,
    /// Cases in the order of the manifest.
    pub cases: Vec<Judged>,
}

/// One case of a folder.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// Its name.
    pub name: String,
    /// Class of the bug zoo.
    pub class: String,
    /// What it is for.
    pub reason: String,
    /// None where there are no outputs, or they cannot be read.
    pub report: Option<CaseReport>,
    /// Why there is none.
    pub missing: Option<String>,
}

/// Judges the outputs in `outputs` of the cases whose inputs and manifest are in `inputs`.
///
/// # Errors
/// If there is no manifest, or no outputs at all. Outputs that are missing or unreadable are part of the report.
pub fn judge_folder(outputs: &Path, inputs: &Path, options: &Options) -> Result<FolderReport, Unreadable> {
    let path = inputs.join("manifest.json");
    let refused = |why: String| Unreadable::Manifest { path: path.display().to_string(), why };
    let text = std::fs::read_to_string(&path).map_err(|error| refused(error.to_string()))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| refused(error.to_string()))?;
    let mut cases = Vec::new();
    for entry in manifest.cases {
        let output = outputs.join(format!("{}.out.safetensors", entry.name));
        let options = Options { quiet: true, ..options.clone() };
        let judged = if output.exists() {
            judge_pair(&inputs.join(format!("{}.safetensors", entry.name)), &output, &options)
        } else {
            Err(Unreadable::File { path: output.display().to_string(), error: std::io::ErrorKind::NotFound.into() })
        };
        let (report, missing) = match judged {
            Ok(mut report) => {
                report.name.clone_from(&entry.name);
                (Some(report), None)
            }
            Err(error) => (None, Some(error.to_string())),
        };
        cases.push(Judged { name: entry.name, class: entry.class, reason: entry.reason, report, missing });
    }
    if cases.iter().all(|case| case.report.is_none()) {
        let first = cases.into_iter().find_map(|case| case.missing).unwrap_or_else(|| "it lists no case".into());
        return Err(refused(format!(
            "none of its cases has outputs that can be read in {} ({first})",
            outputs.display()
        )));
    }
    let verdict = cases.iter().filter_map(|case| Some(case.report.as_ref()?.verdict)).max();
    Ok(FolderReport { folder: outputs.display().to_string(), verdict: verdict.unwrap_or(Verdict::Right), cases })
}

/// What a table shows of an output over the cases of a class.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cell {
    /// Cases that have it.
    pub cases: u64,
    /// Cases in which something is outside.
    pub cases_outside: u64,
    /// Of these, cases in which it is only rows whose squares leave the range of f32.
    pub beyond_only: u64,
    /// Elements.
    pub elements: u64,
    /// Those outside.
    pub outside: u64,
}

impl FolderReport {
    /// As [`Report::exit_status`](super::Report::exit_status): 1 if something is outside, else 2 if a case has no outputs that can be read, else 0.
    pub fn exit_status(&self) -> u8 {
        match self.verdict {
            Verdict::Right if self.missing() > 0 => 2,
            Verdict::Right => 0,
            _ => 1,
        }
    }

    /// Cases without outputs that can be read.
    fn missing(&self) -> usize {
        self.cases.iter().filter(|case| case.report.is_none()).count()
    }

    /// For each class and output how much is outside.
    pub fn table(&self) -> BTreeMap<String, BTreeMap<&'static str, Cell>> {
        let mut table: BTreeMap<String, BTreeMap<&'static str, Cell>> = BTreeMap::new();
        for case in &self.cases {
            for output in case.report.iter().flat_map(|report| &report.outputs) {
                let cell = table.entry(case.class.clone()).or_default().entry(output.name).or_default();
                cell.cases += 1;
                cell.elements += output.elements;
                cell.outside += output.outside;
                cell.cases_outside += u64::from(output.outside > 0);
                cell.beyond_only +=
                    u64::from(output.outside > 0 && output.outside == output.beyond_plain_range_outside);
            }
        }
        table
    }

    /// How often each mistake was seen.
    pub fn kinds(&self) -> BTreeMap<Kind, usize> {
        let mut kinds = BTreeMap::new();
        for looks in self.cases.iter().filter_map(|case| case.report.as_ref()).flat_map(|report| &report.looks_like) {
            *kinds.entry(looks.kind).or_default() += 1;
        }
        kinds
    }
}

impl fmt::Display for FolderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            let Judged { name, class, reason, report, missing } = case;
            match report {
                Some(report) if report.verdict == Verdict::Right => continue,
                Some(report) => write!(f, "{class} {reason}\n{report}")?,
                None => writeln!(f, "{class} {name}: not judged: {}", missing.as_deref().unwrap_or("no outputs"))?,
            }
        }
        let (all, missing) = (self.cases.len(), self.missing());
        writeln!(
            f,
            "{} of {all} cases have outputs. Outside, by class and output: elements of all (cases of all; of these only beyond f32's range of squares)",
            all - missing
        )?;
        for (class, outputs) in self.table() {
            for (output, cell) in outputs {
                let Cell { cases, cases_outside, beyond_only, elements, outside } = cell;
                writeln!(
                    f,
                    "  {class}  {output:<5} {outside:>9} of {elements:<10} ({cases_outside} of {cases}; {beyond_only})"
                )?;
            }
        }
        match missing {
            0 => writeln!(f, "verdict: {}", self.verdict),
            _ => writeln!(f, "verdict: {}; {missing} cases without outputs were not judged", self.verdict),
        }
    }
}
