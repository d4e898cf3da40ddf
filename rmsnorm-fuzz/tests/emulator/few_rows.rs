//! Few rows, which have kernels of their own.

use rayon::prelude::*;
use rmsnorm_cuda::plan::{Arch, Calls, Tuning, backward, forward};
use rmsnorm_cuda::{Dtype, WeightOffset};
use rmsnorm_fuzz::case::{DwKind, Gap, WeightKind};
use rmsnorm_fuzz::{Case, Name, Outcome, Place, Values, property};
use std::collections::BTreeSet;

use super::{TINY, demand_caught, demand_identity, emulated, emulator, machine};

/// Backward in one launch: every span of row groups, one row a group and several, in turn with every type of weight and of dw; rows that must
/// be scaled, and dz.
#[test]
fn backward_in_one_launch() {
    if !machine::has_cxx() {
        return;
    }
    let shapes =
        [(1, 4096), (2, 4096), (3, 4096), (37, 4096), (300, 4096), (700, 2048), (130, 1000), (64, 16_384), (66, 520)];
    let mut cases = Vec::new();
    for (i, (rows, hidden)) in shapes.into_iter().chain([(9, 304), (40, 2056), (150, 6144), (200, 5000)]).enumerate() {
        // The larger ones in one type.
        let dtypes = if rows * hidden < 1 << 19 { 2 } else { 1 };
        for dtype in [Dtype::ALL[i % 3], Dtype::ALL[(i + 1) % 3]].into_iter().take(dtypes) {
            let weight = [WeightKind::Same, WeightKind::F32, WeightKind::Absent][i % 3];
            let dw = if i % 2 == 0 { DwKind::Same } else { DwKind::F32 };
            let weight_offset = if i % 4 == 1 { WeightOffset::One } else { WeightOffset::Zero };
            let dz = (i % 3 == 1).then_some(Values::Normal);
            let x = if i % 4 == 3 { Values::Bits } else { Values::Normal };
            cases.push(Case { weight, dw, weight_offset, dz, x, eps: 0.0, ..Case::new(rows, hidden, dtype) });
        }
    }
    // A few of whose rows are read whole by every tile, and more rows than a slot has groups.
    for (rows, hidden, dtype) in [(3, 4096, Dtype::Bf16), (37, 520, Dtype::F32), (2, 16_384, Dtype::Bf16)] {
        cases.push(Case { x: TINY, eps: 0.0, ..Case::new(rows, hidden, dtype) });
    }
    let span = |case: &Case| {
        let calls = Calls { dw: case.dw_dtype(), ..Calls::new((case.rows, case.hidden), case.dtype) };
        backward(&calls, &Tuning::of(Arch::H200)).span
    };
    assert_eq!(cases.iter().map(span).collect::<BTreeSet<_>>(), [Some(2), Some(4), Some(8), Some(16)].into());
    demand_identity(emulator(Arch::H200, None, 7), &cases);
}

/// Forward: every number of blocks that share a row, both sides of every step of the plan, packs and tails, in turn with every type
/// of the weight, a residual, gaps between rows, rows that must be scaled, and an rstd that is not asked for.
#[test]
fn forward_of_few() {
    if !machine::has_cxx() {
        return;
    }
    let shapes =
        [(1, 4096), (4, 4096), (5, 4096), (16, 4096), (17, 4096), (1, 16_384), (4, 12_288), (5, 16_000), (17, 8200)];
    let more =
        [(3, 6144), (9, 3000), (20, 1536), (3, 1024), (40, 520), (1024, 264), (1025, 264), (4, 2056), (16, 5000)];
    let mut cases = Vec::new();
    for (i, (rows, hidden)) in shapes.into_iter().chain(more).enumerate() {
        let case = Case::new(rows, hidden, Dtype::ALL[i % 3]);
        let weight = [WeightKind::Same, WeightKind::F32, WeightKind::Absent][i / 3 % 3];
        let weight_offset = if i % 4 == 1 { WeightOffset::One } else { WeightOffset::Zero };
        let residual = (i % 4 == 2).then_some(Values::Normal);
        let x = [Values::Normal, Values::Bits, TINY, Values::Normal, Values::Normal][i % 5];
        let case = Case { weight, weight_offset, residual, x, rstd: i % 5 != 4, eps: 0.0, ..case };
        let gap = Place { offset: 0, gap: Gap::Elements(16) };
        let gaps = if i % 2 == 0 { &[Name::X, Name::Y, Name::Residual, Name::Z][..] } else { &[] };
        cases.push(gaps.iter().fold(case, |case, name| case.with_place(*name, gap)));
    }
    let shares = |case: &Case| {
        let calls = Calls::new((case.rows, case.hidden), case.dtype);
        forward(&calls, &Tuning::of(Arch::H200)).shares
    };
    let seen: BTreeSet<_> = cases.iter().map(shares).collect();
    assert_eq!(seen, [None, Some(1), Some(3), Some(4), Some(6), Some(8), Some(12), Some(16)].into());
    demand_identity(emulator(Arch::H200, None, 8), &cases);
    // Nothing else is written, whatever was there before.
    let subject = emulated(emulator(Arch::H200, None, 9));
    for (name, case) in
        ["writes", "content", "layout"].into_iter().zip([1, 5, 17].map(|rows| Case::new(rows, 4096, Dtype::Bf16)))
    {
        let outcome = property(name).expect("a property").check(&subject, &case);
        assert!(matches!(outcome, Outcome::Passed(_)), "{name}: {outcome:?}");
    }
}

/// Each broken kernel of few rows gives other bits, or is caught by the emulator itself, for at least one of eight orders of threads.
#[test]
fn broken_kernels_are_caught() {
    if !machine::has_cxx() {
        return;
    }
    let few = Case::new(37, 1024, Dtype::Bf16);
    let several = Case::new(200, 8192, Dtype::F16);
    let tiny = Case { x: TINY, eps: 0.0, ..Case::new(3, 1024, Dtype::F32) };
    let one = Case::new(1, 4096, Dtype::Bf16);
    let scaled = Case { x: TINY, eps: 0.0, ..one };
    let broken: [(&str, &str, &str, Case); 9] = [
        ("a block that stores another's part", "k == share / BLOCKS_A_PACK", "k == (share + 1) / BLOCKS_A_PACK", one),
        ("a part of some warps twice", "== share % BLOCKS_A_PACK", "== 0", one),
        ("no barrier before every lane folds", "        __syncthreads();\n        float all", "        float all", one),
        ("one buffer for both sums of a scaled row", "buffer[turn++]", "buffer[0]", scaled),
        ("the reciprocal of another width", "1.0f / HOLDS", "1.0f / (HOLDS + 1)", one),
        ("a tile without the last rows", "first + r < of.groups && row", "first + r + 1 < of.groups && row", few),
        ("a tile that knows no scaled rows", "is_scaled |= given == INFINITY_F32;", "", tiny),
        ("only the first row of a group", "base == 0 || !ONE_ROW && base < of.rows", "base == 0", several),
        (
            "halves handed to the wrong lane",
            "upper ? v[i + HALF] : v[i], handed",
            "upper ? v[i] : v[i + HALF], handed",
            few,
        ),
    ];
    broken
        .par_iter()
        .for_each(|(what, from, to, case)| demand_caught(|| emulator(Arch::H200, None, 0), what, (from, to), case));
}
