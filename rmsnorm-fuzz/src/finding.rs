//! What a check finds: the words in which every property speaks.

use rmsnorm_cuda::{Error, Executor};
use rmsnorm_ref::Tally;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What one check found.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The property held.
    Passed(Evidence),
    /// The property is refuted.
    Failed {
        /// Name of the property.
        property: &'static str,
        /// Executor, first differing element with its bits, and the case.
        message: String,
    },
    /// The case says nothing about the property.
    NotApplicable {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// What `check` found of `executor`; a failure tells `inputs` too. A panic is a failure.
    pub(crate) fn of(
        property: &'static str,
        executor: &dyn Executor,
        inputs: &str,
        check: impl FnOnce() -> Finding,
    ) -> Outcome {
        let failed =
            |message: &str| Outcome::Failed { property, message: format!("{}: {message}{inputs}", executor.name()) };
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(Ok(evidence)) => Outcome::Passed(evidence),
            Ok(Err(Stop::NotApplicable(reason))) => Outcome::NotApplicable { reason },
            Ok(Err(Stop::Failed(message))) => failed(&message),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                failed(&format!("panicked: {}", text.unwrap_or_default()))
            }
        }
    }
}

/// What a property that held was tested on.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Calls or pairs of calls that were judged.
    pub comparisons: u64,
    /// Output elements that were judged.
    pub elements: u64,
    /// What was left out, by reason.
    pub excluded: BTreeMap<&'static str, u64>,
    /// Error against bound, by output.
    pub accuracy: BTreeMap<&'static str, Tally>,
}

impl Evidence {
    /// Adds the evidence of another check.
    pub fn merge(&mut self, other: &Evidence) {
        self.comparisons += other.comparisons;
        self.elements += other.elements;
        for (reason, count) in &other.excluded {
            *self.excluded.entry(reason).or_default() += count;
        }
        for (output, tally) in &other.accuracy {
            self.accuracy.entry(output).or_default().merge(tally);
        }
    }

    pub(crate) fn count(&mut self, elements: u64) {
        self.comparisons += 1;
        self.elements += elements;
    }

    pub(crate) fn exclude(&mut self, reason: &'static str, count: u64) {
        if count > 0 {
            *self.excluded.entry(reason).or_default() += count;
        }
    }
}

/// What a check of one property returns.
pub(crate) type Finding = Result<Evidence, Stop>;

/// Why a check ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(String),
    NotApplicable(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            // Only where there is no NVRTC; then not all is compiled ahead.
            Error::NoCode { .. } => Stop::NotApplicable("its kernels were not compiled ahead".into()),
            error => Stop::Failed(format!("refused a good call: {error}")),
        }
    }
}

/// Fails with the difference, if there is one.
pub(crate) fn demand_equal(what: impl std::fmt::Display, difference: Option<String>) -> Result<(), Stop> {
    difference.map_or(Ok(()), |d| Err(Stop::Failed(format!("{what}: {d}"))))
}
