//! What a fuzzer is told, and what it did.

use super::build::Fuzzer;
use super::{Options, corpus};
use crate::children::{NO_LIMIT, Running, output};
use crate::record::plural;
use anyhow::{Context, Result, bail};
use rmsnorm_fuzz::statistics::Statistics;
use rmsnorm_fuzz::targets::STATISTICS_FILE;
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What was executed for one target.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Campaign {
    pub(super) target: &'static str,
    pub(super) how: String,
    pub(super) jobs: usize,
    pub(super) elapsed_s: f64,
    #[serde(flatten)]
    pub(super) statistics: Statistics,
    pub(super) executions_per_s: f64,
    /// Edges of the executors that are instrumented.
    pub(super) edges_instrumented: u64,
    /// Edges of the whole program that were reached.
    pub(super) edges_reached: u64,
    /// Inputs that reach what no other reaches.
    pub(super) corpus: u64,
    pub(super) ending: Ending,
}

/// Why a campaign ended.
#[derive(Clone, Debug, Serialize)]
pub(super) enum Ending {
    TimeIsUp,
    /// A property is refuted by the input in this file.
    Failed {
        input: PathBuf,
        after_s: f64,
    },
}

impl Campaign {
    /// Fuzzes for `seconds`.
    pub(super) fn run(fuzzer: &Fuzzer, options: &Options, seconds: u32, out: &mut dyn Write) -> Result<Campaign> {
        let artifacts = fuzzer.run.path().join("artifacts");
        fs::create_dir_all(&artifacts)?;
        fs::create_dir_all(fuzzer.corpus())?;
        writeln!(
            out,
            "  {} at work for {}",
            plural(options.jobs as usize, "fuzzer"),
            plural(seconds as usize, "second")
        )?;
        out.flush()?;
        let began = Instant::now();
        let mut jobs: Vec<Job> =
            (0..options.jobs).map(|i| Job::start(fuzzer, options, seconds, i)).collect::<Result<_>>()?;
        let mut ending = Ending::TimeIsUp;
        while jobs.iter_mut().any(|job| job.is_running()) {
            if let Some(input) = first_file(&artifacts) {
                // The fuzzer that wrote it ends by itself; the others have nothing more to do.
                ending = Ending::Failed { input, after_s: began.elapsed().as_secs_f64() };
                std::thread::sleep(Duration::from_millis(500));
                jobs.iter_mut().for_each(|job| job.running.stop());
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if let (Ending::TimeIsUp, Some(input)) = (&ending, first_file(&artifacts)) {
            ending = Ending::Failed { input, after_s: began.elapsed().as_secs_f64() };
        }
        let elapsed_s = began.elapsed().as_secs_f64();
        let mut statistics = Statistics::default();
        let (mut edges_reached, mut corpus) = (0, 0);
        for job in &mut jobs {
            let log = fs::read_to_string(&job.log).unwrap_or_default();
            if matches!(ending, Ending::TimeIsUp) && !job.succeeded() {
                bail!("the fuzzer ended for another reason than an input:\n{}", tail(&log));
            }
            // One that was stopped early may have left none.
            if let Ok(text) = fs::read(&job.statistics) {
                statistics.merge(&serde_json::from_slice(&text).context("statistics of another format")?);
            }
            edges_reached = edges_reached.max(number_after(&log, " cov: "));
            corpus = corpus.max(number_after(&log, " corp: "));
        }
        Ok(Campaign {
            target: fuzzer.target.name,
            how: fuzzer.how.clone(),
            jobs: jobs.len(),
            elapsed_s,
            executions_per_s: (statistics.counted + statistics.rejected) as f64 / elapsed_s,
            edges_instrumented: fuzzer.edges,
            edges_reached,
            corpus,
            statistics,
            ending,
        })
    }

    /// What is wrong with the campaign itself.
    pub(super) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let Statistics { counted, rejected, .. } = self.statistics;
        let all = counted + rejected;
        if counted == 0 {
            complaints.push(format!("{}: nothing was executed", self.target));
        }
        if self.target != "errors" && rejected * 100 > all * REJECTED_PERCENT {
            complaints.push(format!(
                "{}: {rejected} of {all} executions judged nothing, expected at most {REJECTED_PERCENT} %",
                self.target
            ));
        }
        complaints
    }
}

impl std::fmt::Display for Campaign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "  {} counted, {} rejected in {:.1} s: {:.0} executions/s of {}; {:.2e} elements judged",
            self.statistics.counted,
            self.statistics.rejected,
            self.elapsed_s,
            self.executions_per_s,
            plural(self.jobs, "fuzzer"),
            self.statistics.elements as f64
        )?;
        write!(
            f,
            "  edges: {} of the executors instrumented, {} of the program reached; corpus: {}",
            self.edges_instrumented,
            self.edges_reached,
            plural(self.corpus as usize, "input")
        )?;
        for (what, counts) in &self.statistics.histogram {
            let mut counts: Vec<_> = counts.iter().collect();
            // Ranges by their first number, words as they come.
            counts.sort_by_key(|(how_much, _)| how_much.split('.').next().and_then(|n| n.parse::<u64>().ok()));
            write!(f, "\n  {what:7}")?;
            counts.iter().try_for_each(|(how_much, count)| write!(f, " {how_much}: {count};"))?;
        }
        Ok(())
    }
}

