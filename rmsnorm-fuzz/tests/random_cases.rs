//! Every property on cases that proptest draws, and on a sweep of seeds.

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use rmsnorm_cuda::Cpu;
use rmsnorm_fuzz::{Outcome, PROPERTIES, cases, property, random_case};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_property_holds(case in cases(1 << 11)) {
        for property in PROPERTIES {
            if let Outcome::Failed { property, message } = property.check(&Cpu, &case) {
                prop_assert!(false, "{property}: {message}");
            }
        }
    }
}

fn config() -> ProptestConfig {
    // Failures are kept beside this file and replayed first.
    let kept = FileFailurePersistence::Direct("tests/random_cases.regressions");
    ProptestConfig { cases: 400, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

#[test]
fn a_sweep_of_wider_cases_has_every_property() {
    for seed in 0..100 {
        for property in PROPERTIES {
            let outcome = property.check(&Cpu, &random_case(seed, 1 << 17));
            assert!(!matches!(outcome, Outcome::Failed { .. }), "seed {seed}: {outcome:?}");
        }
    }
}

#[test]
fn a_sweep_of_seeds_has_identity_and_accuracy() {
    let sweep = |name: &str, seeds: std::ops::Range<u64>, budget| {
        for seed in seeds {
            let outcome = property(name).unwrap().check(&Cpu, &random_case(seed, budget));
            let Outcome::Passed(evidence) = &outcome else { panic!("seed {seed}, budget {budget}: {outcome:?}") };
            let alarms: u64 = evidence.accuracy.values().map(|tally| tally.alarms).sum();
            assert_eq!(alarms, 0, "seed {seed}, budget {budget}: {outcome:?}");
        }
    };
    sweep("identity", 0..1000, 1 << 14);
    sweep("identity", 1000..1040, 1 << 22);
    sweep("accuracy", 2000..2300, 1 << 14);
}
