//! `idle_groups_781` on the CPU executors.

use rmsnorm_cuda::Cpu;
use rmsnorm_fuzz::{Literal, Outcome, Subject, hard_case, property};

#[test]
fn dw_of_zero_rows_is_zero_in_every_iteration() {
    let case = hard_case("idle_groups_781").unwrap().case;
    for subject in [Subject::of(Cpu), Subject::of(Literal)] {
        match property("idle_groups_781").unwrap().check(&subject, &case) {
            Outcome::Passed(evidence) => assert_eq!(evidence.comparisons, 3 * 2 * 3 * 10),
            other => panic!("{other:?}"),
        }
    }
}
