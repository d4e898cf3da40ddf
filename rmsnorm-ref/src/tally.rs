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
    /// The largest error/bound met; 0 where both are 0, +Inf where the bound is 0 and the error is not.
    pub worst: f64,
    /// (row, column) of `worst`; None while no element had a positive error.
    pub worst_at: Option<(usize, usize)>,
    /// How many elements had error/bound in [k/16, (k+1)/16); the last bin is [15/16, ∞). Elements of which only NaN,
    /// an infinity or "not finite" is asked, or that are so, are in no bin.
    pub histogram: [u64; 16],
    /// Elements of which an intermediate may leave the range of f32, so that a result that is not finite was accepted too.
    pub may_overflow: u64,
    /// Elements without a finite bound: (depth + 2)·u > 1/4, or no finite sum of magnitudes. They are no evidence, so
    /// [`passed`](Tally::passed) is false if there are any.
    pub unbounded: u64,
}

/// One element that broke the contract.
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
    /// The bound on abs(computed − exact); NaN where the contract asks for a special value.
    pub bound: f64,
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
        for (mine, theirs) in self.histogram.iter_mut().zip(other.histogram) {
            *mine += theirs;
        }
        if other.worst > self.worst || (other.worst == self.worst && earlier(other.worst_at, self.worst_at)) {
            (self.worst, self.worst_at) = (other.worst, other.worst_at);
        }
        let at = |failure: &Option<Failure>| failure.as_ref().map(|f| (f.row, f.column));
        if earlier(at(&other.first_failure), at(&self.first_failure)) {
            self.first_failure.clone_from(&other.first_failure);
        }
    }

    pub(crate) fn count_ratio(&mut self, ratio: f64, at: (usize, usize)) {
        self.histogram[((ratio * 16.0) as usize).min(15)] += 1;
        if ratio > self.worst || (ratio == self.worst && ratio > 0.0 && earlier(Some(at), self.worst_at)) {
            (self.worst, self.worst_at) = (ratio, Some(at));
        }
    }

    pub(crate) fn count_failure(&mut self, failure: Failure) {
        self.failures += 1;
        let known = self.first_failure.as_ref().map(|f| (f.row, f.column));
        if earlier(Some((failure.row, failure.column)), known) {
            self.first_failure = Some(failure);
        }
    }
}

fn earlier(a: Option<(usize, usize)>, b: Option<(usize, usize)>) -> bool {
    a.is_some_and(|a| b.is_none_or(|b| a < b))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { row, column, computed, exact, bound, reason } = self;
        write!(f, "row {row}, column {column}: {reason}: computed {computed:e}, exact {exact:e}")?;
        if bound.is_nan() {
            return Ok(());
        }
        write!(f, ", error {:e}, bound {bound:e}", (computed - exact).abs())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements, worst error/bound {:.3}", self.elements, self.worst)?;
        if let Some((row, column)) = self.worst_at {
            write!(f, " at row {row}, column {column}")?;
        }
        write!(f, ", {} failures, {} may overflow, {} unbounded", self.failures, self.may_overflow, self.unbounded)?;
        match &self.first_failure {
            Some(failure) => write!(f, "; first: {failure}"),
            None => Ok(()),
        }
    }
}
