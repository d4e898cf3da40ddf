//! The kernel sources, run on the CPU by the emulator, give the literal executor's bits: in every class, with rings and without,
//! aligned and not, however the threads of a block take turns and whenever bulk copies arrive. It needs a C++ compiler.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use rayon::prelude::*;
use rmsnorm_cuda::cuda::checks::emulator::Emulator;
use rmsnorm_cuda::plan::{Arch, Direction, Tuning, class, classes, column_order, variants};
use rmsnorm_cuda::{Dtype, WeightOffset};
use rmsnorm_fuzz::case::{Gap, WeightKind};
use rmsnorm_fuzz::{Case, Name, Outcome, Place, Subject, Values, hard_case, property};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

#[path = "emulator/apart.rs"]
mod apart;
#[path = "emulator/bias.rs"]
mod bias;
#[path = "emulator/broken.rs"]
mod broken;
#[path = "emulator/few_rows.rs"]
mod few_rows;
#[path = "emulator/heads.rs"]
mod heads;
#[path = "emulator/in_place.rs"]
mod in_place;
#[path = "emulator/levels.rs"]
mod levels;
#[path = "../../rmsnorm-cuda/tests/machine/mod.rs"]
mod machine;
#[path = "emulator/twice.rs"]
mod twice;
#[path = "emulator/two_rows.rs"]
mod two_rows;
#[path = "emulator/types.rs"]
mod types;

/// So small that rstd is infinite: 2^-130.
const TINY: Values = Values::Scaled(f32::from_bits(1 << 19));

fn emulator(arch: Arch, blocks: Option<u32>, seed: u64) -> Emulator {
    Emulator::new(Tuning { blocks, ..Tuning::of(arch) }, seed)
}

/// The same without one launch for few rows.
fn of_classes(arch: Arch, seed: u64) -> Emulator {
    Emulator::new(Tuning { few_rows: false, ..Tuning::of(arch) }, seed)
}

fn emulated(emulator: Emulator) -> Subject {
    Subject { is_emulated: true, ..Subject::of(emulator) }
}

fn refuted(name: &str, subject: &Subject, case: &Case) -> Option<String> {
    match property(name).expect("a property").check(subject, case) {
        Outcome::Passed(evidence) => {
            assert!(evidence.elements > 0 || case.elements() == 0, "{case}: nothing was compared");
            None
        }
        Outcome::Failed { message, .. } => Some(message),
        Outcome::NotApplicable { reason } => panic!("{case}: {reason}"),
    }
}

fn demand_identity(emulator: Emulator, cases: &[Case]) {
    demand("identity", emulator, cases);
}

fn demand(name: &str, emulator: Emulator, cases: &[Case]) {
    let subject = emulated(emulator);
    let refutations: Vec<String> = cases.par_iter().filter_map(|case| refuted(name, &subject, case)).collect();
    assert!(refutations.is_empty(), "{}", refutations.join("\n"));
    println!("{} cases", cases.len());
}

/// The widest row of each class, where a kernel knows it as a constant, and a narrower one; a few more rows than there are
/// groups, where that is not too many.
fn cases(dtype: Dtype) -> Vec<Case> {
    let classes = Direction::BOTH.map(|direction| classes(direction, dtype)).concat();
    let mut widths: Vec<usize> =
        classes.iter().map(|class| if class.is_streamed() { 131_200 } else { class.holds() }).collect();
    widths.sort_unstable();
    widths.dedup();
    let mut cases = Vec::new();
    for (i, widest) in widths.into_iter().enumerate() {
        for hidden in [widest, widest - widest / 16 / 8 * 8] {
            let groups = column_order(usize::MAX, hidden).groups;
            let rows = if groups * hidden < 1 << 20 {
                groups + 5
            } else if hidden <= 16_384 {
                37
            } else {
                5
            };
            let weight = [WeightKind::Absent, WeightKind::Same, WeightKind::F32][i % 3];
            let dz = (hidden != widest).then_some(Values::Normal);
            cases.push(Case { weight, dz, residual: dz, seed: hidden as u64, ..Case::new(rows, hidden, dtype) });
        }
    }
    cases
}

#[test]
fn f32_on_h200() {
    if !machine::has_cxx() {
        return;
    }
    demand_identity(of_classes(Arch::H200, 0), &cases(Dtype::F32));
}

#[test]
fn bf16_on_h200() {
    if !machine::has_cxx() {
        return;
    }
    demand_identity(of_classes(Arch::H200, 1), &cases(Dtype::Bf16));
}

