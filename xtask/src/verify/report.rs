//! What a run of `verify` leaves behind: a JSON file that anyone can check without a GPU, since the CPU computes the same bits.

use super::sets::{Coverage, plan_classes};
use crate::record;
pub(super) use crate::record::Build;
use anyhow::{Context, Result};
use rmsnorm_cuda::Executor;
use rmsnorm_fuzz::golden::{Section, sections};
use rmsnorm_fuzz::{Case, Evidence};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A run of `cargo xtask verify`, as `--report FILE.json` writes it. A field keeps its meaning as long as `schema` stays.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// Version of this format: 1.
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
    /// Output bits.
    pub digests: Vec<SectionDigest>,
    /// Failures that belong to no case.
    pub failures: Vec<String>,
    /// Where the time went.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// Time that the literal executor took, all threads together.
    #[serde(default)]
    pub literal_thread_s: f64,
}

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
    /// Version of NVRTC.
    pub nvrtc: String,
    /// What was loaded as NVRTC.
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
    /// Largest error/bound.
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

/// One digest of the output bits of many cases (`rmsnorm_fuzz::golden`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SectionDigest {
    /// Which cases.
    pub section: String,
    /// How many.
    pub cases: u64,
    /// SHA-256 of the cases themselves: only equal inputs can be compared.
    pub inputs_sha256: String,
    /// SHA-256 of the digests of the outputs.
    pub outputs_sha256: String,
    /// The executors that computed it, all with this result.
    pub computed_by: Vec<String>,
}

impl SectionDigest {
    /// Whether equal inputs gave other outputs.
    fn contradicts(&self, other: &SectionDigest) -> bool {
        self.inputs_sha256 == other.inputs_sha256 && self.outputs_sha256 != other.outputs_sha256
    }
}

/// The sections that reports carry, or only those that are quick to compute.
pub(super) fn digested_sections(quick: bool) -> Vec<Section> {
    let classes = plan_classes().into_iter().map(|item| item.case).collect();
    let all = sections().into_iter().chain([Section { name: "plan classes", cases: classes }]);
    all.filter(|section| !quick || section.name != "large hard cases").collect()
}

/// The digest of a section, computed by every executor; an error if they differ.
pub(super) fn digest(section: &Section, executors: &[(&str, &dyn Executor)]) -> Result<SectionDigest> {
    let mut computed: Option<(&str, String)> = None;
    for (name, executor) in executors {
        let digest = section.digest(*executor).with_context(|| format!("{} on {name}", section.name))?;
        if let Some((other, expected)) = computed.as_ref().filter(|(_, expected)| *expected != digest) {
            anyhow::bail!("digests of the {} differ: {other} {expected}, {name} {digest}", section.name);
        }
        computed = Some((name, digest));
    }
    Ok(SectionDigest {
        section: section.name.into(),
        cases: section.cases.len() as u64,
        inputs_sha256: inputs_sha256(&section.cases),
        outputs_sha256: computed.context("no executor")?.1,
        computed_by: executors.iter().map(|(name, _)| name.to_string()).collect(),
    })
}

fn inputs_sha256(cases: &[Case]) -> String {
    hex(cases.iter().fold(Sha256::new(), |hash, case| hash.chain_update(format!("{case}\n"))))
}

impl Report {
    /// Writes the report so that the file is either the old one or the whole new one.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        record::write_json(path, self)
    }

    /// Reads a report.
    pub(super) fn read(path: &Path) -> Result<Report> {
        record::read_json(path)
    }
}

