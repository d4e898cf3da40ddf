//! Sets of cases beside the hard ones, each case with the name by which it is found again: the classes of the plan, a grid of
//! shapes, random ones, and what these must cover.

mod types;

pub use self::types::{around_f32, types};
use crate::case::{Case, DwKind, Gap, Name, Place, WeightKind, boundaries, random_case};
use crate::hard::hard_cases;
use crate::values::Values;
use rmsnorm_cuda::plan::{Class, Direction, class, classes, column_order};
use rmsnorm_cuda::{Dtype, Rounding, WeightOffset};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A case with its name.
#[derive(Clone, Debug)]
pub struct Item {
    /// What [`named`] finds it by.
    pub name: String,
    /// The case.
    pub case: Case,
}

/// The hard cases that are small enough for every property, or those that are not.
pub fn hard(large: bool) -> Vec<Item> {
    let chosen = hard_cases().iter().filter(|hard| hard.is_large() == large);
    chosen.map(|hard| Item { name: hard.name.clone(), case: hard.case }).collect()
}

/// Every plan class of every type, with every kind of weight: rows that fill the class exactly, rows that do not but are
/// aligned, and rows that are not aligned; some of them rounded twice, or with a bias and its gradient. They are called `class-TYPE-WIDTH-LAYOUT-WEIGHT`, then `-twice` or `-bias`.
pub fn plan_classes() -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for (direction, dtype) in Direction::BOTH.into_iter().flat_map(|d| Dtype::ALL.map(|dtype| (d, dtype))) {
        for (turn, class) in classes(direction, dtype).into_iter().enumerate() {
            for (layout, hidden) in widths(direction, class, dtype) {
                for (weight, kind) in
                    [("none", WeightKind::Absent), ("same", WeightKind::Same), ("f32", WeightKind::F32)]
                {
                    let name = format!("class-{dtype}-{hidden}-{layout}-{weight}");
                    // Two classes may have a width in common.
                    if dtype == Dtype::F32 && kind == WeightKind::F32 || items.iter().any(|item| item.name == name) {
                        continue;
                    }
                    // Several rows for each team, and not the same number for each.
                    let mut case = Case::new(2 * class.teams as usize + 3, hidden, dtype);
                    case.weight = kind;
                    case.seed = items.len() as u64;
                    // The kernels that add one to the weight take turns with those that do not, and so do both types of dw. All widths of
                    // a class take the same: adding is done element by element, and kernels of both would be compiled for each class.
                    let adds_one = match dtype {
                        Dtype::F32 => turn % 2 == 1,
                        Dtype::F16 => kind == WeightKind::F32,
                        Dtype::Bf16 => kind == WeightKind::Same,
                    };
                    case.weight_offset = if adds_one { WeightOffset::One } else { WeightOffset::Zero };
                    case.dw = if case.seed % 3 == 1 { DwKind::F32 } else { DwKind::Same };
                    if layout == Layout::Moved {
                        case = case.with_place(Name::X, Place { offset: 1, gap: Gap::None });
                    }
                    items.push(Item { name, case });
                }
            }
        }
    }
    // Rounding twice is the same in all of them; some stand for all.
    let narrow = items.iter().filter(|item| item.case.dtype != Dtype::F32 && item.case.weight == WeightKind::Same);
    let twice: Vec<Item> = narrow
        .step_by(3)
        .map(|Item { name, case }| Item {
            name: format!("{name}-twice"),
            case: Case { rounding: Rounding::Twice, ..*case },
        })
        .collect();
    // Likewise a bias, of either type.
    let biased = items.iter().filter(|item| item.case.weight != WeightKind::F32).step_by(7).enumerate();
    let biased: Vec<Item> = biased
        .map(|(i, Item { name, case })| {
            let bias = [WeightKind::Same, WeightKind::F32][i % 2];
            let db = [DwKind::F32, DwKind::Same][i / 2 % 2];
            Item { name: format!("{name}-bias"), case: Case { bias, db, ..*case } }
        })
        .collect();
    items.extend(twice.into_iter().chain(biased));
    items
}

