//! The list of properties: what every executor must have, and who tries to refute it.

use crate::case::Case;
use crate::finding::{Finding, Outcome};
use crate::identity::Trial;
use crate::subject::{Subject, Tried};
use crate::{
    accuracy, batch, exact, far_rows, fused, heads, identity, in_place, issue_781, launches, memory, refusal, runs,
    scaling, twice, types,
};
use std::time::{Duration, Instant};

/// One sentence of the contract, and the function that tries to refute it.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// Its number; numbers never change their meaning.
    pub number: u32,
    /// Its name on command lines and in reports.
    pub name: &'static str,
    /// What is promised.
    pub sentence: &'static str,
    check: Check,
}

/// The function, by what it is given.
#[derive(Clone, Copy, Debug)]
enum Check {
    /// A case, and what the literal executor makes of it.
    Against(fn(&Subject, &mut Trial) -> Finding),
    /// A case.
    Case(fn(&Subject, &Case) -> Finding),
    /// Nothing: it has inputs of its own.
    Own(fn(&Subject) -> Finding),
}

/// Every property. Each holds every operand at most twice and every output at most four times.
pub const PROPERTIES: &[Property] = &[
    Property {
        number: 1,
        name: "identity",
        sentence: "Every output equals the literal executor's, bit for bit.",
        check: Check::Against(identity::identity),
    },
    Property {
        number: 2,
        name: "accuracy",
        sentence: "Every element of every output is within the forward error bound of the f64 reference.",
        check: Check::Case(accuracy::accuracy),
    },
    Property {
        number: 3,
        name: "two runs",
        sentence: "Two runs are equal, however the second is made.",
        check: Check::Case(runs::two_runs),
    },
    Property {
        number: 4,
        name: "content",
        sentence: "What scratch, outputs and the memory around operands held before a call is irrelevant.",
        check: Check::Case(memory::content),
    },
    Property {
        number: 4,
        name: "idle_groups_781",
        sentence: "dw of rows of zeros is +0.0 in every iteration, whatever scratch held.",
        check: Check::Own(issue_781::idle_groups),
    },
    Property {
        number: 5,
        name: "launch",
        sentence: "Every grid, every plan and every class of kernels gives the same bits.",
        check: Check::Against(launches::launch),
    },
    Property {
        number: 6,
        name: "batch",
        sentence: "A row alone gives the same bits as in any batch, at any position.",
        check: Check::Case(batch::batch),
    },
    Property {
        number: 7,
        name: "layout",
        sentence: "Where the rows of every operand lie is irrelevant: alignment, row stride, groups of rows.",
        check: Check::Case(memory::layout),
    },
    Property {
        number: 8,
        name: "writes",
        sentence: "Nothing but the outputs and scratch is written.",
        check: Check::Case(memory::writes),
    },
    Property {
        number: 9,
        name: "scaling",
        sentence: "Permuting rows permutes y and dx; doubling dy doubles dx, dw and db; scaling x by 2^k and eps by 4^k keeps \
                   x_hat and shifts rstd.",
        check: Check::Case(scaling::scaling),
    },
    Property {
        number: 10,
        name: "refusal",
        sentence: "Bad arguments are refused with the right typed error before anything is written.",
        check: Check::Case(refusal::refusal),
    },
    Property {
        number: 11,
        name: "far rows",
        sentence: "Rows that lie beyond 2^32 elements of each other give the bits that they give side by side.",
        check: Check::Own(far_rows::far_rows),
    },
    Property {
        number: 12,
        name: "launch failures",
        sentence: "A launch that fails is told by the call that made it, and by no other.",
        check: Check::Against(launches::launch_failures),
    },
    Property {
        number: 13,
        name: "exact",
        sentence: "Rows of ±1 with eps 0 and small integers give exact integers.",
        check: Check::Case(exact::exact),
    },
    Property {
        number: 14,
        name: "fused",
        sentence: "Forward with a residual gives the bits of forward on the sum that it stored.",
        check: Check::Case(fused::fused),
    },
    Property {
        number: 15,
        name: "twice",
        sentence: "Rounding twice gives the product of the stored x_hat, dw of backward on it, and all else as rounding once.",
        check: Check::Case(twice::twice),
    },
    Property {
        number: 16,
        name: "in place",
        sentence: "An output that has the rows of an input gets the bits that it gets in memory of its own.",
        check: Check::Case(in_place::in_place),
    },
    Property {
        number: 17,
        name: "heads",
        sentence: "Heads with a weight each get the bits that each gets from a call on its rows alone.",
        check: Check::Case(heads::heads),
    },
    Property {
        number: 18,
        name: "types",
        sentence: "Operands widened to f32, and outputs rounded afterwards, give the bits of operands of their own types.",
        check: Check::Case(types::types),
    },
];

/// The property of this name.
pub fn property(name: &str) -> Option<&'static Property> {
    PROPERTIES.iter().find(|p| p.name == name)
}

impl Property {
    /// Tries to refute the property with `case`. A panic of the executor is a failure.
    pub fn check(&self, subject: &Subject, case: &Case) -> Outcome {
        self.check_within(subject, &mut Trial::new(case))
    }

    /// Whether it has inputs of its own, and tries them whatever the case.
    pub fn has_own_inputs(&self) -> bool {
        matches!(self.check, Check::Own(_))
    }

    fn check_within(&self, subject: &Subject, trial: &mut Trial) -> Outcome {
        let case = trial.case;
        let inputs = if self.has_own_inputs() { String::new() } else { format!(" [{case}]") };
        let check = || match self.check {
            Check::Against(check) => check(subject, trial),
            Check::Case(check) => check(subject, &case),
            Check::Own(check) => check(subject),
        };
        Outcome::of(self.name, &*subject.executor, &inputs, check)
    }
}

/// Tries the `chosen` properties of every subject on one case; `record` is told each outcome, and how long it took. The literal
/// executor computes once, for all that compare with it; how long that took is returned. `launches`: those that
/// are [tried](crate::subject::OtherLaunch::tried) as often or more.
pub fn try_case<'a>(
    subjects: &'a [Subject],
    case: &Case,
    launches: Tried,
    chosen: impl Fn(&Subject, &Property) -> bool,
    mut record: impl FnMut(&'a Subject, &'static Property, Outcome, Duration),
) -> Duration {
    let began = Instant::now();
    let mut trial = Trial::new(case);
    trial.launches = launches;
    trial.literal();
    let literal = began.elapsed();
    for against in [true, false] {
        for subject in subjects {
            let properties = PROPERTIES.iter().filter(|p| matches!(p.check, Check::Against(_)) == against);
            for property in properties.filter(|property| chosen(subject, property)) {
                let began = Instant::now();
                let outcome = property.check_within(subject, &mut trial);
                record(subject, property, outcome, began.elapsed());
            }
        }
        // Of the largest cases this is a gigabyte.
        trial.forget();
    }
    literal
}
