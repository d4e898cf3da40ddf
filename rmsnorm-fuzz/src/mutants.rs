//! The defects that the checks must catch: small textual patches of the code that computes. `cargo xtask verify --mutants`
//! builds each into a copy of `rmsnorm-cuda` and lets it be judged like the original; nothing of them is in the original.
//!
//! Read in this order: [`Mutant`], [`MUTANTS`] (the list), [`Subject`] (what is judged) and [`judge`] (by what).

use crate::Fill;
use crate::case::{Case, Gap, Name, Place};
use crate::hard::hard_case;
use crate::idle::idle_groups;
use crate::operands::Operands;
use crate::products::products;
use crate::property::{Evidence, Outcome, PROPERTIES, Stop, demand_equal, judged, property};
use crate::study::idle_row;
use crate::values::Values;
use rmsnorm_cuda::{Dtype, Executor};
use std::path::Path;

#[doc(hidden)]
pub use rmsnorm_cuda;

mod list;

pub use list::MUTANTS;

/// A defect.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// A word, unique.
    pub name: &'static str,
    /// What is wrong, in one sentence.
    pub defect: &'static str,
    /// Whose code is patched.
    pub on: On,
    /// Every change; all of them must apply.
    pub patches: &'static [Patch],
    /// The property that must catch it, alone.
    pub property: &'static str,
    /// The case that it is caught with.
    pub case: fn() -> Case,
    /// Whether it is a defect of the reduction over the rows (§7).
    pub column: bool,
}

/// The executor that computes with the patched code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The CPU executor.
    Cpu,
    /// The kernels: on a GPU, or on a CPU by the emulator.
    Kernels,
}

/// One change of the sources.
#[derive(Clone, Copy, Debug)]
pub struct Patch {
    /// Path below `rmsnorm-cuda/src`.
    pub file: &'static str,
    /// A text that stands there exactly once.
    pub from: &'static str,
    /// What stands there instead.
    pub to: &'static str,
}

impl Patch {
    /// The patched text, or why the patch does not apply.
    pub fn apply(&self, text: &str) -> Result<String, String> {
        match text.matches(self.from).count() {
            1 => Ok(text.replacen(self.from, self.to, 1)),
            0 => Err(format!("{}: no such text: {}", self.file, self.from)),
            times => Err(format!("{}: {times} times: {}", self.file, self.from)),
        }
    }
}

impl Mutant {
    /// The sources with every patch applied: (path below `rmsnorm-cuda/src`, text) of each file that changes.
    pub fn patched(&self, sources: &Path) -> Result<Vec<(&'static str, String)>, String> {
        let mut files: Vec<(&'static str, String)> = Vec::new();
        for patch in self.patches {
            let at = match files.iter().position(|(file, _)| *file == patch.file) {
                Some(at) => at,
                None => {
                    let path = sources.join(patch.file);
                    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                    files.push((patch.file, text));
                    files.len() - 1
                }
            };
            files[at].1 = patch.apply(&files[at].1)?;
        }
        Ok(files)
    }

    /// The name as an identifier and as part of a crate's name.
    pub fn crate_name(&self) -> String {
        format!("mutant_{}", self.name)
    }
}

/// The mutant of this name.
pub fn mutant(name: &str) -> Option<&'static Mutant> {
    MUTANTS.iter().find(|mutant| mutant.name == name)
}

/// The executors of one build of `rmsnorm-cuda`.
pub struct Subject {
    /// As a user has it.
    pub executor: Box<dyn Executor>,
    /// The kernels with other choices of what decides only speed.
    pub launches: Vec<Box<dyn Executor>>,
    /// Whether the kernels run in the emulator, which takes a thousand times longer than a GPU.
    pub is_emulated: bool,
}

impl Subject {
    /// A CPU executor.
    pub fn cpu(executor: impl Executor + 'static) -> Subject {
        Subject { executor: Box::new(executor), launches: Vec::new(), is_emulated: false }
    }
}

/// Where kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// By the emulator.
    Cpu,
    /// On the first GPU.
    Cuda,
}

/// Every property that a mutant is judged by: those of [`PROPERTIES`], and those that compare executors or have inputs of
/// their own. 12 is missing: launch failures take a driver that fails on demand (`rmsnorm-cuda/tests/driver.rs`).
pub fn judges() -> Vec<(u32, &'static str)> {
    let mut all: Vec<_> = PROPERTIES.iter().map(|p| (p.number, p.name)).collect();
    all.extend([(3, "two runs"), (4, "idle_groups_781"), (5, "launch"), (11, "products")]);
    all.sort();
    all
}

