//! `cargo xtask bench`: times the public calls, and in the same run the ceilings that they are compared with.
//!
//! Read in this order: [`cells`] (what, and what is aimed at), [`mod@run`] (measures on a device: `gpu`, [`cpu`]), [`report`] (what
//! is left behind and what follows from it), [`show`] and [`plot`] (what a reader sees). `peers.py` beside this crate measures
//! other libraries.

mod cells;
#[cfg(feature = "cuda")]
mod check;
mod cpu;
#[cfg(feature = "cuda")]
mod gpu;
mod plot;
mod report;
mod run;
mod show;
#[cfg(feature = "cuda")]
mod variants;

use crate::record::{can_write, tell, write, write_json};
#[cfg(feature = "cuda")]
use anyhow::Context;
use anyhow::{Result, bail};
use cells::Cell;
use report::{BYTES, Build, Machine, Measured, Pass, Peers, Report, SCHEMA};
use rmsnorm_cuda::{Cpu, Executor};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

/// What to time, and where.
#[derive(clap::Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    other: Option<Other>,
    /// What runs the calls.
    #[arg(long, value_enum, default_value = "cuda")]
    device: Where,
    /// A few cells only: four on a GPU, two on a CPU.
    #[arg(long)]
    quick: bool,
    /// These cells only, as TYPE:ROWSxHIDDEN, separated by commas: bf16:32768x4096,f32:8192x8192.
    #[arg(long, value_name = "CELLS", value_delimiter = ',', conflicts_with = "quick")]
    cells: Vec<Cell>,
    /// Replays of each graph (GPU) or calls (CPU); medians are taken of them. 30 and 9 if not given.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    replays: Option<u32>,
    /// Measure everything so many times; the worst counts.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Compare with other libraries on the same machine: files that peers.py wrote, separated by commas.
    #[arg(long, value_name = "FILES.json", value_delimiter = ',')]
    peers: Vec<PathBuf>,
    /// Write a report to this file.
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Write a page with plots to this file.
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Other {
    /// Show a report again. Needs no GPU.
    Render {
        /// The report.
        #[arg(long, value_name = "FILE.json")]
        from: PathBuf,
        /// Write a page with plots to this file.
        #[arg(long, value_name = "FILE.html")]
        html: Option<PathBuf>,
        /// Write docs/benchmarks.md to this file.
        #[arg(long, value_name = "FILE.md")]
        docs: Option<PathBuf>,
    },
    /// Print the cells that a report of a GPU must have.
    List,
    /// Time every way to run the kernels that changes no bit: what the tables of plan.rs are chosen by.
    #[cfg(feature = "cuda")]
    Variants {
        /// Cells as TYPE:ROWSxHIDDEN, separated by commas.
        #[arg(value_name = "CELLS", value_delimiter = ',', required = true)]
        cells: Vec<Cell>,
        /// Replays of each graph.
        #[arg(long, value_name = "N", default_value_t = 7, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        replays: u32,
        /// How many of the fastest are printed.
        #[arg(long, value_name = "N", default_value_t = 4, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
        best: u32,
    },
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Cpu,
    Cuda,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let (report, files) = match &options.other {
        Some(Other::List) => {
            cells::required_cuda().iter().try_for_each(|cell| writeln!(out, "{cell}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        #[cfg(feature = "cuda")]
        Some(Other::Variants { cells, replays, best }) => {
            variants::run(cells, *replays as usize, *best as usize, &mut out)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Other::Render { from, html, docs }) => {
            (Report::read(from)?, Files { report: None, html: html.as_ref(), docs: docs.as_ref() })
        }
        None => {
            let files = Files { report: options.report.as_ref(), html: options.html.as_ref(), docs: None };
            can_write([files.report, files.html].into_iter().flatten())?;
            (measured(options)?, files)
        }
    };
    // What was measured is lost neither with the one nor with the other.
    let printed = show::print(&report, &mut out);
    files.write(&report)?;
    printed?;
    for (what, path) in [("report", files.report), ("page", files.html), ("benchmarks", files.docs)] {
        path.map_or(Ok(()), |path| writeln!(out, "{what}: {}", path.display()))?;
    }
    Ok(if report.invalid.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is left behind.
struct Files<'a> {
    report: Option<&'a PathBuf>,
    html: Option<&'a PathBuf>,
    docs: Option<&'a PathBuf>,
}

impl Files<'_> {
    fn write(&self, report: &Report) -> Result<()> {
        self.report.map_or(Ok(()), |path| write_json(path, report))?;
        self.html.map_or(Ok(()), |path| write(path, plot::page(report)))?;
        self.docs.map_or(Ok(()), |path| write(path, show::docs(Some(report))))
    }
}

/// Measures what was asked for.
fn measured(options: &Options) -> Result<Report> {
    if options.device == Where::Cpu && !options.peers.is_empty() {
        bail!("--peers are times of a GPU: --device cpu cannot be compared with them");
    }
    let peers = Peers::read(&options.peers)?;
    let started = Instant::now();
    let started_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let passes = options.repeat as usize;
    let (gpu, cells) = match options.device {
        Where::Cpu => {
            let device = cpu::OnCpu { replays: options.replays.unwrap_or(9) as usize };
            let cells = options.cells(cells::required_cpu());
            (None, run::measure(&device, &cells, passes, said(cells.len())))
        }
        #[cfg(feature = "cuda")]
        Where::Cuda => {
            let cells = options.cells(cells::default_cuda());
            let device = gpu::OnGpu::new(&cells, options.replays.unwrap_or(30) as usize);
            let device = device.context("the bench of a GPU takes one; that of the CPU is --device cpu")?;
            (Some(device.describe()?), run::measure(&device, &cells, passes, said(cells.len())))
        }
        #[cfg(not(feature = "cuda"))]
        Where::Cuda => bail!("built without CUDA: build xtask with its feature `cuda`, or pass --device cpu"),
    };
    if cells.is_empty() {
        bail!("no cell was measured");
    }
    let mut report = Report {
        schema: SCHEMA,
        partial: true,
        invalid: Vec::new(),
        command: std::env::args().skip(1).collect(),
        started_unix_s,
        elapsed_s: started.elapsed().as_secs_f64(),
        build: Build::this(),
        machine: Machine { cpu: Cpu.name(), gpu },
        passes,
        bytes: BYTES.into(),
        cells,
        peers,
    };
    report.judge();
    Ok(report)
}

impl Options {
    fn cells(&self, required: Vec<Cell>) -> Vec<Cell> {
        match (self.quick, self.cells.is_empty()) {
            (true, _) => required.into_iter().filter(|cell| cells::is_quick(*cell)).collect(),
            (_, false) => self.cells.clone(),
            _ => required,
        }
    }
}

/// Says what has been measured, one line a cell.
fn said(cells: usize) -> impl FnMut(usize, &Measured) {
    let mut done = 0;
    move |pass, measured| {
        done += 1;
        let which = format!("  {}/{cells} {:20}", done - (pass - 1) * cells, measured.cell.to_string());
        let failed = measured.failures.last().filter(|failure| failure.starts_with(&format!("pass {pass}:")));
        match (failed, measured.passes.last()) {
            (None, Some(Pass { forward, backward, .. })) => {
                tell(format_args!("{which} forward {:.3} backward {:.3}", forward.fraction(), backward.fraction()));
            }
            (failed, _) => tell(format_args!("{which} FAILED: {}", failed.map_or("", String::as_str))),
        }
    }
}

#[cfg(test)]
mod tests;
