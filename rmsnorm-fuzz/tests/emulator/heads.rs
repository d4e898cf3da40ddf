//! Heads with a weight each.

use rmsnorm_cuda::plan::{Arch, Calls, Tuning};
use rmsnorm_cuda::{Dtype, Rounding, WeightOffset};
use rmsnorm_fuzz::case::{DwKind, Gap, WeightKind};
use rmsnorm_fuzz::{Case, Groups, Name, Place, Values};
use std::collections::BTreeSet;

use super::in_place::named;
use super::{TINY, demand, demand_caught_by, emulator, machine};

/// Heads in groups of `inner` rows, of one operand packed beside others, of the next apart: on 16 bytes, or from an odd element on.
fn case((rows, inner, hidden): (usize, usize, usize), dtype: Dtype, odd: bool) -> Case {
    let case = Case { seed: hidden as u64, ..Case::new(rows, hidden, dtype) };
    let matrices = Name::ALL.into_iter().filter(|name| name.is_matrix()).enumerate();
    let (offset, gap) = if odd { (1, Gap::Elements(3)) } else { (0, Gap::None) };
    matrices.fold(case, |case, (i, name)| {
        let groups = [Groups::Even, Groups::Apart(if odd { 5 } else { 16 }), Groups::Across][i % 3];
        case.with_groups(inner, name, groups).with_place(name, Place { offset, gap })
    })
}

/// With all that can be added.
fn added(case: Case) -> Case {
    let (residual, dz) = (Some(Values::Normal), Some(Values::Normal));
    Case { residual, dz, bias: WeightKind::F32, db: DwKind::Same, ..case }
}

/// Every kind of kernel that heads have, rows aligned and not, with what can be added and without, and rows that must be scaled.
#[test]
fn every_kernel_of_heads() {
    if !machine::has_cxx() {
        return;
    }
    use Dtype::{Bf16, F16, F32};
    let tiny = |case: Case| Case { x: TINY, residual: None, eps: 0.0, ..case };
    let h200 = [
        // As few rows as few rows of one weight are, which have kernels of their own.
        case((4, 2, 4096), Bf16, false),
        added(case((6, 3, 1024), F16, false)),
        // A ring, of one row a stage and of two.
        Case { rounding: Rounding::Twice, ..case((1030, 5, 520), Bf16, false) },
        Case { weight_offset: WeightOffset::One, ..added(case((390, 13, 1000), F32, false)) },
        case((10, 5, 777), Bf16, true),
        added(case((4, 2, 4097), F16, true)),
        tiny(case((9, 3, 1001), F32, true)),
        // As wide as rows are that clusters share, and f32 beside them.
        case((6, 3, 20_000), Bf16, false),
        added(case((4, 2, 16_384), F32, false)),
        tiny(case((4, 2, 16_999), Bf16, true)),
        // Narrow, and narrowest.
        case((600, 8, 128), Bf16, false),
        added(case((600, 12, 64), F16, false)),
        Case { weight: WeightKind::Absent, ..added(case((70, 7, 39), F16, true)) },
        Case { dw: DwKind::Absent, ..case((1000, 10, 3), F32, true) },
    ];
    let a100 = [
        case((10, 5, 4096), Bf16, false),
        added(case((4, 2, 8191), Bf16, true)),
        added(case((10, 2, 520), F32, false)),
        case((6, 3, 1001), F16, true),
        case((4, 2, 20_000), F16, false),
    ];
    let mut seen = BTreeSet::new();
    for (arch, cases) in [(Arch::H200, &h200[..]), (Arch::A100, &a100[..])] {
        seen.extend(cases.iter().flat_map(|case| kernels(case, &Tuning::of(arch))));
        demand("heads", emulator(arch, None, 3), cases);
    }
    // Two blocks a head with all its groups: rings are filled again and again.
    let ringed = [case((40, 4, 2048), Bf16, false), case((40, 4, 2049), Bf16, true)];
    demand("heads", emulator(Arch::H200, Some(2), 5), &ringed);
    let expected = ["forward held", "forward streamed", "backward streamed reread"].into_iter();
    let expected = expected.chain(["backward held kept", "backward held reread", "backward held ring"]);
    let expected = expected.flat_map(|kernel| ["aligned", "unaligned"].map(|layout| format!("{kernel} {layout}")));
    assert_eq!(seen, expected.collect());
}

/// The kernel of each direction, in a word.
fn kernels(case: &Case, tuning: &Tuning) -> [String; 2] {
    let aligned = case.place(Name::X).offset == 0;
    let (residual, dz, heads) = (case.residual.is_some(), case.dz.is_some(), case.inner);
    let plain = Calls::new((case.rows / heads, case.hidden), case.dtype);
    named(&Calls { dw: case.dw_dtype(), residual, dz, aligned, heads, ..plain }, tuning)
}

/// What a head has of each operand, as if it were the first one's, or where its rows' roots lie.
#[test]
fn defects_of_heads_show() {
    if !machine::has_cxx() {
        return;
    }
    let narrow = Case { bias: WeightKind::F32, db: DwKind::Same, ..case((64, 4, 128), Dtype::Bf16, false) };
    let defects = [
        ("weight += of_head(hidden_given), bias", "bias", narrow),
        (", bias += of_head(hidden_given);", ";", narrow),
        ("x += of_head(x_jump), residual", "residual", narrow),
        ("residual += of_head(residual_jump), ", "", added(narrow)),
        ("z_out += of_head(z_out_jump), ", "", added(narrow)),
        (", y += of_head(y_jump);", ";", narrow),
        ("dy += of_head(dy_jump), dz", "dz", narrow),
        ("dz += of_head(dz_jump), ", "", added(narrow)),
        ("dx += of_head(dx_jump), weight += of_head(hidden_given);", "dx += of_head(dx_jump);", narrow),
        ("rstd ? rstd + blockIdx.y : rstd", "rstd", narrow),
        (
            "E& operator[](u64 row) const { return first[row * n]; }",
            "E& operator[](u64 row) const { return first[row]; }",
            narrow,
        ),
        ("partial += of_head(groups * hidden), dw += of_head(hidden);", "partial += of_head(groups * hidden);", narrow),
        ("partial += of_head(groups * hidden), dw", "dw", narrow),
        ("if (partial) partial += of_head(groups * hidden_given);", "", narrow),
        ("dy += of_head(dy_jump), partial += of_head(groups * hidden);", "dy += of_head(dy_jump);", narrow),
        ("dy += of_head(dy_jump), partial", "partial", narrow),
    ];
    for (from, to, case) in defects {
        demand_caught_by("heads", || emulator(Arch::H200, None, 6), from, (from, to), &case);
    }
}
