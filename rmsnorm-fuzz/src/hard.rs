//! The named hard cases. Each has its reason and, where it stands for a class of historical bugs, the letter of the class:
//! A memory that nobody wrote, B dependence on order, grid or batch, C races, D sizes and limits, E alignment, strides and
//! dispatch, F lanes and tails, G numerics.

use crate::case::{Case, DwKind, Gap, Name, Place, WeightKind, boundaries};
use crate::values::{Values, mix};
use rmsnorm_cuda::plan::{Direction, class, column_order};
use rmsnorm_cuda::{Dtype, HIDDEN_MAX};
use std::sync::LazyLock;

mod biases;
mod levels;
mod numerics;

/// An adversarial input with a name.
#[derive(Clone, Debug)]
pub struct HardCase {
    /// Unique, and what golden hashes and reports call it.
    pub name: String,
    /// Class of historical bugs, A to G.
    pub class: char,
    /// Why it is hard, in one sentence.
    pub reason: &'static str,
    /// The input.
    pub case: Case,
}

impl HardCase {
    /// Whether it is too large to be tried with every property on every run.
    pub fn is_large(&self) -> bool {
        self.case.elements() > LARGE
    }
}

/// Every hard case.
pub fn hard_cases() -> &'static [HardCase] {
    static CASES: LazyLock<Vec<HardCase>> = LazyLock::new(|| {
        let mut list = List { cases: Vec::new() };
        memory(&mut list);
        rows(&mut list);
        widths(&mut list);
        layouts(&mut list);
        added_gradients(&mut list);
        residuals(&mut list);
        numerics::ranges(&mut list);
        numerics::degenerate(&mut list);
        numerics::weights(&mut list);
        numerics::rounded_twice(&mut list);
        biases::biases(&mut list);
        levels::levels(&mut list);
        large(&mut list);
        list.cases
    });
    &CASES
}

/// The hard case of this name.
pub fn hard_case(name: &str) -> Option<&'static HardCase> {
    hard_cases().iter().find(|c| c.name == name)
}

struct List {
    cases: Vec<HardCase>,
}

impl List {
    fn add(&mut self, class: char, name: impl Into<String>, reason: &'static str, case: Case) {
        // The name gives each case its own random numbers: they stay when other cases come and go.
        let name = name.into();
        let seed = name.bytes().fold(0, |seed, byte| mix(seed ^ u64::from(byte))) >> 32;
        self.cases.push(HardCase { name, class, reason, case: Case { seed, ..case } });
    }
}

fn memory(list: &mut List) {
    let idle = Case { eps: 1e-5, x: Values::Constant(0.0), dy: Values::Constant(-1.0), ..Case::new(1, 4, F32) };
    list.add('A', "idle_groups_781", "one row of zeros: every group but one has no rows, and dw must be 0", idle);
    let rows = column_order(usize::MAX, 4).groups - 1;
    list.add('A', "idle_groups_781_one_short", "one row fewer than there are groups", Case { rows, ..idle });
    list.add('A', "no_rows", "nothing to do, but dw is an output and must become 0", Case::new(0, 300, BF16));
    list.add('A', "no_rows_narrow", "no rows of one element", Case::new(0, 1, F32));
    list.add('A', "no_rows_wide", "no rows where a cluster shares them", Case::new(0, 20_000, F16));
    list.add(
        'A',
        "dw_absent",
        "a frozen weight: no scratch at all",
        Case { dw: DwKind::Absent, ..Case::new(9, 129, F16) },
    );
    list.add('A', "rstd_absent", "inference: rstd is not stored", Case { rstd: false, ..Case::new(9, 129, BF16) });
    list.add(
        'A',
        "weight_absent",
        "an absent weight is not a weight of garbage",
        Case { weight: WeightKind::Absent, ..Case::new(9, 1000, BF16) },
    );
}

