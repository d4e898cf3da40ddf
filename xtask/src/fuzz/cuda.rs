//! The GPU's turn: inputs of the corpora, mutated, and fresh ones; every bit is compared with the specification's.

use super::{Options, corpus, fingerprint};
use crate::children::Running;
use crate::copies::below_root;
use crate::record::{Build, plural, write, write_json};
use anyhow::Result;
use rayon::ThreadPoolBuilder;
use rmsnorm_cuda::cuda::{Cuda, Tuning};
use rmsnorm_cuda::cuda::{DeviceMemory, steps};
use rmsnorm_cuda::{Backward, Error, Executor, Forward, Operand, Slice, SliceMut};
use rmsnorm_fuzz::statistics::Statistics;
use rmsnorm_fuzz::targets::{TARGETS, Target, inputs, target};
use rmsnorm_fuzz::{Case, Fill, Operands, Outcome, Subject};
use serde::Serialize;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Runs the campaign.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> Result<ExitCode> {
    let gpu = Cuda::new(0)?;
    let seeds = seeds(options)?;
    let (inputs, threads) = (plural(seeds.len(), "input"), plural(options.jobs as usize, "thread"));
    writeln!(out, "{} · {inputs} of corpora · {threads} for {}", gpu.name(), plural(options.time as usize, "second"))?;
    let busy = Busy::start();
    let began = Instant::now();
    let found = Found::default();
    let until = began + Duration::from_secs(options.time.into());
    std::thread::scope(|scope| {
        let work = |i| found.work(&gpu, &seeds, u64::from(options.seed) << 32 | u64::from(i), until);
        let threads: Vec<_> = (0..options.jobs).map(|i| scope.spawn(move || work(i))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    let (elapsed_s, gpu_busy_percent) = (began.elapsed().as_secs_f64(), busy.stop());
    let Found { statistics, launches, failure, .. } = found;
    let statistics = statistics.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    let launches = launches.into_inner();
    let report = Report {
        schema: 1,
        passed: failure.is_none() && statistics.counted > 0,
        command: std::env::args().skip(1).collect(),
        build: Build::this(),
        gpu: gpu.name(),
        elapsed_s,
        statistics,
        launches,
        launches_per_s: launches as f64 / elapsed_s,
        gpu_busy_percent,
        failure: failure.as_ref().map(|(_, message)| message),
    };
    let mut printed = write!(out, "{report}");
    if let Some((bytes, message)) = &failure {
        let kept = corpus(TARGET).join(format!("found-{}", fingerprint(bytes)));
        std::fs::create_dir_all(corpus(TARGET))?;
        write(&kept, bytes)?;
        let replay = format!("xtask fuzz --device cuda --replay {}", below_root(&kept));
        printed = printed.and_then(|()| writeln!(out, "FAILED: {message}\nreplay it: {replay}"));
    }
    if let Some(path) = &options.report {
        write_json(path, &report)?;
        writeln!(out, "report: {}", path.display())?;
    }
    printed?;
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What all threads have found.
#[derive(Default)]
struct Found {
    statistics: Mutex<Statistics>,
    launches: AtomicU64,
    stop: AtomicBool,
    /// Bytes that refute something, and the message.
    failure: Mutex<Option<(Vec<u8>, String)>>,
}

impl Found {
    /// One thread's share, on a stream of its own.
    fn work(&self, gpu: &Cuda, seeds: &[Vec<u8>], seed: u64, until: Instant) -> Result<()> {
        let subject = Subject { of_one_type: true, ..Subject::of(gpu.on_new_stream()?) };
        let speed = gpu.tuning();
        let pool = ThreadPoolBuilder::new().num_threads(1).build()?;
        for bytes in inputs(seeds, seed) {
            if Instant::now() > until || self.stop.load(Ordering::Relaxed) {
                break;
            }
            let execution = pool.install(|| judged().execute(&subject, &bytes));
            self.launches.fetch_add(launched(&execution.case, &speed)?, Ordering::Relaxed);
            self.statistics.lock().unwrap_or_else(PoisonError::into_inner).add(&execution);
            if let Outcome::Failed { message, .. } = execution.outcome {
                self.stop.store(true, Ordering::Relaxed);
                let smaller = pool.install(|| judged().smaller(&subject, bytes));
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some((smaller, message));
            }
        }
        Ok(())
    }
}

/// Executes one input: what differs, if anything.
pub(super) fn replay(bytes: &[u8]) -> Result<Option<String>> {
    match judged().execute(&Subject::of(Cuda::new(0)?), bytes).outcome {
        Outcome::Failed { message, .. } => Ok(Some(message)),
        _ => Ok(None),
    }
}

/// What is tried on every input: that every bit is the specification's, and so the CPU's.
fn judged() -> &'static Target {
    target(TARGET).expect("a target")
}

/// What was executed on the GPU, as `--report` writes it.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    passed: bool,
    command: Vec<String>,
    build: Build,
    gpu: String,
    elapsed_s: f64,
    #[serde(flatten)]
    statistics: Statistics,
    launches: u64,
    launches_per_s: f64,
    gpu_busy_percent: Option<f64>,
    failure: Option<&'a String>,
}

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Statistics { counted, rejected, elements, histogram } = &self.statistics;
        let Report { elapsed_s, launches, launches_per_s, .. } = self;
        let busy = self.gpu_busy_percent;
        let busy = busy.map_or("unknown, there is no nvidia-smi".into(), |p| format!("{p:.0} % of the time"));
        writeln!(
            f,
            "  {counted} counted, {rejected} rejected in {elapsed_s:.0} s; {:.2e} elements compared",
            *elements as f64
        )?;
        writeln!(f, "  {launches} launches, {launches_per_s:.0}/s; GPU busy: {busy}")?;
        histogram.iter().try_for_each(|(what, counts)| writeln!(f, "  {what:7} {counts:?}"))
    }
}

