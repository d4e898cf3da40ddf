//! The command as a user meets it.

use std::process::{Command, Output};

#[path = "../../rmsnorm-cuda/tests/machine/mod.rs"]
mod machine;

fn verify(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).arg("verify").args(arguments).output().unwrap()
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
fn an_unknown_case_is_an_error_that_lists_the_names() {
    let output = verify(&["--case", "idle_groups_782"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains(" idle_groups_781 "));
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
