//! `cargo xtask verify`: every property of `rmsnorm-fuzz` on every executor there is, and a report of it.
//!
//! Read in this order: [`sets`] (which cases), [`executors`] (on what), [`judge`] (tries them), [`report`] (what is left
//! behind), [`display`] (what a reader sees).

mod display;
mod executors;
#[cfg(feature = "cuda")]
mod gpu;
mod judge;
mod mutants;
mod report;
#[cfg(feature = "cuda")]
mod sanitize;
mod sets;
mod study;

use crate::copies::root;
use crate::record::{can_write, write_json};
use anyhow::bail;
use display::{Progress, print_committed, print_machine, print_report, wrapped};
use executors::{CPU, OnAllThreads, Target, cpu_target, find};
use judge::{Depth, Judge};
use rayon::ThreadPoolBuilder;
use report::{Build, Committed, Digests, Machine, Phase, Report, Row, SCHEMA};
use rmsnorm_cuda::{Cpu, Executor};
use rmsnorm_fuzz::hard_case;
use sets::{Coverage, Item};
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
    /// 20 000 random cases and more: for 16 cores.
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
    #[arg(long, conflicts_with_all = ["quick", "full", "case", "seed"])]
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
        writeln!(out, "{}", sets::list())?;
        return Ok(ExitCode::SUCCESS);
    }
    can_write(&options.report)?;
    if options.mutants {
        let kernels_only = options.device == Device::Cuda;
        return mutants::run(kernels_only, options.has_gpu()?, options.report.as_deref(), &mut out);
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
    let case = options.case.as_deref().map(sets::named).transpose()?;
    let Build { version, bits_version, .. } = Build::this();
    let (mode, commit) = (options.mode(), Build::this().commit());
    let what = format!("{version} · {mode} · seed {} · commit {commit} · bits version {bits_version}", options.seed);
    writeln!(out, "{}", wrapped("rmsnorm verify ", &what))?;
    let found = find(options.device, options.quick);
    let machine = Machine {
        cpu: Cpu.name(),
        gpu: found.as_ref().ok().map(|found| found.gpu.clone()),
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
    let cpu = OnAllThreads(ThreadPoolBuilder::new().build()?);
    let mut targets = Vec::new();
    if options.device != Device::Cuda {
        targets.push(cpu_target(&cpu, &Cpu));
    }
    if let Ok(found) = &found {
        targets.push(found.target());
    }
    let (report, committed) = verify(options, case, machine, &targets)?;
    // What was found is lost neither with the one nor with the other.
    let printed = print_report(&report, &mut out).and_then(|()| print_committed(&committed, &mut out));
    if let Some(path) = &options.report {
        write_json(path, &report)?;
        writeln!(out, "report: {}", path.display())?;
    }
    printed?;
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tries every target, and compares the bits with those of committed reports.
fn verify(
    options: &Options,
    case: Option<Item>,
    machine: Machine,
    targets: &[Target],
) -> anyhow::Result<(Report, Committed)> {
    let started = Instant::now();
    let started_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let judge = Judge::new(targets);
    let (mut random, mut failures, mut phases) = (None, Vec::new(), Vec::new());
    let digested = if let Some(item) = &case {
        judge.judge(item, Depth::Hard);
        vec![item.clone()]
    } else {
        let effort = options.effort();
        let drawn = sets::random(options.seed.into(), effort.random, effort.deep);
        let coverage = Coverage::of(&drawn);
        if effort.quotas {
            failures.extend(coverage.shortfalls().into_iter().map(|missed| format!("random cases: {missed}")));
        }
        random = Some(coverage);
        let mut judge_all = |what: &str, items: &[Item], depth: &(dyn Fn(usize) -> Depth + Sync)| {
            let began = Instant::now();
            let judged = judge.judge_all(what, items, depth);
            phases.push(Phase {
                what: what.into(),
                cases: items.len() as u64,
                elapsed_s: began.elapsed().as_secs_f64(),
            });
            judged
        };
        judge_all("hard cases", &sets::hard(false), &|i| one_in(i, effort.hard_launches, Depth::Hard, Depth::All))?;
        let classes = sets::one_in(effort.classes, sets::plan_classes());
        judge_all("plan classes", &classes, &|i| one_in(i, effort.classes_thorough, Depth::All, Depth::Wide))?;
        let grid = sets::one_in(effort.grid, sets::grid());
        judge_all("grid", &grid, &|i| one_in(i, effort.grid_thorough, Depth::All, Depth::Basic))?;
        let accurate = |i: usize| one_in(i, effort.random_accurate, Depth::Basic, Depth::Bits);
        judge_all("random cases", &drawn, &|i| one_in(i, effort.random_thorough, Depth::All, accurate(i)))?;
        judge_all("large hard cases", &sets::hard(true), &|_| effort.large)?;
        report::digested(options.quick, effort.classes)
    };
    let began = Instant::now();
    let mut executors: Vec<(&str, &dyn Executor)> = vec![(CPU, &Cpu)];
    for target in targets {
        executors.retain(|(name, _)| *name != target.name);
        executors.push((target.name, target.executor));
    }
    let mut digests: Option<(&str, Digests)> = None;
    let progress = case.is_none().then(|| Progress::new("digests", digested.len() * executors.len()));
    for (name, executor) in &executors {
        match report::digests(&digested, *executor, || progress.iter().for_each(Progress::tick)) {
            Ok(new) => {
                let (first, all) = digests.get_or_insert_with(|| (name, new.clone()));
                let (_, differ) = report::compare(all, &new);
                failures.extend(differ.iter().map(|what| format!("{what} has other bits on {name} than on {first}")));
            }
            Err(error) => failures.push(format!("on {name}: {error:#}")),
        }
    }
    drop(progress);
    let digests = digests.map(|(_, digests)| digests).unwrap_or_default();
    if case.is_none() {
        let (what, cases) = ("digests".into(), digested.len() as u64);
        phases.push(Phase { what, cases, elapsed_s: began.elapsed().as_secs_f64() });
    }
    let committed = Committed::compare(&root().join(EVIDENCE), &digests, options.report.as_ref());
    failures.extend(committed.contradictions.iter().cloned());
    let literal_thread_s = judge.literal_thread_s();
    let mut rows = judge.rows(&machine);
    let executed = |row: &Row| row.skipped.is_some() || row.cases + row.failed > 0;
    if case.is_some() {
        // One case is not for every property.
        rows.retain(|row| executed(row) || !row.not_applicable.is_empty());
    } else {
        let without = rows.iter().filter(|row| !executed(row));
        failures.extend(without.map(|row| format!("no case was executed for {} on {}", row.property, row.executor)));
    }
    if rows.iter().all(|row| row.cases + row.failed == 0) {
        failures.push("no case was executed at all".into());
    }
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
        digests_by: executors.iter().map(|(name, _)| name.to_string()).collect(),
        digests,
        failures,
        phases,
        literal_thread_s,
    };
    Ok((report, committed))
}

/// One case in so many gets the greater depth.
fn one_in(index: usize, every: usize, greater: Depth, otherwise: Depth) -> Depth {
    if index.is_multiple_of(every) { greater } else { otherwise }
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

    fn mode(&self) -> String {
        match &self.case {
            Some(name) => format!("case {name}"),
            None if self.quick => "quick".into(),
            None if self.full => "full".into(),
            None => "default".into(),
        }
    }

    fn effort(&self) -> Effort {
        if self.quick {
            Effort {
                hard_launches: 8,
                random: &[(330, 18), (10, 21)],
                deep: 10,
                random_accurate: 1,
                random_thorough: 7,
                classes: 8,
                classes_thorough: 2,
                grid: 17,
                grid_thorough: 11,
                large: Depth::Large,
                quotas: false,
            }
        } else if self.full {
            Effort {
                hard_launches: 1,
                random: &[(13_800, 18), (200, 21)],
                deep: 6000,
                random_accurate: 3,
                random_thorough: 40,
                classes: 1,
                classes_thorough: 2,
                grid: 1,
                grid_thorough: 11,
                large: Depth::Wide,
                quotas: true,
            }
        } else {
            Effort {
                hard_launches: 1,
                random: &[(2000, 18), (200, 21)],
                deep: 200,
                random_accurate: 1,
                random_thorough: 20,
                classes: 1,
                classes_thorough: 2,
                grid: 3,
                grid_thorough: 11,
                large: Depth::Wide,
                quotas: false,
            }
        }
    }
}

/// How much is tried.
struct Effort {
    /// One hard case in so many is launched with kernels that nothing else needs.
    hard_launches: usize,
    /// Random cases: how many, and their largest number of elements as a power of two.
    random: &'static [(u64, u32)],
    /// So many more with more rows than row groups.
    deep: u64,
    /// One random case in so many is tried with identity and accuracy, the others with identity alone: where all bits are the literal
    /// executor's, accuracy is a property of the specification.
    random_accurate: usize,
    /// One random case in so many is tried with every property.
    random_thorough: usize,
    /// One case of plan classes in so many is tried, and of these one in so many with every property.
    classes: usize,
    classes_thorough: usize,
    /// The same for the grid of shapes.
    grid: usize,
    grid_thorough: usize,
    /// What large hard cases are tried with.
    large: Depth,
    /// Whether missing a quota of the random cases is a failure.
    quotas: bool,
}

/// Where committed reports are, seen from the root of the workspace.
const EVIDENCE: &str = "docs/evidence";

#[cfg(test)]
mod tests {
    use super::executors::{Again, CUDA, Launch};
    use super::judge::{IDENTITY, IDLE, REPEAT};
    use super::*;
    use rmsnorm_cuda::{Backward, Error, Forward, Slice, SliceMut};

    /// Computes with another eps where rows have seven elements.
    struct Broken;

    impl Executor for Broken {
        fn name(&self) -> String {
            "broken".into()
        }
        fn forward(&self, mut call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            if call.hidden == 7 {
                call.eps += 1.0;
            }
            Cpu.forward(call)
        }
        fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            Cpu.backward(call)
        }
    }

    fn verify_case(name: &str, targets: &[Target]) -> (Report, String) {
        let mut out = Vec::new();
        let options = Options { case: Some(name.into()), ..Options::default() };
        let machine = Machine { missing: Some("not asked for".into()), ..Machine::default() };
        let (report, _) = verify(&options, Some(sets::named(name).unwrap()), machine, targets).unwrap();
        print_report(&report, &mut out).unwrap();
        (report, String::from_utf8(out).unwrap())
    }

    fn target(executor: &dyn Executor) -> Vec<Target<'_>> {
        vec![cpu_target(executor, executor)]
    }

    #[test]
    fn a_broken_executor_fails_and_the_case_is_named() {
        let (report, text) = verify_case("width_7", &target(&Broken));
        assert!(!report.passed);
        assert!(text.contains("verify --case width_7\n"), "{text}");
        let failed: Vec<&str> = report.rows.iter().filter(|r| r.failed > 0).map(|r| r.property.as_str()).collect();
        assert!(failed.contains(&IDENTITY) && failed.contains(&"accuracy") && !failed.contains(&REPEAT), "{failed:?}");
        assert!(verify_case("width_5", &target(&Broken)).0.passed);
    }

    #[test]
    fn a_launch_that_differs_fails() {
        let launches = vec![Launch {
            what: "forced: ".into(),
            executor: Box::new(Broken),
            elements_max: usize::MAX,
            left_out: "",
            hard_only: false,
        }];
        let target = Target { name: CUDA, launches: &launches, ..cpu_target(&Cpu, &Cpu) };
        let (report, text) = verify_case("width_7", &[target]);
        assert!(!report.passed && text.contains("FAILED: launch on cuda"), "{text}");
        assert!(text.contains("--case width_7 --device cuda"), "{text}");
    }

    #[test]
    fn another_run_that_differs_fails() {
        for at_once in [false, true] {
            let again = |executor| vec![Again { how: "in another way", executor, at_once }];
            let target = Target { name: CUDA, again: again(&Broken), ..cpu_target(&Cpu, &Cpu) };
            let (report, text) = verify_case("width_7", &[target]);
            assert!(!report.passed && text.contains("FAILED: two runs on cuda"), "{text}");
            assert!(text.contains("in another way: rstd[0][0]"), "{text}");
            let target = Target { again: again(&Cpu), ..cpu_target(&Cpu, &Cpu) };
            assert!(verify_case("width_7", &[target]).0.passed);
        }
    }

    /// The driver refuses every launch of this one.
    struct Refused;

    impl Executor for Refused {
        fn name(&self) -> String {
            "refused".into()
        }
        fn forward(&self, _: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            Err(Error::Driver { call: "cuLaunchKernel", code: "CUDA_ERROR_INVALID_VALUE".into() })
        }
        fn backward(&self, _: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            Err(Error::Driver { call: "cuLaunchKernel", code: "CUDA_ERROR_INVALID_VALUE".into() })
        }
    }

    #[test]
    fn a_refused_launch_that_nobody_is_told_of_fails() {
        let with = |refused| {
            let target = Target { refused: Some(refused), ..cpu_target(&Cpu, &Cpu) };
            verify_case("width_7", &[target])
        };
        assert!(with(&Refused).0.passed);
        let (report, text) = with(&Cpu);
        assert!(!report.passed && text.contains("FAILED: launch failures on cpu"), "{text}");
    }

    #[test]
    fn a_healthy_executor_passes_every_property() {
        let (report, text) = verify_case("idle_groups_781", &target(&Cpu));
        assert!(report.passed, "{text}");
        let (unlike, _) = verify_case("width_5", &target(&Cpu));
        assert!(unlike.rows.iter().all(|row| row.property != IDLE || row.skipped.is_some()));
        assert!(report.rows.iter().any(|row| row.property == IDLE && row.comparisons == 180), "{text}");
        // What needs a GPU is skipped, with a reason.
        let skipped = report.rows.iter().filter(|row| row.executor == CUDA);
        assert!(skipped.clone().count() > 10 && skipped.clone().all(|row| row.skipped.is_some()), "{text}");
    }

    #[test]
    fn the_random_cases_of_full_meet_their_quotas() {
        let effort = Options { full: true, ..Options::default() }.effort();
        for seed in [0, 1, 77] {
            let coverage = Coverage::of(&sets::random(seed, effort.random, effort.deep));
            println!("{coverage}");
            assert!(coverage.cases >= 20_000 && coverage.shortfalls().is_empty(), "{:?}", coverage.shortfalls());
        }
    }

    #[test]
    fn nothing_executed_is_a_failure() {
        let (report, text) = verify_case("width_7", &[]);
        assert!(!report.passed && text.contains("no case was executed"), "{text}");
    }
}
