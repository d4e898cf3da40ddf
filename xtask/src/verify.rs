//! `cargo xtask verify`: every property of `rmsnorm-fuzz` on every executor there is, and a report of it.
//!
//! Cases are tried side by side, the largest first; checks run on one thread each, the CPU executor on all of them. What the
//! literal executor computes is computed once for each case: property 1 compares every executor, and property 5 every launch,
//! with that.

use crate::progress::Progress;
use crate::report::{self, Build, Failure, Gpu, Machine, Report, Row};
use crate::sets::{self, Coverage, Item};
use anyhow::bail;
use comfy_table::{CellAlignment, Table, presets};
use rayon::{ThreadPool, ThreadPoolBuilder};
use rmsnorm_cuda::{Backward, Cpu, Error, Executor, Forward, Slice, SliceMut};
use rmsnorm_fuzz::identity::literal_outputs;
use rmsnorm_fuzz::idle::idle_groups;
use rmsnorm_fuzz::{Case, Evidence, Fill, Operands, Outcome, Outputs, PROPERTIES, hard_case};
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    #[arg(long, value_name = "NAME", conflicts_with_all = ["quick", "full"])]
    case: Option<String>,
    /// Decides the random cases.
    #[arg(long, default_value_t = 0, value_name = "S", value_parser = clap::value_parser!(u64).range(..1 << 31))]
    seed: u64,
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

/// An executor under test.
struct Target<'a> {
    name: &'static str,
    executor: &'a dyn Executor,
    /// The same once more, for two runs that must be equal.
    again: &'a dyn Executor,
    launches: Vec<Launch>,
}

/// The CUDA executor with another choice of what decides only speed.
struct Launch {
    what: String,
    executor: Box<dyn Executor>,
    /// Larger cases would take too long.
    elements_max: usize,
}

/// How much is tried.
struct Effort {
    /// Random cases: how many, and their largest number of elements as a power of two.
    random: &'static [(u64, u32)],
    /// One random case in so many is tried with every property, the others with identity and accuracy.
    random_thorough: usize,
    /// The same for the cases of plan classes.
    classes_thorough: usize,
    /// What large hard cases are tried with.
    large: Depth,
    /// Whether missing a quota of the random cases is a failure.
    quotas: bool,
}

/// Which properties a case is tried with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Identity, launches, exact integers.
    Large,
    /// Identity, launches, accuracy. The bits being those of the CPU, accuracy is judged there only.
    Basic,
    /// Identity, launches, accuracy, exact integers.
    Wide,
    /// All.
    All,
}

impl Depth {
    fn includes(self, property: &str, executor: &str) -> bool {
        match property {
            IDENTITY | LAUNCH => true,
            "accuracy" => self != Depth::Large && (self != Depth::Basic || executor == CPU),
            "exact" => self != Depth::Basic,
            _ => self == Depth::All,
        }
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let build = Build::this();
    writeln!(
        out,
        "rmsnorm verify {} · {} · seed {} · commit {} · bits version {}",
        build.version,
        options.mode(),
        options.seed,
        build.commit(),
        build.bits_version
    )?;
    let case = options.case.as_deref().map(sets::named).transpose()?;
    let (launches, cuda, machine) = find(options.device);
    print_machine(&machine, &mut out)?;
    if machine.missing.is_some() && (options.require_gpu || options.device == Device::Cuda) {
        bail!("a GPU is required, and there is none");
    }
    if let Some(Item { name, case }) = &case {
        writeln!(out, "case  {name}: {case}")?;
        hard_case(name).map_or(Ok(()), |hard| writeln!(out, "      {}", hard.reason))?;
    }
    let cpu = OnAllThreads(ThreadPoolBuilder::new().build()?);
    let mut targets = Vec::new();
    if options.device != Device::Cuda {
        targets.push(Target { name: CPU, executor: &cpu, again: &Cpu, launches: Vec::new() });
    }
    if let Some(executor) = cuda.as_deref() {
        targets.push(Target { name: CUDA, executor, again: executor, launches });
    }
    let report = verify(options, case, machine, &targets, &mut out)?;
    if let Some(path) = &options.report {
        report.write(path)?;
        writeln!(out, "report: {}", path.display())?;
    }
    if let Some(line) = report::evidence(Path::new(EVIDENCE), &report.digests) {
        writeln!(out, "evidence: {line}")?;
    }
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The CPU executor on a pool of its own, whose threads share every call.
struct OnAllThreads(ThreadPool);

impl Executor for OnAllThreads {
    fn name(&self) -> String {
        self.0.install(|| Cpu.name())
    }
    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.0.install(|| Cpu.forward(call))
    }
    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.0.install(|| Cpu.backward(call))
    }
}

