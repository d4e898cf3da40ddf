//! Tries cases on the subjects and keeps what was found.
//!
//! Cases are tried side by side, the largest first; checks run on one thread each, the CPU executor on all of them. What the
//! literal executor computes is computed once for each case, for all subjects and all their launches.

use super::CUDA;
use super::display::{Progress, in_short};
use super::report::{Failure, Machine, Row};
use crate::record::tell;
use rayon::{ThreadPool, ThreadPoolBuilder};
use rmsnorm_fuzz::case::WeightKind;
use rmsnorm_fuzz::sets::Item;
use rmsnorm_fuzz::{Outcome, PROPERTIES, Property, Subject, Tried, property, try_case};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

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
    /// All, and launches that are seldom tried.
    Hard,
}

impl Depth {
    fn includes(self, property: &str, subject: &str) -> bool {
        match property {
            "identity" => true,
            "accuracy" => ![Depth::Large, Depth::Bits].contains(&self) && (self != Depth::Basic || subject != CUDA),
            "launch" => ![Depth::Basic, Depth::Bits, Depth::Large].contains(&self),
            "exact" => ![Depth::Basic, Depth::Bits].contains(&self),
            _ => matches!(self, Depth::All | Depth::Hard),
        }
    }
}

/// Tries cases and keeps what was found.
pub(super) struct Judge<'a> {
    subjects: &'a [Subject],
    rows: Mutex<BTreeMap<(u32, &'static str, &'static str), Row>>,
    literal_us: AtomicU64,
}

impl<'a> Judge<'a> {
    pub(super) fn new(subjects: &'a [Subject]) -> Self {
        let pairs = subjects.iter().flat_map(|subject| PROPERTIES.iter().map(move |property| (property, subject)));
        let rows = pairs.filter(|(property, subject)| can_be_tried(property, subject));
        let rows = rows.map(|(property, subject)| (key(property, subject.name), row(property, subject.name))).collect();
        Judge { subjects, rows: Mutex::new(rows), literal_us: AtomicU64::new(0) }
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
        let under_way = Mutex::new(BTreeSet::new());
        let (ended, endings) = mpsc::channel();
        std::thread::scope(|scope| {
            // A kernel that hangs says nothing itself.
            scope.spawn(|| at_silence(endings, SILENCE, || tell_of(&under_way)));
            // It waits for copies of many gigabytes, and for nothing else.
            items.iter().filter(|item| item.name == IDLE).for_each(|item| drop(scope.spawn(|| self.far_rows(item))));
            let names = || under_way.lock().unwrap_or_else(PoisonError::into_inner);
            let judge = |i: usize| {
                let name = items[i].name.as_str();
                names().insert(name);
                self.judge_case(&items[i], depth(i));
                names().remove(name);
                progress.tick();
                ended.send(()).ok(); // Without a listener there is nothing to tell.
            };
            let judged = by_size([(large, threads.min(LARGE_SIDE_BY_SIDE)), (small, threads)], judge);
            drop(ended);
            judged
        })
    }

    /// Tries one item by itself.
    pub(super) fn judge(&self, item: &Item, depth: Depth) {
        self.judge_case(item, depth);
        if item.name == IDLE {
            self.far_rows(item);
        }
    }

    fn judge_case(&self, item: &Item, depth: Depth) {
        let chosen = |subject: &Subject, property: &Property| {
            let included = match property.name {
                IDLE => item.name == IDLE,
                FAR_ROWS => false,
                name => depth.includes(name, subject.name),
            };
            included && can_be_tried(property, subject)
        };
        let record = |subject: &Subject, property: &Property, outcome, took| {
            self.record(property, subject, item, outcome, took);
        };
        let launches = match depth {
            Depth::Hard => Tried::Seldom,
            _ if item.case.weight == WeightKind::Same => Tried::Often,
            _ => Tried::Always,
        };
        let literal = try_case(self.subjects, &item.case, launches, chosen, record);
        self.literal_us.fetch_add(literal.as_micros() as u64, Ordering::Relaxed);
    }