/// Without bulk copies.
#[test]
fn f16_on_a100() {
    if !machine::has_cxx() {
        return;
    }
    let some: Vec<Case> = cases(Dtype::F16).into_iter().skip(1).step_by(2).collect();
    demand_identity(of_classes(Arch::A100, 2), &some);
}

/// What is compiled ahead: one module for all widths of an order, from the narrowest to the widest.
#[test]
fn compiled_ahead() {
    if !machine::has_cxx() {
        return;
    }
    let widths = [64, 257, 512, 1000, 1025, 2048, 2049, 3001, 4096, 4097, 5000, 8191, 8193, 12_288, 16_384];
    for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
        let weights = [WeightKind::Same, WeightKind::Absent, WeightKind::F32];
        let case = |(j, hidden): (usize, usize)| {
            let dz = (j % 2 == 1).then_some(Values::Normal);
            Case { weight: weights[(i + j) % 3], dz, residual: dz, seed: hidden as u64, ..Case::new(9, hidden, dtype) }
        };
        let cases: Vec<Case> = widths.into_iter().enumerate().map(case).collect();
        demand_identity(of_classes(Arch::A100, 20 + i as u64).portable(), &cases);
    }
}

/// Element by element.
#[test]
fn unaligned() {
    if !machine::has_cxx() {
        return;
    }
    let offset = |case: Case| Case {
        weight_offset: WeightOffset::One,
        ..case.with_place(Name::X, Place { offset: 1, ..case.place(Name::X) })
    };
    let some: Vec<Case> = cases(Dtype::Bf16).into_iter().step_by(3).map(offset).collect();
    demand_identity(emulator(Arch::H200, None, 3), &some);
}

/// Every misalignment of every type, of each operand and of each row: odd widths, where rows of an operand begin at all bytes in turn, and rows
/// that begin alike, with operands that do not. With rings, and without.
#[test]
fn misaligned() {
    if !machine::has_cxx() {
        return;
    }
    for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
        let mut cases = Vec::new();
        for (j, hidden) in [1, 39, 64, 257, 777, 1001, 1004, 2047, 4096, 4097, 8191].into_iter().enumerate() {
            for offset in 0..16 / dtype.bytes() as u8 {
                let weight = [WeightKind::Same, WeightKind::Absent, WeightKind::F32][(i + j) % 3];
                let dz = (offset % 2 == 1).then_some(Values::Normal);
                let gap = if offset % 4 == 3 { Gap::Elements(3) } else { Gap::None };
                let case = Case { weight, dz, residual: dz, seed: hidden as u64, ..Case::new(9, hidden, dtype) };
                // Each another, or all alike.
                let place = |name: Name| Place { offset: (offset + name as u8 * (offset % 3)) % 8, gap };
                cases.push(Name::ALL.into_iter().fold(case, |case, name| case.with_place(name, place(name))));
            }
        }
        let arch = if dtype == Dtype::F16 { Arch::A100 } else { Arch::H200 };
        demand_identity(emulator(arch, Some(3), 8 + i as u64), &cases);
        let subject = emulated(emulator(arch, None, i as u64));
        for case in cases.iter().step_by(11) {
            for name in ["writes", "layout"] {
                let outcome = property(name).expect("a property").check(&subject, case);
                assert!(matches!(outcome, Outcome::Passed(_)), "{name}: {case}: {outcome:?}");
            }
        }
    }
}

/// Bulk copies take whole words, and none that reaches beyond an operand's first or last element: checked where they are asked for.
#[test]
fn nothing_is_copied_from_outside_an_operand() {
    if !machine::has_cxx() {
        return;
    }
    const CLAMPED: &str = "            if (from < (const unsigned char*)operand) from += 16;\n            \
                           if (to > (const unsigned char*)(last + hidden)) to -= 16;\n";
    const CHECKED: &str = "            if (from < (const unsigned char*)operand || (const T*)to > last + hidden) \
                           emulator::fail(emulator::TOO_LARGE);\n";
    let place = |offset, gap| Place { offset, gap };
    for (offset, gap) in [(0, Gap::None), (1, Gap::None), (6, Gap::Elements(2)), (3, Gap::Broadcast)] {
        let case = Case::new(7, 777, Dtype::Bf16);
        let case = [Name::X, Name::Dy].into_iter().fold(case, |case, name| case.with_place(name, place(offset, gap)));
        let checked = |clamped: &str| emulator(Arch::H200, None, 9).patched(CLAMPED, &format!("{clamped}{CHECKED}"));
        assert_eq!(refuted("identity", &emulated(checked(CLAMPED)), &case), None, "{case}");
        let caught = refuted("identity", &emulated(checked("")), &case).unwrap_or_default();
        assert!(caught.contains("too large"), "{case}: {caught}");
    }
}

