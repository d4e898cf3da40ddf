//! Which cases a run tries, what they are called on the command line, and what the random ones must cover.

use anyhow::{Result, bail};
use rmsnorm_cuda::plan::{Class, class, classes, column_order};
use rmsnorm_cuda::{Dtype, WeightOffset};
use rmsnorm_fuzz::case::{DwKind, WeightKind};
use rmsnorm_fuzz::{Case, Gap, Name, Place, hard_cases, random_case};
use serde::{Deserialize, Serialize};

/// A case with the name by which `--case` finds it again.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) case: Case,
}

/// The hard cases that are small enough for every property, or those that are not.
pub(super) fn hard(large: bool) -> Vec<Item> {
    let chosen = hard_cases().iter().filter(|hard| hard.is_large() == large);
    chosen.map(|hard| Item { name: hard.name.clone(), case: hard.case }).collect()
}

/// Every plan class of every type, with every kind of weight: rows that fill the class exactly, rows that do not but are
/// aligned, and rows that are not aligned. `--case` calls them `class-TYPE-WIDTH-LAYOUT-WEIGHT`.
pub(super) fn plan_classes() -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for dtype in Dtype::ALL {
        for class in classes(dtype) {
            for (layout, hidden, offset) in layouts(class, dtype) {
                for (weight, kind) in
                    [("none", WeightKind::Absent), ("same", WeightKind::Same), ("f32", WeightKind::F32)]
                {
                    if dtype == Dtype::F32 && kind == WeightKind::F32 {
                        continue;
                    }
                    // Several rows for each team, and not the same number for each.
                    let mut case = Case::new(2 * class.teams as usize + 3, hidden, dtype);
                    case.weight = kind;
                    case.seed = items.len() as u64;
                    // The kernels that add one to the weight, and both types of dw, take turns.
                    case.weight_offset = if case.seed % 2 == 1 { WeightOffset::One } else { WeightOffset::Zero };
                    case.dw = if case.seed % 3 == 1 { DwKind::F32 } else { DwKind::Same };
                    if offset {
                        case = case.with_place(Name::X, Place { offset: 1, gap: Gap::None });
                    }
                    items.push(Item { name: format!("class-{dtype}-{hidden}-{layout}-{weight}"), case });
                }
            }
        }
    }
    items
}

/// Widths of `class`, each with the name of its layout and whether `x` must be moved to break the alignment.
fn layouts(wanted: Class, dtype: Dtype) -> Vec<(&'static str, usize, bool)> {
    let widths: Vec<usize> = (1..=STREAMED).filter(|hidden| class(*hidden, dtype) == wanted).collect();
    let pack = wanted.pack as usize;
    let holds = (wanted.lanes * wanted.pack * wanted.packs) as usize;
    let find = |fits: &dyn Fn(usize) -> bool| widths.iter().rev().copied().find(|hidden| fits(*hidden));
    let exact = find(&|n| n == holds).map(|n| ("exact", n, false));
    let aligned = find(&|n| n != holds && n.is_multiple_of(pack)).map(|n| ("aligned", n, false));
    let unaligned = find(&|n| !n.is_multiple_of(pack)).map(|n| ("unaligned", n, false));
    let moved = find(&|n| n.is_multiple_of(pack)).map(|n| ("moved", n, true));
    [exact, aligned, unaligned, moved].into_iter().flatten().collect()
}

/// Random cases of this seed: so many of at most two to this power of elements, for each pair. `--case` calls them
/// `random-POWER-SEED`.
pub(super) fn random(seed: u64, parts: &[(u64, u32)]) -> Vec<Item> {
    let powers = parts.iter().flat_map(|(count, power)| (0..*count).map(|_| *power));
    powers.zip(seed << 32..).map(|(power, seed)| random_item(power, seed)).collect()
}

fn random_item(power: u32, seed: u64) -> Item {
    Item { name: format!("random-{power}-{seed}"), case: random_case(seed, 1 << power) }
}

/// The case of this name, wherever it is from.
pub(super) fn named(name: &str) -> Result<Item> {
    if let Some((power, seed)) = name.strip_prefix("random-").and_then(|rest| rest.split_once('-')) {
        if let (Ok(power @ 0..=28), Ok(seed)) = (power.parse(), seed.parse()) {
            return Ok(random_item(power, seed));
        }
        bail!("{name} is no random case: expected random-POWER-SEED, such as random-18-7, with a power of at most 28");
    }
    let mut known = [hard(false), hard(true), plan_classes()].concat();
    if let Some(found) = known.iter().position(|item| item.name == name) {
        return Ok(known.swap_remove(found));
    }
    let class = |item: &&Item| item.name.starts_with("class-");
    bail!(
        "no case is called {name}; there are\n\nhard cases:{}\nplan classes:{}\nrandom-POWER-SEED: random-18-7 has at most 2^18 \
         elements and seed 7",
        in_lines(known.iter().filter(|item| !class(item))),
        in_lines(known.iter().filter(class))
    )
}

