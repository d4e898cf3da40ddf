//! Heads with a weight each.

use rmsnorm_cuda::plan::{Arch, Calls, Tuning};
use rmsnorm_cuda::{Dtype, Rounding, WeightOffset};
use rmsnorm_fuzz::case::{DwKind, WeightKind};
use rmsnorm_fuzz::{Case, Groups, Name};
use std::collections::BTreeSet;

use super::in_place::{every_kernel, named};
use super::levels::{added, apart, in_turn};
use super::{TINY, demand, demand_caught_by, emulator, machine};

/// Heads in groups of `inner` rows, of one operand packed, of the next beside others, of the third side by side: on 16 bytes, or from an odd element on.
fn case(shape: (usize, usize, usize), dtype: Dtype, odd: bool) -> Case {
    in_turn(shape, dtype, odd, &[Groups::Even, apart(odd), Groups::Across])
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
        // Few rows, which blocks share in forward.
        case((4, 2, 4096), Bf16, false),
        added(case((6, 3, 1024), F16, false)),
        // A ring, of one row a stage and of two.
        Case { rounding: Rounding::Twice, ..case((1030, 5, 520), Bf16, false) },
        Case { weight_offset: WeightOffset::One, ..added(case((390, 13, 1000), F32, false)) },
        case((10, 5, 777), Bf16, true),
        added(case((4, 2, 4097), F16, true)),
        tiny(case((9, 3, 1001), F32, true)),
        // Rows that clusters share in forward.
        case((6, 3, 20_000), Bf16, false),
        tiny(case((6, 2, 20_000), F32, false)),
        added(case((4, 2, 32_768), Bf16, false)),
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
    // Backward's clusters have rows of one weight.
    let mut expected = every_kernel(true);
    expected.remove("backward cluster cluster aligned");
    assert_eq!(seen, expected);
}

/// The kernel of each direction, in a word.
fn kernels(case: &Case, tuning: &Tuning) -> [String; 2] {
    let aligned = case.place(Name::X).offset == 0;
    let (residual, dz, heads) = (case.residual.map(|_| [case.dtype; 2]), case.dz.map(|_| case.dtype), case.inner);
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
        ("return operand + (row - group_of(row, inner, reciprocal) * inner) * hidden;", "return operand;", narrow),
        ("load_row(b[r], OF_HEAD(bias, row), end);", "load_row(b[r], bias, end);", narrow),
        ("w[r % WEIGHTS][k], b[r % WEIGHTS][k]", "w[0][k], b[r % WEIGHTS][k]", case((600, 12, 64), Dtype::F16, false)),
        (
            "const W* const of_row = OF_HEAD(weight, row);",
            "const W* const of_row = weight;",
            case((6, 3, 1001), Dtype::F16, true),
        ),
        ("x += head(inner) * x_jump, dy", "dy", narrow),
        ("dy += head(inner) * dy_jump, dz", "dz", narrow),
        ("dz += head(inner) * dz_jump, ", "", added(narrow)),
        (", dx += head(inner) * dx_jump;", ";", narrow),
        ("weight += head(inner) * hidden_given;", "", narrow),
        ("if (partial) partial += head(inner) * groups * hidden_given;", "", narrow),
        ("return {rstd + head(inner), inner};", "return {rstd, inner};", narrow),
        ("return first[row * n];", "return first[row];", narrow),
        (
            "partial += head(inner) * groups * hidden, dw += head(inner) * hidden;",
            "partial += head(inner) * groups * hidden;",
            narrow,
        ),
        ("partial += head(inner) * groups * hidden, dw", "dw", narrow),
        (
            "dy += head(inner) * dy_jump, partial += head(inner) * groups * hidden;",
            "dy += head(inner) * dy_jump;",
            narrow,
        ),
        ("dy += head(inner) * dy_jump, partial", "partial", narrow),
        ("HEADS ? blockIdx.x / (u32)inner : blockIdx.x", "blockIdx.x", narrow),
        ("HEADS ? gridDim.x / (u32)inner : gridDim.x", "gridDim.x", Case { rows: 4 * 20_000, ..narrow }),
    ];
    for (from, to, case) in defects {
        demand_caught_by("heads", || emulator(Arch::H200, None, 6), from, (from, to), &case);
    }
}