/// Tries every target and prints what was found.
fn verify(
    options: &Options,
    case: Option<Item>,
    machine: Machine,
    targets: &[Target],
    out: &mut dyn Write,
) -> anyhow::Result<Report> {
    let started = Instant::now();
    let started_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let judge = Judge::new(targets);
    let (mut random, mut digests, mut failures) = (None, Vec::new(), Vec::new());
    if let Some(item) = &case {
        judge.judge(item, Depth::All);
    } else {
        let effort = options.effort();
        let drawn = sets::random(options.seed, effort.random);
        let coverage = Coverage::of(&drawn);
        failures
            .extend(coverage.shortfalls().into_iter().filter(|_| effort.quotas).map(|q| format!("random cases: {q}")));
        random = Some(coverage);
        judge.judge_all("hard cases", &sets::hard(false), |_| Depth::All)?;
        judge
            .judge_all("plan classes", &sets::plan_classes(), |i| thorough(i, effort.classes_thorough, Depth::Wide))?;
        judge.judge_all("random cases", &drawn, |i| thorough(i, effort.random_thorough, Depth::Basic))?;
        judge.judge_all("large hard cases", &sets::hard(true), |_| effort.large)?;
        let sections = report::digested_sections(options.quick);
        let progress = Progress::new("digests", sections.len());
        let mut executors: Vec<_> = targets.iter().map(|target| (target.name, target.executor)).collect();
        if executors.iter().all(|(name, _)| *name != CPU) {
            executors.push((CPU, &Cpu));
        }
        for section in &sections {
            match report::digest(section, &executors) {
                Ok(digest) => digests.push(digest),
                Err(error) => failures.push(format!("{error:#}")),
            }
            progress.tick();
        }
    }
    let rows = judge.rows(&machine);
    let executed = |row: &Row| row.skipped.is_some() || row.cases + row.failed > 0;
    for row in rows.iter().filter(|row| case.is_none() && !executed(row)) {
        failures.push(format!("no case was executed for {} on {}", row.property, row.executor));
    }
    if rows.iter().all(|row| row.cases == 0) {
        failures.push("no case was executed at all".into());
    }
    let report = Report {
        schema: 1,
        passed: failures.is_empty() && rows.iter().all(|row| row.failed == 0),
        command: std::env::args().skip(1).collect(),
        started_unix_s,
        elapsed_s: started.elapsed().as_secs_f64(),
        build: Build::this(),
        machine,
        mode: options.mode(),
        seed: options.seed,
        rows,
        random,
        digests,
        failures,
    };
    print_report(&report, out)?;
    Ok(report)
}

fn thorough(index: usize, every: usize, otherwise: Depth) -> Depth {
    if index.is_multiple_of(every) { Depth::All } else { otherwise }
}

impl Options {
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
                random: &[(400, 18), (50, 21)],
                random_thorough: 7,
                classes_thorough: 7,
                large: Depth::Large,
                quotas: false,
            }
        } else if self.full {
            Effort {
                random: &[(20_000, 21)],
                random_thorough: 40,
                classes_thorough: 1,
                large: Depth::Wide,
                quotas: true,
            }
        } else {
            Effort {
                random: &[(2000, 18), (400, 21)],
                random_thorough: 20,
                classes_thorough: 1,
                large: Depth::Wide,
                quotas: false,
            }
        }
    }
}

