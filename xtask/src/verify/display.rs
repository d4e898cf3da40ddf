//! What a reader sees: the machine, how far a phase is, and what was found.

use super::committed::Committed;
use super::effort::promised;
use super::report::{Gpu, Machine, Report, Row};
use super::{CUDA, NO_GPU};
use crate::record::tell;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(super) fn print_machine(machine: &Machine, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{}", wrapped("CPU   ", &machine.cpu))?;
    if let Some(Gpu { name, driver, nvrtc, nvrtc_path }) = &machine.gpu {
        let gpu = format!("{name} · driver {driver} · NVRTC {nvrtc} ({nvrtc_path})");
        writeln!(out, "{}", wrapped("GPU   ", &gpu))?;
    }
    if let Some(reason) = &machine.missing {
        writeln!(out, "{}", wrapped("GPU   ", reason))?;
        if reason.starts_with(NO_GPU) {
            writeln!(out, "{}", wrapped("      ", ADVICE))?;
        }
    }
    Ok(())
}

/// What committed reports say; where they contradict, the report of this run has said so.
pub(super) fn print_committed(committed: &Committed, out: &mut dyn Write) -> anyhow::Result<()> {
    committed.lines.iter().try_for_each(|line| writeln!(out, "{}", wrapped("evidence: ", line)))?;
    Ok(())
}

/// Lines of 80 columns; all but the first begin with as many blanks as `first` has characters.
pub(super) fn wrapped(first: &str, text: &str) -> String {
    let blanks = " ".repeat(first.chars().count());
    let options = textwrap::Options::new(COLUMNS).break_words(false).initial_indent(first).subsequent_indent(&blanks);
    textwrap::fill(text, options)
}

pub(super) fn print_report(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["#", "property", "on", "cases", "calls", "elements", "thread s", "result"]);
    for column in [0, 3, 4, 5, 6] {
        table.column_mut(column).expect("a column of the header").set_cell_alignment(CellAlignment::Right);
    }
    for row in report.rows.iter().filter(|row| row.skipped.is_none()) {
        table.add_row([
            row.number.to_string(),
            row.property.clone(),
            row.executor.clone(),
            row.cases.to_string(),
            count(row.comparisons),
            count(row.elements),
            format!("{:.1}", row.thread_s),
            result(row),
        ]);
    }
    writeln!(out, "\n{}", table.trim_fmt())?;
    print_worst(report, out)?;
    print_skipped(report, out)?;
    print_left_out(report, out)?;
    if let Some(random) = &report.random {
        writeln!(out, "\n{}", wrapped("random cases: ", &random.to_string()))?;
    }
    print_failures(report, out)?;
    if !report.phases.is_empty() {
        let phases = report.phases.iter().map(|p| format!("{} {} in {:.1} s", p.cases, p.what, p.elapsed_s));
        writeln!(out, "\n{}", wrapped("", &phases.collect::<Vec<_>>().join(", ")))?;
        writeln!(out, "the literal executor took {:.1} thread s", report.literal_thread_s)?;
    }
    let elements: u64 = report.rows.iter().map(|row| row.elements).sum();
    writeln!(
        out,
        "\n{}: {} output elements judged (each once for each comparison), {:.*} s{}",
        if report.passed { "passed" } else { "FAILED" },
        count(elements),
        if report.elapsed_s < 10.0 { 1 } else { 0 },
        report.elapsed_s,
        promised(&report.mode).map_or(String::new(), |promised| format!("; promised: {promised}"))
    )?;
    Ok(())
}

