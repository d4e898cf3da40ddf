//! Rows of two levels.

use rmsnorm_cuda::plan::{Arch, Tuning};
use rmsnorm_cuda::{Dtype, Rounding};
use rmsnorm_fuzz::case::{DwKind, Gap, WeightKind};
use rmsnorm_fuzz::{Case, Groups, Name, Place, Values, mutants};
use std::collections::BTreeSet;

use super::in_place::{every_kernel, kernels};
use super::{TINY, demand_caught, demand_identity, emulator, machine};

/// Rows in groups of `inner`, of one operand behind each other with a gap, of the next side by side: in groups of 16 bytes, or from an odd element on.
fn case(shape: (usize, usize, usize), dtype: Dtype, odd: bool) -> Case {
    in_turn(shape, dtype, odd, &[apart(odd), Groups::Across])
}

/// Behind each other with a gap, of 16 bytes or of an odd number of elements.
pub(super) fn apart(odd: bool) -> Groups {
    Groups::Apart(if odd { 5 } else { 16 })
}

/// Rows in groups of `inner`, which lie as `groups` says, operand by operand in turn.
pub(super) fn in_turn(
    (rows, inner, hidden): (usize, usize, usize),
    dtype: Dtype,
    odd: bool,
    groups: &[Groups],
) -> Case {
    laid(Case { seed: hidden as u64, ..Case::new(rows, hidden, dtype) }, inner, odd, groups)
}

/// The same of a case.
pub(super) fn laid(case: Case, inner: usize, odd: bool, groups: &[Groups]) -> Case {
    let matrices = Name::ALL.into_iter().filter(|name| name.is_matrix());
    let (offset, gap) = if odd { (1, Gap::Elements(3)) } else { (0, Gap::None) };
    matrices.zip(groups.iter().cycle()).fold(case, |case, (name, groups)| {
        case.with_groups(inner, name, *groups).with_place(name, Place { offset, gap })
    })
}

/// With all that can be added.
pub(super) fn added(case: Case) -> Case {
    let (residual, dz) = (Some(Values::Normal), Some(Values::Normal));
    Case { residual, dz, bias: WeightKind::F32, db: DwKind::Same, ..case }
}

/// Every kind of kernel, rows aligned and not, with what can be added and without, and rows that must be scaled.
#[test]
fn every_kernel_of_two_levels() {
    if !machine::has_cxx() {
        return;
    }
    use Dtype::{Bf16, F16, F32};
    let tiny = |case: Case| Case { x: TINY, residual: None, eps: 0.0, ..case };
    let h200 = [
        // Few rows, which blocks share, and which one launch computes.
        case((4, 2, 4096), Bf16, false),
        added(case((6, 3, 1024), F16, false)),
        tiny(case((4, 2, 4096), F32, false)),
        // A ring.
        Case { rounding: Rounding::Twice, ..case((1030, 5, 520), Bf16, false) },
        added(case((130, 13, 1000), F32, false)),
        case((10, 5, 777), Bf16, true),
        added(case((4, 2, 4097), F16, true)),
        tiny(case((9, 3, 1001), F32, true)),
        // Clusters, more rows than groups.
        case((33, 3, 20_000), Bf16, false),
        added(case((4, 2, 32_768), F32, false)),
        tiny(case((6, 2, 20_000), F32, false)),
        // Streamed.
        added(case((4, 2, 17_001), F32, true)),
        tiny(case((4, 2, 16_999), Bf16, true)),
        // Narrow, and narrowest.
        case((600, 8, 128), Bf16, false),
        added(case((600, 12, 64), F16, false)),
        added(case((70, 7, 39), F16, true)),
        case((1000, 10, 3), F32, true),
    ];
    let a100 = [
        case((10, 5, 4096), Bf16, false),
        added(case((4, 2, 8191), Bf16, true)),
        added(case((10, 2, 520), F32, false)),
        case((6, 3, 1001), F16, true),
        case((4, 2, 20_000), F16, false),
        Case { dw: DwKind::Absent, ..case((10, 5, 4096), Bf16, false) },
    ];
    let mut seen = BTreeSet::new();
    for (arch, cases) in [(Arch::H200, &h200[..]), (Arch::A100, &a100[..])] {
        seen.extend(cases.iter().flat_map(|case| kernels(case, &Tuning::of(arch), false)));
        demand_identity(emulator(arch, None, 3), cases);
    }
    // Two clusters with all rows, and two blocks with all groups: rings are filled again and again.
    demand_identity(emulator(Arch::H200, Some(8), 4), &[case((30, 5, 20_000), F32, false)]);
    let ringed = [case((40, 8, 2048), Bf16, false), case((40, 8, 2049), Bf16, true)];
    demand_identity(emulator(Arch::H200, Some(2), 5), &ringed);
    assert_eq!(seen, every_kernel(false));
}

/// Rows that are looked up as if there were one level, and what the list of defects has of the kernels, show.
#[test]
fn defects_of_levels_show() {
    if !machine::has_cxx() {
        return;
    }
    let listed = ["quotient_not_corrected", "dy_of_one_level"].map(|name| {
        let mutant = mutants::mutant(name).expect("a mutant");
        (mutant.patches[0].from, mutant.patches[0].to, (mutant.case)())
    });
    let narrow = Case { db: DwKind::Same, ..case((64, 8, 128), Dtype::Bf16, false) };
    let others = [
        (
            "const Arriving arriving(x, ROW(x, row),",
            "const Arriving arriving(x, x + row * x_stride,",
            case((6, 3, 1001), Dtype::F32, true),
        ),
        (
            "bulk_copy(slice_at(2 * place + 1), ROW(dy, far_row)",
            "bulk_copy(slice_at(2 * place + 1), dy + far_row * dy_stride",
            case((6, 3, 20_000), Dtype::Bf16, false),
        ),
        ("row_of(at, row, dy_stride, dy_jump, inner, reciprocal)", "(at + row * dy_stride)", narrow),
    ];
    for (from, to, case) in listed.into_iter().chain(others) {
        demand_caught(|| emulator(Arch::H200, None, 6), to, (from, to), &case);
    }
}