/// Tries to refute one property of `subject` with `case`.
pub fn judge(subject: &Subject, name: &str, case: &Case) -> Outcome {
    let executor = &*subject.executor;
    if case.elements() > LARGE && !["identity", "accuracy", "content", "exact"].contains(&name) {
        return Outcome::NotApplicable { reason: "a case this large is for other properties".into() };
    }
    match name {
        "two runs" => judged("two runs", executor, &format!(" [{case}]"), || two_runs(executor, case)),
        "launch" => judged("launch", executor, &format!(" [{case}]"), || every_launch(subject, case)),
        "idle_groups_781" if subject.is_emulated => idle_row(executor),
        "idle_groups_781" => idle_groups(executor),
        "products" => products(executor),
        _ => property(name).unwrap_or_else(|| panic!("no property is called {name}")).check(executor, case),
    }
}

/// *Two runs are equal*, whatever the threads did meanwhile.
fn two_runs(executor: &dyn Executor, case: &Case) -> Result<Evidence, Stop> {
    let mut evidence = Evidence::default();
    let first = Operands::new(case, Fill::Nan).run(executor)?;
    for run in 2..=RUNS {
        let again = Operands::new(case, Fill::Nan).run(executor)?;
        demand_equal(format!("run {run}"), first.difference(&again))?;
        evidence.count(again.elements());
    }
    Ok(evidence)
}

/// *Every launch is equal.*
fn every_launch(subject: &Subject, case: &Case) -> Result<Evidence, Stop> {
    if subject.launches.is_empty() {
        return Err(Stop::NotApplicable("the CPU has no launches".into()));
    }
    let mut evidence = Evidence::default();
    let want = Operands::new(case, Fill::Nan).run(&*subject.executor)?;
    for (i, launch) in subject.launches.iter().enumerate() {
        let got = Operands::new(case, Fill::Nan).run(&**launch)?;
        demand_equal(format!("launch {i}, {}", launch.name()), want.difference(&got))?;
        evidence.count(got.elements());
    }
    Ok(evidence)
}

/// Elements of the largest case that every property is tried on.
const LARGE: usize = 1 << 19;
/// Runs that must be equal.
const RUNS: usize = 6;

