//! What `fuzz` does without a fuzzer.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "../../rmsnorm-cuda/tests/machine/mod.rs"]
mod machine;

fn fuzz(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).arg("fuzz").args(arguments).output().unwrap()
}

#[test]
fn an_input_of_the_corpus_is_replayed() {
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rmsnorm-fuzz/corpus/backward/mutant-no_scaled_path");
    let output = fuzz(&["--replay", input.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("backward: ") && text.contains("holds: every output"), "{text}");
}

#[test]
fn names_that_do_not_exist_list_those_that_do() {
    for (option, known) in [("--target", "backward"), ("--mutant", "tail_skipped")] {
        let output = fuzz(&[option, "nothing"]);
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains(known));
    }
    // What only the kernels compute with is not in the CPU executor.
    assert!(!fuzz(&["--mutant", "fold_order"]).status.success());
}

#[test]
fn an_input_without_a_target_is_an_error() {
    let folder = machine::folder();
    let path = folder.path().join("input");
    std::fs::write(&path, [1, 2, 3]).unwrap();
    let output = fuzz(&["--replay", path.to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--target"));
}

#[test]
fn an_option_that_a_mode_ignores_is_refused() {
    for arguments in [
        &["--replay", "file", "--time", "1"][..],
        &["--replay", "file", "--report", "file"],
        &["--replay", "file", "--stable"],
        &["--minimize", "file", "--jobs", "1"],
        &["--minimize", "file", "--replay", "file"],
        &["--device", "cuda", "--mutant", "tail_skipped", "--replay", "file"],
        &["--device", "cuda", "--stable"],
    ] {
        let output = fuzz(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let refused =
            ["cannot be used with", "are for the CPU", "drop --stable"].iter().any(|text| error.contains(text));
        assert!(!output.status.success() && refused, "{arguments:?}: {error}");
    }
}

/// A stand-in for cargo starts a process and waits; xtask alone is told to end.
#[test]
fn what_was_started_ends_with_xtask() {
    let folder = tempfile::tempdir().unwrap();
    let (cargo, started) = (folder.path().join("cargo"), folder.path().join("started"));
    let script = format!("#!/bin/sh\nsleep 600 &\necho $$ $! >{0}.new\nmv {0}.new {0}\nwait\n", started.display());
    std::fs::write(&cargo, script).unwrap();
    std::fs::set_permissions(&cargo, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["fuzz", "--stable", "--target", "plan"]).env("PATH", path);
    let mut xtask = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("its child", || started.exists());
    let processes = std::fs::read_to_string(&started).unwrap();
    let processes: Vec<&str> = processes.split_whitespace().collect();
    assert!(processes.len() == 2 && processes.iter().all(|process| !is_dead(process)));
    let killed = Command::new("kill").arg(xtask.id().to_string()).status().unwrap();
    assert!(killed.success());
    let status = xtask.wait().unwrap();
    assert_eq!(status.signal(), Some(15));
    wait_for("the end of its children", || processes.iter().all(|process| is_dead(process)));
}

fn wait_for(what: &str, happened: impl Fn() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Gone, or dead and not yet waited for by whoever inherited it.
fn is_dead(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
}
