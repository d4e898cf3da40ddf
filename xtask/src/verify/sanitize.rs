//! `cargo xtask verify --sanitize`: a few calls of every kind under the tools of compute-sanitizer, which see what bits do not show:
//! accesses past an end, reads of memory that nobody wrote, races in shared memory, misused barriers.
//!
//! The command runs itself under each tool; there it tries property 1 on [`families`] of calls, each operand in an allocation of its
//! own. Each tool also gets a kernel with the fault that it is for, and must report it.

use crate::children::output;
use anyhow::{Context, Result, bail};
use rmsnorm_cuda::cuda::checks::plain::Plain;
use rmsnorm_fuzz::identity::identity_alone;
use rmsnorm_fuzz::sets::families;
use rmsnorm_fuzz::{Outcome, Subject};
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
    if what != SANITIZED_CALLS {
        Plain::new(0)?.fault(what)?;
        return Ok(ExitCode::SUCCESS);
    }
    let [planned, few_blocks] = families();
    for (gpu, cases) in [(Plain::new(0)?, &planned), (Plain::new(0)?.with_blocks(FEW_BLOCKS), &few_blocks)] {
        let subject = Subject::of(gpu);
        for case in cases {
            if let Outcome::Failed { message, .. } = identity_alone(&subject, case) {
                bail!(message);
            }
        }
    }
    writeln!(out, "{DONE}{} calls with the bits of the specification", 2 * (planned.len() + few_blocks.len()))?;
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

const TOOLS: [&str; 4] = ["memcheck", "initcheck", "racecheck", "synccheck"];
/// The slowest tool takes 15 s.
const TIME_LIMIT: Duration = Duration::from_secs(180);
/// Fewer than any of the calls has row groups.
const FEW_BLOCKS: u32 = 3;
const SANITIZED_CALLS: &str = "calls";
const DONE: &str = "sanitized: ";
const LINES_SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_found_something_or_said_nothing_is_no_pass() {
        let ran = "sanitized: 36 calls with the bits of the specification\n";
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
}