/// The executors of another build of `rmsnorm-cuda`, as those of this one: `subject!(its_crate, On, Device)` is a
/// `Result<Subject, String>`; `subject!(cpu its_crate)` is its CPU executor, and needs no more of that crate.
#[macro_export]
macro_rules! subject {
    (cpu $theirs:ident) => {{
        $crate::subject!(bridge $theirs);
        Bridge($theirs::Cpu)
    }};
    ($theirs:ident, $on:expr, $device:expr) => {{
        use $crate::mutants::{Device, On, Subject};
        $crate::subject!(bridge $theirs);
        fn subject(on: On, device: Device) -> Result<Subject, String> {
            use $theirs::cuda::{Cuda, Tuning, checks::emulator::Emulator};
            use $theirs::plan::Arch;
            let text = |error: $theirs::Error| error.to_string();
            Ok(match (on, device) {
                (On::Cpu, _) => Subject::cpu(Bridge($theirs::Cpu)),
                (On::Kernels, Device::Cpu) => {
                    let emulator = |arch, blocks| Box::new(Bridge(Emulator::new(Tuning { blocks, ..Tuning::of(arch) }, 1)));
                    Subject {
                        executor: emulator(Arch::H200, Some(7)),
                        is_emulated: true,
                        launches: vec![emulator(Arch::H200, Some(2)), emulator(Arch::A100, None)],
                    }
                }
                (On::Kernels, Device::Cuda) => {
                    let cuda = Cuda::new(0).map_err(text)?;
                    let forced = |blocks| Box::new(Bridge(cuda.with_tuning(Tuning { blocks: Some(blocks), ..cuda.tuning() })));
                    let planned = Box::new(Bridge(cuda.with_tuning(Tuning { arch: Arch::A100, ..cuda.tuning() })));
                    Subject {
                        launches: vec![forced(1), forced(2), forced(114), forced(132), forced(148), planned],
                        executor: Box::new(Bridge(cuda)),
                        is_emulated: false,
                    }
                }
            })
        }
        subject($on, $device)
    }};
    (bridge $theirs:ident) => {
        use $crate::mutants::rmsnorm_cuda as ours;
        struct Bridge<E>(E);

        impl<E: $theirs::Executor> ours::Executor for Bridge<E> {
            fn name(&self) -> String {
                self.0.name()
            }
            fn forward(&self, call: ours::Forward<ours::Slice<'_>, ours::SliceMut<'_>>) -> Result<(), ours::Error> {
                let ours::Forward { rows, hidden, eps, weight_offset, x, weight, y, rstd } = call;
                let call = $theirs::Forward {
                    rows,
                    hidden,
                    eps,
                    weight_offset: offset(weight_offset),
                    x: rows_of(x, slice),
                    weight: weight.map(|w| vector(w, slice)),
                    y: rows_of(y, slice_mut),
                    rstd: rstd.map(|r| vector(r, slice_mut)),
                };
                self.0.forward(call).map_err(error)
            }
            fn backward(&self, call: ours::Backward<ours::Slice<'_>, ours::SliceMut<'_>>) -> Result<(), ours::Error> {
                let ours::Backward { rows, hidden, weight_offset, x, weight, rstd, dy, dx, dw } = call;
                let call = $theirs::Backward {
                    rows,
                    hidden,
                    weight_offset: offset(weight_offset),
                    x: rows_of(x, slice),
                    weight: weight.map(|w| vector(w, slice)),
                    rstd: vector(rstd, slice),
                    dy: rows_of(dy, slice),
                    dx: rows_of(dx, slice_mut),
                    dw: dw.map(|g| $theirs::WeightGradient {
                        dw: vector(g.dw, slice_mut),
                        scratch: vector(g.scratch, slice_mut),
                    }),
                };
                self.0.backward(call).map_err(error)
            }
        }

        fn slice(data: ours::Slice<'_>) -> $theirs::Slice<'_> {
            match data {
                ours::Slice::F32(d) => $theirs::Slice::F32(d),
                ours::Slice::F16(d) => $theirs::Slice::F16(d),
                ours::Slice::Bf16(d) => $theirs::Slice::Bf16(d),
            }
        }

        fn slice_mut(data: ours::SliceMut<'_>) -> $theirs::SliceMut<'_> {
            match data {
                ours::SliceMut::F32(d) => $theirs::SliceMut::F32(d),
                ours::SliceMut::F16(d) => $theirs::SliceMut::F16(d),
                ours::SliceMut::Bf16(d) => $theirs::SliceMut::Bf16(d),
            }
        }

        fn rows_of<A, B>(rows: ours::Rows<A>, map: impl FnOnce(A) -> B) -> $theirs::Rows<B> {
            $theirs::Rows { data: map(rows.data), offset: rows.offset, row_stride: rows.row_stride }
        }

        fn vector<A, B>(vector: ours::Vector<A>, map: impl FnOnce(A) -> B) -> $theirs::Vector<B> {
            $theirs::Vector { data: map(vector.data), offset: vector.offset }
        }

        fn offset(offset: ours::WeightOffset) -> $theirs::WeightOffset {
            match offset {
                ours::WeightOffset::Zero => $theirs::WeightOffset::Zero,
                ours::WeightOffset::One => $theirs::WeightOffset::One,
            }
        }

        fn error(error: $theirs::Error) -> ours::Error {
            match error {
                $theirs::Error::Hidden { got } => ours::Error::Hidden { got },
                $theirs::Error::Eps { got } => ours::Error::Eps { got },
                $theirs::Error::ElementType { operand, expected, got } => {
                    let got = match got {
                        $theirs::Dtype::F32 => ours::Dtype::F32,
                        $theirs::Dtype::F16 => ours::Dtype::F16,
                        $theirs::Dtype::Bf16 => ours::Dtype::Bf16,
                    };
                    ours::Error::ElementType { operand, expected, got }
                }
                $theirs::Error::RowStride { operand, got, hidden, broadcast } => {
                    ours::Error::RowStride { operand, got, hidden, broadcast }
                }
                $theirs::Error::Length { operand, needed, got } => ours::Error::Length { operand, needed, got },
                $theirs::Error::AddressRange { operand, rows, row_stride, offset } => {
                    ours::Error::AddressRange { operand, rows, row_stride, offset }
                }
                $theirs::Error::Misaligned { operand, address, bytes } => {
                    ours::Error::Misaligned { operand, address, bytes }
                }
                $theirs::Error::Overlap { output, other } => ours::Error::Overlap { output, other },
                $theirs::Error::Driver { call, code } => ours::Error::Driver { call, code },
                other => ours::Error::Driver { call: "another build of rmsnorm-cuda", code: other.to_string() },
            }
        }
    };
}

/// The program that `verify --mutants` builds around the patched copies: `judge SUBJECT ON DEVICE CASES PROPERTIES`, the lists
/// separated by commas, a case called by the mutant that it is for. Prints a line for each pair: case, property, `passed`,
/// `caught` or `silent` (the case says nothing), and why.
pub fn judge_main(build: impl FnOnce(&str, On, Device) -> Result<Subject, String>) -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, on, device, cases, properties] = &arguments[..] else {
        return Err("usage: judge SUBJECT ON DEVICE CASES PROPERTIES".into());
    };
    let on = if on == "cpu" { On::Cpu } else { On::Kernels };
    let subject = build(name, on, if device == "cpu" { Device::Cpu } else { Device::Cuda })?;
    for case_of in cases.split(',') {
        let case = (mutant(case_of).ok_or_else(|| format!("no mutant is called {case_of}"))?.case)();
        for property in properties.split(',') {
            let (result, why) = match judge(&subject, property, &case) {
                Outcome::Passed(found) => ("passed", format!("{} comparisons", found.comparisons)),
                Outcome::NotApplicable { reason } => ("silent", reason),
                Outcome::Failed { message, .. } => ("caught", message),
            };
            println!("{case_of}\t{property}\t{result}\t{}", why.replace(['\n', '\t'], " "));
        }
    }
    Ok(())
}