/// Tries cases and keeps what was found.
struct Judge<'a> {
    targets: &'a [Target<'a>],
    rows: Mutex<BTreeMap<(u32, &'static str, &'static str), Row>>,
}

impl<'a> Judge<'a> {
    fn new(targets: &'a [Target<'a>]) -> Self {
        let mut rows = BTreeMap::new();
        for target in targets {
            for (number, property) in properties() {
                // The CPU has no launches.
                if property != LAUNCH || !target.launches.is_empty() {
                    rows.insert((number, property, target.name), row(number, property, target.name));
                }
            }
        }
        Judge { targets, rows: Mutex::new(rows) }
    }

    /// Tries `items`, largest first.
    fn judge_all(&self, what: &str, items: &[Item], depth: impl Fn(usize) -> Depth + Sync) -> anyhow::Result<()> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(items[*i].case.elements()));
        let (large, small) = order.split_at(order.partition_point(|i| items[*i].case.elements() > LARGE));
        let progress = Progress::new(what, items.len());
        let threads = rayon::current_num_threads();
        for (order, workers) in [(large, threads.min(LARGE_SIDE_BY_SIDE)), (small, threads)] {
            let next = AtomicUsize::new(0);
            let work = || {
                while let Some(i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    self.judge(&items[*i], depth(*i));
                    progress.tick();
                }
            };
            // A pool for each worker: a shared one would begin a new case whenever it waits within another.
            let pool = |_| ThreadPoolBuilder::new().num_threads(threads / workers).build();
            let pools: Vec<ThreadPool> = (0..workers.min(order.len())).map(pool).collect::<Result<_, _>>()?;
            std::thread::scope(|scope| pools.iter().for_each(|pool| drop(scope.spawn(|| pool.install(work)))));
        }
        Ok(())
    }

    fn judge(&self, item: &Item, depth: Depth) {
        let case = &item.case;
        let want = literal_outputs(&Operands::new(case, Fill::Plausible));
        for Target { name, executor, launches, .. } in self.targets {
            self.record(1, IDENTITY, name, item, || identity(*executor, "", case, &want));
            for launch in launches {
                self.record(5, LAUNCH, name, item, || {
                    if case.elements() > launch.elements_max {
                        let excluded = BTreeMap::from([(TOO_LARGE, 1)]);
                        return Outcome::Passed(Evidence { excluded, ..Evidence::default() });
                    }
                    identity(&*launch.executor, &launch.what, case, &want)
                });
            }
        }
        drop(want);
        for Target { name, executor, again, .. } in self.targets {
            for property in PROPERTIES.iter().filter(|p| p.name != IDENTITY && depth.includes(p.name, name)) {
                self.record(property.number, property.name, name, item, || property.check(*executor, case));
            }
            if depth.includes(REPEAT, name) {
                self.record(3, REPEAT, name, item, || two_runs(*executor, *again, case));
            }
            if item.name == IDLE {
                self.record(4, IDLE, name, item, || idle_groups(*executor));
            }
        }
    }

    fn record(
        &self,
        number: u32,
        property: &'static str,
        executor: &'static str,
        item: &Item,
        check: impl FnOnce() -> Outcome,
    ) {
        let began = Instant::now();
        let outcome = check();
        let thread_s = began.elapsed().as_secs_f64();
        let mut rows = self.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let row = rows.entry((number, property, executor)).or_default();
        row.thread_s += thread_s;
        match outcome {
            Outcome::Passed(found) => row.add(&found),
            Outcome::NotApplicable { reason } => *row.not_applicable.entry(reason).or_default() += 1,
            Outcome::Failed { message, .. } => {
                row.fail(Failure { case: item.name.clone(), elements: item.case.elements() as u64, message });
            }
        }
    }

    /// What was found, and what was not looked for.
    fn rows(self, machine: &Machine) -> Vec<Row> {
        let skipped = |number, property, executor, reason: &str| Row {
            skipped: Some(reason.into()),
            ..row(number, property, executor)
        };
        let mut rows = self.rows.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(reason) = &machine.missing {
            for (number, property) in properties() {
                rows.entry((number, property, CUDA)).or_insert(skipped(number, property, CUDA, in_short(reason)));
            }
        }
        for (number, property) in [(11, "row × width products beyond 32 bits"), (12, "launch failures surface")] {
            rows.insert((number, property, CUDA), skipped(number, property, CUDA, "no check yet"));
        }
        rows.into_values().collect()
    }
}

