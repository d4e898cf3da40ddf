//! Tries cases with properties and keeps what was found.
//!
//! Cases are tried side by side, the largest first; checks run on one thread each, the CPU executor on all of them. What the
//! literal executor computes is computed once for each case: property 1 compares every executor, and property 5 every launch,
//! with that.

use super::display::{Progress, in_short};
use super::executors::{Again, CPU, CUDA, Launch, Target};
use super::report::{Failure, Machine, Row};
use super::sets::Item;
use rayon::{ThreadPool, ThreadPoolBuilder};
use rmsnorm_cuda::{Error, Executor};
use rmsnorm_fuzz::identity::literal_outputs;
use rmsnorm_fuzz::idle::idle_groups;
use rmsnorm_fuzz::products::products;
use rmsnorm_fuzz::{Case, Evidence, Fill, Operands, Outcome, Outputs, PROPERTIES};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Which properties a case is tried with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Identity, exact integers.
    Large,
    /// Identity.
    Bits,
    /// Identity, accuracy. The bits being those of the CPU, accuracy is judged there only.
    Basic,
    /// Identity, launches, accuracy, exact integers.
    Wide,
    /// All.
    All,
    /// All, and launches that compile kernels of their own.
    Hard,
}

impl Depth {
    fn includes(self, property: &str, executor: &str) -> bool {
        match property {
            IDENTITY => true,
            "accuracy" => ![Depth::Large, Depth::Bits].contains(&self) && (self != Depth::Basic || executor == CPU),
            LAUNCH => ![Depth::Basic, Depth::Bits, Depth::Large].contains(&self),
            "exact" => ![Depth::Basic, Depth::Bits].contains(&self),
            _ => matches!(self, Depth::All | Depth::Hard),
        }
    }
}

/// Tries cases and keeps what was found.
pub(super) struct Judge<'a> {
    targets: &'a [Target<'a>],
    rows: Mutex<BTreeMap<(u32, &'static str, &'static str), Row>>,
    literal_us: AtomicU64,
}