fn rows(list: &mut List) {
    for rows in [1, 2, 3, 17, 255, 256, 257] {
        let class = if rows < 200 { 'B' } else { 'D' };
        list.add(
            class,
            format!("rows_{rows}"),
            "a number of rows at which others dispatch",
            Case::new(rows, 180, DTYPES[rows % 3]),
        );
    }
    for hidden in [1, 33, 257, 16_385] {
        let groups = column_order(usize::MAX, hidden).groups;
        for (rows, what) in [(groups - 1, "short"), (groups, "full"), (groups + 1, "over")] {
            if hidden == 33 && what == "full" {
                continue;
            }
            let dtype = DTYPES[(hidden + rows) % 3];
            list.add(
                'B',
                format!("groups_{hidden}_{what}"),
                "as many rows as groups, give or take one",
                Case::new(rows, hidden, dtype),
            );
        }
    }
    list.add(
        'D',
        "rows_65537",
        "more rows than a grid dimension holds",
        Case { weight: WeightKind::F32, ..Case::new(65_537, 3, F16) },
    );
    list.add('D', "rows_65535", "exactly a grid dimension of rows", Case::new(65_535, 2, BF16));
    let deep = column_order(usize::MAX, 40).groups * 2 + 1;
    list.add(
        'C',
        "scratch_reused",
        "blocks that work on several row groups, one after the other, in the same shared memory",
        Case::new(deep, 40, F32),
    );
    list.add(
        'C',
        "rows_reused",
        "wide rows, more than blocks: each block reduces twice in the same shared memory",
        Case::new(300, 1500, BF16),
    );
    list.add(
        'D',
        "ring_just_below_48_kb",
        "dynamic shared memory just below 48 KiB, and with the kernel's own above it: the launch failed on an H200",
        Case::new(3, 180, F32),
    );
    list.add('C', "barrier_divergence", "a block of which the last warps have no element", Case::new(5, 1025, F32));
}

fn widths(list: &mut List) {
    for first in boundaries() {
        for hidden in [first - 1, *first] {
            let (rows, dtype) = (if hidden > 16_384 { 2 } else { 5 }, DTYPES[hidden % 3]);
            list.add(
                'E',
                format!("step_{hidden}"),
                "either side of a step in the plan's tables",
                Case::new(rows, hidden, dtype),
            );
        }
    }
    for dtype in DTYPES {
        let classes = |hidden: usize| Direction::BOTH.map(|direction| class(direction, hidden, dtype));
        for hidden in boundaries() {
            let is_new = list.cases.iter().all(|c| c.case.dtype != dtype || classes(c.case.hidden) != classes(*hidden));
            if is_new {
                list.add(
                    'E',
                    format!("class_{hidden}_{dtype}"),
                    "the narrowest row of a class",
                    Case::new(3, *hidden, dtype),
                );
            }
        }
    }
    for (i, hidden) in [1, 2, 3, 5, 7, 31, 63].into_iter().enumerate() {
        list.add(
            'F',
            format!("width_{hidden}"),
            "less than a warp, or a vector, of elements",
            Case::new(19, hidden, DTYPES[i % 3]),
        );
    }
    for (i, hidden) in [129, 180, 769, 1000, 2520, 5120, 7168].into_iter().enumerate() {
        list.add(
            'F',
            format!("width_{hidden}"),
            "a width at which others lost a tail or a warp",
            Case::new(4, hidden, DTYPES[i % 3]),
        );
    }
}

