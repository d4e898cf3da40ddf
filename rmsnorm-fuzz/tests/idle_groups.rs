//! `idle_groups_781` on the CPU executors.

use rmsnorm_cuda::Cpu;
use rmsnorm_fuzz::idle::idle_groups;
use rmsnorm_fuzz::{Literal, Outcome};

#[test]
fn dw_of_zero_rows_is_zero_in_every_iteration() {
    for executor in [&Cpu as &dyn rmsnorm_cuda::Executor, &Literal] {
        match idle_groups(executor) {
            Outcome::Passed(evidence) => assert_eq!(evidence.comparisons, 3 * 2 * 3 * 10),
            other => panic!("{other:?}"),
        }
    }
}
