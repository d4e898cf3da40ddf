//! `bench` as a user meets it.

use std::process::{Command, Output};

#[path = "../../rmsnorm-cuda/tests/machine/mod.rs"]
mod machine;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).arg("bench").args(arguments).output().unwrap()
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
    assert_eq!(String::from_utf8_lossy(&rendered.stdout), text);
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
    ] {
        let output = bench(&arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(says) && !text.contains("panicked"), "{arguments:?}: {text}");
    }
}

#[test]
fn the_list_can_be_read_back() {
    let text = String::from_utf8(bench(&["list"]).stdout).unwrap();
    assert_eq!(text.lines().count(), 47);
    assert!(text.lines().any(|line| line == "bf16:32768x4096"));
}
