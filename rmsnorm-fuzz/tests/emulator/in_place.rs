//! Calls in place.

use rayon::prelude::*;
use rmsnorm_cuda::cuda::checks::emulator::Emulator;
use rmsnorm_cuda::plan::{Arch, Calls, Source, Tuning, backward, forward};
use rmsnorm_cuda::{Dtype, Rounding};
use rmsnorm_fuzz::case::{DwKind, Gap, WeightKind};
use rmsnorm_fuzz::{Case, Name, Outcome, Place, Values, mutants, property};
use std::collections::BTreeSet;

use super::{TINY, emulated, emulator, machine};

fn demand_in_place(emulator: impl Fn() -> Emulator + Sync, cases: &[Case]) {
    let refuted = |case: &Case| match property("in place").expect("a property").check(&emulated(emulator()), case) {
        Outcome::Passed(_) => None,
        other => Some(format!("{case}: {other:?}")),
    };
    let refutations: Vec<String> = cases.par_iter().filter_map(refuted).collect();
    assert!(refutations.is_empty(), "{}", refutations.join("\n"));
}

/// With a residual and a dz, rows lying as `place` says, one row that must be scaled among others.
fn case(rows: usize, hidden: usize, dtype: Dtype, (offset, gap): (u8, Gap)) -> Case {
    let (residual, dz) = (Some(Values::Normal), Some(Values::Normal));
    let case = Case { residual, dz, seed: hidden as u64, ..Case::new(rows, hidden, dtype) };
    Name::ALL.into_iter().fold(case, |case, name| case.with_place(name, Place { offset, gap }))
}

/// The kernel of each direction, in a word.
pub(super) fn kernels(case: &Case, tuning: &Tuning, in_place: bool) -> [String; 2] {
    let aligned = case.place(Name::X).offset == 0;
    let (residual, dz) = (case.residual.map(|_| [case.dtype; 2]), case.dz.map(|_| case.dtype));
    let plain = Calls::new((case.rows, case.hidden), case.dtype);
    let calls = Calls { dw: case.dw_dtype(), residual, dz, aligned, in_place, two_levels: case.inner > 1, ..plain };
    let (f, b) = (forward(&calls, tuning), backward(&calls, tuning));
    assert!(!in_place || f.shares.is_none_or(|shares| shares == 1) && b.span.is_none(), "{case}: {f} {b}");
    named(&calls, tuning)
}

/// The kernel that calls of this kind have in each direction, in a word.
pub(super) fn named(calls: &Calls, tuning: &Tuning) -> [String; 2] {
    let (f, b) = (forward(calls, tuning), backward(calls, tuning));
    let of = |class: rmsnorm_cuda::plan::Class| match () {
        _ if class.is_streamed() => "streamed",
        _ if class.is_clustered() => "cluster",
        _ => "held",
    };
    let source = match b.source {
        Source::Kept => "kept",
        Source::Reread => "reread",
        Source::Ring { .. } => "ring",
        Source::Cluster { .. } => "cluster",
    };
    let few = match of(f.rows.class) {
        _ if f.shares.is_some() => "few",
        "held" if f.shared_bytes > 0 => "staged",
        other => other,
    };
    let layout = |aligned| if aligned { "aligned" } else { "unaligned" };
    let held = if b.span.is_some() { "few" } else { of(b.rows.class) };
    [
        format!("forward {few} {}", layout(f.rows.aligned)),
        format!("backward {held} {source} {}", layout(b.rows.aligned)),
    ]
}

/// All that [`kernels`] can name.
pub(super) fn every_kernel(in_place: bool) -> BTreeSet<String> {
    let held = ["kept", "reread", "ring"].map(|source| format!("backward held {source}"));
    let both = ["forward held", "forward streamed", "backward streamed reread"].map(String::from);
    let both = held.into_iter().chain(both);
    let both = both.flat_map(|kernel| ["aligned", "unaligned"].map(|layout| format!("{kernel} {layout}")));
    let one = [
        "forward few aligned",
        "forward staged unaligned",
        "forward cluster aligned",
        "backward cluster cluster aligned",
    ];
    // In place few rows have the kernels of more in backward.
    let few = (!in_place).then_some("backward few kept aligned");
    both.chain(one.into_iter().chain(few).map(String::from)).collect()
}

/// Every kind of kernel, rows aligned and not, and rows that must be scaled.
#[test]
fn every_kernel_in_place() {
    if !machine::has_cxx() {
        return;
    }
    use Dtype::{Bf16, F16, F32};
    const PLAIN: (u8, Gap) = (0, Gap::None);
    const ODD: (u8, Gap) = (3, Gap::None);
    const APART: (u8, Gap) = (1, Gap::Elements(5));
    let tiny = |case: Case| Case { x: TINY, residual: None, eps: 0.0, ..case };
    let h200 = [
        // Few rows, which blocks would share, or one launch compute.
        case(1, 4096, Bf16, PLAIN),
        Case { dw: DwKind::F32, weight: WeightKind::F32, ..case(3, 1024, F16, PLAIN) },
        tiny(case(2, 4096, F32, PLAIN)),
        // A ring.
        Case { rounding: Rounding::Twice, ..case(130, 1000, Bf16, PLAIN) },
        case(5, 777, Bf16, ODD),
        Case { residual: None, ..case(5, 777, Bf16, ODD) },
        Case { residual: None, ..case(5, 4097, F16, APART) },
        case(4, 4097, F16, APART),
        tiny(case(3, 1001, F32, ODD)),
        // Clusters, more rows than groups.
        case(33, 20_000, Bf16, PLAIN),
        tiny(case(3, 32_768, F32, PLAIN)),
        // Streamed.
        case(2, 17_001, F32, ODD),
        case(2, 17_001, Bf16, APART),
        tiny(case(2, 16_999, F32, PLAIN)),
        // Narrow.
        case(600, 64, Bf16, PLAIN),
        case(70, 39, F16, ODD),
    ];
    let a100 = [
        case(9, 4096, Bf16, PLAIN),
        case(5, 8191, Bf16, ODD),
        case(9, 520, F32, PLAIN),
        tiny(case(3, 4096, F16, ODD)),
        case(5, 1001, F16, APART),
        case(2, 20_000, F16, PLAIN),
    ];
    let mut seen = BTreeSet::new();
    for (arch, cases) in [(Arch::H200, &h200[..]), (Arch::A100, &a100[..])] {
        seen.extend(cases.iter().flat_map(|case| kernels(case, &Tuning::of(arch), true)));
        demand_in_place(|| emulator(arch, None, 3), cases);
    }
    // Two clusters with all rows, and two blocks with all groups: rings are filled again and again.
    demand_in_place(|| emulator(Arch::H200, Some(8), 4), &[case(31, 20_000, F32, PLAIN)]);
    demand_in_place(|| emulator(Arch::H200, Some(2), 5), &[case(40, 2048, Bf16, PLAIN), case(40, 2049, Bf16, ODD)]);
    assert_eq!(seen, every_kernel(true));
}

/// The kernels' defects of the list that are about calls in place, where the defect is in a kernel.
#[test]
fn defects_in_place_are_listed() {
    let about: Vec<_> = mutants::MUTANTS.iter().filter(|mutant| mutant.property == "in place").collect();
    assert!(about.len() >= 4 && about.iter().any(|mutant| mutant.on == mutants::On::Cpu), "{}", about.len());
}
