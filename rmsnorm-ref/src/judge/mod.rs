//! Judges somebody's RMSNorm: a file of its inputs and outputs against the formulas in f64 and a bound for any order of summation.
//!
//! `docs/judge.md` says what a verdict means and how a file is written, docs/numerics.md §13 proves the bound. [`judge_file`] is the whole of it for one
//! file, [`judge_folder`] for the outputs of `cargo xtask cases`; [`cli`] is the program around them.
//!
//! ```no_run
//! use rmsnorm_ref::judge::{Options, judge_file};
//!
//! let report = judge_file("out.safetensors".as_ref(), None, &Options { eps: Some(1e-5), ..Options::default() })?;
//! println!("{report}");
//! # Ok::<(), rmsnorm_ref::judge::Unreadable>(())
//! ```

mod accumulators;
mod any_order;
pub mod cli;
mod compare;
mod file;
mod findings;
mod folder;
mod looks;
mod mistakes;
mod model;
mod options;
mod page;
mod pass;
mod progress;
mod report;
mod rows_left_out;
mod structure;
mod tensor;
mod unreadable;

pub use compare::{Comparison, Difference};
pub use folder::{Cell, Entry, FolderReport, Judged, Manifest, judge_folder};
pub use looks::{Kind, LooksLike};
pub use options::{Height, Options, Reach, Rounding, Sum};
pub use report::{CaseReport, MapReport, OutputReport, Report, Verdict, Worst};
pub use tensor::Stored;
pub use unreadable::Unreadable;

use file::File;
use model::{Backward, Model, Statistic};
use pass::{Pass, Scope};
use progress::Progress;
use std::collections::BTreeMap;
use std::path::Path;

/// Judges every case of a file, and compares it with a second one by bits.
///
/// # Errors
/// If either cannot be read, does not hold what it must, or nothing says which eps was used.
pub fn judge_file(path: &Path, second: Option<&Path>, options: &Options) -> Result<Report, Unreadable> {
    let file = File::read(path)?;
    let (tensors, metadata) = file.tensors()?;
    let cases = file::cases(&file.path, &tensors, &metadata, options)?;
    let mut reports = Vec::new();
    for case in &cases {
        reports.push(judge_case(case, options)?);
    }
    let comparison = match second {
        None => None,
        Some(second) => {
            let other = File::read(second)?;
            let (theirs, metadata) = other.tensors()?;
            let theirs = file::cases(&other.path, &theirs, &metadata, options)?;
            Some(compare::compare(&file.path, &cases, &other.path, &theirs)?)
        }
    };
    Ok(Report::new(file.path.clone(), reports, comparison))
}

/// Judges one case.
fn judge_case(case: &file::Case<'_>, options: &Options) -> Result<CaseReport, Unreadable> {
    let Some(eps) = case.eps else {
        let fits = looks::eps_that_fit(case);
        return Err(Unreadable::NoEps { case: case.name.clone(), fits });
    };
    let model = right(case, eps);
    let what = if case.name.is_empty() { "judging".into() } else { format!("judging {}", case.name) };
    let elements = case.rows * case.hidden;
    let progress = if options.quiet { Progress::silent() } else { Progress::of(&what, elements) };
    let pass = Pass::new(case, model);
    let outputs = pass.run(&Scope { rows: None, columns: true, progress: &progress });
    progress.finish();
    let looks_like = looks::looks_like(case, &pass, &outputs);
    Ok(CaseReport::new(case, &pass, outputs, looks_like))
}

/// The right formulas with this eps, as the options have it.
fn right(case: &file::Case<'_>, eps: f64) -> Model {
    let options = &case.options;
    let twice = (options.rounding == Some(Rounding::Twice)).then(|| case.x().stored.narrow()).flatten();
    Model {
        statistic: Statistic::Right { eps },
        offset: options.offset.unwrap_or(0.0),
        weighted: true,
        backward: Backward::Right,
        twice,
        unrounded: options.sum == Some(Sum::Unrounded) && case.tensor("residual").is_some(),
        truncates: false,
    }
}

/// Inputs and outputs of a case that lie in two files, judged as one.
fn judge_pair(inputs: &Path, outputs: &Path, options: &Options) -> Result<CaseReport, Unreadable> {
    let (inputs, outputs) = (File::read(inputs)?, File::read(outputs)?);
    let (mut tensors, mut metadata) = inputs.tensors()?;
    let (more, more_metadata) = outputs.tensors()?;
    tensors.extend(more);
    metadata.extend(more_metadata);
    let metadata: BTreeMap<String, String> = metadata;
    let cases = file::cases(&outputs.path, &tensors, &metadata, options)?;
    judge_case(&cases[0], options)
}