/// Rows that a class works on, and how they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// All that the class holds.
    Exact,
    /// Fewer elements, every row on 16 bytes.
    Aligned,
    /// No whole number of packs.
    Unaligned,
    /// Whole packs, in rows that do not begin on 16 bytes.
    Moved,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// The widest row of each layout that `wanted` works on, or, where a cluster's must be aligned, that it would work on. (Of those that no team
/// holds, some stand for all.)
pub fn widths(direction: Direction, wanted: Class, dtype: Dtype) -> Vec<(Layout, usize)> {
    let all = (1..=HELD).chain(WIDER);
    let widths: Vec<usize> = all.filter(|hidden| class(direction, *hidden, dtype) == wanted).collect();
    let (pack, holds) = (wanted.pack as usize, wanted.holds());
    let find = |layout, fits: &dyn Fn(usize) -> bool| {
        widths.iter().rev().copied().find(|hidden| fits(*hidden)).map(|hidden| (layout, hidden))
    };
    let exact = find(Layout::Exact, &|n| n == holds);
    let aligned = find(Layout::Aligned, &|n| n != holds && n.is_multiple_of(pack));
    let unaligned = find(Layout::Unaligned, &|n| !n.is_multiple_of(pack));
    let moved = find(Layout::Moved, &|n| n.is_multiple_of(pack));
    [exact, aligned, unaligned, moved].into_iter().flatten().collect()
}

/// The grid of shapes: numbers of rows and widths at which kernels of this kind have failed, and both sides of every step in the
/// plan's tables. Each width has at least five numbers of rows, each number of rows at least five widths, in turn with every type
/// and weight. They are called `grid-ROWS-WIDTH`.
pub fn grid() -> Vec<Item> {
    let widths = grid_widths();
    let mut pairs = Vec::new();
    for (i, hidden) in widths.iter().enumerate() {
        // In turn, those that are cheap first.
        let mut rows: Vec<usize> = row_counts(*hidden).into_iter().filter(|rows| rows * hidden <= CHEAP).collect();
        let turn = i * PER_WIDTH % rows.len().max(1);
        rows.rotate_left(turn);
        let mut costly: Vec<usize> =
            row_counts(*hidden).into_iter().filter(|rows| !(1..=CHEAP).contains(&(rows * hidden).max(1))).collect();
        costly.sort_unstable();
        rows.extend(costly);
        pairs.extend(rows.into_iter().take(PER_WIDTH).map(|rows| (rows, *hidden)));
    }
    // What the turns left short, at widths far apart.
    for kind in 0..row_counts(1).len() {
        let fits: Vec<usize> = widths.iter().copied().filter(|n| row_counts(*n)[kind] * n <= GRID_ELEMENTS).collect();
        for i in 0..PER_WIDTH {
            // Narrow ones more often: the middle of the list is a width of a few hundred.
            let hidden = fits[i * i * (fits.len() - 1) / (PER_WIDTH * PER_WIDTH)];
            pairs.push((row_counts(hidden)[kind], hidden));
        }
    }
    // As large as it goes, in each direction.
    pairs.extend([(65_536, 1024), (GRID_ELEMENTS / 7168, 7168), (256, 262_144)]);
    let unique: BTreeMap<(usize, usize), usize> = pairs.into_iter().enumerate().map(|(i, pair)| (pair, i)).collect();
    unique.into_keys().enumerate().map(|(i, (rows, hidden))| grid_item(i, rows, hidden)).collect()
}

fn grid_item(i: usize, rows: usize, hidden: usize) -> Item {
    let mut case = Case::new(rows, hidden, Dtype::ALL[i % 3]);
    case.weight = [WeightKind::Same, WeightKind::F32, WeightKind::Same, WeightKind::Absent][i / 3 % 4];
    case.weight_offset = if i.is_multiple_of(5) { WeightOffset::One } else { WeightOffset::Zero };
    case.dw = if i.is_multiple_of(7) { DwKind::F32 } else { DwKind::Same };
    case.seed = (rows * 1_000_003 + hidden) as u64;
    Item { name: format!("grid-{rows}-{hidden}"), case }
}

