//! What came of every property on every defect, and what is wrong with that.

use crate::record::Build;
use crate::verify::display::wrapped;
use anyhow::Result;
use rmsnorm_fuzz::mutants::{MUTANTS, Mutant, On, Verdict};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Instant;

/// What came of one property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Found {
    Passed,
    Caught(String),
    /// The case says nothing about the property.
    Silent(String),
    /// The mutant did not build, launch or end.
    Broken(String),
}

impl Found {
    pub(super) fn new(result: Verdict, why: String) -> Found {
        let unusable = ["could not compile", "is not usable", "stuck at a barrier", "the patch does not apply"];
        match result {
            Verdict::Passed => Found::Passed,
            Verdict::Silent => Found::Silent(why),
            Verdict::Caught if unusable.iter().any(|text| why.contains(text)) => Found::Broken(why),
            Verdict::Caught => Found::Caught(why),
        }
    }
}

/// What came of every property on every subject.
#[derive(Debug, Default)]
pub(super) struct Matrix(BTreeMap<&'static str, BTreeMap<(String, String), Found>>);

impl Matrix {
    pub(super) fn add(&mut self, name: &'static str, found: BTreeMap<(String, String), Found>) {
        self.0.entry(name).or_default().extend(found);
    }

    fn get(&self, name: &str, case: &str, property: &str) -> Option<&Found> {
        self.0.get(name)?.get(&(case.to_string(), property.to_string()))
    }

    pub(super) fn caught(&self, name: &str, property: &str) -> bool {
        matches!(self.get(name, name, property), Some(Found::Caught(_)))
    }

    /// What is wrong with the checks: what they miss, and what would not be missed without one of them.
    pub(super) fn complaints(&self, demanded: &[&Mutant], properties: &[&str]) -> Vec<String> {
        // What no defect is named for is not judged: without the CPU executor's, that is refusal.
        let named = properties.iter().copied().filter(|property| demanded.iter().any(|m| m.property == *property));
        let named: Vec<&str> = named.collect();
        let mut complaints = verdict(demanded, &named, self, None);
        let toothless = named
            .iter()
            .filter(|property| verdict(demanded, &named, self, Some(property)).len() <= complaints.len())
            .map(|property| format!("without {property} nothing more would fail"));
        complaints.extend(toothless.collect::<Vec<_>>());
        complaints
    }

    /// The matrix as a table.
    pub(super) fn print(&self, chosen: &[&Mutant], properties: &[&str], out: &mut dyn Write) -> Result<()> {
        let width = chosen.iter().map(|m| m.name.len()).max().unwrap_or(0) + 2;
        for (i, property) in properties.iter().enumerate() {
            writeln!(out, "{:width$}{}{property}", "", "│ ".repeat(i))?;
        }
        for mutant in chosen {
            write!(out, "{:width$}", mutant.name)?;
            for property in properties {
                let mark = match self.get(mutant.name, mutant.name, property) {
                    Some(Found::Caught(_)) if mutant.property == *property => "■ ",
                    Some(Found::Caught(_)) => "□ ",
                    Some(Found::Passed) => "· ",
                    Some(Found::Silent(_)) | None => "  ",
                    Some(Found::Broken(_)) => "! ",
                };
                write!(out, "{mark}")?;
            }
            writeln!(out, " {}", mutant.defect)?;
        }
        let count = |property: &str| chosen.iter().filter(|m| self.caught(m.name, property)).count();
        let counts: Vec<String> = properties.iter().map(|property| format!("{property} {}", count(property))).collect();
        writeln!(out, "{}", wrapped("caught  ", &counts.join(", ")))?;
        writeln!(
            out,
            "■ caught by the property named for it, alone   □ caught   · missed   blank: not tried, or the case says nothing"
        )?;
        writeln!(out, "12 (launch failures) takes a driver that fails on demand: rmsnorm-cuda/tests/driver.rs")?;
        Ok(())
    }
}

/// What is wrong with the checks, if what `disabled` says is not heard.
fn verdict(chosen: &[&Mutant], properties: &[&str], matrix: &Matrix, disabled: Option<&str>) -> Vec<String> {
    let mut complaints = Vec::new();
    for ((case, property), found) in matrix.0.get(CLEAN).into_iter().flatten() {
        if let Found::Caught(why) | Found::Broken(why) = found {
            complaints.push(format!("{property} fails without any defect, on the case of {case}: {why}"));
        }
    }
    let caught = |name: &str, property: &str| disabled != Some(property) && matrix.caught(name, property);
    for mutant in chosen {
        for property in mutant.demanded().filter(|property| !caught(mutant.name, property)) {
            let found = matrix.get(mutant.name, mutant.name, property);
            complaints.push(format!("{} is not caught by {property}: {found:?}", mutant.name));
        }
        for ((_, property), found) in matrix.0.get(mutant.name).into_iter().flatten() {
            if let Found::Broken(why) = found {
                complaints.push(format!("{} is no mutant, at {property}: {why}", mutant.name));
            }
        }
    }
    // What is demanded of a property counts on all defects, those of the CPU executor too.
    for property in properties.iter().filter(|_| chosen.len() == MUTANTS.len()) {
        let catches: Vec<&Mutant> = chosen.iter().copied().filter(|m| caught(m.name, property)).collect();
        if catches.len() < 2 {
            complaints.push(format!("{property} catches {} mutants, expected 2", catches.len()));
        }
        if *property != ACCURACY && catches.iter().all(|m| matrix.caught(m.name, ACCURACY)) {
            complaints.push(format!("{property} catches no mutant that accuracy misses"));
        }
    }
    complaints
}

/// A run of `cargo xtask verify --mutants`, as `--report` writes it.
#[derive(Serialize)]
pub(super) struct Report {
    schema: u32,
    passed: bool,
    command: Vec<String>,
    build: Build,
    device: &'static str,
    elapsed_s: f64,
    mutants: Vec<OfMutant>,
    /// Properties that passed without any defect, with the number of cases.
    clean: BTreeMap<String, usize>,
    complaints: Vec<String>,
}

#[derive(Serialize)]
struct OfMutant {
    name: &'static str,
    defect: &'static str,
    on: &'static str,
    case: String,
    named_property: &'static str,
    /// What the named property said.
    message: String,
    caught_by: BTreeSet<String>,
    missed_by: BTreeSet<String>,
}

impl Report {
    pub(super) fn new(
        chosen: &[&Mutant],
        matrix: &Matrix,
        device: &'static str,
        began: Instant,
        passed: bool,
        complaints: Vec<String>,
    ) -> Report {
        let mut clean: BTreeMap<String, usize> = BTreeMap::new();
        for ((_, property), found) in matrix.0.get(CLEAN).into_iter().flatten() {
            *clean.entry(property.clone()).or_default() += usize::from(*found == Found::Passed);
        }
        let judged = |mutant: &&Mutant| {
            let by = |wanted: fn(&Found) -> bool| {
                let found = matrix.0.get(mutant.name).into_iter().flatten();
                found.filter(|(_, found)| wanted(found)).map(|((_, property), _)| property.clone()).collect()
            };
            OfMutant {
                name: mutant.name,
                defect: mutant.defect,
                on: if mutant.on == On::Cpu { "cpu" } else { "kernels" },
                case: (mutant.case)().to_string(),
                named_property: mutant.property,
                message: format!("{:?}", matrix.get(mutant.name, mutant.name, mutant.property)),
                caught_by: by(|found| matches!(found, Found::Caught(_))),
                missed_by: by(|found| *found == Found::Passed),
            }
        };
        Report {
            schema: 1,
            passed,
            command: std::env::args().skip(1).collect(),
            build: Build::this(),
            device,
            elapsed_s: began.elapsed().as_secs_f64(),
            mutants: chosen.iter().map(judged).collect(),
            clean,
            complaints,
        }
    }
}

/// The name of what has no defect.
pub(super) const CLEAN: &str = "clean";
pub(super) const ACCURACY: &str = "accuracy";

#[cfg(test)]
mod tests {
    use super::super::RACES;
    use super::*;
    use rmsnorm_fuzz::mutants::judges;

    fn properties() -> Vec<&'static str> {
        judges().map(|property| property.name).collect()
    }

    /// Every mutant is caught by its named property, and those of accuracy by identity too.
    fn ideal() -> Matrix {
        let mut matrix = Matrix::default();
        for mutant in MUTANTS {
            let found = properties().into_iter().map(|property| {
                let found = if mutant.demanded().any(|demanded| demanded == property) {
                    Found::Caught("!".into())
                } else {
                    Found::Passed
                };
                ((mutant.name.to_string(), property.to_string()), found)
            });
            matrix.add(mutant.name, found.collect());
        }
        for property in properties() {
            let some = MUTANTS.iter().filter(|m| m.property != ACCURACY).take(2);
            for mutant in some.filter(|_| property != ACCURACY) {
                let key = (mutant.name.to_string(), property.to_string());
                matrix.add(mutant.name, BTreeMap::from([(key, Found::Caught("!".into()))]));
            }
        }
        matrix
    }

    fn all() -> Vec<&'static Mutant> {
        MUTANTS.iter().collect()
    }

    #[test]
    fn a_property_that_is_disabled_is_missed() {
        let matrix = ideal();
        assert_eq!(verdict(&all(), &properties(), &matrix, None), Vec::<String>::new());
        for property in properties() {
            let complaints = verdict(&all(), &properties(), &matrix, Some(property));
            assert!(
                complaints.iter().any(|c| c.contains(&format!("not caught by {property}"))),
                "{property}: {complaints:?}"
            );
        }
    }

    /// Where only the kernels' defects are judged, each must be caught, and nothing is asked about properties that none is named for.
    #[test]
    fn some_of_the_defects_are_judged_alone() {
        let kernels: Vec<&Mutant> = MUTANTS.iter().filter(|m| m.on == On::Kernels).collect();
        assert_eq!(verdict(&kernels, &["identity", "two runs"], &ideal(), None), Vec::<String>::new());
        assert!(!verdict(&kernels, &["identity", "two runs"], &ideal(), Some("two runs")).is_empty());
        assert!(RACES.iter().all(|race| kernels.iter().any(|m| m.name == *race)));
    }

    #[test]
    fn what_does_not_build_or_fails_without_a_defect_is_no_success() {
        let mut matrix = ideal();
        let key = ("eps_ignored".to_string(), "identity".to_string());
        matrix.add(
            "eps_ignored",
            BTreeMap::from([(key.clone(), Found::new(Verdict::Caught, "NVRTC could not compile x".into()))]),
        );
        assert!(verdict(&all(), &properties(), &matrix, None)[0].contains("is no mutant"));
        let mut matrix = ideal();
        matrix.add(CLEAN, BTreeMap::from([(key, Found::Caught("!".into()))]));
        assert!(verdict(&all(), &properties(), &matrix, None)[0].contains("without any defect"));
    }
}
