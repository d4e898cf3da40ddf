//! Rounding twice.

use super::{TINY, cases, demand_identity, emulated, emulator, machine, of_classes};
use rmsnorm_cuda::cuda::checks::emulator::Emulator;
use rmsnorm_cuda::plan::Arch;
use rmsnorm_cuda::{Dtype, Rounding};
use rmsnorm_fuzz::case::WeightKind;
use rmsnorm_fuzz::{Case, Name, Outcome, Place, hard_case, mutants, property};

/// Every kernel that rounds twice: held rows, a ring, streamed rows, clusters, few rows in one launch; aligned and not.
#[test]
fn rounded_twice() {
    if !machine::has_cxx() {
        return;
    }
    let twice = |case: Case| Case { rounding: Rounding::Twice, ..case };
    let of_classes_f16: Vec<Case> = cases(Dtype::F16).into_iter().step_by(4).map(twice).collect();
    demand_identity(of_classes(Arch::H200, 8), &of_classes_f16);
    let moved = |case: Case| case.with_place(Name::X, Place { offset: 1, ..case.place(Name::X) });
    let unaligned: Vec<Case> = cases(Dtype::Bf16).into_iter().skip(2).step_by(6).map(twice).map(moved).collect();
    demand_identity(emulator(Arch::A100, None, 9), &unaligned);
    let case = |rows, hidden, dtype, weight| twice(Case { weight, eps: 0.0, ..Case::new(rows, hidden, dtype) });
    let mut others = vec![
        case(37, 4096, Dtype::Bf16, WeightKind::F32),
        case(300, 1024, Dtype::F16, WeightKind::Absent),
        Case { x: TINY, ..case(3, 4096, Dtype::Bf16, WeightKind::Same) },
        case(9, 20_000, Dtype::Bf16, WeightKind::Same),
        case(5, 65_536, Dtype::F16, WeightKind::F32),
        case(9, 2048, Dtype::F32, WeightKind::Same),
    ];
    others.extend(
        ["twice_tie_bf16", "twice_tie_f16", "twice_every_magnitude"].map(|name| hard_case(name).expect(name).case),
    );
    demand_identity(emulator(Arch::H200, None, 10), &others);
}

/// The kernels' defects of the list that are about rounding twice: what catches them, and that the bound misses what it cannot see.
#[test]
fn defects_of_rounding_twice_are_caught() {
    if !machine::has_cxx() {
        return;
    }
    // Of those in their text.
    let about = |mutant: &&mutants::Mutant| {
        let in_rust = mutant.patches.iter().any(|patch| patch.file.ends_with(".rs"));
        (mutant.case)().rounding == Rounding::Twice && mutant.on == mutants::On::Kernels && !in_rust
    };
    let judge =
        |name: &str, emulator: Emulator, case: &Case| property(name).expect(name).check(&emulated(emulator), case);
    for mutant in mutants::MUTANTS.iter().filter(about) {
        let [patch] = mutant.patches else { panic!("{}: one patch", mutant.name) };
        let (sound, case) = (|| emulator(Arch::H200, None, 0), (mutant.case)());
        let caught = |name| match judge(name, sound().patched(patch.from, patch.to), &case) {
            Outcome::Failed { message, .. } => Some(message),
            _ => None,
        };
        for name in ["twice", "accuracy", "identity"] {
            assert!(matches!(judge(name, sound(), &case), Outcome::Passed(_)), "{}: {name}", mutant.name);
            println!("{} {name}: {:?}", mutant.name, caught(name));
        }
        assert!(caught(mutant.property).is_some(), "{}", mutant.name);
        assert_eq!(caught("accuracy").is_none(), mutant.name == "ties_of_x_hat_up", "{}", mutant.name);
    }
}
