//! What fuzzers execute: bytes become a [`Case`], and some of the properties are tried on it. The same bytes are replayed by
//! tests and by `cargo xtask fuzz --replay`, without a fuzzer.

use crate::case::Case;
use crate::finding::{Evidence, Outcome};
use crate::identity::forward;
use crate::property::property;
use crate::statistics::{Execution, Statistics};
use crate::subject::Subject;
use crate::values::Random;
use arbitrary::Unstructured;
use rmsnorm_cuda::plan::{
    self, Arch, Calls, Direction, Tuning, class_unaligned, classes, column_order, row_order, variants,
};
use rmsnorm_cuda::{Dtype, Executor, HIDDEN_MAX, scratch_len};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One thing that is fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on command lines, and that of its corpus.
    pub name: &'static str,
    /// What is tried on each case.
    pub sentence: &'static str,
    body: fn(&Subject, &mut Unstructured<'_>) -> arbitrary::Result<Execution>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "forward",
        sentence: "y and rstd equal the literal executor's, bit for bit",
        body: |subject, u| {
            Ok(on_case(subject, sized_case(u)?, |case| {
                Outcome::of("forward", &*subject.executor, &format!(" [{case}]"), || forward(subject, case))
            }))
        },
    },
    Target {
        name: "backward",
        sentence: "every output equals the literal executor's, bit for bit",
        body: |subject, u| Ok(on_case(subject, sized_case(u)?, |case| named("identity").check(subject, case))),
    },
    Target {
        name: "accuracy",
        sentence: "every output is within the bound of the f64 reference",
        // Of the largest cases the reference makes seconds; the bits being the literal executor's, they add nothing.
        body: |subject, u| {
            Ok(on_case(subject, Case::within(u, 1 << 9)?, |case| named("accuracy").check(subject, case)))
        },
    },
    Target {
        name: "properties",
        sentence: "one of the properties that compare an executor with itself, or with integers",
        body: |subject, u| {
            const OTHERS: [&str; 11] = [
                "content", "exact", "scaling", "layout", "writes", "batch", "fused", "twice", "in place", "heads",
                "types",
            ];
            let name = *u.choose(&OTHERS)?;
            // These run a case many times.
            let case = Case::within(u, 1 << 9)?;
            Ok(on_case(subject, case, |case| named(name).check(subject, case)))
        },
    },
    Target {
        name: "plan",
        sentence: "orders know no GPU, no row group is empty, and every launch can be made",
        body: |_, u| {
            let (rows, hidden, dtype, arch) = problem(u)?;
            let case = Case::new(rows, hidden, dtype);
            // Nothing runs: the plan itself is what was judged.
            let outcome = match judge_plan(rows, hidden, dtype, &arch) {
                Ok(()) => Outcome::Passed(Evidence { comparisons: 1, elements: 1, ..Evidence::default() }),
                Err(message) => Outcome::Failed {
                    property: "plan",
                    message: format!("{message} [{rows}×{hidden} {dtype} {arch:?}]"),
                },
            };
            Ok(Execution { case, outcome })
        },
    },
    Target {
        name: "errors",
        sentence: "bad arguments are refused with the right typed error before anything is written",
        body: |subject, u| Ok(on_case(subject, Case::within(u, 1 << 9)?, |case| named("refusal").check(subject, case))),
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

impl Target {
    /// What `bytes` show of `subject`. Any bytes are a case: where they end, zeros follow.
    pub fn execute(&self, subject: &Subject, bytes: &[u8]) -> Execution {
        (self.body)(subject, &mut Unstructured::new(bytes)).expect("running out of bytes is not an error")
    }

    /// Of bytes that refute something, fewer or smaller ones that still do.
    pub fn smaller(&self, subject: &Subject, mut bytes: Vec<u8>) -> Vec<u8> {
        let fails = |bytes: &[u8]| matches!(self.execute(subject, bytes).outcome, Outcome::Failed { .. });
        while !bytes.is_empty() && fails(&bytes[..bytes.len() - 1]) {
            bytes.pop();
        }
        for i in 0..bytes.len() {
            for value in [0, 1, bytes[i] / 2] {
                let was = bytes[i];
                bytes[i] = value.min(was);
                if !fails(&bytes) {
                    bytes[i] = was;
                }
            }
        }
        bytes
    }
}

/// Inputs without end, for whoever has no fuzzer: a fresh one every other time, else one of `seeds` with a few bytes changed, or
/// continued by another.
pub fn inputs(seeds: &[Vec<u8>], seed: u64) -> impl Iterator<Item = Vec<u8>> {
    let mut random = Random(seed);
    std::iter::repeat_with(move || {
        if seeds.is_empty() || random.below(2) == 0 {
            return (0..12).flat_map(|_| random.next().to_le_bytes()).collect();
        }
        let mut bytes = seeds[random.below(seeds.len())].clone();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len() + 1);
            if at < bytes.len() { bytes[at] = random.next() as u8 } else { bytes.push(random.next() as u8) }
        }
        if random.below(4) == 0 {
            bytes.truncate(random.below(bytes.len() + 1));
            bytes.extend(&seeds[random.below(seeds.len())]);
        }
        bytes
    })
}

