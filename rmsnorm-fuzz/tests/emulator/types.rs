//! Operands of several types.

use rmsnorm_cuda::plan::Arch;
use rmsnorm_cuda::{Dtype, Rounding};
use rmsnorm_fuzz::case::{DwKind, Gap, WeightKind};
use rmsnorm_fuzz::sets::{around_f32, one_in, types};
use rmsnorm_fuzz::{Case, Groups, Name, Place, Values};

use super::levels::{apart, laid};
use super::{TINY, demand, demand_caught_by, demand_identity, emulator, machine};

/// Some of the cases with every pair of types.
#[test]
fn several_types() {
    if !machine::has_cxx() {
        return;
    }
    let some = |first: usize| one_in(7, types().split_off(first)).into_iter().map(|item| item.case).collect::<Vec<_>>();
    demand_identity(emulator(Arch::H200, None, 4), &some(0));
    demand_identity(emulator(Arch::A100, None, 5), &some(3));
}

/// Rows of f32 with a weight and a bias of 16 bits, in every kind of kernel: each takes any of these two.
#[test]
fn narrow_weights_of_wide_rows() {
    if !machine::has_cxx() {
        return;
    }
    let at = |offset, case: Case| case.with_place(Name::X, Place { offset, gap: Gap::None });
    let weight_at = |offset, case: Case| case.with_place(Name::Weight, Place { offset, gap: Gap::None });
    let case =
        |rows, hidden| of(Case { bias: WeightKind::Same, db: DwKind::Same, ..Case::new(rows, hidden, Dtype::F32) });
    let without_bias = |case: Case| Case { bias: WeightKind::Absent, ..case };
    let cases = [
        case(300, 64),
        case(9, 4096),
        without_bias(case(300, 2048)),
        weight_at(1, at(1, without_bias(case(9, 4097)))),
        weight_at(2, at(1, without_bias(case(9, 1001)))),
        weight_at(3, case(9, 1001)),
        without_bias(case(5, 16_388)),
        case(5, 16_388),
        case(3, 131_080),
        Case { x: TINY, eps: 0.0, ..weight_at(1, case(9, 1001)) },
    ];
    demand_identity(emulator(Arch::H200, None, 6), &cases);
    demand_identity(emulator(Arch::A100, None, 7), &cases[2..5]);
}

/// With weights of these types.
fn of(mut case: Case) -> Case {
    for (name, dtype) in
        [(Name::Weight, Dtype::Bf16), (Name::Bias, Dtype::F16), (Name::Dw, Dtype::F16), (Name::Db, Dtype::Bf16)]
    {
        case.types[name as usize] = Some(dtype);
    }
    case
}

/// With everything that is added.
fn training(rows: usize, hidden: usize) -> Case {
    let added = Some(Values::Normal);
    around_f32(Case { residual: added, dz: added, ..Case::new(rows, hidden, Dtype::F32) })
}

/// Groups of rows, heads, and outputs in place of inputs.
#[test]
fn several_types_wherever_rows_lie() {
    if !machine::has_cxx() {
        return;
    }
    let grouped = |hidden| laid(training(12, hidden), 4, false, &[Groups::Even, apart(false), Groups::Across]);
    let cases = [64, 1000, 1001, 4096, 20_000].map(grouped);
    demand("heads", emulator(Arch::H200, None, 8), &cases);
    demand("in place", emulator(Arch::H200, None, 9), &cases[1..3]);
    demand("types", emulator(Arch::H200, None, 10), &[training(37, 1000)]);
}

/// Kernels that take one operand for another's type.
#[test]
fn defects_of_types_show() {
    if !machine::has_cxx() {
        return;
    }
    let odd = of(Case::new(9, 1001, Dtype::F32));
    let mut twice =
        Case { rounding: Rounding::Twice, residual: Some(Values::Normal), ..Case::new(37, 1000, Dtype::Bf16) };
    (twice.types[Name::Residual as usize], twice.types[Name::Dy as usize]) = (Some(Dtype::F32), Some(Dtype::F16));
    let defects = [
        ("sizeof(E) == 4 || WORD == 1 || IS_SELDOM", "sizeof(E) == 4 || IS_SELDOM", odd),
        ("const float h = factor<T>(", "const float h = factor<R>(", twice),
        ("chain(d[i], factor<T>(", "chain(d[i], factor<DY>(", twice),
    ];
    for (from, to, case) in defects {
        demand_caught_by("identity", || emulator(Arch::A100, None, 6), from, (from, to), &case);
    }
}
