//! What fuzzers execute: bytes become a [`Case`], and some of the properties are tried on it. The same bytes are replayed by
//! tests and by `cargo xtask fuzz --replay`, without a fuzzer.

use crate::buffer::Fill;
use crate::case::{Case, Gap, Name};
use crate::literal::Literal;
use crate::operands::Operands;
use crate::property::{Evidence, Finding, Outcome, Stop, demand_equal, judged, property};
use arbitrary::Unstructured;
use rmsnorm_cuda::plan::{self, Arch, Calls, Direction, Tuning, classes, column_order};
use rmsnorm_cuda::{Dtype, Executor, HIDDEN_MAX, WeightOffset, scratch_len};
use std::collections::BTreeMap;
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
    body: fn(&dyn Executor, &mut Unstructured<'_>) -> arbitrary::Result<Execution>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "forward",
        sentence: "y and rstd equal the literal executor's, bit for bit",
        body: |executor, u| Ok(on_case(sized_case(u)?, |case| judge_forward(executor, case))),
    },
    Target {
        name: "backward",
        sentence: "every output equals the literal executor's, bit for bit",
        body: |executor, u| Ok(on_case(sized_case(u)?, |case| named("identity").check(executor, case))),
    },
    Target {
        name: "accuracy",
        sentence: "every output is within the bound of the f64 reference",
        // Of the largest cases the reference makes seconds; the bits being the literal executor's, they add nothing.
        body: |executor, u| Ok(on_case(Case::within(u, 1 << 9)?, |case| named("accuracy").check(executor, case))),
    },
    Target {
        name: "properties",
        sentence: "one of the properties that compare an executor with itself, or with integers",
        body: |executor, u| {
            const OTHERS: [&str; 6] = ["content", "exact", "scaling", "layout", "writes", "batch"];
            let name = *u.choose(&OTHERS)?;
            // These run a case many times.
            let case = Case::within(u, 1 << 9)?;
            Ok(on_case(case, |case| named(name).check(executor, case)))
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
        body: |executor, u| Ok(on_case(Case::within(u, 1 << 9)?, |case| named("refusal").check(executor, case))),
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// A case that was made from bytes, and what was found.
#[derive(Clone, Debug)]
pub struct Execution {
    /// The case.
    pub case: Case,
    /// What was found.
    pub outcome: Outcome,
}

impl Execution {
    /// Whether a property was refuted, or judged on at least one element (a refusal: one call).
    pub fn counts(&self) -> bool {
        match &self.outcome {
            Outcome::Passed(found) => found.elements > 0 || found.comparisons > 0 && self.case.rows > 0,
            Outcome::Failed { .. } => true,
            Outcome::NotApplicable { .. } => false,
        }
    }
}

impl Target {
    /// What `bytes` show of `executor`. Any bytes are a case: where they end, zeros follow.
    pub fn execute(&self, executor: &dyn Executor, bytes: &[u8]) -> Execution {
        (self.body)(executor, &mut Unstructured::new(bytes)).expect("running out of bytes is not an error")
    }
}

/// The body of a fuzz target: executes `bytes` and keeps [`Statistics`]. Returns whether the execution counts; panics where a
/// property is refuted.
pub fn drive(name: &str, executor: &dyn Executor, bytes: &[u8]) -> bool {
    // All on the thread that calls: handing each step of a small case to another takes longer than the step.
    static POOL: LazyLock<rayon::ThreadPool> = LazyLock::new(|| {
        rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().expect("a thread of no other pool")
    });
    static KEPT: Mutex<Option<Kept>> = Mutex::new(None);
    rmsnorm_cuda::arith::environment().unwrap_or_else(|error| panic!("nothing can be judged: {error}"));
    let target = target(name).unwrap_or_else(|| panic!("no target is called {name}"));
    let execution = POOL.install(|| target.execute(executor, bytes));
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
pub fn libfuzzer(name: &str, executor: &dyn Executor, bytes: &[u8]) -> libfuzzer_sys::Corpus {
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
            let _ = std::fs::write(&unfinished, self.statistics.to_string())
                .and_then(|()| std::fs::rename(&unfinished, path));
        }
    }
}

/// What was executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Executions that refuted a property or judged at least one element.
    pub counted: u64,
    /// The others.
    pub rejected: u64,
    /// Elements judged.
    pub elements: u64,
    /// Counted executions by what their case has: (`what`, `how much`).
    pub histogram: BTreeMap<(String, String), u64>,
}

impl Statistics {
    /// Counts one execution.
    pub fn add(&mut self, execution: &Execution) {
        if !execution.counts() {
            self.rejected += 1;
            return;
        }
        let Case { rows, hidden, dtype, .. } = execution.case;
        self.counted += 1;
        if let Outcome::Passed(found) = &execution.outcome {
            self.elements += found.elements;
        }
        let groups = column_order(usize::MAX, hidden).groups;
        let against_groups = match rows.cmp(&groups) {
            std::cmp::Ordering::Less => "fewer than row groups",
            std::cmp::Ordering::Equal => "as many as row groups",
            std::cmp::Ordering::Greater => "more than row groups",
        };
        self.count("M", power_range(rows));
        self.count("rows", against_groups.into());
        self.count("N", power_range(hidden));
        self.count("type", dtype.to_string());
        self.count("weight", execution.case.weight_dtype().map_or("absent".into(), |dtype| dtype.to_string()));
        let places = Name::ALL.map(|name| execution.case.place(name));
        let strides = match () {
            () if places.iter().any(|place| matches!(place.gap, Gap::Broadcast)) => "0",
            () if places.iter().any(|place| matches!(place.gap, Gap::Elements(1..))) => "above N",
            () if places.iter().any(|place| matches!(place.gap, Gap::Irrelevant)) && rows < 2 => "irrelevant",
            () => "N",
        };
        self.count("stride", strides.into());
        self.count("offset", if places.iter().any(|place| place.offset > 0) { "some" } else { "none" }.into());
    }