/// The body of a fuzz target: executes `bytes` and keeps [`Statistics`]. Returns whether the execution counts; panics where a
/// property is refuted.
pub fn drive(name: &str, executor: impl Executor + 'static, bytes: &[u8]) -> bool {
    // All on the thread that calls: handing each step of a small case to another takes longer than the step.
    static POOL: LazyLock<rayon::ThreadPool> = LazyLock::new(|| {
        rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().expect("a thread of no other pool")
    });
    static KEPT: Mutex<Option<Kept>> = Mutex::new(None);
    rmsnorm_cuda::arith::environment().unwrap_or_else(|error| panic!("nothing can be judged: {error}"));
    let target = target(name).unwrap_or_else(|| panic!("no target is called {name}"));
    let subject = Subject::of(executor);
    let execution = POOL.install(|| target.execute(&subject, bytes));
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = kept.get_or_insert_with(|| Kept {
        statistics: Statistics::default(),
        path: std::env::var_os(STATISTICS_FILE).map(Into::into),
        written: Instant::now(),
    });
    kept.statistics.add(&execution);
    let failed = matches!(execution.outcome, Outcome::Failed { .. });
    if failed || kept.written.elapsed() > Duration::from_millis(100) {
        kept.write();
    }
    if let Outcome::Failed { property, message } = execution.outcome {
        panic!("{property}: {message}");
    }
    execution.counts()
}

/// [`drive`] for libFuzzer, which keeps no input that does not count.
#[cfg(feature = "libfuzzer")]
pub fn libfuzzer(name: &str, executor: impl Executor + 'static, bytes: &[u8]) -> libfuzzer_sys::Corpus {
    if drive(name, executor, bytes) { libfuzzer_sys::Corpus::Keep } else { libfuzzer_sys::Corpus::Reject }
}

/// Names the file that [`drive`] writes its statistics to, every tenth of a second.
pub const STATISTICS_FILE: &str = "RMSNORM_FUZZ_STATISTICS";

struct Kept {
    statistics: Statistics,
    path: Option<PathBuf>,
    written: Instant,
}

impl Kept {
    fn write(&mut self) {
        self.written = Instant::now();
        if let Some(path) = &self.path {
            // Complete or not at all; a fuzzer that cannot write goes on fuzzing, and its reader says that nothing is there.
            let unfinished = path.with_extension("unfinished");
            let _ = serde_json::to_vec(&self.statistics)
                .map_err(std::io::Error::from)
                .and_then(|text| std::fs::write(&unfinished, text))
                .and_then(|()| std::fs::rename(&unfinished, path));
        }
    }
}

/// Mostly small cases, for a small one shows as much as a large one; but some of the largest have more rows than row groups,
/// which takes narrow rows.
fn sized_case(u: &mut Unstructured<'_>) -> arbitrary::Result<Case> {
    match u.arbitrary::<u8>()? {
        0..=199 => Case::within(u, 1 << 7),
        200..=239 => Case::within(u, 1 << 10),
        240..=254 => Case::within(u, 1 << 12),
        _ => {
            let hidden = u.int_in_range(1..=2)?;
            let groups = column_order(usize::MAX, hidden).groups;
            let rows = u.int_in_range(groups + 1..=groups + groups / 2)?;
            Ok(Case { rows, hidden, ..Case::within(u, 1 << 7)? })
        }
    }
}

fn on_case(subject: &Subject, case: Case, check: impl FnOnce(&Case) -> Outcome) -> Execution {
    let case = if subject.of_one_type { case.of_one_type() } else { case };
    Execution { case, outcome: check(&case) }
}

fn named(name: &str) -> &'static crate::Property {
    property(name).expect("a property of this name")
}

