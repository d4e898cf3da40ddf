//! The defects that the checks must catch: small textual patches of the code that computes. `cargo xtask verify --mutants`
//! builds each into a copy of `rmsnorm-cuda` and lets it be judged like the original; nothing of them is in the original.
//!
//! Read in this order: [`Mutant`], [`MUTANTS`] (the list), [`subject!`](macro@crate::subject) (a copy as what is judged) and
//! [`judge_main`].

use crate::case::{Case, DwKind, Gap, Name, Place, WeightKind};
use crate::finding::Outcome;
use crate::hard::hard_case;
use crate::property::{PROPERTIES, Property, property};
use crate::subject::{Again, Subject};
use crate::values::Values;
use rmsnorm_cuda::{Dtype, Rounding};
use serde::{Deserialize, Serialize};
use std::path::Path;

#[doc(hidden)]
pub use rmsnorm_cuda;

mod list;

pub use list::{ALSO, MUTANTS};

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
        self.patched_texts(|file| {
            let path = sources.join(file);
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
        })
    }

    /// The same of the kernel sources that a program has in it: (name, text) of each.
    pub fn patched_kernels(&self, sources: &[(&str, &str)]) -> Result<Vec<(&'static str, String)>, String> {
        let name = |file: &'static str| file.rsplit('/').next().unwrap_or(file);
        let patched = self.patched_texts(|file| {
            let found = sources.iter().find(|(source, _)| *source == name(file));
            found.map(|(_, text)| text.to_string()).ok_or_else(|| format!("{file} is no kernel source"))
        })?;
        Ok(patched.into_iter().map(|(file, text)| (name(file), text)).collect())
    }

    /// Whether nothing but kernel sources is patched: then no code in Rust differs.
    pub fn is_of_kernel_sources(&self) -> bool {
        self.patches.iter().all(|patch| patch.file.ends_with(".cu") || patch.file.ends_with(".cuh"))
    }

    /// The properties that must catch it, with its named one first.
    pub fn demanded(&self) -> impl Iterator<Item = &'static str> {
        let also = ALSO.iter().filter(|(name, _)| *name == self.name).map(|(_, property)| *property);
        std::iter::once(self.property).chain(also)
    }

    fn patched_texts(
        &self,
        read: impl Fn(&'static str) -> Result<String, String>,
    ) -> Result<Vec<(&'static str, String)>, String> {
        let mut files: Vec<(&'static str, String)> = Vec::new();
        for patch in self.patches {
            let at = match files.iter().position(|(file, _)| *file == patch.file) {
                Some(at) => at,
                None => {
                    files.push((patch.file, read(patch.file)?));
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

/// Where kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// By the emulator.
    Cpu,
    /// On the first GPU.
    Cuda,
}

/// Every property that a mutant is judged by. 12 is missing: launch failures take a driver that fails on demand
/// (`rmsnorm-cuda/tests/driver.rs`).
pub fn judges() -> impl Iterator<Item = &'static Property> {
    PROPERTIES.iter().filter(|property| property.number != 12)
}

/// The executors of another build of `rmsnorm-cuda`, as those of this one: `subject!(its_crate, On, Device)` is a
/// `Result<Subject, String>`; `subject!(cpu its_crate)` is its CPU executor, and needs no more of that crate.
#[macro_export]
macro_rules! subject {
    (cpu $theirs:ident) => {{
        $crate::subject!(bridge $theirs);
        Bridge($theirs::Cpu)
    }};
    ($theirs:ident, $on:expr, $device:expr) => {{
        use $crate::mutants::{Device, On};
        use $crate::subject::{FORCED_BLOCKS, OtherLaunch, Subject};
        $crate::subject!(bridge $theirs);
        fn subject(on: On, device: Device) -> Result<Subject, String> {
            use $theirs::cuda::{Cuda, Tuning, checks::emulator::Emulator};
            use $theirs::plan::Arch;
            Ok(match (on, device) {
                (On::Cpu, _) => Subject::of(Bridge($theirs::Cpu)),
                (On::Kernels, Device::Cpu) => {
                    let emulator = |arch, blocks| Bridge(Emulator::new(Tuning { blocks, ..Tuning::of(arch) }, 1));
                    Subject {
                        is_emulated: true,
                        launches: vec![
                            OtherLaunch::new("two blocks", emulator(Arch::H200, Some(2))),
                            OtherLaunch::new("planned for A100", emulator(Arch::A100, None)),
                            OtherLaunch::new("as planned", emulator(Arch::H200, None)),
                        ],
                        ..Subject::of(emulator(Arch::H200, Some(7)))
                    }
                }
                (On::Kernels, Device::Cuda) => {
                    let cuda = Cuda::new(0).map_err(|error| error.to_string())?;
                    let with = |tuning| Bridge(cuda.with_tuning(tuning));
                    let forced = |forced: (u32, usize)| {
                        OtherLaunch::forced(forced, with(Tuning { blocks: Some(forced.0), ..cuda.tuning() }))
                    };
                    let planned = with(Tuning { arch: Arch::A100, ..cuda.tuning() });
                    let mut launches: Vec<_> = FORCED_BLOCKS.into_iter().map(forced).collect();
                    launches.push(OtherLaunch::new("planned for A100", planned));
                    launches.push(OtherLaunch::new("as planned", with(cuda.tuning())));
                    // As in the emulator: few rows have kernels of their own, and most patches are in the others.
                    Subject { launches, ..Subject::of(with(Tuning { few_rows: false, ..cuda.tuning() })) }
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
                self.0.forward(forward(call, slice)).map_err(error)
            }
            fn backward(&self, call: ours::Backward<ours::Slice<'_>, ours::SliceMut<'_>>) -> Result<(), ours::Error> {
                self.0.backward(backward(call, slice)).map_err(error)
            }
            fn forward_in_place(
                &self,
                call: ours::Forward<ours::Input<ours::Slice<'_>>, ours::SliceMut<'_>>,
            ) -> Result<(), ours::Error> {
                self.0.forward_in_place(forward(call, input)).map_err(error)
            }
            fn backward_in_place(
                &self,
                call: ours::Backward<ours::Input<ours::Slice<'_>>, ours::SliceMut<'_>>,
            ) -> Result<(), ours::Error> {
                self.0.backward_in_place(backward(call, input)).map_err(error)
            }
        }

        fn forward<A, B>(
            call: ours::Forward<A, ours::SliceMut<'_>>,
            read: impl Fn(A) -> B,
        ) -> $theirs::Forward<B, $theirs::SliceMut<'_>> {
            let ours::Forward { rows, inner, per_head, hidden, eps, weight_offset, rounding, x, residual, weight, bias, y, rstd } = call;
            $theirs::Forward {
                rows,
                inner,
                per_head,
                hidden,
                eps,
                weight_offset: offset(weight_offset),
                rounding: how_often(rounding),
                x: rows_of(x, &read),
                residual: residual.map(|sum| $theirs::Residual {
                    residual: rows_of(sum.residual, &read),
                    z: rows_of(sum.z, slice_mut),
                }),
                weight: weight.map(|w| vector(w, &read)),
                bias: bias.map(|b| vector(b, &read)),
                y: rows_of(y, slice_mut),
                rstd: rstd.map(|r| vector(r, slice_mut)),
            }
        }

        fn backward<A, B>(
            call: ours::Backward<A, ours::SliceMut<'_>>,
            read: impl Fn(A) -> B,
        ) -> $theirs::Backward<B, $theirs::SliceMut<'_>> {
            let ours::Backward { rows, inner, per_head, hidden, weight_offset, rounding, x, weight, rstd, dy, dz, dx, dw, db } = call;
            $theirs::Backward {
                rows,
                inner,
                per_head,
                hidden,
                weight_offset: offset(weight_offset),
                rounding: how_often(rounding),
                x: rows_of(x, &read),
                weight: weight.map(|w| vector(w, &read)),
                rstd: vector(rstd, &read),
                dy: rows_of(dy, &read),
                dz: dz.map(|dz| rows_of(dz, &read)),
                dx: rows_of(dx, slice_mut),
                dw: dw.map(|g| $theirs::WeightGradient {
                    dw: vector(g.dw, slice_mut),
                    scratch: vector(g.scratch, slice_mut),
                }),
                db: db.map(|g| $theirs::BiasGradient {
                    db: vector(g.db, slice_mut),
                    scratch: vector(g.scratch, slice_mut),
                }),
            }
        }

        fn input(input: ours::Input<ours::Slice<'_>>) -> $theirs::Input<$theirs::Slice<'_>> {
            use $theirs::{Input, Output};
            match input {
                ours::Input::Memory(data) => Input::Memory(slice(data)),
                ours::Input::Output(ours::Output::Y) => Input::Output(Output::Y),
                ours::Input::Output(ours::Output::Z) => Input::Output(Output::Z),
                ours::Input::Output(ours::Output::Dx) => Input::Output(Output::Dx),
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
            let ours::Rows { data, offset, row_stride, outer_stride } = rows;
            $theirs::Rows { data: map(data), offset, row_stride, outer_stride }
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

        fn how_often(rounding: ours::Rounding) -> $theirs::Rounding {
            match rounding {
                ours::Rounding::Once => $theirs::Rounding::Once,
                ours::Rounding::Twice => $theirs::Rounding::Twice,
            }
        }

        fn error(error: $theirs::Error) -> ours::Error {
            match error {
                $theirs::Error::Hidden { got } => ours::Error::Hidden { got },
                $theirs::Error::Eps { got } => ours::Error::Eps { got },
                $theirs::Error::ElementType { operand, expected, got } => {
                    let [expected, got] = [expected, got].map(|dtype| match dtype {
                        $theirs::Dtype::F32 => ours::Dtype::F32,
                        $theirs::Dtype::F16 => ours::Dtype::F16,
                        $theirs::Dtype::Bf16 => ours::Dtype::Bf16,
                    });
                    ours::Error::ElementType { operand, expected, got }
                }
                $theirs::Error::RowStride { operand, got, hidden, broadcast } => {
                    ours::Error::RowStride { operand, got, hidden, broadcast }
                }
                $theirs::Error::Inner { got, rows } => ours::Error::Inner { got, rows },
                $theirs::Error::RowLevels { operand, counts, strides, hidden } => {
                    ours::Error::RowLevels { operand, counts, strides, hidden }
                }
                $theirs::Error::Length { operand, needed, got } => ours::Error::Length { operand, needed, got },
                $theirs::Error::AddressRange { operand, rows, row_stride, offset } => {
                    ours::Error::AddressRange { operand, rows, row_stride, offset }
                }
                $theirs::Error::Misaligned { operand, address, bytes } => {
                    ours::Error::Misaligned { operand, address, bytes }
                }
                $theirs::Error::Overlap { output, other, in_place } => {
                    ours::Error::Overlap { output, other, in_place }
                }
                $theirs::Error::NoOutput { output } => ours::Error::NoOutput { output },
                $theirs::Error::Driver { call, code } => ours::Error::Driver { call, code },
                other => ours::Error::Driver { call: "another build of rmsnorm-cuda", code: other.to_string() },
            }
        }
    };
}

/// What came of one property on the case of one mutant: a line of what [`judge_main`] prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    /// The mutant that the case is for.
    pub case: String,
    /// Name of the property.
    pub property: String,
    /// What came of it.
    pub result: Verdict,
    /// Why.
    pub why: String,
}

/// What came of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It held.
    Passed,
    /// It is refuted.
    Caught,
    /// The case says nothing about it.
    Silent,
}

/// The program that `verify --mutants` builds around the patched copies: `judge SUBJECT ON DEVICE CASE=PROPERTY,…`, a case called by the
/// mutant that it is for. Prints a [`Judged`] for each, as JSON, in their order.
pub fn judge_main(build: impl FnOnce(&str, On, Device) -> Result<Subject, String>) -> Result<(), String> {
    const USAGE: &str = "usage: judge SUBJECT ON DEVICE CASE=PROPERTY,...";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, on, device, pairs] = &arguments[..] else { return Err(USAGE.into()) };
    let on = if on == "cpu" { On::Cpu } else { On::Kernels };
    let mut subject = build(name, on, if device == "cpu" { Device::Cpu } else { Device::Cuda })?;
    // The emulator draws another order of threads in each.
    subject.again = (1..RUNS).map(|_| Again::itself("another run")).collect();
    for (case_of, name) in
        pairs.split(',').map(|pair| pair.split_once('=').ok_or(USAGE)).collect::<Result<Vec<_>, _>>()?
    {
        let case = (mutant(case_of).ok_or_else(|| format!("no mutant is called {case_of}"))?.case)();
        let property = property(name).ok_or_else(|| format!("no property is called {name}"))?;
        let (result, why) = match judge(property, &subject, &case) {
            Outcome::Passed(found) => (Verdict::Passed, format!("{} comparisons", found.comparisons)),
            Outcome::NotApplicable { reason } => (Verdict::Silent, reason),
            Outcome::Failed { message, .. } => (Verdict::Caught, message),
        };
        let judged = Judged { case: case_of.into(), property: name.into(), result, why };
        println!("{}", serde_json::to_string(&judged).map_err(|error| error.to_string())?);
    }
    Ok(())
}

fn judge(property: &Property, subject: &Subject, case: &Case) -> Outcome {
    if case.elements() > LARGE && !["identity", "accuracy", "content", "exact"].contains(&property.name) {
        return Outcome::NotApplicable { reason: "a case this large is for other properties".into() };
    }
    property.check(subject, case)
}

/// Elements of the largest case that every property is tried on.
const LARGE: usize = 1 << 19;
/// Runs that must be equal.
const RUNS: usize = 6;
