//! What follows from measurements, tried on made-up times.

use super::cells::{Cell, Direction, required_cuda};
use super::report::*;
use super::{plot, show};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn timing(us_median: f64) -> Timing {
    Timing { us_median, us_p10: 0.99 * us_median, us_p90: 1.02 * us_median, replays: 30 }
}

/// A call that needs `us` and whose ceiling has `share` of the theoretical rate of [`gpu`].
fn timed(cell: Cell, direction: Direction, us: f64, share: f64) -> Timed {
    let ceiling = direction.bytes(cell) as f64 / (share * gpu().theoretical_bytes_per_second) * 1e6;
    Timed { call: timing(us), ceiling: Ceiling { timing: timing(ceiling), how: "copy".into() } }
}

fn pass(cell: Cell, fractions: [f64; 2]) -> Pass {
    let [forward, backward] = Direction::BOTH.map(|direction| {
        let mut timed = timed(cell, direction, 1.0, 0.9);
        timed.call = timing(timed.ceiling.timing.us_median / fractions[direction as usize]);
        timed
    });
    Pass { pass: 1, forward, backward, differ: Some(Differ { elements: 100, ..Differ::default() }) }
}

fn gpu() -> Gpu {
    Gpu {
        name: "NVIDIA H200".into(),
        driver: "1.2".into(),
        nvrtc: "13.0".into(),
        l2_bytes: 60 << 20,
        theoretical_bytes_per_second: 4.8e12,
        bare_launch: timing(1.2),
        host: Some([HostTime { bare_us: 2.0, raw_us: 2.5, typed_us: 3.0 }; 2]),
    }
}

/// A complete report in which every call has 0.98 of its ceiling.
fn report() -> Report {
    let measured = |cell: Cell| {
        let passes = vec![pass(cell, [0.98; 2])];
        Measured { cell, plan: "plan".into(), sets: 2, passes, failures: Vec::new() }
    };
    let mut report = Report {
        schema: SCHEMA,
        partial: true,
        invalid: Vec::new(),
        command: vec!["bench".into()],
        started_unix_s: 1_795_439_212,
        elapsed_s: 100.0,
        build: Build { commit: "0123456789abcdef".into(), dirty: "no".into(), ..Build::this() },
        machine: Machine { cpu: "cpu".into(), gpu: Some(gpu()) },
        passes: 1,
        bytes: BYTES.into(),
        cells: required_cuda().into_iter().map(measured).collect(),
        peers: None,
    };
    report.judge();
    report
}

fn peers(times: &[(&str, &str, Direction, f64, bool)]) -> Peers {
    let measured = times.iter().map(|&(library, cell, direction, us, wrong)| PeerTime {
        library: library.into(),
        cell: cell.parse().unwrap(),
        direction,
        timing: timing(us),
        errors: BTreeMap::from([("y".into(), 0.5)]),
        wrong,
    });
    Peers {
        schema: SCHEMA,
        gpu: "NVIDIA H200".into(),
        started_unix_s: 1_795_439_212,
        elapsed_s: 10.0,
        versions: BTreeMap::from([("torch".into(), "2.11".into())]),
        method: "graphs".into(),
        measured: measured.collect(),
        left_out: vec![LeftOut { library: "quack".into(), cell: None, why: "not installed".into() }],
    }
}

fn line<'a>(report: &'a Report, cell: &str, direction: Direction) -> Line<'a> {
    let found = report.lines().into_iter().find(|l| l.cell().to_string() == cell && l.direction == direction);
    found.unwrap()
}

/// The items under the title that begins with `title`.
fn found(report: &Report, title: &str) -> Vec<String> {
    let found = show::findings(report).into_iter().find(|(t, _)| t.starts_with(title));
    found.unwrap_or_else(|| panic!("nothing about {title}")).1
}

fn cell_of<'a>(report: &'a mut Report, cell: &str) -> &'a mut Measured {
    report.cells.iter_mut().find(|m| m.cell.to_string() == cell).unwrap()
}

#[test]
fn a_report_without_one_required_cell_is_partial() {
    let mut complete = report();
    assert!(!complete.partial && complete.invalid.is_empty());
    assert!(
        show::findings(&complete).iter().all(|(title, _)| !title.contains("PARTIAL") && !title.contains("INVALID"))
    );
    complete.cells.remove(3);
    complete.judge();
    assert!(complete.partial);
    assert!(found(&complete, "PARTIAL")[0].contains(&required_cuda()[3].to_string()));
    // A cell that was begun twice and measured once.
    let mut once = report();
    once.passes = 2;
    once.judge();
    assert_eq!(once.missing().len(), once.cells.len());
}