/// What failed, and how to see it again.
fn print_failures(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    for row in report.rows.iter().filter(|row| row.failed > 0) {
        let first = &row.failures[0];
        writeln!(
            out,
            "\nFAILED: {} on {}: {} of {} cases, the smallest is {}",
            row.property,
            row.executor,
            row.failed,
            row.failed + row.cases,
            first.case
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
        writeln!(out, "\nFAILED: {failure}")?;
    }
    Ok(())
}

/// The largest error of each output against its bound, before the last rounding; how often that allows one value only; and alarms.
fn print_worst(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let rows = report.rows.iter().filter(|row| !row.accuracy.is_empty());
    for (i, row) in rows.enumerate() {
        if i == 0 {
            writeln!(out, "\nworst error/bound, and the share of elements that may have one value only")?;
        }
        writeln!(out, "  {} on {}: {}", row.property, row.executor, worst(row))?;
        let alarms: u64 = row.accuracy.values().map(|accuracy| accuracy.alarms).sum();
        if alarms > 0 {
            let what =
                format!("{alarms} elements are further off than rounding at random would bring them. No verdict");
            writeln!(out, "{}", wrapped("  ALARM: ", &what))?;
        }
    }
    Ok(())
}

/// What was not tried, a sentence for each reason.
fn print_skipped(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for row in &report.rows {
        if let Some(reason) = &row.skipped {
            reasons.entry((&row.executor, reason)).or_default().push(&row.property);
        }
    }
    for (i, ((executor, reason), properties)) in reasons.into_iter().enumerate() {
        let what = format!("SKIPPED on {executor}, {reason}: {}", properties.join(", "));
        writeln!(out, "{}{}", if i == 0 { "\n" } else { "" }, wrapped("", &what))?;
    }
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
        writeln!(out, "\nleft out:")?;
    }
    for ((_, property, reason), left_out) in reasons {
        writeln!(out, "{}", wrapped("  ", &format!("{property}: {reason}: {}", count(left_out))))?;
    }
    Ok(())
}

/// The reason without its causes.
pub(super) fn in_short(reason: &str) -> &str {
    reason.split(':').next().unwrap_or(reason)
}

fn result(row: &Row) -> String {
    match (row.failed, row.cases) {
        // Why is said under "left out".
        (0, 0) if !row.not_applicable.is_empty() => "silent".into(),
        (0, 0) => "NO CASE".into(),
        (0, _) => "ok".into(),
        (failed, _) => format!("FAILED: {failed}"),
    }
}

fn worst(row: &Row) -> String {
    let share = |part: u64, all: u64| 100.0 * part as f64 / all.max(1) as f64;
    let each =
        ["rstd", "y", "dx", "dw", "db"].into_iter().filter_map(|output| Some((output, row.accuracy.get(output)?)));
    let each = each.map(|(output, a)| format!("{output} {:.3} {:.0} %", a.worst, share(a.single, a.elements)));
    each.collect::<Vec<_>>().join(", ")
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

/// A phase. Ends when it is dropped.
pub(super) struct Progress {
    what: String,
    total: usize,
    started: Instant,
    bar: Option<ProgressBar>,
    done: Mutex<(usize, Instant)>,
}

impl Progress {
    /// Begins a phase of `total` steps.
    pub(super) fn new(what: &str, total: usize) -> Progress {
        let started = Instant::now();
        // indicatif prints nothing where stderr is no terminal.
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg:18} {bar:40} {pos}/{len} {elapsed}");
            let bar = ProgressBar::new(total as u64).with_message(what.to_string());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { what: what.into(), total, started, bar, done: Mutex::new((0, started)) }
    }

    /// One step is done.
    pub(super) fn tick(&self) {
        if let Some(bar) = &self.bar {
            return bar.inc(1);
        }
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.0 += 1;
        if done.1.elapsed() > EVERY && done.0 < self.total {
            done.1 = Instant::now();
            tell(format_args!("  {}: {} of {}", self.what, done.0, self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        tell(format_args!("  {}: {} in {seconds:.1} s", self.what, self.total));
    }
}

const EVERY: Duration = Duration::from_secs(10);
const COLUMNS: usize = 80;
const ADVICE: &str = "what needs a GPU is skipped: it takes an NVIDIA GPU of compute capability 8.0 or newer, its driver, \
                      and NVRTC 12 or 13, which is part of the CUDA toolkit (or: pip install nvidia-cuda-nvrtc)";