/// Every property that has a check.
fn properties() -> impl Iterator<Item = (u32, &'static str)> {
    let here = [(3, REPEAT), (4, IDLE), (5, LAUNCH)];
    PROPERTIES.iter().map(|property| (property.number, property.name)).chain(here)
}

fn row(number: u32, property: &str, executor: &str) -> Row {
    Row { number, property: property.into(), executor: executor.into(), ..Row::default() }
}

/// *Every output equals the literal executor's*, which computed `want`.
fn identity(executor: &dyn Executor, how: &str, case: &Case, want: &Outputs) -> Outcome {
    guarded(executor, case, || {
        let got = Operands::new(case, Fill::Nan).run(executor).map_err(|e| format!("{how}refused a good call: {e}"))?;
        want.difference(&got).map_or(Ok(got), |d| Err(format!("{how}against the literal executor: {d}")))
    })
}

/// *Two runs are equal.* On the CPU the second is that of one thread.
fn two_runs(executor: &dyn Executor, again: &dyn Executor, case: &Case) -> Outcome {
    guarded(executor, case, || {
        let run = |executor| Operands::new(case, Fill::Nan).run(executor).map_err(|e| e.to_string());
        let (first, second) = (run(executor)?, run(again)?);
        first.difference(&second).map_or(Ok(second), |d| Err(format!("the second run: {d}")))
    })
}

/// A panic is a failure too.
fn guarded(executor: &dyn Executor, case: &Case, run: impl FnOnce() -> Result<Outputs, String>) -> Outcome {
    match catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("panicked".into())) {
        Ok(got) => Outcome::Passed(Evidence { comparisons: 1, elements: got.elements(), ..Evidence::default() }),
        Err(message) => {
            Outcome::Failed { property: IDENTITY, message: format!("{}: {message} [{case}]", executor.name()) }
        }
    }
}

type FoundCuda = (Vec<Launch>, Option<Box<dyn Executor>>, Machine);

/// Looks for a GPU.
#[cfg(feature = "cuda")]
fn find(device: Device) -> FoundCuda {
    use rmsnorm_cuda::cuda::{Cuda, Speed, library::nvrtc};
    use rmsnorm_cuda::plan::Arch;

    let mut machine = Machine { cpu: Cpu.name(), ..Machine::default() };
    if device == Device::Cpu {
        machine.missing = Some("not asked for".into());
        return (Vec::new(), None, machine);
    }
    let found = Cuda::new(0).and_then(|cuda| nvrtc().map(|nvrtc| (cuda, nvrtc)));
    let (cuda, nvrtc) = match found {
        Ok(found) => found,
        Err(error) => {
            machine.missing = Some(format!("no GPU: {error}"));
            return (Vec::new(), None, machine);
        }
    };
    machine.gpu = Some(Gpu {
        name: cuda.name(),
        driver: driver_version().unwrap_or_else(|| "unknown".into()),
        nvrtc: format!("{}.{}", nvrtc.version.0, nvrtc.version.1),
        nvrtc_path: nvrtc.path.clone(),
    });
    let (speed, gpu) = (cuda.speed(), cuda.arch());
    let launch = |what: String, speed: Speed, elements_max| Launch {
        what: format!("{what}: "),
        executor: Box::new(cuda.with_speed(speed)),
        elements_max,
    };
    let mut launches: Vec<Launch> = FORCED_BLOCKS
        .into_iter()
        .map(|(blocks, elements_max)| {
            launch(format!("forced to {blocks} blocks"), Speed { blocks: Some(blocks), ..speed }, elements_max)
        })
        .collect();
    for (name, arch) in Arch::ALL {
        // Shared memory and bulk copies are what a plan may need that another GPU lacks.
        let fits = arch.block_shared_bytes <= gpu.block_shared_bytes
            && (arch.compute_capability < (9, 0) || gpu.compute_capability >= (9, 0));
        // A plan that does not fit is a case that is left out: counted, never a tick.
        let elements_max = if fits { usize::MAX } else { 0 };
        launches.push(launch(format!("planned for {name}"), Speed { arch, ..speed }, elements_max));
    }
    (launches, Some(Box::new(cuda)), machine)
}

