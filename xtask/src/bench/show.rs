//! A report as text: on the terminal, and as docs/benchmarks.md.

use super::cells::{Direction, TARGETS, is_large};
use super::report::{APART_MAX, CEILING_GPU, CEILING_SHARE_MIN, Gpu, Line, PeerTime, Report, Timing};
use crate::record::plural;
use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;

/// Prints all that a report says.
pub(super) fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(HEADER);
    for column in (0..HEADER.len()).filter(|column| NUMBERS.contains(column)) {
        table.column_mut(column).expect("a column of the header").set_cell_alignment(CellAlignment::Right);
    }
    for line in report.lines() {
        table.add_row(row(&line, report.machine.gpu.as_ref()));
    }
    writeln!(out, "{}\n\n{}\n\nplans", head(report).join("\n"), table.trim_fmt())?;
    for measured in &report.cells {
        writeln!(out, "  {:20} {}; {}", measured.cell.to_string(), measured.plan, plural(measured.sets, "buffer set"))?;
    }
    for (title, items) in findings(report) {
        writeln!(out, "\n{title}{}", if items.is_empty() { ": none" } else { "" })?;
        items.iter().try_for_each(|item| writeln!(out, "  {item}"))?;
    }
    writeln!(out, "\n{}, {:.0} s", plural(report.cells.len(), "cell"), report.elapsed_s)?;
    Ok(())
}

/// docs/benchmarks.md of the committed report, or of none.
pub(super) fn docs(report: Option<&Report>) -> String {
    let Some(report) = report else { return format!("{TITLE}{NO_REPORT}{HOW}") };
    let mut text = format!("{TITLE}{FROM_REPORT}- {}\n", head(report).join("\n- "));
    // Writing to a string cannot fail.
    for (title, items) in findings(report) {
        let _ = write!(text, "\n## {title}\n\n");
        items.iter().for_each(|item| _ = writeln!(text, "- {item}"));
        text += if items.is_empty() { "None.\n" } else { "" };
    }
    text +=
        "\n## What is aimed at\n\nFractions of the ceiling.\n\n| cells | forward | backward |\n| --- | ---: | ---: |\n";
    for target in &TARGETS {
        let _ = writeln!(text, "| {} | {} | {} |", target.what, aimed(target.forward), aimed(target.backward));
    }
    let rule = |column: usize| if NUMBERS.contains(&column) { "---: |" } else { "--- |" };
    let rules: Vec<&str> = (0..HEADER.len()).map(rule).collect();
    let _ = write!(text, "\n## Every cell\n\n| {} |\n| {}\n", HEADER.join(" | "), rules.join(" "));
    for line in report.lines() {
        let _ = writeln!(text, "| {} |", row(&line, report.machine.gpu.as_ref()).join(" | "));
    }
    text + HOW
}

/// What was measured, by what and on what.
pub(super) fn head(report: &Report) -> Vec<String> {
    let (build, machine) = (&report.build, &report.machine);
    let sources: String = build.kernel_sources_sha256.chars().take(12).collect();
    let mut head = vec![
        format!("`{}`, {}", report.command.join(" "), date(report.started_unix_s)),
        format!(
            "version {}, commit {}, bits version {}, kernel sources {sources}",
            build.version,
            build.commit(),
            build.bits_version
        ),
        machine.cpu.clone(),
    ];
    if let Some(gpu) = &machine.gpu {
        head.push(format!(
            "{}, driver {}, NVRTC {}, L2 {} MiB, theoretical {:.3} TB/s, a bare launch in a graph {:.2} µs",
            gpu.name,
            gpu.driver,
            gpu.nvrtc,
            gpu.l2_bytes >> 20,
            gpu.theoretical_bytes_per_second / 1e12,
            gpu.bare_launch.us_median
        ));
        for (direction, time) in Direction::BOTH.into_iter().zip(gpu.host.iter().flatten()) {
            head.push(format!(
                "host, {direction}: {:.2} µs a call by the raw layer, {:.2} by the typed one; its bare launches {:.2}",
                time.raw_us, time.typed_us, time.bare_us
            ));
        }
        let large = report.lines().into_iter().filter(|line| is_large(line.cell()));
        if let Some(least) = large.map(|line| line.share(gpu)).reduce(f64::min) {
            let required = format!(" (at least {CEILING_SHARE_MIN} required)");
            head.push(format!(
                "ceilings of tensors of 256 MB and more: {least:.3} of the theoretical rate or more{}",
                if gpu.name.contains(CEILING_GPU) { &required } else { "" }
            ));
        }
        let differ = || report.cells.iter().flat_map(|m| &m.passes).filter_map(|pass| pass.differ);
        head.push(format!(
            "outputs of the timed launches: {} of {} elements differ from the CPU's bits (one buffer set of each pass, whole)",
            differ().map(|d| d.y + d.rstd + d.dx + d.dw).sum::<u64>(),
            differ().map(|d| d.elements).sum::<u64>()
        ));
    }
    head.push(format!("bytes: {}", report.bytes));
    head.push(format!("passes: {}; the worst counts", report.passes));
    head
}