impl<'a> Judge<'a> {
    pub(super) fn new(targets: &'a [Target<'a>]) -> Self {
        let mut rows = BTreeMap::new();
        for target in targets {
            for (number, property) in properties() {
                // The CPU has no launches.
                let can = match property {
                    LAUNCH => !target.launches.is_empty(),
                    FAILURES => target.refused.is_some(),
                    _ => true,
                };
                if can {
                    rows.insert((number, property, target.name), row(number, property, target.name));
                }
            }
        }
        Judge { targets, rows: Mutex::new(rows), literal_us: AtomicU64::new(0) }
    }

    /// Tries `items`, largest first.
    pub(super) fn judge_all(
        &self,
        what: &str,
        items: &[Item],
        depth: impl Fn(usize) -> Depth + Sync,
    ) -> anyhow::Result<()> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        let elements = |i: usize| items[i].case.elements();
        order.sort_by_key(|i| std::cmp::Reverse(elements(*i)));
        let (large, small) = order.split_at(order.partition_point(|i| elements(*i) > LARGE));
        let progress = Progress::new(what, items.len());
        let threads = rayon::current_num_threads();
        std::thread::scope(|scope| {
            // It waits for copies of many gigabytes, and for nothing else.
            items.iter().filter(|item| item.name == IDLE).for_each(|item| drop(scope.spawn(|| self.products(item))));
            self.judge_by_size(items, [(large, threads.min(LARGE_SIDE_BY_SIDE)), (small, threads)], &depth, &progress)
        })
    }

    fn judge_by_size(
        &self,
        items: &[Item],
        parts: [(&[usize], usize); 2],
        depth: &(impl Fn(usize) -> Depth + Sync),
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let threads = rayon::current_num_threads();
        for (order, workers) in parts {
            let next = AtomicUsize::new(0);
            let work = || {
                while let Some(i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    self.judge_case(&items[*i], depth(*i));
                    progress.tick();
                }
            };
            // A pool for each worker: a shared one would begin a new case whenever it waits within another.
            let pool = |_| ThreadPoolBuilder::new().num_threads(threads / workers).build();
            let pools: Vec<ThreadPool> = (0..workers.min(order.len())).map(pool).collect::<Result<_, _>>()?;
            std::thread::scope(|scope| pools.iter().for_each(|pool| drop(scope.spawn(|| pool.install(work)))));
        }
        Ok(())
    }

    /// Tries one item by itself.
    pub(super) fn judge(&self, item: &Item, depth: Depth) {
        self.judge_case(item, depth);
        if item.name == IDLE {
            self.products(item);
        }
    }

    fn judge_case(&self, item: &Item, depth: Depth) {
        let case = &item.case;
        let began = Instant::now();
        let mut operands = Operands::new(case, Fill::Nan);
        let want = literal_outputs(&operands);
        self.literal_us.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        for Target { name, executor, launches, refused, .. } in self.targets {
            self.record(1, IDENTITY, name, item, || identity(*executor, "", &mut operands, &want));
            if !launches.is_empty() && depth.includes(LAUNCH, name) {
                let chosen = launches.iter().filter(|launch| depth == Depth::Hard || !launch.hard_only);
                self.record(5, LAUNCH, name, item, || every_launch(chosen, &mut operands, &want));
            }
            if let Some(refused) = refused.filter(|_| depth.includes(FAILURES, name)) {
                self.record(12, FAILURES, name, item, || launch_failures(*executor, refused, case, &want));
            }
        }
        drop((want, operands));
        for Target { name, executor, again, strict, .. } in self.targets {
            for property in PROPERTIES.iter().filter(|p| p.name != IDENTITY && depth.includes(p.name, name)) {
                let executor = if property.name == "writes" { strict } else { executor };
                self.record(property.number, property.name, name, item, || property.check(*executor, case));
            }
            if depth.includes(REPEAT, name) {
                self.record(3, REPEAT, name, item, || two_runs(*executor, again, case));
            }
            if item.name == IDLE {
                self.record(4, IDLE, name, item, || idle_groups(*executor));
            }
        }
    }

    /// Property 11, which has inputs of its own and is tried once.
    fn products(&self, item: &Item) {
        for Target { name, executor, .. } in self.targets {
            self.record(11, PRODUCTS, name, item, || products(*executor));
        }
    }

    fn record(
        &self,
        number: u32,
        property: &'static str,
        executor: &'static str,
        item: &Item,
        check: impl FnOnce() -> Outcome,
    ) {
        let began = Instant::now();
        let outcome = check();
        let thread_s = began.elapsed().as_secs_f64();
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let row = rows.entry((number, property, executor)).or_default();
        row.thread_s += thread_s;
        match outcome {
            Outcome::Passed(found) => row.add(&found),
            Outcome::NotApplicable { reason } => *row.not_applicable.entry(reason).or_default() += 1,
            Outcome::Failed { message, .. } => {
                row.fail(Failure { case: item.name.clone(), elements: item.case.elements() as u64, message });
            }
        }
    }

    /// Time that the literal executor took, all threads together.
    pub(super) fn literal_thread_s(&self) -> f64 {
        self.literal_us.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// What was found, and what was not looked for.
    pub(super) fn rows(self, machine: &Machine) -> Vec<Row> {
        let skipped = |number, property, executor, reason: &str| Row {
            skipped: Some(reason.into()),
            ..row(number, property, executor)
        };
        let mut rows = self.rows.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &machine.missing {
            for (number, property) in properties() {
                rows.entry((number, property, CUDA)).or_insert(skipped(number, property, CUDA, in_short(reason)));
            }
            // What no GPU does on demand is tried with a driver that does.
            let reason = "no GPU; rmsnorm-cuda/tests/driver.rs has a stand-in driver";
            rows.insert((12, FAILURES, CUDA), skipped(12, FAILURES, CUDA, reason));
        }
        rows.into_values().collect()
    }
}

/// Every property that has a check.
fn properties() -> impl Iterator<Item = (u32, &'static str)> {
    let here = [(3, REPEAT), (4, IDLE), (5, LAUNCH), (11, PRODUCTS), (12, FAILURES)];
    PROPERTIES.iter().map(|property| (property.number, property.name)).chain(here)
}

fn row(number: u32, property: &str, executor: &str) -> Row {
    Row { number, property: property.into(), executor: executor.into(), ..Row::default() }
}

/// *Every output equals the literal executor's*, which computed `want`. What an earlier call left in the outputs is wiped first.
fn identity(executor: &dyn Executor, how: &str, operands: &mut Operands, want: &Outputs) -> Outcome {
    let case = *operands.case();
    guarded(executor, &case, || {
        operands.refill_outputs();
        let got = operands.run(executor).map_err(|e| format!("{how}refused a good call: {e}"))?;
        want.difference(&got).map_or(Ok(got), |d| Err(format!("{how}against the literal executor: {d}")))
    })
}

