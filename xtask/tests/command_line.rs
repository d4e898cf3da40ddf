//! The command as a user meets it.

use std::fs::File;
use std::process::{Command, Output, Stdio};

fn xtask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).output().unwrap()
}

#[path = "../../rmsnorm-cuda/tests/machine/mod.rs"]
mod machine;

fn verify(arguments: &[&str]) -> Output {
    xtask(&[&["verify"], arguments].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn one_case_passes_and_is_reported() {
    let folder = machine::folder();
    let path = folder.path().join("verify.json");
    let output = verify(&["--case", "idle_groups_781", "--device", "cpu", "--report", path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("SKIPPED") && text.contains("passed"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(report["passed"], true);
    assert_eq!(report["mode"], "case idle_groups_781");
}

#[test]
fn an_unknown_case_is_an_error_that_names_the_nearest() {
    let error = text(&verify(&["--case", "idle_groups_782"]).stderr);
    assert!(error.starts_with("error: no case is called idle_groups_782") && error.len() < 400, "{error}");
    assert!(error.contains("idle_groups_781") && error.contains("verify --list"), "{error}");
    let list = text(&verify(&["--list"]).stdout);
    assert!([" idle_groups_781", " width_7", " class-", " grid-17-"].iter().all(|name| list.contains(name)), "{list}");
    assert!(list.lines().all(|line| line.chars().count() <= 80), "{list}");
}

#[test]
fn what_is_shown_fits_a_terminal() {
    let shown = text(&verify(&["--case", "width_7"]).stdout);
    let too_long: Vec<&str> = shown.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(too_long.is_empty() && shown.contains("worst error/bound"), "{too_long:?} {shown}");
}

#[test]
fn an_option_that_a_mode_ignores_is_refused() {
    for arguments in [
        &["--case", "width_7", "--seed", "1"][..],
        &["--mutants", "--seed", "1"],
        &["--mutants", "--quick"],
        &["--case-study", "781", "--seed", "1"],
        &["--case-study", "781", "--report", "file"],
        &["--sanitize", "--device", "cpu"],
        &["--list", "--quick"],
    ] {
        let error = text(&verify(arguments).stderr);
        assert!(error.contains("cannot be used with"), "{arguments:?}: {error}");
    }
    for mode in [&["--mutants"][..], &["--case-study", "781"]] {
        let error = text(&verify(&[mode, &["--require-gpu", "--device", "cpu"]].concat()).stderr);
        assert_eq!(error, "error: a GPU is required: not asked for\n", "{mode:?}");
    }
}

#[test]
fn a_negative_number_is_out_of_range() {
    for (arguments, says) in [
        (["verify", "--seed", "-1"], "-1 is not in 0..2147483648"),
        (["fuzz", "--seed", "-1"], "-1 is not in 0..2147483648"),
        (["fuzz", "--time", "-1"], "-1 is not in 1.."),
        (["fuzz", "--jobs", "0"], "0 is not in 1..=1024"),
    ] {
        let error = text(&xtask(&arguments).stderr);
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_before_the_work() {
    for arguments in [&["verify", "--quick"][..], &["verify", "--mutants"], &["fuzz"]] {
        let output = xtask(&[arguments, &["--report", "no/such/r.json"]].concat());
        let error = text(&output.stderr);
        assert!(
            output.stdout.is_empty() && error.starts_with("error: cannot write no/such/r.json"),
            "{arguments:?} {error}"
        );
    }
}

#[test]
fn where_nothing_can_be_printed_there_is_an_error_and_no_panic() {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(arguments);
        command
    };
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../rmsnorm-fuzz/corpus/backward/mutant-no_scaled_path");
    let bench = ["bench", "--device", "cpu", "--cells", "f32:64x64", "--replays", "1"];
    for arguments in
        [&["fuzz", "--replay", corpus][..], &["verify", "--case", "width_7"], &["verify", "--list"], &bench]
    {
        let output = run(arguments).stdout(full()).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.contains("No space left on device") && !error.contains("panicked"), "{arguments:?}: {error}");
        // How far the work is may go unread.
        let output = run(arguments).stderr(full()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stdout));
    }
    // An error that nobody can read is one all the same.
    assert_eq!(run(&["verify", "--case", "nothing"]).stderr(full()).status().unwrap().code(), Some(1));
}

/// What was found is in the report, whether it could be shown or not.
#[test]
fn a_report_is_written_where_nothing_can_be_printed() {
    let folder = machine::folder();
    let path = folder.path().join("bench.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["bench", "--device", "cpu", "--cells", "f32:64x64", "--replays", "1", "--report"]).arg(&path);
    let status = command.stdout(File::options().write(true).open("/dev/full").unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(report["cells"][0]["cell"], "f32:64x64");
}

#[test]
fn reports_are_found_from_any_folder() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let output = command.args(["verify", "--case", "width_7", "--device", "cpu"]).current_dir("/").output().unwrap();
    let shown = text(&output.stdout);
    assert!(shown.contains("evidence: same bits as docs/evidence/verify-cpu.json"), "{shown}");
}

#[test]
fn a_gpu_that_is_required_must_be_used() {
    let output = verify(&["--case", "width_7", "--device", "cpu", "--require-gpu"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("a GPU is required"));
}

#[test]
fn an_architecture_without_a_plan_is_an_error() {
    let xtask = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("ptx").args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (passed, text) = xtask(&["--arch", "75", "--check"]);
    assert!(!passed && (text.contains("no plan for sm_75") || text.contains("NVRTC is not usable")), "{text}");
    let (passed, text) = xtask(&["--arch", "90"]);
    assert!(!passed && text.contains("--out"), "{text}");
}