/// Numbers of rows for rows of `hidden`, always as many; the three about the number of row groups depend on it.
fn row_counts(hidden: usize) -> [usize; 14] {
    let groups = column_order(usize::MAX, hidden).groups;
    [0, 1, 2, 3, 17, groups - 1, groups, groups + 1, 255, 256, 257, 65_535, 65_536, 65_537]
}

fn grid_widths() -> Vec<usize> {
    let mut widths: Vec<usize> = (1..=64).chain(257..=512).collect();
    widths.extend([129, 180, 769, 1000, 1023, 1024, 1025, 2520, 4095, 4096, 4097, 5120, 7168, 16_384]);
    widths.extend([65_537, 131_072, 262_144]);
    widths.extend(boundaries().iter().flat_map(|first| [first - 1, *first, first + 1]));
    widths.sort_unstable();
    widths.dedup();
    widths
}

/// Every family of kernels, for tools that take a hundred times longer: a part of a warp, a warp, several warps and several sets of
/// chains a row; few rows in one launch, and more; rings and none; rows that a cluster shares, and streamed ones; no weight and one of another type; fewer rows than
/// row groups; rows that must be scaled; a residual and dz; a bias; several types. The last ones are to be launched with three blocks: several row groups a block;
/// teams with more rows than their rings have stages, and teams without a row.
pub fn families() -> [Vec<Case>; 2] {
    let case = |rows, hidden, dtype| Case { eps: 0.0, ..Case::new(rows, hidden, dtype) };
    let moved =
        |offset, case| Name::ALL.into_iter().fold(case, |c: Case, o| c.with_place(o, Place { offset, gap: Gap::None }));
    let tiny = Values::Scaled(f32::from_bits(1 << 19)); // 2^-130, of which rstd is infinite
    let fused = |case| Case { residual: Some(Values::Normal), dz: Some(Values::Normal), ..case };
    let planned = vec![
        case(37, 7, Dtype::F32),
        case(300, 64, Dtype::Bf16),
        case(129, 256, Dtype::F16),
        case(45, 1024, Dtype::Bf16),
        Case { weight: WeightKind::Absent, ..case(45, 2048, Dtype::F32) },
        Case { weight: WeightKind::F32, ..case(45, 4096, Dtype::Bf16) },
        case(1030, 1024, Dtype::Bf16),
        Case { x: tiny, ..case(9, 4096, Dtype::Bf16) },
        case(300, 5120, Dtype::Bf16),
        case(33, 5000, Dtype::F32),
        case(17, 12_000, Dtype::F16),
        case(40, 20_000, Dtype::F32),
        case(9, 65_536, Dtype::F16),
        case(3, 70_000, Dtype::Bf16),
        moved(1, case(3, 20_000, Dtype::F32)),
        case(3, 131_080, Dtype::Bf16),
        Case { x: tiny, ..case(5, 40_000, Dtype::F32) },
        moved(1, case(50, 4097, Dtype::Bf16)),
        moved(3, case(50, 100, Dtype::F32)),
        Case { x: tiny, ..case(9, 1000, Dtype::F32) },
        fused(case(45, 2048, Dtype::Bf16)),
        fused(case(9, 40_000, Dtype::F16)),
        Case { bias: WeightKind::Same, db: DwKind::Same, ..case(1030, 2048, Dtype::Bf16) },
        Case { bias: WeightKind::F32, ..case(3, 40_000, Dtype::F16) },
        Case { bias: WeightKind::F32, db: DwKind::F32, ..moved(1, case(9, 4097, Dtype::Bf16)) },
        around_f32(fused(case(45, 1000, Dtype::F32))),
        around_f32(fused(moved(1, case(9, 1001, Dtype::F32)))),
        around_f32(case(3, 20_000, Dtype::F32)),
    ];
    let few_blocks = vec![
        case(140, 4200, Dtype::F32),
        case(200, 40, Dtype::Bf16),
        case(203, 1024, Dtype::Bf16),
        case(3, 4096, Dtype::Bf16),
        fused(moved(1, case(50, 8191, Dtype::Bf16))),
        // No more rows a block than its ring has stages: who may fill one again is told by an atomic count, which racecheck does not follow.
        fused(moved(1, case(12, 4097, Dtype::Bf16))),
    ];
    [planned, few_blocks]
}

