//! The compiled kernels: which modules calls launch on each architecture, what may not stand in their PTX, and what the assembler
//! reported of each kernel. Needs NVRTC to be of use, and no GPU.

use crate::sets::{Layout, widths};
use rmsnorm_cuda::cuda::compile::compile;
use rmsnorm_cuda::cuda::module::{Grouping, Module};
use rmsnorm_cuda::cuda::steps::{self, Step};
use rmsnorm_cuda::plan::{Arch, Calls, Direction, ROW_COUNTS, Tuning, classes};
use rmsnorm_cuda::{Dtype, Error, Rounding, WeightOffset};
use std::collections::{BTreeMap, BTreeSet};

/// A module as calls launch it on an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unit {
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// The module.
    pub module: Module,
    /// Dynamic shared memory of a block of its kernels, at most.
    pub dynamic_bytes: u32,
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "sm_{major}{minor} {}", self.module)
    }
}

/// Every kind of call that there is, with a weight's gradient; of rows, none.
pub fn kinds() -> Vec<Calls> {
    let weights = |dtype| {
        let all = [(None, WeightOffset::Zero), (Some(dtype), WeightOffset::Zero), (Some(dtype), WeightOffset::One)];
        let f32s = [(Some(Dtype::F32), WeightOffset::Zero), (Some(Dtype::F32), WeightOffset::One)];
        all.into_iter().chain(f32s.into_iter().filter(move |_| dtype != Dtype::F32))
    };
    let kind = |dtype, weight: Option<Dtype>, weight_offset| {
        let dw = Some(weight.unwrap_or(Dtype::F32));
        Calls { weight, weight_offset, dw, ..Calls::new((0, 0), dtype) }
    };
    let kinds = |dtype| weights(dtype).map(move |(weight, weight_offset)| kind(dtype, weight, weight_offset));
    // A residual is forward's alone, dz backward's: one kind shows both.
    let with_dz =
        |dtype| Calls { residual: Some([dtype; 2]), dz: Some(dtype), ..kind(dtype, Some(dtype), WeightOffset::Zero) };
    // Of either type, and alone.
    let biased = |dtype| {
        let bias = |weight, bias| Calls { bias: Some(bias), db: Some(bias), ..kind(dtype, weight, WeightOffset::Zero) };
        let f32s = (dtype != Dtype::F32).then(|| bias(Some(dtype), Dtype::F32));
        [bias(Some(dtype), dtype), bias(None, dtype)].into_iter().chain(f32s)
    };
    // In f32 the kernels are those that round once.
    let plain = |dtype| kind(dtype, Some(dtype), WeightOffset::Zero);
    let twice = |dtype| (dtype != Dtype::F32).then(|| Calls { rounding: Rounding::Twice, ..plain(dtype) });
    let levels = |dtype| Calls { two_levels: true, db: Some(dtype), ..plain(dtype) };
    let heads = |dtype| Calls { heads: 2, db: Some(dtype), ..plain(dtype) };
    // Rows of several types: around a residual in f32, and f16 among outputs and gradients in f32. Of others, some registers hold half as much.
    use Dtype::{Bf16, F16, F32};
    let stream = Calls { residual: Some([Bf16, F32]), y: Bf16, dy: Bf16, dz: Some(F32), ..plain(F32) };
    let mixed = Calls { y: F32, dy: F32, dx: F32, dw: Some(F32), ..plain(F16) };
    Dtype::ALL
        .into_iter()
        .flat_map(|dtype| {
            kinds(dtype).chain([with_dz(dtype), levels(dtype), heads(dtype)]).chain(twice(dtype)).chain(biased(dtype))
        })
        .chain([stream, mixed])
        .collect()
}

/// Every module that calls of this kind launch on `arch`: every class in every layout, few rows, and the fold. What is launched is what
/// `steps.rs` says, so a class or a kernel that is added there is here too.
pub fn units(arch: &Arch, kind: &Calls) -> Result<Vec<Unit>, Error> {
    let (mut found, tuning) = (BTreeMap::<Module, u32>::new(), Tuning::of(*arch));
    for direction in Direction::BOTH {
        let widest = kind.widest(direction);
        let of_classes = classes(direction, widest).into_iter().flat_map(|class| widths(direction, class, widest));
        // Backward of several types has classes of its own, held ones for each multiple of 256.
        let of_mixed = (1..=64).flat_map(|n| [256 * n, 256 * n - 8, 256 * n - 1]).map(|n| (Layout::Exact, n));
        let is_mixed = direction == Direction::Backward && kind.are_mixed(direction);
        for (layout, hidden) in of_classes.chain(of_mixed.filter(|_| is_mixed)) {
            for rows in ROW_COUNTS {
                let rows = rows.div_ceil(kind.heads);
                let calls = Calls { rows, hidden, aligned: layout != Layout::Moved, ..*kind };
                let steps = match direction {
                    Direction::Forward => steps::forward(&calls.forward()?, &tuning)?,
                    Direction::Backward => steps::backward(&calls.backward()?, &tuning)?,
                };
                for step in steps {
                    if let Step::Kernel(kernel) = step {
                        let dynamic_bytes = found.entry(kernel.module).or_default();
                        *dynamic_bytes = kernel.shared_bytes.max(*dynamic_bytes);
                    }
                }
            }
        }
    }
    let unit = |(module, dynamic_bytes)| Unit { capability: arch.compute_capability, module, dynamic_bytes };
    Ok(found.into_iter().map(unit).collect())
}

