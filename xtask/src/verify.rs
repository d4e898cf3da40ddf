//! `cargo xtask verify`: every property of `rmsnorm-fuzz` on every executor there is, and a report of it.
//!
//! Read in this order: [`effort`] (how much), [`judge`] (tries the cases of `rmsnorm_fuzz::sets`), [`report`] (what is left
//! behind), [`committed`] (what others left), [`display`] (what a reader sees).

mod committed;
mod display;
mod effort;
mod judge;
mod mutants;
mod names;
mod report;
#[cfg(feature = "cuda")]
mod sanitize;
mod study;
#[cfg(test)]
mod tests;

use crate::copies::root;
use crate::record::{can_write, write_json};
use anyhow::bail;
use committed::Committed;
use display::{Progress, print_committed, print_machine, print_report, wrapped};
use effort::Effort;
use judge::{Depth, Judge};
use report::{Build, Digests, Gpu, Machine, Phase, Report, Row, SCHEMA};
use rmsnorm_cuda::{Cpu, Executor};
use rmsnorm_fuzz::sets::Item;
use rmsnorm_fuzz::{Subject, hard_case};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

/// What to verify, and where.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// Which executors: auto takes the GPU if there is one.
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Fail if there is no GPU.
    #[arg(long)]
    require_gpu: bool,
    /// At most a minute on two cores.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// 20 000 random cases and more: for 16 cores. With --mutants every property is tried on every defect.
    #[arg(long)]
    full: bool,
    /// Try this case only, with every property.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["quick", "full", "seed"])]
    case: Option<String>,
    /// Print what --case takes.
    #[arg(long, exclusive = true)]
    list: bool,
    /// Judge the checks: build every known defect into a copy of the code, and demand that it is caught; the kernels run on the GPU if
    /// there is one, else in the emulator. With --device cuda only those in the kernels, with --device cpu no GPU.
    #[arg(long, conflicts_with_all = ["quick", "case", "seed"])]
    mutants: bool,
    /// Run the case study of this issue, 781: in the emulator, and on the GPU if there is one.
    #[arg(long, value_name = "ISSUE", allow_negative_numbers = true,
          conflicts_with_all = ["quick", "full", "case", "seed", "mutants", "report"])]
    case_study: Option<u32>,
    /// Run calls of every kind under compute-sanitizer, on the GPU.
    #[cfg(feature = "cuda")]
    #[arg(long, conflicts_with_all = ["quick", "full", "case", "seed", "device", "mutants", "case_study", "report"])]
    sanitize: bool,
    /// What --sanitize runs under each tool.
    #[cfg(feature = "cuda")]
    #[arg(long, hide = true, exclusive = true)]
    sanitized: Option<String>,
    /// Decides the random cases.
    #[arg(long, default_value_t = 0, value_name = "S", allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(..1 << 31))]
    seed: u32,
    /// Write a report to this file.
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Device {
    #[default]
    Auto,
    Cpu,
    Cuda,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    rmsnorm_cuda::arith::environment()?; // The specification and the reference would be wrong with the executor, and equal to it.
    let mut out = std::io::stdout().lock();
    if options.list {
        writeln!(out, "{}", names::list())?;
        return Ok(ExitCode::SUCCESS);
    }
    can_write(&options.report)?;
    if options.mutants {
        let kernels_only = options.device == Device::Cuda;
        return mutants::run(kernels_only, options.has_gpu()?, options.full, options.report.as_deref(), &mut out);
    }
    if let Some(issue) = options.case_study {
        return study::run(issue, || options.has_gpu(), &mut out);
    }
    #[cfg(feature = "cuda")]
    if let Some(what) = &options.sanitized {
        return sanitize::sanitized(what, &mut out);
    }
    #[cfg(feature = "cuda")]
    if options.sanitize {
        return sanitize::run(options.require_gpu, &mut out);
    }
    let case = options.case.as_deref().map(names::named).transpose()?;
    let Build { version, bits_version, .. } = Build::this();
    let (mode, commit) = (options.mode(), Build::this().commit());
    let what = format!("{version} · {mode} · seed {} · commit {commit} · bits version {bits_version}", options.seed);
    writeln!(out, "{}", wrapped("rmsnorm verify ", &what))?;
    let found = find(options.device, options.quick);
    let machine = Machine {
        cpu: Cpu.name(),
        gpu: found.as_ref().ok().map(|(gpu, _)| gpu.clone()),
        missing: found.as_ref().err().cloned(),
    };
    print_machine(&machine, &mut out)?;
    if let Some(reason) = machine.missing.as_ref().filter(|_| options.require_gpu || options.device == Device::Cuda) {
        bail!("a GPU is required: {reason}");
    }
    if let Some(Item { name, case }) = &case {
        writeln!(out, "{}", wrapped("case  ", &format!("{name}: {case}")))?;
        hard_case(name).map_or(Ok(()), |hard| writeln!(out, "{}", wrapped("      ", hard.reason)))?;
    }
    let mut subjects = Vec::new();
    if options.device != Device::Cuda {
        subjects.push(Subject::cpu()?);
    }
    subjects.extend(found.into_iter().map(|(_, subject)| subject));
    let (report, committed) = verify(options, case, machine, &subjects)?;
    // What was found is lost neither with the one nor with the other.
    let printed = print_report(&report, &mut out).and_then(|()| print_committed(&committed, &mut out));
    if let Some(path) = &options.report {
        write_json(path, &report)?;
        writeln!(out, "report: {}", path.display())?;
    }
    printed?;
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tries every subject, and compares the bits with those of committed reports.
fn verify(
    options: &Options,
    case: Option<Item>,
    machine: Machine,
    subjects: &[Subject],
) -> anyhow::Result<(Report, Committed)> {
    let started = Instant::now();
    let started_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let judge = Judge::new(subjects);
    let (mut random, mut failures, mut phases) = (None, Vec::new(), Vec::new());
    let digested = if let Some(item) = &case {
        judge.judge(item, Depth::Hard);
        vec![item.clone()]
    } else {
        let effort = options.effort();
        let coverage = effort.try_sets(options.seed.into(), &judge, &mut phases)?;
        if effort.quotas {
            failures.extend(coverage.shortfalls().into_iter().map(|missed| format!("random cases: {missed}")));
        }
        random = Some(coverage);
        committed::digested(options.quick, effort.classes)
    };
    let began = Instant::now();
    let (digests_by, digests) = digests(&digested, subjects, case.is_none(), &mut failures);
    if case.is_none() {
        let (what, cases) = ("digests".into(), digested.len() as u64);
        phases.push(Phase { what, cases, elapsed_s: began.elapsed().as_secs_f64() });
    }
    let committed = Committed::compare(&root().join(EVIDENCE), &digests, options.report.as_ref());
    failures.extend(committed.contradictions.iter().cloned());
    let literal_thread_s = judge.literal_thread_s();
    let rows = executed(judge.rows(&machine), case.is_some(), &mut failures);
    let report = Report {
        schema: SCHEMA,
        passed: failures.is_empty() && rows.iter().all(|row| row.failed == 0),
        command: std::env::args().skip(1).collect(),
        started_unix_s,
        elapsed_s: started.elapsed().as_secs_f64(),
        build: Build::this(),
        machine,
        mode: options.mode(),
        seed: options.seed.into(),
        rows,
        random,
        digests_by,
        digests,
        failures,
        phases,
        literal_thread_s,
    };
    Ok((report, committed))
}

/// The output bits of every subject, and of the CPU in any case: who computed them, and what the first did.
fn digests(items: &[Item], subjects: &[Subject], shown: bool, failures: &mut Vec<String>) -> (Vec<String>, Digests) {
    let mut executors: Vec<(&str, &dyn Executor)> = vec![(CPU, &Cpu)];
    for subject in subjects {
        executors.retain(|(name, _)| *name != subject.name);
        executors.push((subject.name, &*subject.executor));
    }
    let mut digests: Option<(&str, Digests)> = None;
    let progress = shown.then(|| Progress::new("digests", items.len() * executors.len()));
    for (name, executor) in &executors {
        match committed::digests(items, *executor, || progress.iter().for_each(Progress::tick)) {
            Ok(new) => {
                let (first, all) = digests.get_or_insert_with(|| (name, new.clone()));
                let (_, differ) = committed::compare(all, &new);
                failures.extend(differ.iter().map(|what| format!("{what} has other bits on {name} than on {first}")));
            }
            Err(error) => failures.push(format!("on {name}: {error:#}")),
        }
    }
    let by = executors.iter().map(|(name, _)| name.to_string()).collect();
    (by, digests.map(|(_, digests)| digests).unwrap_or_default())
}

/// The rows of which something is to be told; that of a property nothing was executed is a failure. One case is not for every
/// property.
fn executed(mut rows: Vec<Row>, one_case: bool, failures: &mut Vec<String>) -> Vec<Row> {
    let executed = |row: &Row| row.skipped.is_some() || row.cases + row.failed > 0;
    if one_case {
        rows.retain(|row| executed(row) || !row.not_applicable.is_empty());
    } else {
        let without = rows.iter().filter(|row| !executed(row));
        failures.extend(without.map(|row| format!("no case was executed for {} on {}", row.property, row.executor)));
    }
    if rows.iter().all(|row| row.cases + row.failed == 0) {
        failures.push("no case was executed at all".into());
    }
    rows
}

/// Looks for a GPU, and says why there is none.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
fn find(device: Device, quick: bool) -> Result<(Gpu, Subject), String> {
    match device {
        Device::Cpu => Err("not asked for".into()),
        #[cfg(feature = "cuda")]
        _ => first_gpu(quick).map_err(|error| format!("{NO_GPU}: {error}")),
        #[cfg(not(feature = "cuda"))]
        _ => Err("built without CUDA: build xtask with its feature `cuda`".into()),
    }
}

#[cfg(feature = "cuda")]
fn first_gpu(quick: bool) -> Result<(Gpu, Subject), rmsnorm_cuda::Error> {
    let cuda = rmsnorm_cuda::cuda::Cuda::new(0)?;
    let (nvrtc, nvrtc_path) = crate::record::compiler(cuda.arch().compute_capability);
    let gpu = Gpu {
        name: cuda.name(),
        driver: crate::record::driver_version().unwrap_or_else(|| "unknown".into()),
        nvrtc,
        nvrtc_path,
    };
    Ok((gpu, Subject::cuda(&cuda, quick)?))
}

impl Options {
    /// Whether there is a GPU to use; an error if there must be one.
    fn has_gpu(&self) -> anyhow::Result<bool> {
        match find(self.device, true) {
            Ok(_) => Ok(true),
            Err(reason) if self.require_gpu || self.device == Device::Cuda => bail!("a GPU is required: {reason}"),
            Err(_) => Ok(false),
        }
    }

    fn effort(&self) -> Effort {
        match () {
            () if self.quick => Effort::QUICK,
            () if self.full => Effort::FULL,
            () => Effort::DEFAULT,
        }
    }

    fn mode(&self) -> String {
        match &self.case {
            Some(name) => format!("case {name}"),
            None if self.quick => "quick".into(),
            None if self.full => "full".into(),
            None => "default".into(),
        }
    }
}

/// Where committed reports are, seen from the root of the workspace.
const EVIDENCE: &str = "docs/evidence";
const CPU: &str = "cpu";
const CUDA: &str = "cuda";
const NO_GPU: &str = "no usable GPU";