    fn count(&mut self, what: &str, how_much: String) {
        *self.histogram.entry((what.into(), how_much)).or_default() += 1;
    }

    /// Adds what another fuzzer executed.
    pub fn merge(&mut self, other: &Statistics) {
        self.counted += other.counted;
        self.rejected += other.rejected;
        self.elements += other.elements;
        for (key, count) in &other.histogram {
            *self.histogram.entry(key.clone()).or_default() += count;
        }
    }

    /// Reads what [`Display`](std::fmt::Display) wrote.
    pub fn parse(text: &str) -> Option<Statistics> {
        let mut statistics = Statistics::default();
        for line in text.lines() {
            let mut words = line.split('\t');
            let (what, how_much, count) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
            match (what, how_much) {
                ("", "counted") => statistics.counted = count,
                ("", "rejected") => statistics.rejected = count,
                ("", "elements") => statistics.elements = count,
                _ => drop(statistics.histogram.insert((what.into(), how_much.into()), count)),
            }
        }
        Some(statistics)
    }
}

impl std::fmt::Display for Statistics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "\tcounted\t{}", self.counted)?;
        writeln!(f, "\trejected\t{}", self.rejected)?;
        writeln!(f, "\telements\t{}", self.elements)?;
        self.histogram.iter().try_for_each(|((what, how_much), count)| writeln!(f, "{what}\t{how_much}\t{count}"))
    }
}

/// The range of fours that `n` lies in.
fn power_range(n: usize) -> String {
    match n {
        0 => "0".into(),
        _ => {
            let low = 1_usize << (n.ilog2() & !1);
            format!("{low}..{}", low.saturating_mul(4) - 1)
        }
    }
}

/// The case that the targets `forward` and `backward` make of `bytes`.
pub fn made_case(bytes: &[u8]) -> Case {
    sized_case(&mut Unstructured::new(bytes)).expect("running out of bytes is not an error")
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

fn on_case(case: Case, check: impl FnOnce(&Case) -> Outcome) -> Execution {
    Execution { case, outcome: check(&case) }
}

fn named(name: &str) -> &'static crate::Property {
    property(name).expect("a property of this name")
}

fn judge_forward(executor: &dyn Executor, case: &Case) -> Outcome {
    judged("forward", executor, &format!(" [{case}]"), || forward(executor, case))
}

fn forward(executor: &dyn Executor, case: &Case) -> Finding {
    let run = |executor, fill| -> Result<_, Stop> {
        let mut operands = Operands::new(case, fill);
        operands.forward(executor)?;
        Ok(operands)
    };
    let (got, want) = (run(executor, Fill::Nan)?, run(&Literal, Fill::Plausible)?);
    let [mut got_outputs, want_outputs] = [got.outputs(), want.outputs()];
    // Forward does not write dx.
    got_outputs.dx.clone_from(&want_outputs.dx);
    demand_equal("against the literal executor", want_outputs.row_difference(&got_outputs, |row| row))?;
    let mut evidence = Evidence::default();
    evidence.count((want_outputs.y.len() + want_outputs.rstd.len()) as u64);
    Ok(evidence)
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
    let (weight, weight_offset) = (Some(dtype), WeightOffset::Zero);
    let calls = Calls { rows, hidden, dtype, weight, weight_offset, dw: weight, aligned: true };
    let (forward, plan) = (plan::forward(&calls, &Tuning::of(*arch)), plan::backward(&calls, &Tuning::of(*arch)));
    demand(plan.column == column_order(rows, hidden), "the order of rows is not that of the shape")?;
    let groups = plan.column.groups;
    demand(groups <= rows && (groups > 0) == (rows > 0), "a row group without rows, or a row without a group")?;
    demand(
        scratch_len(rows, hidden).is_ok_and(|len| len >= groups * hidden),
        "scratch is too small for the row groups",
    )?;
    for (direction, launch) in [(Direction::Forward, forward.rows), (Direction::Backward, plan.rows)] {
        demand(classes(direction, dtype).contains(&launch.class), "a class that is not listed")?;
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
                let execution = target.execute(&Cpu, &bytes(seed));
                assert!(!matches!(execution.outcome, Outcome::Failed { .. }), "{}: {execution:?}", target.name);
                statistics.add(&execution);
            }
            assert!(statistics.rejected * 10 <= 3 * 200, "{}: {statistics:?}", target.name);
            assert_eq!(Statistics::parse(&statistics.to_string()), Some(statistics));
        }
    }

    #[test]
    fn properties_are_shared_out_among_the_targets() {
        // Every property of one case is in some target.
        for property in PROPERTIES {
            let seen = (0..400).any(|seed| {
                TARGETS.iter().any(|target| {
                    matches!(target.execute(&Refusing, &bytes(seed)).outcome, Outcome::Failed { property: found, .. } if found == property.name)
                })
            });
            assert!(seen, "{}", property.name);
        }
    }

    #[test]
    fn what_refutes_a_property_is_counted() {
        let mut statistics = Statistics::default();
        statistics.add(&target("backward").unwrap().execute(&Refusing, &[]));
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

    #[test]
    fn ranges() {
        assert_eq!(
            [0, 1, 3, 4, 15, 16, 255].map(power_range),
            ["0", "1..3", "1..3", "4..15", "4..15", "16..63", "64..255"]
        );
    }
}
