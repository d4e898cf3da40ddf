//! What fuzzers executed, by what the cases have.

use crate::case::{Case, Gap, Name};
use crate::finding::Outcome;
use rmsnorm_cuda::plan::column_order;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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

/// What was executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Executions that refuted a property or judged at least one element.
    pub counted: u64,
    /// The others.
    pub rejected: u64,
    /// Elements judged.
    pub elements: u64,
    /// Counted executions by what their case has: what, and how much of it.
    pub histogram: BTreeMap<String, BTreeMap<String, u64>>,
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
        let case = &execution.case;
        let is_mixed =
            Name::ALL.into_iter().any(|name| name.is_matrix() && case.has(name) && case.type_of(name) != dtype);
        self.count("types of rows", if is_mixed { "several" } else { "one" }.into());
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
        *self.histogram.entry(what.into()).or_default().entry(how_much).or_default() += 1;
    }

    /// Adds what another fuzzer executed.
    pub fn merge(&mut self, other: &Statistics) {
        self.counted += other.counted;
        self.rejected += other.rejected;
        self.elements += other.elements;
        for (what, counts) in &other.histogram {
            let mine = self.histogram.entry(what.clone()).or_default();
            counts.iter().for_each(|(how_much, count)| *mine.entry(how_much.clone()).or_default() += count);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(
            [0, 1, 3, 4, 15, 16, 255].map(power_range),
            ["0", "1..3", "1..3", "4..15", "4..15", "16..63", "64..255"]
        );
    }
}
