//! dw's sums in a team of their own.

use super::{TINY, demand_caught, demand_identity, emulator, machine};
use rayon::prelude::*;
use rmsnorm_cuda::plan::{Arch, Calls, Tuning, backward};
use rmsnorm_cuda::{Dtype, Rounding};
use rmsnorm_fuzz::case::{DwKind, Gap, WeightKind};
use rmsnorm_fuzz::{Case, Name, Place, Values};

/// Three or four rows in each of 128 groups.
fn case(hidden: usize, dtype: Dtype) -> Case {
    let case = Case { seed: hidden as u64, ..Case::new(389, hidden, dtype) };
    let calls = Calls { dw: Some(dtype), aligned: false, ..Calls::new((case.rows, hidden), dtype) };
    let plan = backward(&calls, &Tuning::of(Arch::H200)).to_string();
    assert!(plan.contains("sums apart"), "{case}: {plan}");
    case
}

#[test]
fn apart() {
    if !machine::has_cxx() {
        return;
    }
    let tiny = Values::RowScaled(-128, -120);
    let dz = Some(Values::Normal);
    let moved = |case: Case| case.with_place(Name::Dy, Place { offset: 3, gap: Gap::Elements(5) });
    let cases = [
        case(4097, Dtype::Bf16),
        // Some rows are scaled.
        Case { eps: 0.0, x: tiny, dz, ..case(4097, Dtype::Bf16) },
        Case { weight: WeightKind::F32, dz, ..case(5119, Dtype::F16) },
        Case { rounding: Rounding::Twice, weight: WeightKind::Absent, ..case(5001, Dtype::Bf16) },
        Case { x: TINY, ..moved(case(4608, Dtype::Bf16)) },
        Case { rows: 9, ..case(4097, Dtype::Bf16) },
    ];
    demand_identity(emulator(Arch::H200, None, 17), &cases[..1]);
    demand_identity(emulator(Arch::H200, Some(2), 18), &cases);
}

#[test]
fn defects_of_sums_apart_are_caught() {
    if !machine::has_cxx() {
        return;
    }
    let defects = [
        ("stages filled while they are read", "arrival_wait(free + to.stage, to.phase ^ 1);", ""),
        (
            "a stage read before it has arrived",
            "void wait(const Place& here) const { arrival_wait(full + here.stage, here.phase); }",
            "void wait(const Place&) const {}",
        ),
        (
            "free when one team has read it",
            "constexpr u32 LAST = 2 * TEAM_WARPS - 1;",
            "constexpr u32 LAST = TEAM_WARPS - 1;",
        ),
        ("teams take the same rows", "float ahead = next(team - 1);", "float ahead = next(0);"),
        (
            "free before it is read",
            "z[k] = load_arrived(x_here, column_of(k), hidden), d[k]",
            "if (k == 0) ring.release(here); z[k] = load_arrived(x_here, column_of(k), hidden), d[k]",
        ),
    ];
    defects.par_iter().for_each(|(what, from, to)| {
        demand_caught(
            || emulator(Arch::H200, Some(8), 0),
            what,
            (from, to),
            &Case { dw: DwKind::F32, ..case(4097, Dtype::Bf16) },
        );
    });
}
