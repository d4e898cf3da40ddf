//! The corpus: seeds, and every input that ever refuted something, replayed without a fuzzer.

use rmsnorm_cuda::Cpu;
use rmsnorm_fuzz::targets::{TARGETS, target};
use rmsnorm_fuzz::{Outcome, Subject};
use std::path::Path;

#[test]
fn every_input_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut inputs = 0;
    for folder in std::fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let target = target(name).unwrap_or_else(|| panic!("{name} is no target"));
        for input in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            let execution = target.execute(&Subject::of(Cpu), &std::fs::read(&input).unwrap());
            assert!(!matches!(execution.outcome, Outcome::Failed { .. }), "{}: {execution:?}", input.display());
            inputs += usize::from(execution.counts());
        }
    }
    assert!(inputs >= TARGETS.len(), "{inputs} inputs judged something");
}