/// What a reader should know, by title: what is not good comes with a line for each case.
pub(super) fn findings(report: &Report) -> Vec<(String, Vec<String>)> {
    let lines = report.lines();
    let name = |line: &Line| format!("{} {}", line.cell(), line.direction);
    let mut findings = Vec::new();
    if !report.invalid.is_empty() {
        findings.push(("INVALID".into(), report.invalid.clone()));
    }
    if report.partial {
        let missing = report.missing().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        findings.push(("PARTIAL, no evidence: required cells are missing".into(), vec![missing]));
    }
    let met: Vec<bool> = lines.iter().filter_map(Line::met).collect();
    if !met.is_empty() {
        let title = format!("Targets met: {} of {}; missed", met.iter().filter(|met| **met).count(), met.len());
        let missed = lines.iter().filter(|line| line.met() == Some(false));
        let missed = missed.filter_map(|line| Some((line, line.target?)));
        let missed =
            missed.map(|(line, target)| format!("{}: {:.3}, aimed at {}", name(line), line.fraction, aimed(target)));
        findings.push((title, missed.collect()));
    }
    if report.passes > 1 {
        let apart = lines.iter().filter(|line| line.unsettled());
        let title = format!("Passes more than {:.0} % apart, tensors of 100 MB and more", 100.0 * APART_MAX);
        findings.push((title, apart.map(|line| format!("{}: {:.1} %", name(line), 100.0 * line.apart)).collect()));
    }
    let title = "Another library was more than 2 % faster";
    let Some(peers) = &report.peers else {
        findings.push((title.into(), vec!["not known: no other library was measured".into()]));
        return findings;
    };
    let faster = lines.iter().filter(|line| !line.faster().is_empty()).map(|line| {
        let each = |peer: &&PeerTime| format!("{} {} µs", peer.library, us(peer.timing.us_median));
        let each: Vec<String> = line.faster().iter().map(each).collect();
        format!("{}: {} µs here, {}", name(line), us(line.us()), each.join(", "))
    });
    findings.push((title.into(), faster.collect()));
    let without = lines.iter().filter(|line| line.peers.is_empty()).map(name).collect::<Vec<_>>();
    let without = if without.is_empty() { without } else { vec![without.join(", ")] };
    findings.push(("No right result of another library".into(), without));
    let wrong = peers.measured.iter().filter(|peer| peer.wrong).map(|peer| {
        let errors: Vec<String> = peer.errors.iter().map(|(output, error)| format!("{output} {error:.1e}")).collect();
        format!("{} {} {}: {}", peer.library, peer.cell, peer.direction, errors.join(", "))
    });
    findings.push(("Wrong results of other libraries; their times do not count".into(), wrong.collect()));
    let mut reasons: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for left_out in &peers.left_out {
        let cells = reasons.entry((&left_out.library, &left_out.why)).or_default();
        cells.extend(left_out.cell.map(|cell| cell.to_string()));
    }
    let reasons = reasons.iter().map(|((library, why), cells)| match cells.as_slice() {
        [] => format!("{library}: {why}"),
        cells => format!("{library}: {why}: {}", cells.join(", ")),
    });
    findings.push(("Not measured of other libraries".into(), reasons.collect()));
    let versions = peers.versions.iter().map(|(name, version)| format!("{name} {version}"));
    let versions =
        format!("{} on {}, {}", versions.collect::<Vec<_>>().join(", "), peers.gpu, date(peers.started_unix_s));
    findings.push(("How other libraries were measured".into(), vec![versions, peers.method.clone()]));
    findings
}