/// One in so many of `items`.
pub fn one_in(so_many: usize, items: Vec<Item>) -> Vec<Item> {
    items.into_iter().step_by(so_many).collect()
}

/// Random cases of this seed: so many of at most two to this power of elements, for each pair; then so many that have more rows than row
/// groups. They are called `random-POWER-SEED` and `deep-SEED`.
pub fn random(seed: u64, parts: &[(u64, u32)], deep: u64) -> Vec<Item> {
    let powers = parts.iter().flat_map(|(count, power)| (0..*count).map(|_| *power));
    let random = powers.zip(seed << 32..).map(|(power, seed)| random_item(power, seed));
    random.chain((seed << 32..).take(deep as usize).map(deep_item)).collect()
}

fn random_item(power: u32, seed: u64) -> Item {
    Item { name: format!("random-{power}-{seed}"), case: random_case(seed, 1 << power) }
}

/// A random case with a few rows more than there are row groups, at most an eighth more. Left to chance, cases with so many rows are few
/// or very large.
fn deep_item(seed: u64) -> Item {
    let mut candidates = (0..64).map(|attempt| {
        let case = random_case(seed ^ attempt << 56 ^ 0xdee9, 1 << 18);
        let groups = column_order(usize::MAX, case.hidden).groups;
        Case { rows: groups + 1 + case.seed as usize % groups.div_ceil(8), ..case }
    });
    let case = candidates.find(|case| case.elements() <= DEEP_ELEMENTS).expect("most widths fit");
    Item { name: format!("deep-{seed}"), case }
}

/// Every case that has a name of its own: the hard ones, the classes, the grid, those of several types.
pub fn fixed() -> Vec<Item> {
    [hard(false), hard(true), plan_classes(), grid(), types()].concat()
}

/// The case of this name, whichever set it is of.
pub fn named(name: &str) -> Option<Item> {
    if let Some((power, seed)) = name.strip_prefix("random-").and_then(|rest| rest.split_once('-')) {
        let power = power.parse().ok().filter(|power| *power <= RANDOM_POWER_MAX)?;
        return Some(random_item(power, seed.parse().ok()?));
    }
    if let Some(seed) = name.strip_prefix("deep-") {
        return Some(deep_item(seed.parse().ok()?));
    }
    fixed().into_iter().find(|item| item.name == name)
}

/// What random cases covered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Number of cases.
    pub cases: u64,
    /// Elements of a matrix, on average.
    pub mean_elements: f64,
    /// Cases by what they have.
    pub counts: Vec<(String, u64)>,
}

impl Coverage {
    /// Of these cases.
    pub fn of(items: &[Item]) -> Coverage {
        let count = |has: fn(&Case) -> bool| items.iter().filter(|item| has(&item.case)).count() as u64;
        let elements: usize = items.iter().map(|item| item.case.elements()).sum();
        Coverage {
            cases: items.len() as u64,
            mean_elements: elements as f64 / items.len().max(1) as f64,
            counts: QUOTAS.iter().map(|quota| (quota.name.to_string(), count(quota.has))).collect(),
        }
    }

