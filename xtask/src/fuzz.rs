//! `cargo xtask fuzz`: libFuzzer on the targets of `rmsnorm-fuzz`, and on a GPU the same cases on both executors.
//!
//! Read in this order: [`run`], [`build`] (how a fuzzer is built), [`campaign`] (what it is told and what it did), [`cuda`] (the
//! GPU's turn).

mod build;
mod campaign;
#[cfg(feature = "cuda")]
mod cuda;

use crate::copies::below_root;
use crate::record::{Build, can_write, plural, write, write_json};
use anyhow::{Context, Result, bail, ensure};
use build::Fuzzer;
use campaign::{Campaign, Ending};
use rmsnorm_cuda::Cpu;
use rmsnorm_fuzz::mutants::{MUTANTS, Mutant, On, mutant};
use rmsnorm_fuzz::targets::{TARGETS, Target, target};
use rmsnorm_fuzz::{Outcome, Subject};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to fuzz, and for how long.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// What to fuzz: forward, backward, accuracy, properties, plan or errors; all in turn without it.
    #[arg(long, value_name = "NAME", value_parser = named)]
    target: Option<&'static Target>,
    /// For how many seconds, all targets together.
    #[arg(long, default_value_t = 60, value_name = "SECS", allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..))]
    time: u32,
    /// Where: coverage-guided on the CPU, or on the GPU with the bits compared.
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Fuzzers side by side.
    #[arg(long, value_name = "N", default_value_t = jobs(), allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: u32,
    /// Decides what is tried first.
    #[arg(long, default_value_t = 0, value_name = "S", allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(..1 << 31))]
    seed: u32,
    /// Make the input in this file smaller while it still fails.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "time", "jobs", "seed", "report"])]
    minimize: Option<PathBuf>,
    /// Execute the input in this file once.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["time", "jobs", "seed", "report"])]
    replay: Option<PathBuf>,
    /// Build this defect into the executor, and start without a corpus: it must be found.
    #[arg(long, value_name = "NAME", value_parser = defect)]
    mutant: Option<&'static Mutant>,
    /// Fuzz with the stable compiler, without AddressSanitizer, even where there are a nightly and cargo-fuzz.
    #[arg(long)]
    stable: bool,
    /// Write what was executed to this file.
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Device {
    #[default]
    Cpu,
    Cuda,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    rmsnorm_cuda::arith::environment()?; // As for `verify`.
    let out = &mut std::io::stdout().lock();
    let on_gpu = options.device == Device::Cuda;
    if on_gpu && (options.mutant.is_some() || options.minimize.is_some() || options.stable) {
        bail!("--mutant, --minimize and --stable are for the CPU");
    }
    ensure!(
        !(options.stable && options.replay.is_some() && options.mutant.is_none()),
        "--replay takes no fuzzer: drop --stable"
    );
    can_write(&options.report)?;
    match (&options.replay, &options.minimize, options.mutant) {
        (Some(file), ..) => replay(options, file, out),
        #[cfg(feature = "cuda")]
        _ if on_gpu => cuda::run(options, out),
        #[cfg(not(feature = "cuda"))]
        _ if on_gpu => bail!("built without CUDA: build xtask with its feature `cuda`"),
        (_, Some(file), _) => minimize(options, file, out),
        (_, _, Some(mutant)) => hunt(options, mutant, out),
        _ => fuzz(options, out),
    }
}