/// The cells of a table.
pub(super) fn row(line: &Line, gpu: Option<&Gpu>) -> [String; HEADER.len()] {
    let cell = line.cell();
    let Timing { us_p10, us_p90, .. } = line.worst.call;
    let best = line.peers.first().map(|peer| {
        let mark = if line.faster().is_empty() { "" } else { " FASTER" };
        format!("{} {}{mark}", peer.library, us(peer.timing.us_median))
    });
    [
        cell.dtype.to_string(),
        format!("{}×{}{}", cell.rows, cell.hidden, cell.extras().replace('+', " +")),
        line.direction.to_string(),
        us(line.us()),
        format!("{}–{}", us(us_p10), us(us_p90)),
        us(line.worst.ceiling.timing.us_median),
        line.worst.ceiling.how.clone(),
        gpu.map(|gpu| format!("{:.3}", line.share(gpu))).unwrap_or_default(),
        format!("{:.3}", line.fraction),
        line.target.map(aimed).unwrap_or_default(),
        line.met().map(|met| if met { "met" } else { "MISSED" }.into()).unwrap_or_default(),
        best.unwrap_or_default(),
    ]
}

/// A target with as many digits as it has, at most three.
fn aimed(target: f64) -> String {
    ((target * 1000.0).round() / 1000.0).to_string()
}

/// Microseconds with as many digits as say something.
pub(super) fn us(us: f64) -> String {
    let digits = if us < 10.0 { 2 } else { usize::from(us < 1000.0) };
    format!("{us:.digits$}")
}

/// The day, by the calendar of UTC.
pub(super) fn date(unix_s: u64) -> String {
    // Years from March on, so that a leap day is a year's last; eras of 400 years.
    let days = unix_s / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{}-{month:02}-{day:02}", era * 400 + year + next)
}

pub(super) const HEADER: [&str; 12] = [
    "type",
    "rows × hidden",
    "call",
    "µs",
    "p10–p90",
    "ceiling µs",
    "ceiling",
    "of theory",
    "fraction",
    "target",
    "result",
    "fastest library µs",
];
/// Columns of the header that hold a number.
pub(super) const NUMBERS: [usize; 6] = [3, 4, 5, 7, 8, 9];
const TITLE: &str = "# Benchmarks\n\n";
const NO_REPORT: &str = "No report of `cargo xtask bench` on a GPU is committed yet. First readings, not repeated and without other libraries beside \
them, are in\n[evidence/first-reading.txt](evidence/first-reading.txt); the CPU executor's are in \
[evidence/cpu-stream.txt](evidence/cpu-stream.txt).\n";
const FROM_REPORT: &str = "Written by `cargo xtask bench render` from [evidence/bench-h200.json](evidence/bench-h200.json); a test compares the two.\n\n";
const HOW: &str = "
## How it is measured

Each time is that of one public call, from before its first launch to after its last: the median over replays of a CUDA graph that
goes through several sets of buffers, x and y of which are together at least four times as large as the L2 cache. Data are normal
random numbers; dx and the final dw are written. The ceiling is the fastest of several plain kernels (and the driver's copy) that read
one tensor and write one (forward), or read two and write one (backward), over the same buffers in the same run. A fraction is
the ceiling's time over the call's. The bits of the timed launches are compared with the CPU executor's.

```sh
cargo xtask bench list | python3 xtask/peers.py --out peers.json
cargo xtask bench --repeat 2 --peers peers.json --report docs/evidence/bench-h200.json
cargo xtask bench render --from docs/evidence/bench-h200.json --html bench.html --docs docs/benchmarks.md
```
";