/// The names, in lines that fit a terminal.
fn in_lines<'a>(items: impl Iterator<Item = &'a Item>) -> String {
    let (mut lines, mut width) = (String::new(), usize::MAX);
    for Item { name, .. } in items {
        if width.saturating_add(name.len()) > LINE {
            (lines, width) = (lines + "\n ", 1);
        }
        lines = lines + " " + name;
        width += name.len() + 1;
    }
    lines
}

/// What random cases covered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Coverage {
    /// Number of cases.
    pub cases: u64,
    /// Elements of a matrix, on average.
    pub mean_elements: f64,
    /// Cases by what they have.
    pub counts: Vec<(String, u64)>,
}

impl Coverage {
    /// Of these cases.
    pub(super) fn of(items: &[Item]) -> Coverage {
        let count = |has: fn(&Case) -> bool| items.iter().filter(|item| has(&item.case)).count() as u64;
        let elements: usize = items.iter().map(|item| item.case.elements()).sum();
        Coverage {
            cases: items.len() as u64,
            mean_elements: elements as f64 / items.len().max(1) as f64,
            counts: QUOTAS.iter().map(|quota| (quota.name.to_string(), count(quota.has))).collect(),
        }
    }

    /// What falls short of the quotas.
    pub(super) fn shortfalls(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if self.mean_elements < MEAN_ELEMENTS {
            missed.push(format!("{:.0} elements on average, expected {MEAN_ELEMENTS}", self.mean_elements));
        }
        for (quota, (name, count)) in QUOTAS.iter().zip(&self.counts) {
            if 100 * count < quota.percent * self.cases {
                missed.push(format!("{name} in {}, expected {} %", self.percent(*count), quota.percent));
            }
        }
        missed
    }

    fn percent(&self, count: u64) -> String {
        format!("{:.0} %", 100.0 * count as f64 / self.cases.max(1) as f64)
    }
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} cases of {:.0} elements on average", self.cases, self.mean_elements)?;
        self.counts.iter().try_for_each(|(name, count)| write!(f, ", {} {name}", self.percent(*count)))
    }
}

/// A share of random cases that must have something.
struct Quota {
    name: &'static str,
    percent: u64,
    has: fn(&Case) -> bool,
}

const QUOTAS: [Quota; 8] = [
    Quota { name: "N > 1024", percent: 30, has: |c| c.hidden > 1024 },
    Quota { name: "N > 16384", percent: 10, has: |c| c.hidden > 16384 },
    Quota { name: "M > G", percent: 30, has: |c| c.rows > column_order(c.rows, c.hidden).groups },
    Quota { name: "odd N", percent: 30, has: |c| c.hidden % 2 == 1 },
    Quota { name: "odd offset", percent: 30, has: |c| c.places.iter().any(|place| place.offset % 2 == 1) },
    Quota { name: "f32", percent: 30, has: |c| c.dtype == Dtype::F32 },
    Quota { name: "f16", percent: 30, has: |c| c.dtype == Dtype::F16 },
    Quota { name: "bf16", percent: 30, has: |c| c.dtype == Dtype::Bf16 },
];
const LINE: usize = 118;
const MEAN_ELEMENTS: f64 = 65536.0;
/// The widest row that stands for streamed rows; narrower rows have all classes.
const STREAMED: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_class_has_an_aligned_and_an_unaligned_case() {
        let items = plan_classes();
        let names: BTreeSet<_> = items.iter().map(|item| &item.name).collect();
        assert_eq!(names.len(), items.len());
        for dtype in Dtype::ALL {
            for wanted in classes(dtype) {
                let layouts: BTreeSet<&str> = items
                    .iter()
                    .filter(|item| item.case.dtype == dtype && class(item.case.hidden, dtype) == wanted)
                    .map(|item| item.name.split('-').nth(3).unwrap())
                    .collect();
                assert!(layouts.contains("moved"), "{dtype} {wanted}");
                assert!(layouts.contains("exact") || layouts.contains("aligned"), "{dtype} {wanted}");
            }
        }
    }

    #[test]
    fn a_name_gives_its_case_again() {
        for items in [hard(false), plan_classes(), random(3, &[(3, 12), (2, 14)])] {
            for item in items.iter().take(40) {
                assert_eq!(named(&item.name).unwrap().case.to_string(), item.case.to_string());
            }
        }
    }

    #[test]
    fn an_unknown_name_lists_the_names() {
        let error = named("idle_groups_782").unwrap_err().to_string();
        for known in ["idle_groups_781", "class-bf16-", "random-18-7"] {
            assert!(error.contains(known), "{error}");
        }
        assert!(named("random-99-1").is_err() && named("random-x").is_err());
    }

    #[test]
    fn a_missed_quota_is_named() {
        let coverage = Coverage::of(&[Item { name: String::new(), case: Case::new(1 << 10, 2000, Dtype::F32) }]);
        let missed = coverage.shortfalls().join("; ");
        assert!(missed.contains("bf16") && missed.contains("odd N") && !missed.contains("N > 1024"), "{missed}");
    }
}