/// A fuzzer at work. Dropped, it ends.
struct Job {
    running: Running,
    log: PathBuf,
    statistics: PathBuf,
}

impl Job {
    fn start(fuzzer: &Fuzzer, options: &Options, seconds: u32, index: u32) -> Result<Job> {
        let log = fuzzer.run.path().join(format!("log-{index}"));
        let statistics = fuzzer.run.path().join(format!("statistics-{index}"));
        let mut command = Command::new(&fuzzer.program);
        command.arg(fuzzer.corpus());
        let seeds = corpus(fuzzer.target.name);
        if !fuzzer.is_mutant && seeds.is_dir() {
            command.arg(seeds);
        }
        command.arg(format!("-artifact_prefix={}/", fuzzer.run.path().join("artifacts").display()));
        command.arg(format!("-max_total_time={seconds}"));
        // 0 would be the time of day.
        command.arg(format!("-seed={}", u64::from(options.seed) * u64::from(options.jobs) + u64::from(index) + 1));
        // A case takes few bytes, and short ones leave most of it at its simplest. Slow inputs are tried less often.
        command.args([
            "-max_len=128",
            "-len_control=0",
            "-entropic_scale_per_exec_time=1",
            "-timeout=60",
            "-rss_limit_mb=4096",
        ]);
        command.env(STATISTICS_FILE, &statistics).stdout(Stdio::null()).stderr(File::create(&log)?);
        let running = Running::start(&mut command).with_context(|| fuzzer.program.display().to_string())?;
        Ok(Job { running, log, statistics })
    }

    fn is_running(&mut self) -> bool {
        matches!(self.running.ended(), Ok(None))
    }

    fn succeeded(&mut self) -> bool {
        matches!(self.running.wait(NO_LIMIT), Ok(Some(status)) if status.success())
    }
}

/// What of `input` still fails, or all of it.
pub(super) fn minimized(fuzzer: &Fuzzer, input: &Path) -> Result<Vec<u8>> {
    let smaller = fuzzer.run.path().join("smaller");
    let mut command = Command::new(&fuzzer.program);
    command.args(["-minimize_crash=1", "-max_total_time=20", "-runs=20000", "-timeout=60"]).arg(input);
    command.arg(format!("-exact_artifact_path={}", smaller.display())).env_remove(STATISTICS_FILE);
    // It ends with an error when nothing smaller fails.
    output(&mut command, NO_LIMIT).with_context(|| fuzzer.program.display().to_string())?;
    let fails = smaller.is_file() && execute(fuzzer, &smaller)?.is_some();
    let kept = if fails { &smaller } else { input };
    fs::read(kept).with_context(|| kept.display().to_string())
}

/// Executes one input: what it refutes, if anything.
pub(super) fn execute(fuzzer: &Fuzzer, input: &Path) -> Result<Option<String>> {
    let said = output(Command::new(&fuzzer.program).arg(input), NO_LIMIT)?;
    if said.succeeded() {
        return Ok(None);
    }
    let log = said.stderr;
    // The line after "panicked at", or what a sanitizer says.
    let mut lines = log.lines();
    let message = lines.find(|line| line.contains("panicked at")).and_then(|_| lines.next()).map(str::to_string);
    let message = message.or_else(|| log.lines().find(|line| line.contains("ERROR: ")).map(str::to_string));
    Ok(Some(message.unwrap_or_else(|| tail(&log))))
}

/// The last number that follows `label`.
fn number_after(log: &str, label: &str) -> u64 {
    let number = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
    log.rsplit(label).next().filter(|rest| rest.len() < log.len()).and_then(number).unwrap_or(0)
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn first_file(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).min()
}

/// Executions that judge nothing, at most.
const REJECTED_PERCENT: u64 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_numbers_of_a_log_are_read() {
        let log =
            "#2 INITED cov: 12 ft: 13 corp: 1/1b\n#9 DONE   cov: 2151 ft: 6660 corp: 907/30Kb lim: 96 exec/s: 1355";
        assert_eq!((number_after(log, " cov: "), number_after(log, " corp: ")), (2151, 907));
        assert_eq!(number_after("nothing", " cov: "), 0);
    }
}