/// Whether its modules are compiled ahead: for rounding twice, for a bias and its gradient, for heads with a weight each, and for rows of several types
/// there is no room.
pub fn is_portable(kind: &Calls) -> bool {
    let is_mixed = Direction::BOTH.into_iter().any(|direction| kind.are_mixed(direction));
    kind.rounding == Rounding::Once && kind.bias.is_none() && kind.db.is_none() && kind.heads == 1 && !is_mixed
}

/// What is compiled ahead: the portable modules of all calls that [have them](is_portable). Those that resemble each other stand together.
pub fn portable() -> Result<Vec<Module>, Error> {
    let mut all = BTreeSet::new();
    // Some have a db to show its kernel.
    let kinds: Vec<Calls> = kinds().into_iter().map(|kind| Calls { db: None, ..kind }).filter(is_portable).collect();
    for (kind, both) in kinds.iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let (residual, dz) = (both.then_some([kind.dtype; 2]), both.then_some(kind.dtype));
        let units = units(&Arch::A100, &Calls { residual, dz, ..*kind })?;
        // Without a compiler few rows are planned as others are.
        let modules = units.into_iter().map(|unit| unit.module);
        all.extend(modules.filter(|module| !matches!(module, Module::BackwardFew { .. })).map(Module::portable));
    }
    Ok(all.into_iter().collect())
}

/// What the assembler reported of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Its name in the module.
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of spill stores and loads in its text.
    pub spill_bytes: u32,
    /// Bytes of a thread's stack.
    pub stack_bytes: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
}

/// The kernels that `log`, NVRTC's with `--ptxas-options=-v`, speaks of.
pub fn resources(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some((_, after)) = line.split_once("Compiling entry function '") {
            let kernel = after.split('\'').next().unwrap_or_default().into();
            found.push(Resources { kernel, ..Resources::default() });
        }
        let Some(last) = found.last_mut() else { continue };
        for part in line.rsplit(" : ").next().unwrap_or_default().split(',').map(str::trim) {
            let number = |text: &str| text.split_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or(0);
            if let Some(bytes) = part.strip_suffix(" bytes stack frame") {
                last.stack_bytes = number(bytes);
            } else if let Some(bytes) =
                part.strip_suffix(" bytes spill stores").or_else(|| part.strip_suffix(" bytes spill loads"))
            {
                last.spill_bytes += number(bytes);
            } else if let Some(bytes) = part.strip_suffix(" bytes smem") {
                last.shared_bytes = number(bytes);
            } else if let Some(registers) = part.strip_suffix(" registers") {
                last.registers = number(registers);
            }
        }
    }
    found
}

/// A unit, compiled and read.
pub struct Inspected {
    /// Machine code.
    pub cubin: Vec<u8>,
    /// The same before it was assembled.
    pub ptx: String,
    /// One for each kernel.
    pub resources: Vec<Resources>,
    /// What is wrong with it: nothing, in a kernel that is shipped.
    pub complaints: Vec<String>,
}

/// Compiles `unit` and reads what came out.
pub fn inspect(unit: &Unit) -> Result<Inspected, Error> {
    let compiled = compile(&unit.module, unit.capability)?;
    let resources = resources(&compiled.log);
    let mut complaints = complaints(&compiled.ptx);
    let seen: Vec<&str> = resources.iter().map(|r| r.kernel.as_str()).collect();
    for kernel in unit.module.kernels().iter().filter(|kernel| !seen.contains(kernel)) {
        complaints.push(format!("the assembler did not report on {kernel}"));
    }
    for Resources { kernel, spill_bytes, stack_bytes, .. } in &resources {
        let exceptions = EXCEPTIONS.iter().filter(|exception| exception.applies(unit, kernel));
        let allowed = exceptions.map(|exception| exception.bytes_max).max().unwrap_or(0);
        if (*spill_bytes).max(*stack_bytes) > allowed {
            complaints
                .push(format!("{kernel}: {spill_bytes} bytes of spills, {stack_bytes} of stack, allowed {allowed}"));
        }
    }
    Ok(Inspected { cubin: compiled.cubin, ptx: compiled.ptx, resources, complaints })
}