/// One line: whether the newest report of a GPU under `folder` says something about this binary.
pub(super) fn evidence(folder: &Path, digests: &[SectionDigest]) -> Option<String> {
    if !folder.is_dir() {
        return None;
    }
    let mut of_a_gpu: Vec<(PathBuf, Report)> = reports(folder)
        .into_iter()
        .filter_map(|path| Report::read(&path).ok().map(|report| (path, report)))
        .filter(|(_, report)| report.machine.gpu.is_some() && report.passed)
        .collect();
    of_a_gpu.sort_by_key(|(_, report)| report.started_unix_s);
    let Some((path, report)) = of_a_gpu.pop() else {
        return Some(format!("none: {} holds no report of a GPU", folder.display()));
    };
    let (this, that) = (Build::this(), &report.build);
    let gpu = report.machine.gpu.map(|gpu| gpu.name).unwrap_or_default();
    let which = format!("{}, {gpu}, commit {}", path.display(), that.commit());
    Some(if this.kernel_sources_sha256 == "unknown" {
        format!("unknown: this build has no kernels to compare ({which})")
    } else if that.bits_version != this.bits_version {
        format!("STALE: bits version {} there, {} here ({which})", that.bits_version, this.bits_version)
    } else if that.kernel_sources_sha256 != this.kernel_sources_sha256 {
        format!("STALE: the kernels have changed since ({which})")
    } else if digests.iter().any(|here| report.digests.iter().any(|there| there.contradicts(here))) {
        format!("STALE: its output bits are not those of this run ({which})")
    } else {
        format!("current ({which})")
    })
}

/// The files under `folder` that are called like reports of this command.
pub(super) fn reports(folder: &Path) -> Vec<PathBuf> {
    let is_report = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("verify-") && name.ends_with(".json")
    };
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let mut paths: Vec<PathBuf> = files.filter(is_report).collect();
    paths.sort();
    paths
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

const FAILURES_KEPT: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use rmsnorm_cuda::{BITS_VERSION, Cpu};

    /// The bits that a GPU computed are those that this machine's CPU computes.
    #[test]
    fn committed_reports_have_the_bits_of_this_cpu() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/evidence");
        for path in reports(&folder) {
            let report = Report::read(&path).unwrap();
            if report.build.bits_version != BITS_VERSION {
                println!("{}: not compared, it is of bits version {}", path.display(), report.build.bits_version);
                continue;
            }
            let section = digested_sections(true).swap_remove(0);
            let here = digest(&section, &[("cpu", &Cpu)]).unwrap();
            let there = report.digests.iter().find(|there| there.section == here.section);
            match there {
                Some(there) if there.inputs_sha256 == here.inputs_sha256 => {
                    assert_eq!(there.outputs_sha256, here.outputs_sha256, "{}", path.display());
                }
                _ => println!("{}: not compared, the {} are others", path.display(), section.name),
            }
        }
    }

    #[test]
    fn sections_of_other_cases_or_other_bits_have_other_digests() {
        struct Other;
        impl Executor for Other {
            fn name(&self) -> String {
                "other".into()
            }
            fn forward(
                &self,
                mut call: rmsnorm_cuda::Forward<rmsnorm_cuda::Slice<'_>, rmsnorm_cuda::SliceMut<'_>>,
            ) -> Result<(), rmsnorm_cuda::Error> {
                call.eps *= 2.0;
                Cpu.forward(call)
            }
            fn backward(
                &self,
                call: rmsnorm_cuda::Backward<rmsnorm_cuda::Slice<'_>, rmsnorm_cuda::SliceMut<'_>>,
            ) -> Result<(), rmsnorm_cuda::Error> {
                Cpu.backward(call)
            }
        }
        let case = rmsnorm_fuzz::hard_case("width_7").unwrap().case;
        let section = Section { name: "one", cases: vec![Case { eps: 1.0, ..case }] };
        let both = digest(&section, &[("cpu", &Cpu), ("again", &Cpu)]).unwrap();
        assert_eq!(both.computed_by, ["cpu", "again"]);
        assert!(digest(&section, &[("cpu", &Cpu), ("other", &Other)]).is_err());
        let moved = digest(&Section { name: "one", cases: vec![case] }, &[("cpu", &Cpu)]).unwrap();
        assert_ne!(moved.inputs_sha256, both.inputs_sha256);
    }
}
