//! What `verify --mutants` builds around a copy of `rmsnorm-cuda`, around the original.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use rmsnorm_fuzz::{Outcome, hard_case, property};

/// The copies of calls and of errors are exact: the same bits, and every bad argument is refused for its own reason.
#[test]
fn a_copy_without_a_patch_is_the_original() {
    let subject = rmsnorm_fuzz::subject!(rmsnorm_cuda, On::Cpu, Device::Cpu).expect("the CPU executor");
    for name in ["identity", "refusal", "launch failures"] {
        let outcome = property(name).expect(name).check(&subject, &hard_case("rows_17").expect("a hard case").case);
        let silent = name == "launch failures";
        assert!(
            if silent {
                matches!(outcome, Outcome::NotApplicable { .. })
            } else {
                matches!(outcome, Outcome::Passed(_))
            },
            "{name}: {outcome:?}"
        );
    }
}
