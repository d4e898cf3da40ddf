//! What a run of `verify` leaves behind: a JSON file that anyone can check without a GPU, since the CPU computes the same bits.

pub(super) use crate::record::Build;
use crate::record::read_json;
use anyhow::{Result, ensure};
use rmsnorm_fuzz::Evidence;
use rmsnorm_fuzz::sets::Coverage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A run of `cargo xtask verify`, as `--report FILE.json` writes it. A field keeps its meaning as long as `schema` stays.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// Version of this format: 2.
    pub schema: u32,
    /// Whether nothing failed and something was tried.
    pub passed: bool,
    /// The arguments of the command.
    pub command: Vec<String>,
    /// When it began, in seconds since 1970.
    pub started_unix_s: u64,
    /// How long it took.
    pub elapsed_s: f64,
    /// Which binary it was.
    pub build: Build,
    /// What it ran on.
    pub machine: Machine,
    /// `quick`, `default`, `full`, or `case NAME`.
    pub mode: String,
    /// Decides the random cases.
    pub seed: u64,
    /// One entry for each property and executor.
    pub rows: Vec<Row>,
    /// What the random cases covered; absent if there were none.
    pub random: Option<Coverage>,
    /// The executors that computed the digests, all with the same result.
    pub digests_by: Vec<String>,
    /// Output bits.
    pub digests: Digests,
    /// Failures that belong to no case.
    pub failures: Vec<String>,
    /// Where the time went.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// Time that the literal executor took, all threads together.
    #[serde(default)]
    pub literal_thread_s: f64,
}

/// By case, as its name and a digest of the inputs: digests of rstd, y, dx and dw, as `rmsnorm_fuzz::golden` makes them, or `-`.
pub(super) type Digests = BTreeMap<String, String>;

/// A part of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Phase {
    /// Which cases.
    pub what: String,
    /// How many.
    pub cases: u64,
    /// How long they took.
    pub elapsed_s: f64,
}

/// The machine. No GPU: `gpu` is absent and `missing` says why.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Machine {
    /// The CPU executor, with the instruction set it uses and the number of threads.
    pub cpu: String,
    /// The GPU and its libraries.
    pub gpu: Option<Gpu>,
    /// What was looked for and not found, and why.
    pub missing: Option<String>,
}

/// A GPU and what drives it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Gpu {
    /// The CUDA executor, with the GPU's name.
    pub name: String,
    /// Version of the driver, where the system tells it.
    pub driver: String,
    /// Version of NVRTC, or `none`.
    pub nvrtc: String,
    /// What was loaded as NVRTC, or what there is instead.
    pub nvrtc_path: String,
}

/// What was found of one property on one executor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    /// Number of the property.
    pub number: u32,
    /// Its name.
    pub property: String,
    /// `cpu` or `cuda`.
    pub executor: String,
    /// Why nothing was tried.
    pub skipped: Option<String>,
    /// Cases in which the property held.
    pub cases: u64,
    /// Calls, or pairs of calls, that were judged.
    pub comparisons: u64,
    /// Output elements that were judged.
    pub elements: u64,
    /// Time that was spent on it, all threads together.
    pub thread_s: f64,
    /// Cases that say nothing about the property, by reason.
    pub not_applicable: BTreeMap<String, u64>,
    /// What was left out of cases that were tried, by reason.
    pub excluded: BTreeMap<String, u64>,
    /// Error against bound, by output.
    pub accuracy: BTreeMap<String, Accuracy>,
    /// Number of cases that refute the property.
    pub failed: u64,
    /// The refuting cases with the fewest elements.
    pub failures: Vec<Failure>,
}

/// Error against bound of one output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Accuracy {
    /// Elements compared with the reference.
    pub elements: u64,
    /// Those of them for which the bound allows a single value.
    pub single: u64,
    /// Those of them that are within the bound and further off than rounding at random would bring them (docs/numerics.md, §12).
    pub alarms: u64,
    /// Largest error/bound, of values before their last rounding.
    pub worst: f64,
    /// Number of elements with error/bound in [k/16, (k+1)/16).
    pub histogram: [u64; 16],
}

/// A case that refutes a property.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// What `--case` takes.
    pub case: String,
    /// Elements of a matrix.
    pub elements: u64,
    /// What was expected and what was there.
    pub message: String,
}

impl Row {
    /// Adds what one case showed.
    pub(super) fn add(&mut self, found: &Evidence) {
        self.cases += 1;
        self.comparisons += found.comparisons;
        self.elements += found.elements;
        for (reason, count) in &found.excluded {
            *self.excluded.entry(reason.to_string()).or_default() += count;
        }
        for (output, tally) in &found.accuracy {
            let all = self.accuracy.entry(output.to_string()).or_default();
            all.elements += tally.elements;
            all.single += tally.single;
            all.alarms += tally.alarms;
            all.worst = all.worst.max(tally.worst);
            all.histogram.iter_mut().zip(tally.histogram).for_each(|(all, new)| *all += new);
        }
    }

    /// Adds a case that refutes the property.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.failed += 1;
        self.failures.push(failure);
        self.failures.sort_by(|a, b| (a.elements, &a.case).cmp(&(b.elements, &b.case)));
        self.failures.truncate(FAILURES_KEPT);
    }
}

impl Report {
    /// Reads a report.
    pub(super) fn read(path: &Path) -> Result<Report> {
        #[derive(Deserialize)]
        struct Any {
            schema: u32,
        }
        let Any { schema } = read_json(path)?;
        ensure!(schema == SCHEMA, "{} has format {schema}, expected {SCHEMA}", path.display());
        read_json(path)
    }
}

/// 2: digests by case; before, by section.
pub(super) const SCHEMA: u32 = 2;
const FAILURES_KEPT: usize = 5;
