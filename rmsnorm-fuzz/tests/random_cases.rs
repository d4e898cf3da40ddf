//! Every property on cases that proptest draws, and on a sweep of seeds.

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use rmsnorm_cuda::Cpu;
use rmsnorm_fuzz::{Case, Outcome, Subject, Tried, cases, property, random_case, try_case};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_property_holds(case in cases(1 << 11)) {
        let failures = failures(&case);
        prop_assert!(failures.is_empty(), "{failures:?}");
    }
}

/// What refutes a property that the case decides.
fn failures(case: &Case) -> Vec<Outcome> {
    let mut failures = Vec::new();
    try_case(
        &[Subject::of(Cpu)],
        case,
        Tried::Seldom,
        |_, property| !property.has_own_inputs(),
        |_, _, outcome, _| {
            if let Outcome::Failed { .. } = outcome {
                failures.push(outcome);
            }
        },
    );
    failures
}

fn config() -> ProptestConfig {
    // Failures are kept beside this file and replayed first.
    let kept = FileFailurePersistence::Direct("tests/random_cases.regressions");
    ProptestConfig { cases: 400, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

#[test]
fn a_sweep_of_wider_cases_has_every_property() {
    for seed in 0..100 {
        let failures = failures(&random_case(seed, 1 << 17));
        assert!(failures.is_empty(), "seed {seed}: {failures:?}");
    }
}

#[test]
fn a_sweep_of_seeds_has_identity_and_accuracy() {
    let sweep = |name: &str, seeds: std::ops::Range<u64>, budget| {
        for seed in seeds {
            let outcome = property(name).unwrap().check(&Subject::of(Cpu), &random_case(seed, budget));
            let Outcome::Passed(evidence) = &outcome else { panic!("seed {seed}, budget {budget}: {outcome:?}") };
            let alarms: u64 = evidence.accuracy.values().map(|tally| tally.alarms).sum();
            assert_eq!(alarms, 0, "seed {seed}, budget {budget}: {outcome:?}");
        }
    };
    sweep("identity", 0..1000, 1 << 14);
    sweep("identity", 1000..1040, 1 << 22);
    sweep("accuracy", 2000..2300, 1 << 14);
}