fn layouts(list: &mut List) {
    for (i, operand) in Name::ALL.into_iter().enumerate() {
        let place = Place { offset: 1 + i as u8 * 3 % 7, gap: Gap::None };
        let given = |names: &[Name]| names.contains(&operand).then_some(Values::Normal);
        let (dz, residual) = (given(&[Name::Dz]), given(&[Name::Residual, Name::Z]));
        let case = Case { dz, residual, ..Case::new(6, 264, DTYPES[i % 3]) }.with_place(operand, place);
        list.add('E', format!("misaligned_{operand}"), "one operand off the vector's alignment", case);
    }
    let everywhere =
        |case: Case, gap| Name::ALL.into_iter().fold(case, |c, o| c.with_place(o, Place { offset: o as u8, gap }));
    list.add(
        'E',
        "gaps",
        "rows of a packed buffer, each operand with its own alignment",
        everywhere(Case::new(11, 64, BF16), Gap::Elements(128)),
    );
    list.add(
        'E',
        "gap_of_one",
        "alignment changes from row to row",
        everywhere(Case::new(13, 512, F16), Gap::Elements(1)),
    );
    list.add(
        'E',
        "gap_wide",
        "alignment changes from row to row, streamed",
        everywhere(Case::new(2, 16_400, BF16), Gap::Elements(3)),
    );
    let broadcast = Place { offset: 0, gap: Gap::Broadcast };
    list.add(
        'E',
        "dy_expanded",
        "the gradient of a sum: row stride 0",
        Case::new(40, 100, F32).with_place(Name::Dy, broadcast),
    );
    let both = Case::new(1000, 7, BF16).with_place(Name::Dy, broadcast).with_place(Name::X, broadcast);
    list.add('E', "all_expanded", "x and dy are one row each, seen many times", both);
    list.add(
        'D',
        "irrelevant_stride",
        "one row, with a stride of 2^40 elements",
        everywhere(Case::new(1, 300, F16), Gap::Irrelevant),
    );
}

fn added_gradients(list: &mut List) {
    let with = |dz, case| Case { dz: Some(dz), ..case };
    let ordinary = |rows, hidden, dtype| with(Values::Normal, Case::new(rows, hidden, dtype));
    for (rows, hidden, dtype) in [(40, 64, BF16), (140, 1024, F32), (9, 4096, F16), (3, 16_384, BF16), (5, 20_000, F32)]
    {
        list.add(
            'G',
            format!("dz_{hidden}"),
            "a gradient is added to dx before it is rounded",
            ordinary(rows, hidden, dtype),
        );
    }
    let tiny = Case { x: Values::Scaled(1e-40), eps: 0.0, ..ordinary(6, 300, F32) };
    list.add('D', "dz_of_infinite_rstd", "dx is scaled back while dz is added", tiny);
    list.add('D', "dz_bits", "NaN, infinite and subnormal values in dz", with(Values::Bits, Case::new(30, 512, F32)));
    list.add('D', "dz_outweighs", "dx is far below the last place of dz", with(Values::Max, Case::new(7, 333, BF16)));
    let nothing = Case { dy: Values::Constant(0.0), ..with(Values::Subnormal, Case::new(7, 129, F16)) };
    list.add('G', "dz_alone", "dx is dz where dy is zero", nothing);
    let expanded = Place { offset: 0, gap: Gap::Broadcast };
    list.add(
        'E',
        "dz_expanded",
        "one row of dz, seen many times",
        ordinary(40, 512, BF16).with_place(Name::Dz, expanded),
    );
    let moved = Place { offset: 3, gap: Gap::Elements(1) };
    list.add(
        'E',
        "dz_moved",
        "dz alone changes its alignment from row to row",
        ordinary(13, 2048, F16).with_place(Name::Dz, moved),
    );
}

fn residuals(list: &mut List) {
    let with = |residual, case| Case { residual: Some(residual), ..case };
    let ordinary = |rows, hidden, dtype| with(Values::Normal, Case::new(rows, hidden, dtype));
    for (rows, hidden, dtype) in [(40, 64, F32), (140, 1024, BF16), (9, 4096, F16), (3, 16_384, F32), (5, 20_000, BF16)]
    {
        list.add('G', format!("residual_{hidden}"), "the stored sum is normalised", ordinary(rows, hidden, dtype));
    }
    let both = Case { dz: Some(Values::Normal), ..ordinary(37, 2048, BF16) };
    list.add('G', "residual_block", "a block of a model: forward adds and norms, backward gets z and dz", both);
    list.add(
        'D',
        "residual_overflows",
        "sums beyond the range of f16",
        with(Values::Max, Case { x: Values::Max, ..Case::new(6, 300, F16) }),
    );
    list.add(
        'D',
        "residual_bits",
        "NaN, infinite and subnormal values in the residual",
        with(Values::Bits, Case::new(30, 512, BF16)),
    );
    let outweighs = with(Values::Scaled(300.0), Case { x: Values::Scaled(1e-3), ..Case::new(21, 777, BF16) });
    list.add(
        'B',
        "residual_outweighs",
        "x is below the last place of the sum: who norms the unrounded sum differs",
        outweighs,
    );
    let expanded = Place { offset: 0, gap: Gap::Broadcast };
    list.add(
        'E',
        "residual_expanded",
        "one row, added to many",
        ordinary(40, 512, BF16).with_place(Name::Residual, expanded),
    );
    let moved = Place { offset: 3, gap: Gap::Elements(1) };
    let moved = ordinary(13, 2048, F16).with_place(Name::Z, moved);
    list.add('E', "z_moved", "z alone changes its alignment from row to row", moved);
}

