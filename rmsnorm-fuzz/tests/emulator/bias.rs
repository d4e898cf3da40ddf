//! A bias, and its gradient.

use super::{TINY, cases, demand_caught, demand_identity, emulated, emulator, machine, of_classes};
use rmsnorm_cuda::plan::Arch;
use rmsnorm_cuda::{Dtype, Rounding};
use rmsnorm_fuzz::case::{DwKind, Gap, WeightKind};
use rmsnorm_fuzz::{Case, Name, Outcome, Place, Values, hard_case, mutants, property};

/// Sums of dy: every width of a block's part of a row, aligned and not; fewer rows than a block has row groups, and more than there are groups; beside
/// few rows in one launch, and streamed ones; without dw, and of every type.
#[test]
fn gradients_of_a_bias() {
    if !machine::has_cxx() {
        return;
    }
    let kinds = [DwKind::Same, DwKind::F32];
    let mut cases = Vec::new();
    for (i, hidden) in [1, 2, 5, 8, 16, 39, 64, 256, 264, 777, 1024, 4096].into_iter().enumerate() {
        for (j, rows) in [1, 37, 700].into_iter().enumerate() {
            let offset = [0, 0, 1, 3][(i + j) % 4];
            let case = Case { db: kinds[(i + j) % 2], ..Case::new(rows, hidden, Dtype::ALL[(i + j) % 3]) };
            let case = Case { dw: [DwKind::Same, DwKind::Absent][i % 2], ..case };
            if rows * hidden < 1 << 19 {
                let gap = if j == 1 { Gap::Elements(8) } else { Gap::None };
                cases.push(case.with_place(Name::Dy, Place { offset, gap }));
            }
        }
    }
    // As many partial rows as there can be, and a chain of several turns.
    cases.push(Case { db: DwKind::Same, ..Case::new(131_081, 5, Dtype::F32) });
    cases.push(Case { db: DwKind::Same, ..Case::new(1400, 1024, Dtype::Bf16) });
    cases.push(Case { db: DwKind::F32, ..Case::new(3, 131_080, Dtype::F16) });
    cases.push(Case { db: DwKind::Same, ..hard_case("db_of_all").expect("a case").case });
    demand_identity(emulator(Arch::H200, None, 13), &cases);
    let subject = emulated(emulator(Arch::A100, None, 14));
    for name in ["writes", "content", "layout", "exact"] {
        let case = Case { db: DwKind::Same, ..Case::new(300, 520, Dtype::Bf16) };
        let outcome = property(name).expect("a property").check(&subject, &case);
        assert!(matches!(outcome, Outcome::Passed(_)), "{name}: {outcome:?}");
    }
}

/// Each broken kernel gives other bits, or is caught by the emulator itself.
#[test]
fn broken_sums_of_dy_are_caught() {
    if !machine::has_cxx() {
        return;
    }
    let case = Case { db: DwKind::F32, ..Case::new(300, 264, Dtype::Bf16) };
    let broken: [(&str, &str, &str); 4] = [
        ("no barrier before a level of the tree", "        __syncthreads();\n        if (slot %", "        if (slot %"),
        ("every tile the first", "column = block % tiles * tile", "column = 0 * tile"),
        ("a level that is left out", "for (u32 d = 1; d < slots;", "for (u32 d = 2; d < slots;"),
        ("a row group of the next block", "group = node * slots + slot", "group = node * slots + slot + 1"),
    ];
    for (what, from, to) in broken {
        demand_caught(|| emulator(Arch::H200, None, 0), what, (from, to), &case);
    }
}

/// Every kernel that adds a bias: held rows, few, streamed, clusters; aligned and not; rounded twice, and with a residual.
#[test]
fn biased() {
    if !machine::has_cxx() {
        return;
    }
    let kinds = [WeightKind::Same, WeightKind::F32];
    let with = |cases: Vec<Case>| -> Vec<Case> {
        cases.into_iter().enumerate().map(|(i, case)| Case { bias: kinds[i % 2], ..case }).collect()
    };
    let f32s: Vec<Case> = cases(Dtype::F32).into_iter().step_by(3).collect();
    demand_identity(of_classes(Arch::H200, 8), &with(f32s));
    let moved = |case: Case| case.with_place(Name::X, Place { offset: 1, ..case.place(Name::X) });
    let unaligned: Vec<Case> = cases(Dtype::Bf16).into_iter().skip(1).step_by(5).map(moved).collect();
    demand_identity(emulator(Arch::A100, None, 9), &with(unaligned));
    let case = |rows, hidden, dtype, weight| Case { weight, eps: 0.0, ..Case::new(rows, hidden, dtype) };
    let others = vec![
        case(37, 4096, Dtype::Bf16, WeightKind::F32),
        case(1, 16_384, Dtype::F16, WeightKind::Absent),
        Case { x: TINY, ..case(3, 4096, Dtype::Bf16, WeightKind::Same) },
        Case { rounding: Rounding::Twice, ..case(9, 20_000, Dtype::Bf16, WeightKind::Absent) },
        Case { residual: Some(Values::Normal), ..case(5, 65_536, Dtype::F16, WeightKind::F32) },
        case(1030, 2048, Dtype::Bf16, WeightKind::Same),
        case(3, 131_080, Dtype::F16, WeightKind::Same),
    ];
    demand_identity(emulator(Arch::H200, None, 10), &with(others));
    let hard: Vec<Case> =
        ["bias_moved", "bias_bits", "bias_twice"].map(|name| hard_case(name).expect(name).case).into();
    demand_identity(emulator(Arch::H200, None, 11), &hard);
    let subject = emulated(emulator(Arch::H200, None, 12));
    for name in ["writes", "content", "layout"] {
        let case = Case { bias: WeightKind::Same, ..Case::new(5, 4096, Dtype::Bf16) };
        let outcome = property(name).expect("a property").check(&subject, &case);
        assert!(matches!(outcome, Outcome::Passed(_)), "{name}: {outcome:?}");
    }
}

/// The kernels' defects of the list that are about a bias: the property that each is named for catches it, and nothing is wrong without it.
#[test]
fn defects_of_a_bias_are_caught() {
    if !machine::has_cxx() {
        return;
    }
    let about = |mutant: &&mutants::Mutant| {
        let case = (mutant.case)();
        mutant.on == mutants::On::Kernels && (case.bias != WeightKind::Absent || case.db != DwKind::Absent)
    };
    let all: Vec<_> = mutants::MUTANTS.iter().filter(about).collect();
    assert!(all.len() >= 5);
    for mutant in all {
        let (sound, case) = (emulator(Arch::H200, None, 0), (mutant.case)());
        let judge = |emulator| property(mutant.property).expect("a property").check(&emulated(emulator), &case);
        assert!(matches!(judge(sound), Outcome::Passed(_)), "{}", mutant.name);
        let broken = mutant.patches.iter().fold(emulator(Arch::H200, None, 0), |e, p| e.patched(p.from, p.to));
        match judge(broken) {
            Outcome::Failed { message, .. } => println!("{}: {message}", mutant.name),
            other => panic!("{}: {other:?}", mutant.name),
        }
    }
}
