//! Operands of several types, on the CPU executor.

use rayon::prelude::*;
use rmsnorm_cuda::{Cpu, Dtype, Rounding};
use rmsnorm_fuzz::case::{DwKind, WeightKind};
use rmsnorm_fuzz::identity::identity_alone;
use rmsnorm_fuzz::sets::types;
use rmsnorm_fuzz::{Case, Name, Outcome, PROPERTIES, Subject, Values, try_case};
use std::collections::BTreeMap;

/// Every combination of the types of a forward call's operands with what backward's have by default, and of a backward call's.
#[test]
fn every_combination_gives_the_literal_bits() {
    let all = [combinations(&FORWARD), combinations(&BACKWARD)].concat();
    assert_eq!(all.len(), 729 + 2187);
    let refuted: Vec<String> = all
        .par_iter()
        .filter_map(|case| match identity_alone(&Subject::of(Cpu), case) {
            Outcome::Passed(_) => None,
            other => Some(format!("{other:?}")),
        })
        .collect();
    assert!(refuted.is_empty(), "{} of {}\n{}", refuted.len(), all.len(), refuted[..refuted.len().min(5)].join("\n"));
}

const FORWARD: [Name; 5] = [Name::X, Name::Residual, Name::Y, Name::Weight, Name::Bias];
const BACKWARD: [Name; 6] = [Name::Dy, Name::Dz, Name::Dx, Name::Weight, Name::Dw, Name::Db];

/// Of the types of what is normalised and of these, in calls with every operand.
fn combinations(names: &[Name]) -> Vec<Case> {
    let of_number = |number: usize| {
        let digit = |place: usize| Dtype::ALL[number / 3_usize.pow(place as u32) % 3];
        let mut case = Case {
            residual: Some(Values::Normal),
            dz: Some(Values::Normal),
            bias: WeightKind::Same,
            db: DwKind::Same,
            rounding: if number % 2 == 1 { Rounding::Twice } else { Rounding::Once },
            seed: number as u64,
            ..Case::new(5, 21, digit(0))
        };
        names.iter().enumerate().for_each(|(i, name)| case.types[*name as usize] = Some(digit(1 + i)));
        case
    };
    (0..3_usize.pow(1 + names.len() as u32)).map(of_number).collect()
}

#[test]
fn several_types_have_every_property() {
    let mut comparisons: BTreeMap<&str, u64> = BTreeMap::new();
    let mut failures = Vec::new();
    let subjects = [Subject::of(Cpu)];
    for item in types() {
        let chosen = |_: &Subject, property: &rmsnorm_fuzz::Property| !property.has_own_inputs();
        try_case(&subjects, &item.case, rmsnorm_fuzz::Tried::Seldom, chosen, |_, property, outcome, _| match outcome {
            Outcome::Passed(found) => *comparisons.entry(property.name).or_default() += found.comparisons,
            Outcome::NotApplicable { .. } => {}
            Outcome::Failed { property, message } => failures.push(format!("{}: {property}: {message}", item.name)),
        });
    }
    println!("{comparisons:?}");
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures[..failures.len().min(9)].join("\n"));
    // The CPU has no launches, and these cases no groups of rows.
    let without = ["launch", "launch failures", "heads"];
    let expected = PROPERTIES.iter().filter(|p| !p.has_own_inputs() && !without.contains(&p.name)).count();
    assert_eq!(comparisons.len(), expected);
}