/// A problem as it may be asked for: any number of rows, any legal width, any GPU that kernels are compiled for.
fn problem(u: &mut Unstructured<'_>) -> arbitrary::Result<(usize, usize, Dtype, Arch)> {
    let hidden_bits = u.int_in_range(0..=24)?;
    let hidden = u.int_in_range(1..=(1_usize << hidden_bits).min(HIDDEN_MAX))?;
    let rows_bits = u.int_in_range(0..=40)?;
    let rows = u.int_in_range(0..=1_usize << rows_bits)?;
    let arch = Arch {
        sm_count: u.int_in_range(1..=256)?,
        threads_per_sm: *u.choose(&[1024, 1536, 2048])?,
        block_shared_bytes: u.int_in_range(99..=228)? << 10,
        compute_capability: *u.choose(&[(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])?,
        ..Arch::H200
    };
    Ok((rows, hidden, *u.choose(&Dtype::ALL)?, arch))
}

fn judge_plan(rows: usize, hidden: usize, dtype: Dtype, arch: &Arch) -> Result<(), String> {
    let demand = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_string()) };
    let calls = Calls { weight: Some(dtype), dw: Some(dtype), ..Calls::new((rows, hidden), dtype) };
    let (forward, plan) = (plan::forward(&calls, &Tuning::of(*arch)), plan::backward(&calls, &Tuning::of(*arch)));
    demand(plan.column == column_order(rows, hidden), "the order of rows is not that of the shape")?;
    let groups = plan.column.groups;
    demand(groups <= rows && (groups > 0) == (rows > 0), "a row group without rows, or a row without a group")?;
    demand(
        scratch_len(rows, hidden).is_ok_and(|len| len >= groups * hidden),
        "scratch is too small for the row groups",
    )?;
    for (direction, launch) in [(Direction::Forward, forward.rows), (Direction::Backward, plan.rows)] {
        let is_listed = match direction {
            // Four chains a thread, all of the row's.
            Direction::Forward if forward.shares.is_some() => {
                let class = launch.class;
                (4 * class.team) as usize == row_order(hidden).chains && class.holds() >= hidden
            }
            Direction::Backward if plan.span.is_some() => variants(hidden, dtype).contains(&launch.class),
            _ if !launch.aligned && launch.class == class_unaligned(direction, hidden, dtype) => true,
            _ => classes(direction, dtype).contains(&launch.class),
        };
        demand(is_listed, "a class that is not listed")?;
        demand(launch.blocks >= 1, "a grid of no blocks")?;
        demand((1..=1024).contains(&launch.class.threads()), "a block that no GPU can hold")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::property::PROPERTIES;
    use crate::values::mix;
    use rmsnorm_cuda::Cpu;

    fn bytes(seed: u64) -> Vec<u8> {
        (0..8).flat_map(|i| mix(seed * 8 + i).to_le_bytes()).collect()
    }

    #[test]
    fn every_target_holds_and_few_executions_are_rejected() {
        for target in TARGETS {
            let mut statistics = Statistics::default();
            for seed in 0..200 {
                let execution = target.execute(&Subject::of(Cpu), &bytes(seed));
                assert!(!matches!(execution.outcome, Outcome::Failed { .. }), "{}: {execution:?}", target.name);
                statistics.add(&execution);
            }
            assert!(statistics.rejected * 10 <= 3 * 200, "{}: {statistics:?}", target.name);
            let text = serde_json::to_string(&statistics).unwrap();
            assert_eq!(serde_json::from_str::<Statistics>(&text).unwrap(), statistics);
        }
    }

    #[test]
    fn properties_are_shared_out_among_the_targets() {
        // The others run other launches, or have inputs of their own.
        let others = ["two runs", "idle_groups_781", "launch", "far rows", "launch failures"];
        for property in PROPERTIES.iter().filter(|property| !others.contains(&property.name)) {
            let seen = (0..400).any(|seed| {
                TARGETS.iter().any(|target| {
                    matches!(target.execute(&Subject::of(Refusing), &bytes(seed)).outcome, Outcome::Failed { property: found, .. } if found == property.name)
                })
            });
            assert!(seen, "{}", property.name);
        }
    }

    #[test]
    fn what_refutes_a_property_is_counted() {
        let mut statistics = Statistics::default();
        statistics.add(&target("backward").unwrap().execute(&Subject::of(Refusing), &[]));
        assert_eq!((statistics.counted, statistics.rejected), (1, 0));
    }

    /// Refuses every call, for a reason that no property expects.
    struct Refusing;

    impl Executor for Refusing {
        fn name(&self) -> String {
            "refusing".into()
        }
        fn forward(
            &self,
            _: rmsnorm_cuda::Forward<rmsnorm_cuda::Slice<'_>, rmsnorm_cuda::SliceMut<'_>>,
        ) -> Result<(), rmsnorm_cuda::Error> {
            Err(rmsnorm_cuda::Error::Driver { call: "none", code: String::new() })
        }
        fn backward(
            &self,
            _: rmsnorm_cuda::Backward<rmsnorm_cuda::Slice<'_>, rmsnorm_cuda::SliceMut<'_>>,
        ) -> Result<(), rmsnorm_cuda::Error> {
            Err(rmsnorm_cuda::Error::Driver { call: "none", code: String::new() })
        }
    }
}
