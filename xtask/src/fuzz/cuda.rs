//! The GPU's turn: inputs of the corpora, mutated, and fresh ones, on the CPU executor and on the GPU; every bit is compared.

use super::{Options, corpus, fingerprint};
use crate::children::Running;
use crate::copies::below_root;
use crate::record::{Build, plural, write, write_json};
use anyhow::Result;
use rayon::ThreadPoolBuilder;
use rmsnorm_cuda::cuda::steps::{self, DeviceMemory};
use rmsnorm_cuda::cuda::{Cuda, Tuning};
use rmsnorm_cuda::{Backward, Cpu, Error, Executor, Forward, Operand, Slice, SliceMut};
use rmsnorm_fuzz::targets::{Execution, Statistics, TARGETS, made_case};
use rmsnorm_fuzz::{Case, Evidence, Fill, Operands, Outcome};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Runs the campaign.
pub(super) fn run(options: &Options, out: &mut dyn Write) -> Result<ExitCode> {
    let gpu = Cuda::new(0)?;
    let seeds = inputs(options)?;
    let (inputs, threads) = (plural(seeds.len(), "input"), plural(options.jobs as usize, "thread"));
    writeln!(out, "{} · {inputs} of corpora · {threads} for {}", gpu.name(), plural(options.time as usize, "second"))?;
    let (statistics, launches) = (Mutex::new(Statistics::default()), AtomicU64::new(0));
    let (stop, found) = (AtomicBool::new(false), Mutex::new(None));
    let busy = Busy::start();
    let began = Instant::now();
    let work = |thread: u32| -> Result<()> {
        let gpu = gpu.on_new_stream()?;
        let pool = ThreadPoolBuilder::new().num_threads(1).build()?;
        let mut random = Random(u64::from(options.seed) << 32 | u64::from(thread));
        while began.elapsed() < Duration::from_secs(options.time.into()) && !stop.load(Ordering::Relaxed) {
            let bytes = random.input(&seeds);
            let case = made_case(&bytes);
            let execution = pool.install(|| Execution { case, outcome: compare(&gpu, &case) });
            launches.fetch_add(launched(&case, &gpu.tuning())?, Ordering::Relaxed);
            statistics.lock().unwrap_or_else(PoisonError::into_inner).add(&execution);
            if let Outcome::Failed { message, .. } = execution.outcome {
                stop.store(true, Ordering::Relaxed);
                let smaller = pool.install(|| smaller(&gpu, bytes));
                *found.lock().unwrap_or_else(PoisonError::into_inner) = Some((smaller, message));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.jobs).map(|i| scope.spawn(move || work(i))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    let elapsed_s = began.elapsed().as_secs_f64();
    let statistics = statistics.into_inner().unwrap_or_else(PoisonError::into_inner);
    let launches = launches.into_inner();
    let mut histogram: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for ((what, how_much), count) in &statistics.histogram {
        histogram.entry(what).or_default().insert(how_much, *count);
    }
    let failure = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let report = Report {
        schema: 1,
        passed: failure.is_none() && statistics.counted > 0,
        command: std::env::args().skip(1).collect(),
        build: Build::this(),
        gpu: gpu.name(),
        elapsed_s,
        counted: statistics.counted,
        rejected: statistics.rejected,
        elements: statistics.elements,
        launches,
        launches_per_s: launches as f64 / elapsed_s,
        gpu_busy_percent: busy.stop(),
        histogram,
        failure: failure.as_ref().map(|(_, message)| message),
    };
    let mut printed = writeln!(
        out,
        "  {} counted, {} rejected in {elapsed_s:.0} s; {:.2e} elements compared\n  {launches} launches, {:.0}/s; GPU busy: {}",
        report.counted,
        report.rejected,
        report.elements as f64,
        report.launches_per_s,
        report.gpu_busy_percent.map_or("unknown, there is no nvidia-smi".into(), |p| format!("{p:.0} % of the time")),
    );
    for (what, counts) in &report.histogram {
        printed = printed.and_then(|()| writeln!(out, "  {what:7} {counts:?}"));
    }
    if let Some((bytes, message)) = &failure {
        let kept = corpus("backward").join(format!("found-{}", fingerprint(bytes)));
        std::fs::create_dir_all(corpus("backward"))?;
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

/// Executes one input: what differs, if anything.
pub(super) fn replay(bytes: &[u8]) -> Result<Option<String>> {
    match compare(&Cuda::new(0)?, &made_case(bytes)) {
        Outcome::Failed { message, .. } => Ok(Some(message)),
        _ => Ok(None),
    }
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
    counted: u64,
    rejected: u64,
    elements: u64,
    launches: u64,
    launches_per_s: f64,
    gpu_busy_percent: Option<f64>,
    histogram: BTreeMap<&'a str, BTreeMap<&'a str, u64>>,
    failure: Option<&'a String>,
}

/// *The GPU returns the CPU's bits.*
fn compare(gpu: &Cuda, case: &Case) -> Outcome {
    let run = |executor: &dyn Executor, fill| Operands::new(case, fill).run(executor);
    let failed = |message: String| Outcome::Failed { property: "identity", message: format!("{message} [{case}]") };
    match (run(&Cpu, Fill::Plausible), run(gpu, Fill::Nan)) {
        (Ok(want), Ok(got)) => match want.difference(&got) {
            Some(difference) => failed(format!("the GPU against the CPU: {difference}")),
            None => Outcome::Passed(Evidence { comparisons: 1, elements: got.elements(), ..Evidence::default() }),
        },
        (Err(error), _) | (_, Err(error)) => failed(format!("refused a good call: {error}")),
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

/// Shorter bytes, or smaller ones, that still fail.
fn smaller(gpu: &Cuda, mut bytes: Vec<u8>) -> Vec<u8> {
    let fails = |bytes: &[u8]| matches!(compare(gpu, &made_case(bytes)), Outcome::Failed { .. });
    while !bytes.is_empty() && fails(&bytes[..bytes.len() - 1]) {
        bytes.pop();
    }
    for i in 0..bytes.len() {
        for value in [0, 1, bytes[i] / 2] {
            let was = bytes[i];
            bytes[i] = value.min(was);
            if !fails(&bytes) {
                bytes[i] = was;
            }
        }
    }
    bytes
}

/// Every input of the corpora: those of the repository, and those that campaigns on this machine left.
fn inputs(options: &Options) -> Result<Vec<Vec<u8>>> {
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

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// A fresh input every other time, else one of `seeds` with a few bytes changed, or continued by another.
    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if seeds.is_empty() || self.below(2) == 0 {
            return (0..12).flat_map(|_| self.next().to_le_bytes()).collect();
        }
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len() + 1);
            if at < bytes.len() { bytes[at] = self.next() as u8 } else { bytes.push(self.next() as u8) }
        }
        if self.below(4) == 0 {
            bytes.truncate(self.below(bytes.len() + 1));
            bytes.extend(&seeds[self.below(seeds.len())]);
        }
        bytes
    }
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