/// The other ways to hold rows: every size of a team, packs and sets, one number of teams each.
#[test]
fn variants_change_no_bit() {
    if !machine::has_cxx() {
        return;
    }
    let shapes = [(530, 4000, Dtype::Bf16), (45, 5000, Dtype::F32), (19, 9000, Dtype::F16), (3, 40_000, Dtype::Bf16)];
    let mut cases = shapes.map(|(rows, hidden, dtype)| Case::new(rows, hidden, dtype)).to_vec();
    // Its rows begin on 16 bytes, and are whole packs of four, but no whole words of 16 bytes.
    cases.push(hard_case("groups_of_one").expect("a hard case").case);
    for case in cases {
        let mut all = variants(case.hidden, case.dtype);
        all.sort_by_key(|class| (class.team, class.pack, class.packs, std::cmp::Reverse(class.teams)));
        all.dedup_by_key(|class| (class.team, class.pack, class.packs));
        assert!(all.len() >= 2 && (case.hidden < 3000 || all.iter().any(|class| class.sets > 1)), "{case}: {all:?}");
        let refutations: Vec<String> = all
            .into_par_iter()
            .filter_map(|class| {
                let tuning = Tuning { forward: Some(class), backward: Some(class), ..Tuning::of(Arch::H200) };
                Some(format!("{class}: {}", refuted("identity", &emulated(Emulator::new(tuning, 6)), &case)?))
            })
            .collect();
        assert!(refutations.is_empty(), "{}", refutations.join("\n"));
    }
}

/// Two clusters of four blocks, or one of eight, with all the rows: rings and slots are used again and again, from group to group.
#[test]
fn clusters() {
    if !machine::has_cxx() {
        return;
    }
    for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
        let case = |hidden: usize| {
            let weight = [WeightKind::Same, WeightKind::F32, WeightKind::Absent][(i + hidden / 8 % 2) % 3];
            let dz = (dtype == Dtype::F16 || !hidden.is_power_of_two()).then_some(Values::Normal);
            let rows = column_order(usize::MAX, hidden).groups + 2;
            Case { weight, dz, residual: dz, seed: hidden as u64, ..Case::new(rows, hidden, dtype) }
        };
        let cases = [32_768, 30_008, 65_536, 49_152, 131_072, 90_000].map(case);
        demand_identity(emulator(Arch::H200, Some(8), 7 + i as u64), &cases);
    }
}

/// A grid of one block, and of more blocks than there is work.
#[test]
fn grids() {
    if !machine::has_cxx() {
        return;
    }
    for blocks in [1, 2, 148] {
        let rows_and_widths = [(600, 4096), (300, 64), (9, 20_000), (2117, 512)];
        let cases: Vec<Case> = rows_and_widths.map(|(rows, hidden)| Case::new(rows, hidden, Dtype::Bf16)).into();
        demand_identity(emulator(Arch::H200, Some(blocks), 4), &cases);
    }
}

/// Rows whose statistic must be scaled, on every path; and the case that the project began with.
#[test]
fn degenerate_rows() {
    if !machine::has_cxx() {
        return;
    }
    let names = ["idle_groups_781", "idle_groups_781_one_short", "no_rows", "no_rows_wide"];
    let mut cases: Vec<Case> = names.iter().map(|name| hard_case(name).expect(name).case).collect();
    for values in [rmsnorm_fuzz::Values::Subnormal, rmsnorm_fuzz::Values::Bits] {
        for hidden in [64, 1000, 1024, 4096, 20_000, 65_536] {
            cases.push(Case { eps: 0.0, x: values, ..Case::new(19, hidden, Dtype::F32) });
        }
        cases.push(Case { eps: 0.0, x: values, ..Case::new(5, 100_000, Dtype::Bf16) });
        cases.push(Case { eps: 0.0, x: values, ..Case::new(3, 20_001, Dtype::F32) });
    }
    demand_identity(of_classes(Arch::H200, 5), &cases);
}