/// *Every launch is equal.*
fn every_launch<'a>(launches: impl Iterator<Item = &'a Launch>, operands: &mut Operands, want: &Outputs) -> Outcome {
    let mut all = Evidence::default();
    for Launch { what, executor, elements_max, left_out, .. } in launches {
        if operands.case().elements() > *elements_max {
            *all.excluded.entry(left_out).or_default() += 1;
            continue;
        }
        match identity(&**executor, what, operands, want) {
            Outcome::Passed(found) => all.merge(&found),
            refuted => return refuted,
        }
    }
    if all.comparisons == 0 {
        return Outcome::NotApplicable { reason: "no launch fits the case".into() };
    }
    Outcome::Passed(all)
}

/// *Two runs are equal*, however the second is made. On the CPU it is that of one thread; on a GPU there are several, and other cases
/// run beside each.
fn two_runs(executor: &dyn Executor, again: &[Again<'_>], case: &Case) -> Outcome {
    let run = |executor: &dyn Executor| Operands::new(case, Fill::Nan).run(executor).map_err(|e| e.to_string());
    let mut all = Evidence::default();
    let first = match catch_unwind(AssertUnwindSafe(|| run(executor))).unwrap_or_else(|_| Err("panicked".into())) {
        Ok(first) => first,
        Err(message) => return failed(executor, case, &message),
    };
    for Again { how, executor: second, at_once } in again {
        let outcome = guarded(executor, case, || {
            let equal = |got: Outputs| first.difference(&got).map_or(Ok(got), |d| Err(format!("{how}: {d}")));
            if !at_once {
                return equal(run(*second).map_err(|e| format!("{how}: {e}"))?);
            }
            let (one, other) = std::thread::scope(|scope| {
                let other = scope.spawn(|| run(*second));
                (run(executor), other.join().unwrap_or_else(|_| Err("panicked".into())))
            });
            equal(one?).and(equal(other?))
        });
        match outcome {
            Outcome::Passed(found) => all.merge(&found),
            refuted => return refuted,
        }
    }
    Outcome::Passed(all)
}

/// *Launch failures surface at the call that caused them*, and nowhere else: the driver refuses a grid of 2^32 − 1 blocks, the call
/// says so, and the next calls give the right bits.
fn launch_failures(executor: &dyn Executor, refused: &dyn Executor, case: &Case, want: &Outputs) -> Outcome {
    if case.rows == 0 {
        return Outcome::NotApplicable { reason: "nothing is launched for no rows".into() };
    }
    guarded(executor, case, || {
        let mut operands = Operands::new(case, Fill::Nan);
        for (call, result) in [("forward", operands.forward(refused)), ("backward", operands.backward(refused))] {
            match result {
                Err(Error::Driver { call: "cuLaunchKernel", .. }) => {}
                other => return Err(format!("{call} with 2^32 − 1 blocks returned {other:?}")),
            }
        }
        let got = Operands::new(case, Fill::Nan).run(executor).map_err(|e| format!("after refused launches: {e}"))?;
        want.difference(&got).map_or(Ok(got), |d| Err(format!("after refused launches: {d}")))
    })
}

/// A panic is a failure too.
fn guarded(executor: &dyn Executor, case: &Case, run: impl FnOnce() -> Result<Outputs, String>) -> Outcome {
    match catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("panicked".into())) {
        Ok(got) => Outcome::Passed(Evidence { comparisons: 1, elements: got.elements(), ..Evidence::default() }),
        Err(message) => failed(executor, case, &message),
    }
}

fn failed(executor: &dyn Executor, case: &Case, message: &str) -> Outcome {
    Outcome::Failed { property: IDENTITY, message: format!("{}: {message} [{case}]", executor.name()) }
}

pub(super) const IDENTITY: &str = "identity";
pub(super) const REPEAT: &str = "two runs";
pub(super) const LAUNCH: &str = "launch";
pub(super) const IDLE: &str = "idle_groups_781";
pub(super) const PRODUCTS: &str = "products";
pub(super) const FAILURES: &str = "launch failures";
/// Up to so many elements a case takes less than 300 MB, whatever is tried.
const LARGE: usize = 1 << 22;
/// Larger ones take 1 GB.
const LARGE_SIDE_BY_SIDE: usize = 4;
