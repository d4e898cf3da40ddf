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
    /// Elements of the histogram for which only one value is allowed: for them the bound is a test of bits.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(row: usize, column: usize) -> Failure {
        Failure { row, column, computed: 2.0, exact: 1.0, interval: Some((0.5, 1.5)), reason: "must be near" }
    }

    fn tally(n: u64, at: (usize, usize)) -> Tally {
        Tally {
            elements: 100 * n,
            failures: n,
            first_failure: Some(failure(at.0, at.1)),
            worst: 0.5,
            worst_at: Some(at),
            histogram: std::array::from_fn(|i| n * (i as u64 + 1)),
            may_overflow: 3 * n,
            single: 7 * n,
            alarms: 11 * n,
            first_alarm: Some(failure(at.0, at.1)),
            unbounded: 13 * n,
        }
    }

    #[test]
    fn merging_adds_and_keeps_the_first_in_either_order() {
        for (earlier, later) in [((1, 5), (2, 0)), ((1, 5), (1, 6))] {
            let sum = Tally { worst_at: Some(earlier), ..tally(5, earlier) };
            for (a, b) in [(tally(2, earlier), tally(3, later)), (tally(3, later), tally(2, earlier))] {
                let mut merged = a.clone();
                merged.merge(&b);
                assert_eq!(merged, sum);
                let mut with_nothing = b.clone();
                with_nothing.merge(&Tally::default());
                assert_eq!(with_nothing, b);
            }
        }
        let mut worse = tally(1, (0, 0));
        worse.merge(&Tally { worst: 0.75, worst_at: Some((9, 9)), ..Tally::default() });
        assert_eq!((worse.worst, worse.worst_at), (0.75, Some((9, 9))));
    }

    #[test]
    fn passed_means_no_failure_and_a_bound_for_everything() {
        assert!(Tally { alarms: 1, may_overflow: 1, ..Tally::default() }.passed());
        assert!(!Tally { failures: 1, ..Tally::default() }.passed());
        assert!(!Tally { unbounded: 1, ..Tally::default() }.passed());
    }

    #[test]
    fn ratios_are_binned_and_the_first_of_the_worst_is_kept() {
        let mut tally = Tally::default();
        for (ratio, at) in [(0.0, (0, 0)), (0.5, (3, 0)), (0.5, (2, 9)), (0.5, (4, 0)), (1.0, (5, 0)), (7.0, (6, 0))] {
            tally.count_ratio(ratio, at);
        }
        assert_eq!((tally.worst, tally.worst_at), (7.0, Some((6, 0))));
        assert_eq!((tally.histogram[0], tally.histogram[8], tally.histogram[15]), (1, 3, 2));
        let mut ties = Tally::default();
        [(3, 0), (2, 9), (4, 0)].into_iter().for_each(|at| ties.count_ratio(0.5, at));
        assert_eq!(ties.worst_at, Some((2, 9)));
        let mut nothing = Tally::default();
        nothing.count_ratio(0.0, (0, 0));
        assert_eq!(nothing.worst_at, None);
    }

    #[test]
    fn a_reader_sees_where_what_and_the_counts() {
        let text = tally(1, (4, 2)).to_string();
        for part in
            ["100 elements", "0.500 at row 4, column 2", "7 with one value", "1 failures", "13 unbounded", "11 alarms"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(
            text.ends_with("row 4, column 2: must be near: computed 2e0, exact 1e0, allowed 5e-1 to 1.5e0"),
            "{text}"
        );
        assert!(Failure { interval: None, ..failure(0, 0) }.to_string().ends_with("exact 1e0"));
    }
}