#[test]
fn a_slow_ceiling_makes_an_h200s_run_invalid_and_no_other() {
    let cell: Cell = "bf16:32768x4096".parse().unwrap();
    let with = |share: f64, name: &str, cell: Cell| {
        let mut report = report();
        report.machine.gpu.as_mut().unwrap().name = name.into();
        let measured = report.cells.iter_mut().find(|m| m.cell == cell).unwrap();
        measured.passes[0].backward = timed(cell, Direction::Backward, 200.0, share);
        report.judge();
        report.invalid
    };
    assert_eq!(with(0.851, "NVIDIA H200", cell), [""; 0]);
    let slow = with(0.849, "NVIDIA H200", cell);
    assert!(
        slow.len() == 1 && slow[0].starts_with("bf16:32768x4096 backward, pass 1: the ceiling is 0.849"),
        "{slow:?}"
    );
    assert_eq!(with(0.849, "NVIDIA A100", cell), [""; 0]);
    assert_eq!(with(0.3, "NVIDIA H200", "bf16:1x4096".parse().unwrap()), [""; 0]);
}

#[test]
fn other_bits_or_another_gpus_peers_make_a_run_invalid() {
    let mut differ = report();
    cell_of(&mut differ, "bf16:8192x4097").passes[0].differ = Some(Differ { elements: 9, dw: 1, ..Differ::default() });
    differ.judge();
    assert_eq!(differ.invalid, ["bf16:8192x4097, pass 1: bits are not the CPU's: 0 of y, 0 of rstd, 0 of dx, 1 of dw"]);
    assert!(show::docs(Some(&differ)).contains("## INVALID\n\n- bf16:8192x4097"));
    let mut other = report();
    other.peers = Some(Peers { gpu: "NVIDIA A100".into(), ..peers(&[]) });
    other.judge();
    assert_eq!(other.invalid.len(), 1);
    let mut zero = report();
    cell_of(&mut zero, "bf16:1x4096").passes[0].forward.call.us_median = 0.0;
    zero.judge();
    assert_eq!(zero.invalid, ["bf16:1x4096 forward, pass 1: a time is no time"]);
    let mut failed = report();
    let measured = cell_of(&mut failed, "bf16:1x4096");
    (measured.passes, measured.failures) = (Vec::new(), vec!["pass 1: no memory".into()]);
    failed.judge();
    assert_eq!(
        (failed.invalid.as_slice(), failed.partial),
        (&["bf16:1x4096: pass 1: no memory".to_string()][..], true)
    );
    assert_eq!(failed.lines().len(), 2 * 46);
}

#[test]
fn the_worst_pass_counts() {
    let mut report = report();
    report.passes = 3;
    let cell: Cell = "f32:8192x8192".parse().unwrap();
    cell_of(&mut report, "f32:8192x8192").passes =
        vec![pass(cell, [0.99, 0.96]), pass(cell, [0.98, 0.90]), pass(cell, [0.985, 0.97])];
    let (forward, backward) =
        (line(&report, "f32:8192x8192", Direction::Forward), line(&report, "f32:8192x8192", Direction::Backward));
    assert!((forward.fraction - 0.98).abs() < 1e-9 && forward.met() == Some(true) && !forward.unsettled());
    assert!((backward.fraction - 0.90).abs() < 1e-9 && backward.met() == Some(false) && backward.unsettled());
    assert!((backward.apart - (0.97 / 0.90 - 1.0)).abs() < 1e-9);
    assert!(found(&report, "Targets met: 91 of 92")[0].starts_with("f32:8192x8192 backward: 0.900, aimed at 0.95"));
    assert_eq!(found(&report, "Passes more than 2 % apart"), ["f32:8192x8192 backward: 7.8 %"]);
    // Of a small tensor that is no surprise.
    let small: Cell = "bf16:8192x4097".parse().unwrap();
    cell_of(&mut report, "bf16:8192x4097").passes = vec![pass(small, [0.5; 2]), pass(small, [0.4; 2])];
    assert!(!line(&report, "bf16:8192x4097", Direction::Forward).unsettled());
    // No target is no verdict.
    assert_eq!(line(&report, "bf16:8192x4097", Direction::Forward).met(), None);
}

