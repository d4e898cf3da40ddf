//! Every hard case against every property, on the CPU executor.

use rmsnorm_cuda::Cpu;
use rmsnorm_fuzz::golden::digest;
use rmsnorm_fuzz::{Evidence, Outcome, PROPERTIES, Property, Subject, Tried, hard_case, hard_cases, try_case};
use std::collections::BTreeMap;

#[test]
fn every_hard_case_has_every_property() {
    let mut evidence: BTreeMap<&str, Evidence> = BTreeMap::new();
    let mut failures = Vec::new();
    let subjects = [Subject::of(Cpu)];
    for hard in hard_cases() {
        let chosen = |_: &Subject, property: &Property| {
            // Large cases: what only they can show.
            let tried = !hard.is_large() || ["identity", "exact"].contains(&property.name);
            tried && (!property.has_own_inputs() || hard.name == "idle_groups_781")
        };
        try_case(&subjects, &hard.case, Tried::Seldom, chosen, |_, property, outcome, _| match outcome {
            Outcome::Passed(found) => evidence.entry(property.name).or_default().merge(&found),
            Outcome::NotApplicable { .. } => {}
            Outcome::Failed { property, message } => failures.push(format!("{}: {property}: {message}", hard.name)),
        });
    }
    for (property, found) in &evidence {
        println!(
            "{property}: {} comparisons, {} elements, excluded {:?}",
            found.comparisons, found.elements, found.excluded
        );
        for (output, tally) in &found.accuracy {
            println!("  {output}: {tally}");
        }
    }
    assert!(evidence["accuracy"].accuracy.values().all(|tally| tally.alarms == 0));
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    // No property may pass for want of cases; the CPU has no launches.
    let launches = ["launch", "launch failures"];
    assert_eq!(evidence.len(), PROPERTIES.iter().filter(|property| !launches.contains(&property.name)).count());
    assert!(evidence.values().all(|found| found.comparisons > 0));
}

#[test]
fn the_number_of_threads_is_irrelevant() {
    for name in
        ["rows_257", "rows_65537", "scratch_reused", "gap_wide", "x_any_bits_f32", "rstd_infinite_some", "wide_262144"]
    {
        let case = hard_case(name).unwrap().case;
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| digest(&Cpu, &case)).unwrap()
        };
        let alone = with(1);
        for threads in [2, 3, 7, 32] {
            assert_eq!(with(threads), alone, "{name}, {threads} threads");
        }
    }
}
