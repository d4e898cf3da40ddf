//! `bench` as a user meets it.

use std::process::{Command, Output};

#[path = "../../rmsnorm-cuda/tests/machine/mod.rs"]
mod machine;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).arg("bench").args(arguments).output().unwrap()
}

fn text_of(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_cpu_is_measured_reported_and_shown_again() {
    let folder = machine::folder();
    let [report, page, again] = ["cpu.json", "cpu.html", "again.html"].map(|name| folder.path().join(name));
    let [report_path, page_path, again_path] = [&report, &page, &again].map(|path| path.to_str().unwrap());
    let cells = "f32:512x1024,bf16:1000x999";
    let output = bench(&[
        "--device",
        "cpu",
        "--cells",
        cells,
        "--repeat",
        "2",
        "--replays",
        "3",
        "--report",
        report_path,
        "--html",
        page_path,
    ]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("512×1024") && text.contains("PARTIAL"), "{text}");
    let rendered = bench(&["render", "--from", report_path, "--html", again_path]);
    assert!(rendered.status.success());
    let (rendered, _) = text_of(&rendered);
    let (shown, files) = text.split_at(text.find("\nreport: ").unwrap() + 1);
    assert_eq!(files, format!("report: {report_path}\npage: {page_path}\n"));
    assert_eq!(rendered, format!("{shown}page: {again_path}\n"));
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    let pages = [&page, &again].map(|path| std::fs::read_to_string(path).unwrap());
    assert!(pages[0].contains("999") && pages[0] == pages[1]);
    assert_eq!((&json["partial"], &json["cells"][1]["cell"]), (&true.into(), &"bf16:1000x999".into()));
    assert_eq!(json["cells"][0]["passes"].as_array().unwrap().len(), 2);
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    for (arguments, says) in [
        (["--cells", "bf16:4096"], "no cell"),
        (["--cells", "f8:4x4"], "no cell"),
        (["--peers", "/nowhere.json"], "cannot read /nowhere.json"),
        (["--replays", "0"], "0 is not in"),
        (["--replays", "-1"], "-1 is not in 1..=100000"),
        (["--repeat", "-1"], "-1 is not in 1..=100"),
    ] {
        let output = bench(&arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(says) && !text.contains("panicked"), "{arguments:?}: {text}");
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_before_anything_is_measured() {
    for option in ["--report", "--html"] {
        let cells = ["--device", "cpu", "--cells", "f32:64x64", "--replays", "1"];
        let (out, error) = text_of(&bench(&[&cells[..], &[option, "no/such/file"]].concat()));
        assert!(out.is_empty() && error.contains("cannot write no/such/file") && !error.contains("1/1"), "{error}");
    }
}

#[test]
fn without_a_gpu_the_cpu_is_named() {
    let (_, error) = text_of(&bench(&["--cells", "f32:64x64", "--replays", "1"]));
    // On a machine with a GPU it is measured.
    assert!(error.contains("--device cpu") || error.contains("1/1"), "{error}");
}

#[test]
fn the_list_can_be_read_back() {
    let text = String::from_utf8(bench(&["list"]).stdout).unwrap();
    assert_eq!(text.lines().count(), 47);
    assert!(text.lines().any(|line| line == "bf16:32768x4096"));
}