#[cfg(not(feature = "cuda"))]
fn find(_: Device) -> FoundCuda {
    let missing = Some("built without CUDA: build it with the feature `cuda`".into());
    (Vec::new(), None, Machine { cpu: Cpu.name(), gpu: None, missing })
}

/// What Linux tells of the driver: the fields after its name.
#[cfg(feature = "cuda")]
fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let words = text.lines().next()?.split_whitespace();
    words.into_iter().find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit())).map(Into::into)
}

fn print_machine(machine: &Machine, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "CPU   {}", machine.cpu)?;
    if let Some(Gpu { name, driver, nvrtc, nvrtc_path }) = &machine.gpu {
        writeln!(out, "GPU   {name} · driver {driver} · NVRTC {nvrtc} ({nvrtc_path})")?;
    }
    if let Some(reason) = &machine.missing {
        writeln!(out, "GPU   {reason}")?;
        if reason.starts_with("no GPU") {
            writeln!(out, "      {ADVICE}")?;
        }
    }
    Ok(())
}

fn print_report(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["#", "property", "on", "cases", "calls", "elements", "result", "worst error/bound"]);
    for column in [0, 3, 4, 5] {
        table.column_mut(column).expect("a column of the header").set_cell_alignment(CellAlignment::Right);
    }
    let missing = report.machine.missing.as_deref().map(in_short);
    let skipped = |number: &str, property: &str, on: &str, reason: &str| {
        [number, property, on, "", "", "", &format!("SKIPPED: {reason}"), ""].map(String::from)
    };
    for row in &report.rows {
        let number = row.number.to_string();
        match &row.skipped {
            // One line for all of them, below.
            Some(reason) if missing == Some(reason) => continue,
            Some(reason) => table.add_row(skipped(&number, &row.property, &row.executor, reason)),
            None => table.add_row([
                number,
                row.property.clone(),
                row.executor.clone(),
                row.cases.to_string(),
                row.comparisons.to_string(),
                count(row.elements),
                result(row),
                worst(row),
            ]),
        };
    }
    if let Some(reason) = missing {
        table.add_row(skipped("1–13", "every property", CUDA, reason));
    }
    writeln!(out, "\n{}\n", table.trim_fmt())?;
    print_left_out(report, out)?;
    if let Some(random) = &report.random {
        writeln!(out, "random cases: {random}")?;
    }
    for row in report.rows.iter().filter(|row| row.failed > 0) {
        let first = &row.failures[0];
        writeln!(
            out,
            "\nFAILED: {} on {}, {} cases; the smallest is {}",
            row.property, row.executor, row.failed, first.case
        )?;
        writeln!(out, "  {}", first.message)?;
        writeln!(
            out,
            "  {} verify --case {}{}",
            program(),
            first.case,
            if row.executor == CUDA { " --device cuda" } else { "" }
        )?;
    }
    for failure in &report.failures {
        writeln!(out, "FAILED: {failure}")?;
    }
    let elements: u64 = report.rows.iter().map(|row| row.elements).sum();
    writeln!(
        out,
        "{}: {} output elements judged (each once for each comparison), {:.0} s",
        if report.passed { "passed" } else { "FAILED" },
        count(elements),
        report.elapsed_s
    )?;
    Ok(())
}

/// What was not judged, by reason, all executors together.
fn print_left_out(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut reasons: BTreeMap<(u32, &str, &str), u64> = BTreeMap::new();
    for row in &report.rows {
        for (reason, count) in row.excluded.iter().chain(&row.not_applicable) {
            *reasons.entry((row.number, &row.property, reason)).or_default() += count;
        }
    }
    if !reasons.is_empty() {
        writeln!(out, "left out:")?;
    }
    for ((_, property, reason), left_out) in reasons {
        writeln!(out, "  {property}: {reason}: {}", count(left_out))?;
    }
    Ok(())
}

