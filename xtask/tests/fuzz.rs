//! What `fuzz` does without a fuzzer.

use std::path::Path;
use std::process::{Command, Output};

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
