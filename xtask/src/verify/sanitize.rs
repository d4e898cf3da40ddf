//! `cargo xtask verify --sanitize`: a few calls of every kind under the tools of compute-sanitizer, which see what bits do not show:
//! accesses past an end, reads of memory that nobody wrote, races in shared memory, misused barriers.
//!
//! The command runs itself under each tool; there it carries out [`CALLS`] on a GPU, each operand in an allocation of its own, and
//! compares the bits with the CPU's. Each tool also gets a kernel with the fault that it is for, and must report it.

use crate::children::output;
use anyhow::{Context, Result, bail, ensure};
use rmsnorm_cuda::cuda::checks::meter::Host;
use rmsnorm_cuda::cuda::checks::plain::Plain;
use rmsnorm_cuda::{
    Backward, Cpu, Dtype, Error, Executor, Forward, Rows, Vector, WeightGradient, WeightOffset, bf16, f16, scratch_len,
};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Runs every tool. Without them or a GPU nothing can be said: an error if `required`, else a line.
pub(super) fn run(required: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let missing = match (tool(), Plain::new(0)) {
        (None, _) => Some("compute-sanitizer is neither on PATH nor in $CUDA_HOME/bin".to_string()),
        (_, Err(error)) => Some(error.to_string()),
        _ => None,
    };
    if let Some(missing) = missing {
        if required {
            bail!("a GPU and compute-sanitizer are required: {missing}");
        }
        writeln!(out, "SKIPPED: {missing}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let (tool, program) = (tool().context("compute-sanitizer is gone")?, std::env::current_exe()?);
    let mut clean = true;
    for name in TOOLS {
        let started = Instant::now();
        let under_tool = |what: &str| {
            let mut command = Command::new(&tool);
            command.args(["--tool", name]).arg(&program).args(["verify", "--sanitized", what]);
            let said = output(&mut command, TIME_LIMIT).with_context(|| format!("cannot run {}", tool.display()))?;
            anyhow::Ok((format!("{}{}", said.stdout, said.stderr), said.succeeded()))
        };
        let (text, succeeded) = under_tool(SANITIZED_CALLS)?;
        let (control, _) = under_tool(name)?;
        let found = match (verdict(&text, succeeded), summary(&control)) {
            (Ok(said), Some((1.., _))) => Ok(said),
            (Ok(_), _) => Err(("it does not see the fault of faults.cu that is meant for it".into(), control)),
            (Err(why), _) => Err((why, text)),
        };
        match found {
            Ok(said) => writeln!(out, "{name:10} clean: {said}, {:.0} s", started.elapsed().as_secs_f64())?,
            Err((why, text)) => {
                clean = false;
                let from = text.lines().count().saturating_sub(LINES_SHOWN);
                writeln!(out, "{name:10} FAILED: {why}")?;
                text.lines().skip(from).try_for_each(|line| writeln!(out, "    {line}"))?;
            }
        }
        out.flush()?;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What runs under a tool: the calls, or the kernel with a fault for this tool.
pub(super) fn sanitized(what: &str, out: &mut dyn Write) -> Result<ExitCode> {
    let mut gpu = Plain::new(0)?;
    if what != SANITIZED_CALLS {
        gpu.fault(what)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut kernels = 0;
    for call in CALLS {
        if let Some(blocks) = call.blocks {
            kernels += gpu.launches();
            gpu = Plain::new(0)?.with_blocks(blocks);
        }
        let (here, there) = (call.run(&Cpu)?, call.run(&gpu)?);
        ensure!(here == there, "{call:?}: other bits than on the CPU");
    }
    kernels += gpu.launches();
    writeln!(out, "{DONE}{} calls with the bits of the CPU, {kernels} kernels launched", 2 * CALLS.len())?;
    Ok(ExitCode::SUCCESS)
}

/// What the output of a tool means: what the program said, if it was carried out to its end and the tool found nothing.
fn verdict(text: &str, succeeded: bool) -> Result<String, String> {
    match (summary(text), text.lines().find_map(|line| line.split_once(DONE))) {
        (None, _) => Err("the tool did not sum up".into()),
        (Some((1.., summary)), _) => Err(summary),
        (Some((0, _)), None) => Err("the calls were not carried out to their end".into()),
        (Some((0, _)), Some(_)) if !succeeded => Err("the program failed".into()),
        (Some((0, _)), Some((_, said))) => Ok(said.to_string()),
    }
}

/// How many errors a tool counted, and how it said so.
fn summary(text: &str) -> Option<(u64, String)> {
    text.lines().find_map(|line| {
        let (_, summary) = line.split_once("ERROR SUMMARY: ").or_else(|| line.split_once("RACECHECK SUMMARY: "))?;
        let count = summary.split_whitespace().next()?.parse::<u64>().ok()?;
        Some((count, summary.to_string()))
    })
}

fn tool() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let homes = std::env::var_os("CUDA_HOME").map(PathBuf::from).into_iter().chain([PathBuf::from("/usr/local/cuda")]);
    let folders = std::env::split_paths(&path).chain(homes.map(|home| home.join("bin")));
    folders.map(|folder| folder.join("compute-sanitizer")).find(|file| file.is_file())
}

/// A forward and a backward call on normal-sized numbers.
#[derive(Debug)]
struct Call {
    rows: usize,
    hidden: usize,
    dtype: Dtype,
    weight: Option<Dtype>,
    /// Elements before the first row of x, y, dy and dx: 0, or a number that leaves no row on 16 bytes.
    offset: usize,
    /// All of x times 2^this.
    exponent: i32,
    /// From here on, so many blocks.
    blocks: Option<u32>,
}

impl Call {
    /// The bits of y, rstd, dx and dw.
    fn run(&self, executor: &dyn Executor) -> Result<[Vec<u32>; 4], Error> {
        let &Call { rows, hidden, dtype, offset, .. } = self;
        let matrix = |seed, exponent| numbers(dtype, offset + rows * hidden, seed, exponent);
        let place = |data| Rows { data, offset, row_stride: hidden };
        let (x, dy) = (matrix(1, self.exponent), matrix(2, 0));
        let weight = self.weight.map(|dtype| numbers(dtype, hidden, 3, 0));
        let [mut y, mut dx] = [(); 2].map(|()| Host::zeros(dtype, offset + rows * hidden));
        let (mut rstd, mut dw) = (Host::zeros(Dtype::F32, rows), Host::zeros(self.weight.unwrap_or(dtype), hidden));
        let mut scratch = Host::zeros(Dtype::F32, scratch_len(rows, hidden)?);
        let weight_offset = WeightOffset::Zero;
        executor.forward(Forward {
            rows,
            hidden,
            eps: 0.0,
            weight_offset,
            x: place(x.slice()),
            weight: weight.as_ref().map(|w| Vector::from(w.slice())),
            y: Rows { data: y.slice_mut(), offset, row_stride: hidden },
            rstd: Some(rstd.slice_mut().into()),
        })?;
        executor.backward(Backward {
            rows,
            hidden,
            weight_offset,
            x: place(x.slice()),
            weight: weight.as_ref().map(|w| Vector::from(w.slice())),
            rstd: rstd.slice().into(),
            dy: place(dy.slice()),
            dx: Rows { data: dx.slice_mut(), offset, row_stride: hidden },
            dw: Some(WeightGradient { dw: dw.slice_mut().into(), scratch: scratch.slice_mut().into() }),
        })?;
        // What lies before the first row is nobody's.
        let bits = |host: &Host, from: usize| bits(host).split_off(from);
        Ok([bits(&y, offset), bits(&rstd, 0), bits(&dx, offset), bits(&dw, 0)])
    }
}

/// Numbers of both signs between 2^(exponent − 2) and 2^(exponent + 1).
fn numbers(dtype: Dtype, elements: usize, seed: u64, exponent: i32) -> Host {
    let number = |i: usize| {
        let hash = (i as u64 ^ seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        let magnitude = 0.25 + (hash >> 1) as f32 / (1 << 23) as f32;
        // In f64: in f32 `powi` makes 0 of 2^-130, which is subnormal.
        (f64::from(if hash.is_multiple_of(2) { magnitude } else { -magnitude }) * 2.0_f64.powi(exponent)) as f32
    };
    match dtype {
        Dtype::F32 => Host::F32((0..elements).map(number).collect()),
        Dtype::F16 => Host::F16((0..elements).map(|i| f16::from_f32(number(i))).collect()),
        Dtype::Bf16 => Host::Bf16((0..elements).map(|i| bf16::from_f32(number(i))).collect()),
    }
}

fn bits(host: &Host) -> Vec<u32> {
    match host {
        Host::F32(data) => data.iter().map(|v| v.to_bits()).collect(),
        Host::F16(data) => data.iter().map(|v| v.to_bits().into()).collect(),
        Host::Bf16(data) => data.iter().map(|v| v.to_bits().into()).collect(),
    }
}

const fn call(rows: usize, hidden: usize, dtype: Dtype) -> Call {
    Call { rows, hidden, dtype, weight: Some(dtype), offset: 0, exponent: 0, blocks: None }
}

/// Every family of kernels: a part of a warp, a warp, several warps and several sets of chains a row; rings and none; streamed
/// rows; no weight and one of another type; fewer rows than row groups; rows that must be scaled; several row groups a block; blocks some of whose teams have no row.
const CALLS: [Call; 18] = [
    call(37, 7, Dtype::F32),
    call(300, 64, Dtype::Bf16),
    call(129, 256, Dtype::F16),
    call(45, 1024, Dtype::Bf16),
    Call { weight: None, ..call(45, 2048, Dtype::F32) },
    Call { weight: Some(Dtype::F32), ..call(45, 4096, Dtype::Bf16) },
    call(300, 5120, Dtype::Bf16),
    call(33, 5000, Dtype::F32),
    call(17, 12_000, Dtype::F16),
    call(5, 20_000, Dtype::F32),
    call(3, 70_000, Dtype::Bf16),
    Call { offset: 1, ..call(50, 4097, Dtype::Bf16) },
    Call { offset: 3, ..call(50, 100, Dtype::F32) },
    Call { exponent: -130, ..call(9, 1000, Dtype::F32) },
    Call { blocks: Some(3), ..call(140, 4200, Dtype::F32) },
    call(200, 40, Dtype::Bf16),
    call(9, 1024, Dtype::Bf16),
    call(3, 4096, Dtype::Bf16),
];

const TOOLS: [&str; 4] = ["memcheck", "initcheck", "racecheck", "synccheck"];
/// The slowest tool takes 15 s.
const TIME_LIMIT: Duration = Duration::from_secs(180);
const SANITIZED_CALLS: &str = "calls";
const DONE: &str = "sanitized: ";
const LINES_SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_found_something_or_said_nothing_is_no_pass() {
        let ran = "sanitized: 32 calls with the bits of the CPU, 56 kernels launched\n";
        let clean = "========= ERROR SUMMARY: 0 errors\n";
        assert_eq!(verdict(&format!("{ran}{clean}"), true).unwrap(), ran.trim_end().trim_start_matches(DONE));
        let race = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n";
        assert!(verdict(&format!("{ran}{race}"), true).is_ok());
        for (text, succeeded) in [
            (ran.to_string(), true),
            (clean.to_string(), true),
            (format!("{ran}{clean}"), false),
            (format!("{ran}========= ERROR SUMMARY: 3 errors\n"), true),
            (format!("{ran}========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"), true),
            (format!("{ran}========= ERROR SUMMARY: some errors\n"), true),
        ] {
            assert!(verdict(&text, succeeded).is_err(), "{text}");
        }
    }

    /// The calls are legal and their outputs not all alike, but rstd where every row of it is +Inf.
    #[test]
    fn the_calls_run() {
        for call in &CALLS {
            let [y, rstd, dx, dw] = call.run(&Cpu).unwrap_or_else(|error| panic!("{call:?}: {error}"));
            for bits in [y, dx, dw] {
                assert!(bits.iter().any(|b| *b != bits[0]), "{call:?}");
            }
            assert_eq!(rstd.contains(&f32::INFINITY.to_bits()), call.exponent < -128, "{call:?}");
        }
    }
}
