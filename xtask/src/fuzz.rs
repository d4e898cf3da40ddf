//! `cargo xtask fuzz`: libFuzzer on the targets of `rmsnorm-fuzz`, and on a GPU the same cases on both executors.
//!
//! Read in this order: [`run`], [`build`] (how a fuzzer is built), [`campaign`] (what it is told and what it did), [`cuda`] (the
//! GPU's turn).

mod build;
mod campaign;
#[cfg(feature = "cuda")]
mod cuda;

use crate::record::Build;
use anyhow::{Context, Result};
use build::Fuzzer;
use campaign::{Campaign, Ending};
use rmsnorm_cuda::Cpu;
use rmsnorm_fuzz::Outcome;
use rmsnorm_fuzz::mutants::{MUTANTS, Mutant, On, mutant};
use rmsnorm_fuzz::targets::{TARGETS, Target, target};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to fuzz, and for how long.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// What to fuzz: forward, backward, accuracy, properties, plan or errors; all in turn without it.
    #[arg(long, value_name = "NAME", value_parser = named)]
    target: Option<&'static Target>,
    /// For how many seconds, all targets together.
    #[arg(long, default_value_t = 60, value_name = "SECS")]
    time: u64,
    /// Where: coverage-guided on the CPU, or on the GPU with the bits compared.
    #[arg(long, value_enum, default_value_t)]
    device: Device,
    /// Fuzzers side by side.
    #[arg(long, value_name = "N", default_value_t = jobs())]
    jobs: usize,
    /// Decides what is tried first.
    #[arg(long, default_value_t = 0, value_name = "S", value_parser = clap::value_parser!(u32).range(..1 << 31))]
    seed: u32,
    /// Make the input in this file smaller while it still fails.
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    minimize: Option<PathBuf>,
    /// Execute the input in this file once.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Build this defect into the executor, and start without a corpus: it must be found.
    #[arg(long, value_name = "NAME", value_parser = defect)]
    mutant: Option<&'static Mutant>,
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
    if let Some(file) = &options.replay {
        return replay(options, file);
    }
    if options.device == Device::Cuda {
        #[cfg(feature = "cuda")]
        return cuda::run(options);
        #[cfg(not(feature = "cuda"))]
        anyhow::bail!("built without CUDA: build xtask with its feature `cuda`");
    }
    if let Some(file) = &options.minimize {
        let target = target_of(options, file)?;
        let fuzzer = Fuzzer::build(target, options.mutant)?;
        let smaller = file.with_extension("minimized");
        campaign::minimize(&fuzzer, file, &smaller)?;
        println!("{} bytes, from {}: {}", len(&smaller)?, len(file)?, smaller.display());
        return Ok(ExitCode::SUCCESS);
    }
    match options.mutant {
        Some(mutant) => hunt(options, mutant),
        None => fuzz(options),
    }
}

/// Fuzzes the executor as it is.
fn fuzz(options: &Options) -> Result<ExitCode> {
    let targets: Vec<&Target> = options.target.map_or_else(|| TARGETS.iter().collect(), |target| vec![target]);
    let mut campaigns = Vec::new();
    let mut found = None;
    for target in &targets {
        let fuzzer = Fuzzer::build(target, None)?;
        let campaign = Campaign::run(&fuzzer, options, (options.time / targets.len() as u64).max(1))?;
        println!("{campaign}");
        let ended = campaign.ending.clone();
        campaigns.push(campaign);
        if let Ending::Failed { input, .. } = ended {
            let kept = corpus(target.name).join(format!("found-{}", fingerprint(&std::fs::read(&input)?)));
            campaign::minimize(&fuzzer, &input, &kept)?;
            found = Some(kept);
            break;
        }
    }
    let mut complaints: Vec<String> = campaigns.iter().flat_map(Campaign::complaints).collect();
    if let Some(kept) = &found {
        complaints.push(format!("a property is refuted; replay it: cargo xtask fuzz --replay {}", below_root(kept)));
    }
    finish(options, &campaigns, &complaints)
}

