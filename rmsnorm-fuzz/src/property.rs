//! The list of properties, and what a check of one finds.

use crate::case::Case;
use rmsnorm_cuda::{Error, Executor};
use rmsnorm_ref::Tally;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One sentence of the contract, and the function that tries to refute it.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// Its number; numbers never change their meaning.
    pub number: u32,
    /// Its name on command lines and in reports.
    pub name: &'static str,
    /// What is promised.
    pub sentence: &'static str,
    check: fn(&dyn Executor, &Case) -> Finding,
}

impl Property {
    /// Tries to refute the property with `case`. A panic of the executor is a failure.
    pub fn check(&self, executor: &dyn Executor, case: &Case) -> Outcome {
        judged(self.name, executor, &format!(" [{case}]"), || (self.check)(executor, case))
    }
}

/// What a check of `executor` found; a failure tells `inputs` too. A panic of the executor is a failure.
pub(crate) fn judged(
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

/// Every property that one executor on one case can refute. (3 and 5 compare executors, 11 has [inputs of its
/// own](crate::products), 12 needs a driver that fails on demand.) The first three hold every operand once and every output
/// twice, the others at most twice that.
pub const PROPERTIES: &[Property] = &[
    Property {
        number: 1,
        name: "identity",
        sentence: "Every output equals the literal executor's, bit for bit.",
        check: crate::identity::identity,
    },
    Property {
        number: 2,
        name: "accuracy",
        sentence: "Every element of every output is within the forward error bound of the f64 reference.",
        check: crate::accuracy::accuracy,
    },
    Property {
        number: 4,
        name: "content",
        sentence: "What scratch, outputs and the memory around operands held before a call is irrelevant.",
        check: crate::memory::content,
    },
    Property {
        number: 6,
        name: "batch",
        sentence: "A row alone gives the same bits as in any batch, at any position.",
        check: crate::batch::batch,
    },
    Property {
        number: 7,
        name: "layout",
        sentence: "Alignment and row stride of every operand are irrelevant.",
        check: crate::memory::layout,
    },
    Property {
        number: 8,
        name: "writes",
        sentence: "Nothing but the outputs and scratch is written.",
        check: crate::memory::writes,
    },
    Property {
        number: 9,
        name: "scaling",
        sentence: "Permuting rows permutes y and dx; doubling dy doubles dx and dw; scaling x by 2^k and eps by 4^k keeps \
                   x_hat and shifts rstd.",
        check: crate::scaling::scaling,
    },
    Property {
        number: 10,
        name: "refusal",
        sentence: "Bad arguments are refused with the right typed error before anything is written.",
        check: crate::refusal::refusal,
    },
    Property {
        number: 13,
        name: "exact",
        sentence: "Rows of ±1 with eps 0 and small integers give exact integers.",
        check: crate::exact::exact,
    },
];

/// The property of this name.
pub fn property(name: &str) -> Option<&'static Property> {
    PROPERTIES.iter().find(|p| p.name == name)
}

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
        Stop::Failed(format!("refused a good call: {error}"))
    }
}

/// Fails with the difference, if there is one.
pub(crate) fn demand_equal(what: impl std::fmt::Display, difference: Option<String>) -> Result<(), Stop> {
    difference.map_or(Ok(()), |d| Err(Stop::Failed(format!("{what}: {d}"))))
}