    /// What falls short of the quotas.
    pub fn shortfalls(&self) -> Vec<String> {
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
/// The largest random cases have two to this power of elements.
pub const RANDOM_POWER_MAX: u32 = 28;
const MEAN_ELEMENTS: f64 = 65536.0;
/// Numbers of rows for each width of the grid, and widths for each number of rows.
const PER_WIDTH: usize = 5;
/// Elements of a matrix that is cheap to try.
const CHEAP: usize = 1 << 18;
/// Elements of the largest matrix of the grid.
const GRID_ELEMENTS: usize = 1 << 26;
/// Elements of the largest matrix that is drawn to have more rows than row groups.
const DEEP_ELEMENTS: usize = 1 << 22;
/// The widest row that a team holds, and wider ones, in order: of every class one that fills it and others.
const HELD: usize = 16_384;
const WIDER: [usize; 11] =
    [20_000, 20_001, 32_768, 40_000, 40_001, 65_536, 100_000, 100_001, 131_072, 131_080, 131_081];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::identity_alone;
    use crate::{Fill, Operands, Outcome, Subject};
    use rmsnorm_cuda::Cpu;
    use std::collections::BTreeSet;

    #[test]
    fn every_class_has_an_aligned_and_an_unaligned_case() {
        let items = plan_classes();
        let names: BTreeSet<_> = items.iter().map(|item| &item.name).collect();
        assert_eq!(names.len(), items.len());
        for (direction, dtype) in Direction::BOTH.into_iter().flat_map(|d| Dtype::ALL.map(|dtype| (d, dtype))) {
            for wanted in classes(direction, dtype) {
                let layouts: BTreeSet<&str> = items
                    .iter()
                    .filter(|item| item.case.dtype == dtype && class(direction, item.case.hidden, dtype) == wanted)
                    .map(|item| item.name.split('-').nth(3).unwrap())
                    .collect();
                assert!(layouts.contains("moved"), "{dtype} {wanted}");
                assert!(layouts.contains("exact") || layouts.contains("aligned"), "{dtype} {wanted}");
            }
        }
    }

    /// What the grid claims, and that it stays affordable.
    #[test]
    fn the_grid_covers_rows_and_widths() {
        let grid = grid();
        let rows_of = |hidden: usize| -> BTreeSet<usize> {
            grid.iter().filter(|item| item.case.hidden == hidden).map(|item| item.case.rows).collect()
        };
        let mut widths_of = [const { BTreeSet::new() }; 14];
        for hidden in grid_widths() {
            let rows = rows_of(hidden);
            assert!(rows.len() >= 5, "width {hidden}: {rows:?}");
            for (kind, rows_of_kind) in row_counts(hidden).iter().enumerate() {
                if rows.contains(rows_of_kind) {
                    widths_of[kind].insert(hidden);
                }
            }
        }
        for (kind, widths) in widths_of.iter().enumerate() {
            assert!(widths.len() >= 5, "rows {}: {widths:?}", row_counts(1)[kind]);
        }
        for first in boundaries() {
            assert!(!rows_of(first - 1).is_empty() && !rows_of(*first).is_empty() && !rows_of(first + 1).is_empty());
        }
        assert!(grid.iter().all(|item| item.case.elements() <= 1 << 26));
        assert!(grid.iter().any(|item| item.case.elements() == 1 << 26));
        for dtype in Dtype::ALL {
            assert!(3 * grid.iter().filter(|item| item.case.dtype == dtype).count() + 3 > grid.len());
        }
        let elements: usize = grid.iter().map(|item| item.case.elements()).sum();
        println!("{} shapes, {:.2e} elements", grid.len(), elements as f64);
        assert!(elements < 3 << 29, "{elements}");
    }

    #[test]
    fn a_name_gives_its_case_again() {
        for items in [hard(false), plan_classes(), grid(), types(), random(3, &[(3, 12), (2, 14)], 2)] {
            for item in items.iter().take(40) {
                assert_eq!(named(&item.name).unwrap().case.to_string(), item.case.to_string());
            }
        }
        for unknown in ["idle_groups_782", "random-99-1", "random-x", "deep-", "grid-1"] {
            assert!(named(unknown).is_none(), "{unknown}");
        }
    }

    #[test]
    fn a_missed_quota_is_named() {
        let coverage = Coverage::of(&[Item { name: String::new(), case: Case::new(1 << 10, 2000, Dtype::F32) }]);
        let missed = coverage.shortfalls().join("; ");
        assert!(missed.contains("bf16") && missed.contains("odd N") && !missed.contains("N > 1024"), "{missed}");
    }

    /// Alone in memory they are legal calls, and of one the rows must be scaled.
    #[test]
    fn families_run_alone() {
        let subject = Subject::of(Cpu);
        for case in families().concat() {
            let outcome = identity_alone(&subject, &case);
            assert!(matches!(outcome, Outcome::Passed(_)), "{outcome:?}");
            let outputs = Operands::new(&case, Fill::Alone).run(&Cpu).unwrap();
            let infinite = (0..case.rows).any(|i| outputs.rstd.get(i).is_infinite());
            assert_eq!(infinite, matches!(case.x, Values::Scaled(_)), "{case}");
        }
    }
}