/// Fuzzes the executor with a defect, which must be found; what found it must hold without the defect.
fn hunt(options: &Options, mutant: &Mutant) -> Result<ExitCode> {
    let target = options.target.unwrap_or_else(|| target("backward").expect("a target"));
    println!("mutant {}: {}", mutant.name, mutant.defect);
    let fuzzer = Fuzzer::build(target, Some(mutant))?;
    let campaign = Campaign::run(&fuzzer, options, options.time)?;
    println!("{campaign}");
    let mut complaints = Vec::new();
    match &campaign.ending {
        Ending::Failed { input, after_s } => {
            println!("found after {after_s:.1} s");
            let kept = fuzzer.folder.join(format!("{}-reproducer", mutant.name));
            campaign::minimize(&fuzzer, input, &kept)?;
            let bytes = std::fs::read(&kept)?;
            let clean = target.execute(&Cpu, &bytes);
            println!("reproducer of {} bytes: {}", bytes.len(), clean.case);
            println!(
                "  cargo xtask fuzz --mutant {} --target {} --replay {}",
                mutant.name,
                target.name,
                below_root(&kept)
            );
            match campaign::execute(&fuzzer, &kept)? {
                Some(message) => println!("  with the defect it fails: {message}"),
                None => complaints.push("the reproducer does not fail on the mutant".into()),
            }
            match clean.outcome {
                Outcome::Failed { message, .. } => {
                    complaints.push(format!("without the defect it fails too: {message}"))
                }
                _ => println!("  without it, it passes"),
            }
        }
        Ending::TimeIsUp => complaints.push(format!("{} was not found in {} s", mutant.name, options.time)),
    }
    finish(options, &[campaign], &complaints)
}

fn finish(options: &Options, campaigns: &[Campaign], complaints: &[String]) -> Result<ExitCode> {
    if let Some(path) = &options.report {
        write_report(path, campaigns, complaints)?;
    }
    for complaint in complaints {
        println!("FAILED: {complaint}");
    }
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Executes one input, on the executor as it is or on one with a defect.
fn replay(options: &Options, file: &Path) -> Result<ExitCode> {
    let target = target_of(options, file)?;
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let failure = match options.mutant {
        Some(mutant) => campaign::execute(&Fuzzer::build(target, Some(mutant))?, file)?,
        None if options.device == Device::Cuda => {
            #[cfg(feature = "cuda")]
            {
                cuda::replay(&bytes)?
            }
            #[cfg(not(feature = "cuda"))]
            anyhow::bail!("built without CUDA: build xtask with its feature `cuda`")
        }
        None => match target.execute(&Cpu, &bytes).outcome {
            Outcome::Failed { message, .. } => Some(message),
            _ => None,
        },
    };
    println!("{}: {}", target.name, target.execute(&Cpu, &bytes).case);
    match failure {
        Some(message) => {
            println!("FAILED: {message}");
            Ok(ExitCode::FAILURE)
        }
        None => {
            println!("holds: {}", target.sentence);
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

fn write_report(path: &Path, campaigns: &[Campaign], complaints: &[String]) -> Result<()> {
    let report = Report {
        schema: 1,
        passed: complaints.is_empty(),
        command: std::env::args().skip(1).collect(),
        build: Build::this(),
        campaigns,
        complaints,
    };
    let text = serde_json::to_string_pretty(&report)? + "\n";
    std::fs::write(path, text).with_context(|| path.display().to_string())?;
    println!("report: {}", path.display());
    Ok(())
}

/// Seeds, and every failure that was ever found.
fn corpus(target: &str) -> PathBuf {
    crate::copies::root().join("rmsnorm-fuzz/corpus").join(target)
}

fn below_root(path: &Path) -> String {
    path.strip_prefix(crate::copies::root()).unwrap_or(path).display().to_string()
}

fn fingerprint(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn len(file: &Path) -> Result<u64> {
    Ok(std::fs::metadata(file).with_context(|| file.display().to_string())?.len())
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

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