/// The kernels are sound, and broken so they give other bits, or are caught by the emulator itself, for at least one of eight orders of threads.
fn demand_caught(emulator: impl Fn() -> Emulator, what: &str, (from, to): (&str, &str), case: &Case) {
    demand_caught_by("identity", emulator, what, (from, to), case);
}

fn demand_caught_by(name: &str, emulator: impl Fn() -> Emulator, what: &str, (from, to): (&str, &str), case: &Case) {
    assert_eq!(refuted(name, &emulated(emulator()), case), None, "{what}: the sound kernel");
    let broken = emulated(emulator().patched(from, to));
    let caught = (0..8).find_map(|_| refuted(name, &broken, case)).unwrap_or_else(|| panic!("not caught: {what}"));
    assert!(!caught.contains("could not compile"), "{what}: {caught}");
    println!("{what}: {caught}");
}

/// With bulk copies and without; and a row offset that was 32 bits wide would be seen.
#[test]
fn rows_far_apart() {
    if !machine::has_cxx() {
        return;
    }
    for arch in [Arch::H200, Arch::A100] {
        let outcome = far_rows(emulator(arch, None, 0));
        assert!(matches!(outcome, Outcome::Passed(_)), "{outcome:?}");
    }
    for (from, to) in [
        ("else return operand + row * stride;", "else return operand + (u32)(row * stride);"),
        ("ROW(y, row)", "(y + (u32)(row * y_stride * 2) / 2)"),
        ("ROW(dx, source.row(at + r))", "(dx + (u32)(source.row(at + r) * dx_stride * 2) / 2)"),
    ] {
        let outcome = far_rows(emulator(Arch::H200, Some(4), 0).patched(from, to));
        let Outcome::Failed { message, .. } = outcome else { panic!("not caught: {to}") };
        assert!(!message.contains("could not compile"), "{to}: {message}");
    }
}

fn far_rows(emulator: Emulator) -> Outcome {
    property("far rows").expect("a property").check(&emulated(emulator), &Case::new(2, 1024, Dtype::Bf16))
}

/// Whatever the umask, modules are built in folders that only this user can enter; once a library is loaded, its folder is gone.
#[test]
fn nobody_else_can_change_what_is_built() {
    if !machine::has_cxx() {
        return;
    }
    const CHILD: &str = "RMSNORM_EMULATOR_TEST";
    if std::env::var_os(CHILD).is_some() {
        let emulator = emulator(Arch::H200, None, 0);
        demand_identity(emulator, &[Case::new(3, 40, Dtype::F32)]);
        let left = std::fs::read_dir(std::env::temp_dir()).expect("a folder").count();
        return println!("LEFT {left}");
    }
    let folder = machine::folder();
    let [compiler, log, built] = ["compiler", "log", "built"].map(|name| folder.path().join(name));
    std::fs::create_dir(&built).expect("a folder");
    // Notes whose the folder of the source is and who may enter it. Written by another process: a file that is open for writing,
    // also in a child that another test has just forked, cannot be run.
    let script = "#!/bin/sh\nfor last; do :; done\ncase $last in\n*.cc) stat -c '%a %u' \"${last%/*}\" >> \"$LOG\";;\nesac\n\
                  exec \"$REAL\" \"$@\"\n";
    let mut child = Command::new("sh");
    child.args(["-c", "umask 0; printf %s \"$SCRIPT\" > \"$CXX\"; chmod 700 \"$CXX\"; exec \"$0\" \"$@\""]);
    child.arg(std::env::current_exe().expect("this test's path"));
    child.args(["--exact", "nobody_else_can_change_what_is_built", "--nocapture"]);
    child.env("REAL", std::env::var_os("CXX").unwrap_or_else(|| "c++".into())).env("CXX", &compiler);
    let output = child.envs([(CHILD, "1"), ("SCRIPT", script)]).env("LOG", &log).env("TMPDIR", &built).output();
    let output = output.expect("a process");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("LEFT 0"), "{text}");
    let owner = std::fs::metadata(&folder).expect("a folder").uid();
    let seen = std::fs::read_to_string(&log).expect("modules were built");
    assert!(seen.lines().count() >= 2 && seen.lines().all(|line| line == format!("700 {owner}")), "{seen}");
}

#[test]
fn every_class_is_reached() {
    for dtype in Dtype::ALL {
        for direction in Direction::BOTH {
            let reached: BTreeSet<_> = cases(dtype).iter().map(|case| class(direction, case.hidden, dtype)).collect();
            assert_eq!(reached, classes(direction, dtype).into_iter().collect());
        }
    }
}