/// Kernels that a case launches.
fn launched(case: &Case, tuning: &Tuning) -> Result<u64, Error> {
    let mut operands = Operands::new(case, Fill::Nan);
    let read = |data: Slice<'_>| Ok::<_, Error>(place(&data));
    let written = |data: SliceMut<'_>| Ok::<_, Error>(place(&data));
    let forward: Forward<DeviceMemory, DeviceMemory> = operands.forward_call(true).try_map(read, written)?;
    let backward: Backward<DeviceMemory, DeviceMemory> = operands.backward_call().try_map(read, written)?;
    let forwards = if case.rstd { 1 } else { 2 };
    Ok((forwards * steps::forward(&forward, tuning)?.len() + steps::backward(&backward, tuning)?.len()) as u64)
}

fn place(data: &impl Operand) -> DeviceMemory {
    DeviceMemory { dtype: data.dtype(), address: data.address(), elements: data.elements() }
}

/// Every input of the corpora: those of the repository, and those that campaigns on this machine left.
fn seeds(options: &Options) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for target in TARGETS.iter().filter(|t| options.target.is_none_or(|only| only.name == t.name)) {
        let left = crate::copies::root().join("target/fuzz/found/clean").join(target.name).join("corpus");
        for folder in [corpus(target.name), left].iter().filter(|folder| folder.is_dir()) {
            for entry in std::fs::read_dir(Path::new(folder))? {
                found.push(std::fs::read(entry?.path())?);
            }
        }
    }
    Ok(found)
}

/// Asks nvidia-smi once a second how busy the GPU was.
struct Busy(Option<Running>);

impl Busy {
    fn start() -> Busy {
        let mut command = Command::new("nvidia-smi");
        command.args(["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0", "--loop=1"]);
        Busy(Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null())).ok())
    }

    /// Percent of the time, on average.
    fn stop(self) -> Option<f64> {
        let text = self.0?.stop_and_read();
        let samples: Vec<f64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
        (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / samples.len() as f64)
    }
}

/// Whose executions are tried.
const TARGET: &str = "backward";
