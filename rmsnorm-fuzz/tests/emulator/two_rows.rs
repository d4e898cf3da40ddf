//! A ring with two rows in a stage: those of a group may be odd in number, and one of two may have to be scaled.

use super::{TINY, demand_caught, demand_identity, emulator, machine};
use rayon::prelude::*;
use rmsnorm_cuda::plan::{Arch, Calls, Tuning, backward};
use rmsnorm_cuda::{Dtype, Rounding};
use rmsnorm_fuzz::case::{DwKind, WeightKind};
use rmsnorm_fuzz::{Case, Values};

/// Two or three rows in each of 1024 groups.
fn case(hidden: usize, dtype: Dtype) -> Case {
    let case = Case { seed: hidden as u64, dw: DwKind::F32, ..Case::new(2600, hidden, dtype) };
    let calls = Calls { dw: Some(Dtype::F32), ..Calls::new((case.rows, hidden), dtype) };
    let plan = backward(&calls, &Tuning::of(Arch::H200)).to_string();
    assert!(plan.contains("of two rows"), "{case}: {plan}");
    case
}

#[test]
fn two_rows() {
    if !machine::has_cxx() {
        return;
    }
    let dz = Some(Values::Normal);
    let cases = [
        case(512, Dtype::Bf16),
        // Some rows are scaled.
        Case { eps: 0.0, x: Values::RowScaled(-128, -120), dz, ..case(512, Dtype::Bf16) },
        Case { weight: WeightKind::F32, dz, ..case(296, Dtype::F16) },
        Case { rounding: Rounding::Twice, weight: WeightKind::Absent, ..case(504, Dtype::Bf16) },
        Case { x: TINY, rows: 1100, ..case(264, Dtype::Bf16) },
        Case { rows: 9, ..case(512, Dtype::F16) },
    ];
    demand_identity(emulator(Arch::H200, None, 19), &cases[..1]);
    demand_identity(emulator(Arch::H200, Some(3), 20), &cases);
}

#[test]
fn defects_of_two_rows_are_caught() {
    if !machine::has_cxx() {
        return;
    }
    let defects = [
        (
            "a second row taken where there is one",
            "bool is_ordinary = source.count == Source::AT_ONCE;",
            "bool is_ordinary = true;",
        ),
        (
            "a second row waited for where there is one",
            "arrival_expect(full(s), there * STAGE_ROWS",
            "arrival_expect(full(s), ROWS * STAGE_ROWS",
        ),
        (
            "bytes of one row awaited",
            "arrival_expect(full(s), there * STAGE_ROWS",
            "arrival_expect(full(s), STAGE_ROWS",
        ),
        ("a stage filled while its second row is read", "fetch(stage == 0 ? stages - 1 : stage - 1);", "fetch(stage);"),
        (
            "the second row of a pair not scaled",
            "for (float rstd : source.rstd) is_ordinary",
            "for (float rstd : {source.rstd[0]}) is_ordinary",
        ),
        ("met once a row", "if (at == 0) source.met();", "source.met();"),
    ];
    let case = Case { eps: 0.0, x: Values::RowScaled(-128, -120), ..case(512, Dtype::Bf16) };
    defects.par_iter().for_each(|(what, from, to)| {
        demand_caught(|| emulator(Arch::H200, Some(8), 0), what, (from, to), &case);
    });
}