/// A kernel that may keep values of its threads in memory.
pub struct Exception {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Of which units.
    pub of: fn(&Unit) -> bool,
    /// Spills, or stack, of a thread.
    pub bytes_max: u32,
    /// Why that is accepted.
    pub reason: &'static str,
}

impl Exception {
    fn applies(&self, unit: &Unit, kernel: &str) -> bool {
        self.kernel == kernel && (self.of)(unit)
    }
}

/// Every exception to "no spills, no stack".
pub const EXCEPTIONS: &[Exception] = &[
    Exception {
        kernel: "backward",
        of: |unit| unit.module.class().is_some_and(|class| class.threads() == 512),
        bytes_max: 120,
        reason: "128 registers a thread: of the widest rows a few values go to the first cache and back once a row",
    },
    Exception {
        kernel: "backward",
        of: |unit| unit.module.class().is_some_and(|class| class.packs * class.pack >= 56),
        bytes_max: 180,
        reason: "255 registers a thread, of which the sums of the columns take 56 or 64: as above, where the width is no constant",
    },
    Exception {
        kernel: "backward",
        of: |unit| is_unaligned(unit) && unit.module.class().is_some_and(|class| class.packs == 1),
        bytes_max: 60,
        reason: "64 registers a thread, so that all blocks of narrow rows fit; rows that are not on 16 bytes; not timed",
    },
    Exception {
        kernel: "backward",
        of: |unit| is_unaligned(unit) && unit.module.class().is_some_and(|class| class.threads() == 512),
        bytes_max: 160,
        reason: "128 registers a thread; both words of every pair of a split row are on their way at once, and numbers of the loop make room; not timed",
    },
    Exception {
        kernel: "backward",
        of: |unit| {
            has_dz(unit) && is_unaligned(unit) && unit.module.class().is_some_and(|class| class.threads() == 512)
        },
        bytes_max: 250,
        reason: "128 registers a thread; rows that are not on 16 bytes, and dz; not timed",
    },
    Exception {
        kernel: "backward",
        of: |unit| unit.module.class().is_some_and(|class| class.team < 32 && class.packs == 1),
        bytes_max: 20,
        reason: "64 registers a thread, so that all blocks of narrow rows fit; weights of another type; not timed",
    },
    Exception {
        kernel: "backward",
        of: |unit| unit.capability != (9, 0) && unit.module.class().is_some_and(|class| class.is_streamed()),
        bytes_max: 32,
        reason: "64 registers are all that 1024 threads have; rows that are not on 16 bytes; not timed there",
    },
    Exception {
        kernel: "backward",
        of: |unit| {
            unit.capability != (9, 0)
                && matches!(unit.module, Module::Backward { rows, .. } if rows.class.is_clustered() && !rows.exact)
        },
        bytes_max: 276,
        reason: "128 registers are all that 512 threads have; rows that a cluster shares and whose width is no constant; not timed there",
    },
    Exception {
        kernel: "backward_few",
        of: |unit| matches!(unit.module, Module::BackwardFew { span: 16, .. }),
        bytes_max: 64,
        reason: "128 registers a thread, of which 16 groups of 8 sums take most; a few values go to the first cache and back once a block",
    },
    Exception {
        kernel: "backward_few",
        of: |unit| unit.module.class().is_some_and(|class| class.pack == 4),
        bytes_max: 16,
        reason: "128 registers a thread; where the width is no constant two values go to the first cache and back once a block; not timed",
    },
    Exception {
        kernel: "backward",
        of: |unit| matches!(unit.module, Module::Backward { rows, .. } if rows.grouping == Grouping::Levels && rows.class.is_streamed()),
        bytes_max: 52,
        reason: "64 registers are all that 1024 threads have; where two levels of rows lie takes some; not timed",
    },
    Exception {
        kernel: "backward",
        of: |unit| matches!(unit.module, Module::Backward { rows, .. } if rows.grouping == Grouping::Heads && rows.class.packs == 6),
        bytes_max: 56,
        reason: "the sums take 48 registers; how far the roots of a head's rows are apart takes some more; not timed",
    },
    Exception {
        kernel: "forward",
        of: |unit| matches!(unit.module, Module::Forward { rows, .. } if rows.grouping == Grouping::Heads),
        bytes_max: 88,
        reason: "64 registers, which are all of 1024 threads: of four rows at once each has a weight of its own; where a row's weight lies takes some; not timed where it spills",
    },
    Exception {
        kernel: "forward_few",
        of: |unit| matches!(unit.module, Module::ForwardFew { rows, .. } if rows.grouping == Grouping::Heads),
        bytes_max: 24,
        reason: "64 registers are all that 1024 threads have; where a row's weight lies takes some; not timed",
    },
    Exception {
        kernel: "backward_few",
        of: |unit| matches!(unit.module, Module::BackwardFew { rows, span: 16, .. } if rows.grouping == Grouping::Levels),
        bytes_max: 80,
        reason: "as of one level, and where two levels of rows lie takes some more; not timed",
    },
    Exception {
        kernel: "forward_few",
        of: |unit| matches!(unit.module, Module::ForwardFew { rows, .. } if rows.grouping == Grouping::Levels && rows.class.threads() == 1024),
        bytes_max: 24,
        reason: "64 registers are all that 1024 threads have; where two levels of rows lie takes some; not timed",
    },
    Exception {
        kernel: "forward",
        of: |unit| matches!(unit.module, Module::Forward { rows, bias: Some(Dtype::F32), .. } if rows.class.threads() == 1024),
        bytes_max: 100,
        reason: "64 registers are all that 1024 threads have, of which x, weight and bias take 48 in f32; not timed",
    },
    Exception {
        kernel: "forward_few",
        of: |unit| matches!(unit.module, Module::ForwardFew { bias: Some(Dtype::F32), .. }),
        bytes_max: 16,
        reason: "64 registers a thread, of which four packs of x, weight and bias take 48 in f32: two values go to the first cache and back; not timed",
    },
    Exception {
        kernel: "columns",
        of: |unit| unit.capability == (8, 0),
        bytes_max: 12,
        reason: "32 registers were chosen by the assembler, on sm_80 too; not timed there",
    },
    Exception {
        kernel: "columns",
        of: newer,
        bytes_max: 140,
        reason: "32 registers were chosen by the assembler, on sm_100 alone; rows that are not on 16 bytes; not timed there",
    },
    Exception {
        kernel: "forward",
        of: |unit| unit.module.class().is_some_and(|class| class.is_streamed()),
        bytes_max: 20,
        reason: "64 registers are all that 1024 threads have; an f32 weight of 16-bit rows, and on sm_100 others; not timed",
    },
    Exception {
        kernel: "backward",
        of: |unit| unit.module.class().is_some_and(|class| class.is_clustered() && class.threads() == 1024),
        bytes_max: 200,
        reason: "64 registers a thread: of two packs a few addresses, more of them with an f32 weight or dz; not timed",
    },
    Exception {
        kernel: "forward",
        of: |unit| (newer(unit) || has_residual(unit)) && unit.module.class().is_some_and(|class| class.is_clustered()),
        bytes_max: 80,
        reason: "64 registers a thread, so that 1024 threads fit, are enough on sm_90 without a residual and not here; not timed here",
    },
];