    /// Property 11, which has inputs of its own and is tried once.
    fn far_rows(&self, item: &Item) {
        for (property, subject) in
            property(FAR_ROWS).into_iter().flat_map(|p| self.subjects.iter().map(move |s| (p, s)))
        {
            let began = Instant::now();
            let outcome = property.check(subject, &item.case);
            self.record(property, subject, item, outcome, began.elapsed());
        }
    }

    fn record(&self, property: &Property, subject: &Subject, item: &Item, outcome: Outcome, took: Duration) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let row = rows.entry(key(property, subject.name)).or_default();
        row.thread_s += took.as_secs_f64();
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
        let mut rows = self.rows.into_inner().unwrap_or_else(PoisonError::into_inner);
        for property in PROPERTIES {
            let Some(reason) = &machine.missing else { break };
            // What no GPU does on demand is tried with a driver that does.
            let reason = match property.name {
                FAILURES => "no GPU; rmsnorm-cuda/tests/driver.rs has a stand-in driver",
                _ => in_short(reason),
            };
            let skipped = Row { skipped: Some(reason.into()), ..row(property, CUDA) };
            rows.entry(key(property, CUDA)).or_insert(skipped);
        }
        rows.into_values().collect()
    }
}

/// Tries each part's items, so many side by side.
fn by_size(parts: [(&[usize], usize); 2], judge: impl Fn(usize) + Sync) -> anyhow::Result<()> {
    let threads = rayon::current_num_threads();
    for (order, workers) in parts {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                judge(*i);
            }
        };
        // A pool for each worker: a shared one would begin a new case whenever it waits within another.
        let pool = |_| ThreadPoolBuilder::new().num_threads(threads / workers).build();
        let pools: Vec<ThreadPool> = (0..workers.min(order.len())).map(pool).collect::<Result<_, _>>()?;
        std::thread::scope(|scope| pools.iter().for_each(|pool| drop(scope.spawn(|| pool.install(work)))));
    }
    Ok(())
}

fn tell_of(under_way: &Mutex<BTreeSet<&str>>) {
    let names: Vec<&str> = under_way.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
    tell(format_args!("  none of these has ended for {} s: {}", SILENCE.as_secs(), names.join(", ")));
}

/// Calls `say` whenever no case has ended for so long.
fn at_silence(endings: mpsc::Receiver<()>, patience: Duration, say: impl Fn()) {
    loop {
        match endings.recv_timeout(patience) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => say(),
        }
    }
}

/// Whether the subject has what the property is about. (The CPU has no launches.)
fn can_be_tried(property: &Property, subject: &Subject) -> bool {
    match property.name {
        "launch" => !subject.launches.is_empty(),
        FAILURES => subject.refused.is_some(),
        _ => true,
    }
}

fn key(property: &Property, subject: &'static str) -> (u32, &'static str, &'static str) {
    (property.number, property.name, subject)
}

fn row(property: &Property, subject: &str) -> Row {
    Row { number: property.number, property: property.name.into(), executor: subject.into(), ..Row::default() }
}

pub(super) const IDLE: &str = "idle_groups_781";
const FAR_ROWS: &str = "far rows";
const FAILURES: &str = "launch failures";
/// Up to so many elements a case takes less than 300 MB, whatever is tried.
const LARGE: usize = 1 << 22;
/// Larger ones take 1 GB.
const LARGE_SIDE_BY_SIDE: usize = 4;
/// No case takes so long, whatever is compiled for it.
const SILENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_of_until_all_have_ended() {
        let said = AtomicUsize::new(0);
        let (ended, endings) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| at_silence(endings, Duration::from_millis(20), || _ = said.fetch_add(1, Ordering::Relaxed)));
            while said.load(Ordering::Relaxed) < 2 {
                std::thread::yield_now();
            }
            ended.send(()).expect("a listener");
            drop(ended);
        });
    }
}
