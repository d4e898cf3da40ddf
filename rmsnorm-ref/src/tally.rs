//! What a check of many elements found.

use std::fmt;

/// The outcome of checking the elements of one output. Tallies of disjoint blocks of rows merge in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Elements checked.
    pub elements: u64,
    /// Elements that broke the contract.
    pub failures: u64,
    /// The failure with the least (row, column).
    pub first_failure: Option<Failure>,
    /// The largest error/bound met. Both are of the value before its last rounding: the least error that explains the stored
    /// value, 0 where the exact one rounds to it, against what is allowed. +Inf where that is 0 and the error is not.
    pub worst: f64,
    /// (row, column) of `worst`; None while no element had a positive error.
    pub worst_at: Option<(usize, usize)>,
    /// How many elements had error/bound in [k/16, (k+1)/16); the last bin is [15/16, ∞). Elements of which only NaN,
    /// an infinity or "not finite" is asked, or that are so, are in no bin.
    pub histogram: [u64; 16],
    /// Elements of which an intermediate may leave the range of f32, so that a result that is not finite was accepted too.
    pub may_overflow: u64,
    /// Elements for which only one value is allowed: for them the bound is a test of bits.
    pub single: u64,
    /// Elements within the bound that rounding at random would not explain (`docs/numerics.md` §12). They do not fail: the bound
    /// is proven, the alarm is a model.
    pub alarms: u64,
    /// The alarm with the least (row, column).
    pub first_alarm: Option<Failure>,
    /// Elements without a finite bound: (depth + 2)·u > 1/4, or no finite sum of magnitudes. They are no evidence, so
    /// [`passed`](Tally::passed) is false if there are any.
    pub unbounded: u64,
}

/// One element that broke the contract, or raised an alarm.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Row, counted over the whole problem; 0 for column outputs.
    pub row: usize,
    /// Column; 0 for rstd.
    pub column: usize,
    /// What the executor returned, widened.
    pub computed: f64,
    /// What the formulas give.
    pub exact: f64,
    /// The least and the largest stored value allowed; absent where the contract asks for a special value.
    pub interval: Option<(f64, f64)>,
    /// The sentence of the contract that is broken.
    pub reason: &'static str,
}

impl Tally {
    /// Nothing failed and everything had a bound.
    pub fn passed(&self) -> bool {
        self.failures == 0 && self.unbounded == 0
    }

    /// Adds another block's findings to these.
    pub fn merge(&mut self, other: &Tally) {
        self.elements += other.elements;
        self.failures += other.failures;
        self.may_overflow += other.may_overflow;
        self.unbounded += other.unbounded;
        self.single += other.single;
        self.alarms += other.alarms;
        for (mine, theirs) in self.histogram.iter_mut().zip(other.histogram) {
            *mine += theirs;
        }
        if other.worst > self.worst || (other.worst == self.worst && earlier(other.worst_at, self.worst_at)) {
            (self.worst, self.worst_at) = (other.worst, other.worst_at);
        }
        keep_first(&mut self.first_failure, other.first_failure.as_ref());
        keep_first(&mut self.first_alarm, other.first_alarm.as_ref());
    }

    pub(crate) fn count_ratio(&mut self, ratio: f64, at: (usize, usize)) {
        self.histogram[((ratio * 16.0) as usize).min(15)] += 1;
        if ratio > self.worst || (ratio == self.worst && ratio > 0.0 && earlier(Some(at), self.worst_at)) {
            (self.worst, self.worst_at) = (ratio, Some(at));
        }
    }

    pub(crate) fn count_failure(&mut self, failure: Failure) {
        self.failures += 1;
        keep_first(&mut self.first_failure, Some(&failure));
    }

    pub(crate) fn count_alarm(&mut self, alarm: Failure) {
        self.alarms += 1;
        keep_first(&mut self.first_alarm, Some(&alarm));
    }
}

fn keep_first(first: &mut Option<Failure>, other: Option<&Failure>) {
    let at = |failure: Option<&Failure>| failure.map(|f| (f.row, f.column));
    if earlier(at(other), at(first.as_ref())) {
        *first = other.cloned();
    }
}

fn earlier(a: Option<(usize, usize)>, b: Option<(usize, usize)>) -> bool {
    a.is_some_and(|a| b.is_none_or(|b| a < b))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { row, column, computed, exact, interval, reason } = self;
        write!(f, "row {row}, column {column}: {reason}: computed {computed:e}, exact {exact:e}")?;
        match interval {
            Some((least, most)) => write!(f, ", allowed {least:e} to {most:e}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements, worst error/bound {:.3}", self.elements, self.worst)?;
        if let Some((row, column)) = self.worst_at {
            write!(f, " at row {row}, column {column}")?;
        }
        let Tally { failures, may_overflow, unbounded, single, alarms, .. } = self;
        write!(f, ", {single} with one value allowed, {failures} failures, {may_overflow} may overflow")?;
        write!(f, ", {unbounded} unbounded, {alarms} alarms")?;
        for first in self.first_failure.iter().chain(&self.first_alarm) {
            write!(f, "; first: {first}")?;
        }
        Ok(())
    }
}