fn large(list: &mut List) {
    list.add(
        'B',
        "equal_rows",
        "a million equal rows: rounding errors all point the same way",
        Case { x: Values::EqualRows, dy: Values::EqualRows, ..Case::new(1 << 20, 3, F32) },
    );
    list.add('B', "million_rows", "one lost row in a million", Case { dw: DwKind::F32, ..Case::new(1 << 20, 4, BF16) });
    for hidden in boundaries().iter().map(|first| first - 1) {
        let groups = column_order(usize::MAX, hidden).groups;
        let last_of_its_kind = column_order(usize::MAX, hidden + 1).groups != groups || hidden == 1 << 17;
        if last_of_its_kind {
            let case = Case {
                dw: DwKind::F32,
                ..Case::new(groups + groups / 2 + 1, hidden, DTYPES[hidden.ilog2() as usize % 3])
            };
            list.add(
                'A',
                format!("deep_{hidden}"),
                "row groups of two rows and of one, for each number of groups",
                case,
            );
        }
    }
    list.add('F', "wide_262144", "the widest rows of models, more of them than groups", Case::new(31, 262_144, F16));
    list.add(
        'D',
        "widest",
        "the widest row that is accepted",
        Case { dw: DwKind::F32, ..Case::new(1, HIDDEN_MAX, BF16) },
    );
    list.add('C', "model_4096", "an ordinary training step", Case::new(3000, 4096, BF16));
    list.add(
        'E',
        "model_5120_gaps",
        "a packed buffer of an ordinary size",
        Case::new(700, 5120, F16).with_place(Name::X, Place { offset: 5, gap: Gap::Elements(77) }),
    );
}

use Dtype::{Bf16 as BF16, F16, F32};
const DTYPES: [Dtype; 3] = Dtype::ALL;
/// Elements of the largest case that is tried with every property on every run.
const LARGE: usize = 1 << 19;

#[cfg(test)]
mod tests {
    use super::*;
    use rmsnorm_cuda::plan::classes;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_words() {
        let names: BTreeSet<_> = hard_cases().iter().map(|c| &c.name).collect();
        assert_eq!(names.len(), hard_cases().len());
        assert!(names.iter().all(|n| !n.contains(char::is_whitespace)));
    }

    #[test]
    fn every_class_of_bugs_has_a_case() {
        let classes: BTreeSet<char> = hard_cases().iter().map(|c| c.class).collect();
        assert_eq!(classes, ('A'..='G').collect());
    }

    #[test]
    fn every_class_of_the_plan_has_a_small_case() {
        for (direction, dtype) in Direction::BOTH.into_iter().flat_map(|d| Dtype::ALL.map(|dtype| (d, dtype))) {
            let small = hard_cases().iter().filter(|c| !c.is_large() && c.case.dtype == dtype);
            let worked: BTreeSet<_> = small.map(|c| class(direction, c.case.hidden, dtype)).collect();
            for wanted in classes(direction, dtype) {
                assert!(worked.contains(&wanted), "{direction:?} {dtype} {wanted}");
            }
        }
    }

    #[test]
    fn every_shape_of_rows_and_groups_has_a_case() {
        for rows in [0, 1, 2, 3, 17] {
            assert!(hard_cases().iter().any(|c| c.case.rows == rows));
        }
        for over in [-1, 0, 1] {
            let groups = |c: &Case| column_order(usize::MAX, c.hidden).groups as isize;
            assert!(hard_cases().iter().any(|c| c.case.rows as isize == groups(&c.case) + over));
        }
    }
}