fn has_residual(unit: &Unit) -> bool {
    matches!(unit.module, Module::Forward { residual: Some(_), .. })
}

fn has_dz(unit: &Unit) -> bool {
    matches!(unit.module, Module::Backward { dz: Some(_), .. })
}

fn is_unaligned(unit: &Unit) -> bool {
    matches!(unit.module, Module::Backward { rows, .. } if !rows.aligned)
}

fn newer(unit: &Unit) -> bool {
    unit.capability >= (10, 0)
}

/// The lines of a kernel that round otherwise than to nearest, approximate, flush, or add floats atomically.
pub fn complaints(ptx: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in ptx.lines().map(str::trim) {
        let Some(operation) = line.split_whitespace().find(|w| !w.starts_with('@')) else { continue };
        let parts: Vec<&str> = operation.trim_end_matches(';').split('.').collect();
        let is = |part: &str| parts.contains(&part);
        let is_float = ["f32", "f16", "bf16", "f64", "f16x2", "bf16x2", "f32x2"].into_iter().any(is);
        let unrounded =
            is_float && !is("rn") && matches!(parts[0], "add" | "sub" | "mul" | "fma" | "mad" | "div" | "sqrt" | "rcp");
        // To a narrower float type; widening is exact and takes no rounding.
        let narrowed = parts[0] == "cvt"
            && !is("rn")
            && matches!(parts.get(parts.len().saturating_sub(2)..), Some(["f16" | "bf16" | "f16x2" | "bf16x2", "f32"]));
        let other_width = is_float && !is("f32") && !matches!(parts[0], "cvt" | "mov" | "ld" | "st");
        let approximate = is("approx")
            || is("ftz")
            || is("full")
            || is("sat")
            || matches!(parts[0], "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh");
        let atomic = matches!(parts[0], "atom" | "red") && is_float;
        // Through the cache that holds what nobody writes: a call in place writes what it reads.
        let read_only = parts[0] == "ld" && is("nc");
        if unrounded || narrowed || other_width || approximate || atomic || read_only {
            found.push(line.to_string());
        }
    }
    found
}

#[cfg(test)]
mod tests;