#[test]
fn a_faster_library_is_named_if_its_result_was_right() {
    let mut report = report();
    let us = line(&report, "bf16:32768x4096", Direction::Backward).us();
    let at = |library, ratio: f64, wrong| (library, "bf16:32768x4096", Direction::Backward, us / ratio, wrong);
    report.peers = Some(peers(&[at("even", 1.019, false), at("faster", 1.021, false), at("wrong", 3.0, true)]));
    report.judge();
    let names: Vec<_> =
        line(&report, "bf16:32768x4096", Direction::Backward).faster().iter().map(|p| p.library.clone()).collect();
    assert_eq!(names, ["faster"]);
    let faster = found(&report, "Another library was more than 2 % faster");
    assert!(
        faster.len() == 1 && faster[0].starts_with("bf16:32768x4096 backward:") && faster[0].contains("faster "),
        "{faster:?}"
    );
    assert_eq!(found(&report, "Wrong results"), ["wrong bf16:32768x4096 backward: y 5.0e-1"]);
    assert_eq!(found(&report, "Not measured"), ["quack: not installed"]);
    assert!(found(&report, "No right result")[0].contains("bf16:32768x4096 forward"));
    assert!(!found(&report, "No right result")[0].contains("bf16:32768x4096 backward"));
    assert!(show::docs(Some(&report)).contains("faster 1"));
    // A slower pass is compared too.
    let slower = cell_of(&mut report, "bf16:32768x4096").passes[0].clone();
    cell_of(&mut report, "bf16:32768x4096").passes.push(slower);
    cell_of(&mut report, "bf16:32768x4096").passes[1].backward.call.us_median *= 1.05;
    assert_eq!(line(&report, "bf16:32768x4096", Direction::Backward).faster().len(), 2);
}

#[test]
fn a_report_survives_a_file_and_one_that_contradicts_itself_does_not() {
    let folder = crate::machine::folder();
    let path = folder.path().join("report.json");
    let mut report = report();
    report.peers = Some(peers(&[("torch", "bf16:32768x4096", Direction::Forward, 120.0, false)]));
    report.judge();
    crate::record::write_json(&path, &report).unwrap();
    let read = Report::read(&path);
    report.partial = true;
    crate::record::write_json(&path, &report).unwrap();
    let forged = Report::read(&path);
    report.partial = false;
    assert!(read.unwrap() == report);
    assert!(forged.unwrap_err().to_string().contains("do not follow"));
}

#[test]
fn the_page_and_the_table_show_every_cell() {
    let mut report = report();
    report.peers = Some(peers(&[
        ("a<b", "bf16:32768x4096", Direction::Forward, 120.0, false),
        ("a<b", "bf16:16384x8192", Direction::Forward, 120.0, false),
    ]));
    let (page, mut text) = (plot::page(&report), Vec::new());
    show::print(&report, &mut text).unwrap();
    let (text, docs) = (String::from_utf8(text).unwrap(), show::docs(Some(&report)));
    for cell in required_cuda() {
        let shape = format!("{}×{}", cell.rows, cell.hidden);
        assert!([&page, &text, &docs].iter().all(|all| all.matches(&shape).count() >= 2), "{shape}");
    }
    // Two of all types, one beside the library, two over rows.
    assert_eq!(page.matches("<figure>").count(), 5);
    assert!(page.contains("a&lt;b") && !page.contains("a<b"));
    assert!(!page.contains("NaN") && !page.contains("inf") && !page.contains("http"));
}

#[test]
fn dates() {
    for (unix_s, expected) in [
        (0, "1970-01-01"),
        (951_782_400, "2000-02-29"),
        (951_868_800, "2000-03-01"),
        (1_795_439_212, "2026-11-23"),
        (4_107_542_399, "2100-02-28"),
    ] {
        assert_eq!(show::date(unix_s), expected);
    }
}

/// docs/benchmarks.md says what the committed report says, and without one that there is none.
#[test]
fn the_docs_are_those_of_the_committed_report() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let path: PathBuf = docs.join("evidence/bench-h200.json");
    let report = path.exists().then(|| Report::read(&path).unwrap());
    assert!(report.iter().all(|report| !report.partial && report.invalid.is_empty()), "no evidence");
    let written = std::fs::read_to_string(docs.join("benchmarks.md")).unwrap();
    assert_eq!(written, show::docs(report.as_ref()), "write it with `cargo xtask bench render`");
}