/// The reason without its causes.
fn in_short(reason: &str) -> &str {
    reason.split(':').next().unwrap_or(reason)
}

fn result(row: &Row) -> String {
    match (row.failed, row.cases, row.not_applicable.keys().next()) {
        (0, 0, Some(reason)) => format!("not applicable: {reason}"),
        (0, 0, None) => "FAILED: no case".into(),
        (0, _, _) => "ok".into(),
        (failed, _, _) => format!("FAILED: {failed}"),
    }
}

fn worst(row: &Row) -> String {
    let each =
        ["rstd", "y", "dx", "dw"].into_iter().filter_map(|output| Some((output, row.accuracy.get(output)?.worst)));
    each.map(|(output, worst)| format!("{output} {worst:.3}")).collect::<Vec<_>>().join(", ")
}

/// Three digits are enough for a reader; the report has them all.
fn count(n: u64) -> String {
    if n < 100_000 { n.to_string() } else { format!("{:.2e}", n as f64) }
}

/// How this program is called.
fn program() -> String {
    if std::env::var_os("CARGO").is_some() {
        return "cargo xtask".into();
    }
    std::env::args().next().unwrap_or_else(|| "xtask".into())
}

const CPU: &str = "cpu";
const CUDA: &str = "cuda";
const IDENTITY: &str = "identity";
const REPEAT: &str = "two runs";
const LAUNCH: &str = "launch";
const IDLE: &str = "idle_groups_781";
const TOO_LARGE: &str = "launches of few blocks on large cases, plans that do not fit the GPU";
const EVIDENCE: &str = "docs/evidence";
const ADVICE: &str = "what needs a GPU is skipped: it takes an NVIDIA GPU of compute capability 8.0 or newer, its driver,\n      \
                      and NVRTC 12 or 13, which is part of the CUDA toolkit (or: pip install nvidia-cuda-nvrtc)";
/// Numbers of blocks that every launch is forced to, and the largest case that they are tried on.
#[cfg(feature = "cuda")]
const FORCED_BLOCKS: [(u32, usize); 5] =
    [(1, 1 << 22), (2, 1 << 22), (114, usize::MAX), (132, usize::MAX), (148, usize::MAX)];
/// Up to so many elements a case takes less than 300 MB, whatever is tried.
const LARGE: usize = 1 << 22;
/// Larger ones take 1 GB.
const LARGE_SIDE_BY_SIDE: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

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
        let report = verify(&options, Some(sets::named(name).unwrap()), machine, targets, &mut out).unwrap();
        (report, String::from_utf8(out).unwrap())
    }

    fn target(executor: &dyn Executor) -> Vec<Target<'_>> {
        vec![Target { name: CPU, executor, again: executor, launches: Vec::new() }]
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
        let launches = vec![Launch { what: "forced: ".into(), executor: Box::new(Broken), elements_max: usize::MAX }];
        let (report, text) = verify_case("width_7", &[Target { name: CUDA, executor: &Cpu, again: &Cpu, launches }]);
        assert!(!report.passed && text.contains("FAILED: launch on cuda"), "{text}");
        assert!(text.contains("--case width_7 --device cuda"), "{text}");
    }

    #[test]
    fn a_healthy_executor_passes_every_property() {
        let (report, text) = verify_case("idle_groups_781", &target(&Cpu));
        assert!(report.passed, "{text}");
        assert!(report.rows.iter().any(|row| row.property == IDLE && row.comparisons == 180), "{text}");
        // What needs a GPU is skipped, with a reason.
        let skipped = report.rows.iter().filter(|row| row.executor == CUDA);
        assert!(skipped.clone().count() > 10 && skipped.clone().all(|row| row.skipped.is_some()), "{text}");
    }

    #[test]
    fn nothing_executed_is_a_failure() {
        let (report, text) = verify_case("width_7", &[]);
        assert!(!report.passed && text.contains("no case was executed"), "{text}");
    }
}