/// Makes an input smaller, if it fails.
fn minimize(options: &Options, file: &Path, out: &mut dyn Write) -> Result<ExitCode> {
    let fuzzer = Fuzzer::build(target_of(options, file)?, options.mutant, options.stable, out)?;
    let was = read(file)?.len();
    let Some(message) = campaign::execute(&fuzzer, file)? else {
        bail!("{} does not fail: there is nothing to make smaller", file.display());
    };
    writeln!(out, "fails: {message}")?;
    let smaller = campaign::minimized(&fuzzer, file)?;
    let mut name = file.file_name().context("a file has a name")?.to_os_string();
    name.push(".minimized");
    let path = file.with_file_name(name);
    write(&path, &smaller)?;
    writeln!(out, "{}, from {was}: {}", plural(smaller.len(), "byte"), path.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Fuzzes the executor as it is.
fn fuzz(options: &Options, out: &mut dyn Write) -> Result<ExitCode> {
    let targets: Vec<&Target> = options.target.map_or_else(|| TARGETS.iter().collect(), |target| vec![target]);
    let mut campaigns = Vec::new();
    let mut found = None;
    for target in &targets {
        let fuzzer = Fuzzer::build(target, None, options.stable, out)?;
        let mut campaign = Campaign::run(&fuzzer, options, (options.time / targets.len() as u32).max(1), out)?;
        writeln!(out, "{campaign}")?;
        if let Ending::Failed { input, .. } = &mut campaign.ending {
            let bytes = read(input)?;
            let kept = corpus(target.name).join(format!("found-{}", fingerprint(&bytes)));
            std::fs::create_dir_all(corpus(target.name))?;
            write(&kept, bytes)?;
            write(&kept, campaign::minimized(&fuzzer, input)?)?;
            *input = kept.clone();
            found = Some(kept);
        }
        campaigns.push(campaign);
        if found.is_some() {
            break;
        }
    }
    let mut complaints: Vec<String> = campaigns.iter().flat_map(Campaign::complaints).collect();
    if let Some(kept) = &found {
        complaints.push(format!("a property is refuted; replay it: cargo xtask fuzz --replay {}", below_root(kept)));
    }
    finish(options, &campaigns, &complaints, out)
}

/// Fuzzes the executor with a defect, which must be found; what found it must hold without the defect.
fn hunt(options: &Options, mutant: &Mutant, out: &mut dyn Write) -> Result<ExitCode> {
    let target = options.target.unwrap_or_else(|| target("backward").expect("a target"));
    writeln!(out, "mutant {}: {}", mutant.name, mutant.defect)?;
    let fuzzer = Fuzzer::build(target, Some(mutant), options.stable, out)?;
    let mut campaign = Campaign::run(&fuzzer, options, options.time, out)?;
    writeln!(out, "{campaign}")?;
    let mut complaints = Vec::new();
    match &mut campaign.ending {
        Ending::Failed { input, after_s } => {
            writeln!(out, "found after {after_s:.1} s")?;
            let kept = fuzzer.folder.join(format!("{}-reproducer", mutant.name));
            let bytes = campaign::minimized(&fuzzer, input)?;
            write(&kept, &bytes)?;
            *input = kept.clone();
            let clean = target.execute(&Subject::of(Cpu), &bytes);
            writeln!(out, "reproducer of {}: {}", plural(bytes.len(), "byte"), clean.case)?;
            writeln!(
                out,
                "  cargo xtask fuzz --mutant {} --target {} --replay {}",
                mutant.name,
                target.name,
                below_root(&kept)
            )?;
            match campaign::execute(&fuzzer, &kept)? {
                Some(message) => writeln!(out, "  with the defect it fails: {message}")?,
                None => complaints.push("the reproducer does not fail on the mutant".into()),
            }
            match clean.outcome {
                Outcome::Failed { message, .. } => {
                    complaints.push(format!("without the defect it fails too: {message}"))
                }
                _ => writeln!(out, "  without it, it passes")?,
            }
        }
        Ending::TimeIsUp => complaints.push(format!("{} was not found in {} s", mutant.name, options.time)),
    }
    finish(options, &[campaign], &complaints, out)
}

fn finish(options: &Options, campaigns: &[Campaign], complaints: &[String], out: &mut dyn Write) -> Result<ExitCode> {
    let printed = complaints.iter().try_for_each(|complaint| writeln!(out, "FAILED: {complaint}"));
    if let Some(path) = &options.report {
        let passed = complaints.is_empty();
        let command = std::env::args().skip(1).collect();
        write_json(path, &Report { schema: 1, passed, command, build: Build::this(), campaigns, complaints })?;
        writeln!(out, "report: {}", path.display())?;
    }
    printed?;
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Executes one input, on the executor as it is or on one with a defect.
fn replay(options: &Options, file: &Path, out: &mut dyn Write) -> Result<ExitCode> {
    let target = target_of(options, file)?;
    let bytes = read(file)?;
    let failure = match options.mutant {
        Some(mutant) => campaign::execute(&Fuzzer::build(target, Some(mutant), options.stable, out)?, file)?,
        None if options.device == Device::Cuda => {
            #[cfg(feature = "cuda")]
            {
                cuda::replay(&bytes)?
            }
            #[cfg(not(feature = "cuda"))]
            bail!("built without CUDA: build xtask with its feature `cuda`")
        }
        None => match target.execute(&Subject::of(Cpu), &bytes).outcome {
            Outcome::Failed { message, .. } => Some(message),
            _ => None,
        },
    };
    writeln!(out, "{}: {}", target.name, target.execute(&Subject::of(Cpu), &bytes).case)?;
    match failure {
        Some(message) => {
            writeln!(out, "FAILED: {message}")?;
            Ok(ExitCode::FAILURE)
        }
        None => {
            writeln!(out, "holds: {}", target.sentence)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The target of an input: that of the option, else the folder it lies in.
fn target_of(options: &Options, file: &Path) -> Result<&'static Target> {
    let folder = file.canonicalize().with_context(|| file.display().to_string())?;
    let folder = folder.parent().and_then(|folder| folder.file_name()).and_then(|name| name.to_str());
    let found = options.target.or_else(|| target(folder?));
    found.with_context(|| format!("{}: name its target with --target", file.display()))
}

/// A run of `cargo xtask fuzz`, as `--report` writes it.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    passed: bool,
    command: Vec<String>,
    build: Build,
    campaigns: &'a [Campaign],
    complaints: &'a [String],
}

/// Seeds, and every failure that was ever found.
fn corpus(target: &str) -> PathBuf {
    crate::copies::root().join("rmsnorm-fuzz/corpus").join(target)
}

fn fingerprint(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| file.display().to_string())
}

fn named(name: &str) -> Result<&'static Target, String> {
    target(name).ok_or_else(|| format!("there are {}", TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(", ")))
}

/// Only what the CPU executor computes with can be fuzzed there.
fn defect(name: &str) -> Result<&'static Mutant, String> {
    let cpu = || MUTANTS.iter().filter(|m| m.on == On::Cpu && m.property != "refusal").map(|m| m.name);
    mutant(name)
        .filter(|m| cpu().any(|known| known == m.name))
        .ok_or_else(|| format!("there are {}", cpu().collect::<Vec<_>>().join(", ")))
}

fn jobs() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}
