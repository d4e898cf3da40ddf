//! Why a call was refused, or could not be carried out.

use crate::Dtype;
use crate::order::HIDDEN_MAX;

/// Why a call was refused, or could not be carried out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `hidden` is 0 or above [`HIDDEN_MAX`].
    #[error("hidden is {got}, expected 1 to {HIDDEN_MAX}")]
    Hidden {
        /// The refused value.
        got: usize,
    },
    /// `eps` is negative, infinite or NaN.
    #[error("eps is {got:e}, expected a finite number that is not negative")]
    Eps {
        /// The refused value.
        got: f32,
    },
    /// An operand has another element type than the call allows.
    #[error("{operand} has elements of type {got}, expected {expected}")]
    ElementType {
        /// Name of the operand.
        operand: &'static str,
        /// The only one that is allowed.
        expected: Dtype,
        /// What it has.
        got: Dtype,
    },
    /// Rows that would overlap each other.
    #[error("{operand} has row stride {got}, expected {}at least hidden = {hidden}", if *.broadcast { "0 or " } else { "" })]
    RowStride {
        /// Name of the operand.
        operand: &'static str,
        /// The refused stride.
        got: usize,
        /// The length of a row.
        hidden: usize,
        /// Whether this operand may have a stride of 0.
        broadcast: bool,
    },
    /// `inner` does not divide the rows.
    #[error("inner is {got}, expected a divisor of the {rows} row{}", if *.rows == 1 { "" } else { "s" })]
    Inner {
        /// The refused value.
        got: usize,
        /// Number of rows.
        rows: usize,
    },
    /// Rows of two levels that are written, and may overlap each other: only those are known not to of which one level nests in the other.
    #[error(
        "{operand} has {} × {} rows of {hidden} elements with strides {} and {}, which may overlap, expected all rows of one level to end before \
         the next step of the other", .counts[0], .counts[1], .strides[0], .strides[1]
    )]
    RowLevels {
        /// Name of the operand.
        operand: &'static str,
        /// Groups of rows, and rows of each.
        counts: [usize; 2],
        /// From one group to the next, and from one row of a group to the next.
        strides: [usize; 2],
        /// The length of a row.
        hidden: usize,
    },
    /// A buffer ends before the last element that the call would touch.
    #[error("{operand} needs {needed} element{} (offset included), got {got}", if *.needed == 1 { "" } else { "s" })]
    Length {
        /// Name of the operand.
        operand: &'static str,
        /// Elements needed, from the start of the buffer.
        needed: usize,
        /// Elements there.
        got: usize,
    },
    /// Sizes and strides whose product leaves the address range.
    #[error(
        "{operand} spans more bytes than an address can count: {rows} row{} of stride {row_stride} from offset {offset}",
        if *.rows == 1 { "" } else { "s" }
    )]
    AddressRange {
        /// Name of the operand.
        operand: &'static str,
        /// Number of rows; 1 for a vector.
        rows: usize,
        /// Row stride in elements; its length for a single row.
        row_stride: usize,
        /// Where the first row begins, in elements.
        offset: usize,
    },
    /// A buffer that does not begin at a multiple of its element size.
    #[error("{operand} begins at address {address:#x}, which is no multiple of its element size of {bytes} bytes")]
    Misaligned {
        /// Name of the operand.
        operand: &'static str,
        /// Address of the buffer.
        address: u64,
        /// Element size.
        bytes: usize,
    },
    /// An output that shares memory with another operand.
    #[error(
        "{output} overlaps {other}, expected memory of its own{}",
        if *.in_place { format!(", or exactly the rows of {other}: the same address, strides and element type") } else { String::new() }
    )]
    Overlap {
        /// Name of the output.
        output: &'static str,
        /// Name of the other operand.
        other: &'static str,
        /// Whether the output may have exactly the rows of the other operand, which is then computed in place.
        in_place: bool,
    },
    /// An input was said to lie in an output that the call does not have.
    #[error("an input was said to lie in {output}, which the call does not have")]
    NoOutput {
        /// Name of the output.
        output: &'static str,
    },
    /// The thread computes otherwise than the specification demands, on whose behalf somebody set its control register: a
    /// library built with `-ffast-math`, for one, or `torch.set_flush_denormal`. See [`environment`](crate::arith::environment).
    #[error("this thread {got}, expected IEEE 754's default: subnormals kept, the nearest taken, ties to even")]
    FloatingPoint {
        /// What it does.
        got: FloatingPoint,
    },
    /// A shared library that the CUDA executor needs was not found or lacks a function.
    #[error("{library} is not usable: {reason}")]
    Library {
        /// What was looked for.
        library: &'static str,
        /// Where it was looked for and what happened.
        reason: String,
    },
    /// The driver reported an error.
    #[error("{call} failed: {code}")]
    Driver {
        /// The driver function.
        call: &'static str,
        /// The driver's name of the error.
        code: String,
    },
    /// The driver reported what a kernel did that was launched before, by this crate or by others. Nothing more can be done on
    /// that context.
    #[error("a kernel launched earlier on this context failed: {call} returned {code}, and so will every later call")]
    Fault {
        /// The driver function that was called since.
        call: &'static str,
        /// The driver's name of the error.
        code: String,
    },
    /// A kernel did not compile: a defect of this crate or an NVRTC that does not know the GPU.
    #[error("NVRTC could not compile {kernel}: {log}")]
    Compile {
        /// The module.
        kernel: String,
        /// What the compiler said.
        log: String,
    },
    /// Compiled kernels are not kept on disk. No call fails of it: see [`Cache::warning`](crate::cuda::Cache::warning).
    #[error("compiled kernels are not kept: {}: {reason}", path.display())]
    Cache {
        /// The folder, or what in it.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A kernel is not loaded, and the driver would not load it because a stream is being captured.
    #[error(
        "{kernel} is not loaded, and the driver loads nothing during this capture: call `Kernels::prepare` before it begins"
    )]
    NotPrepared {
        /// The module.
        kernel: String,
    },
    /// Memory that cudarc tracks by events was given to a stream that is being captured: a capture cannot wait for what was
    /// recorded outside it.
    #[error(
        "the stream is being captured while cudarc tracks memory by events: call `CudaContext::disable_event_tracking` \
         before the memory is allocated, or use the raw layer (`Kernels::forward`, `Kernels::backward`)"
    )]
    EventTracking,
    /// Memory whose uses nobody keeps in order: cudarc neither tracks them, nor was told by `disable_event_tracking` that the
    /// caller does, nor is there only one stream.
    #[error(
        "nothing keeps the uses of this memory in order: cudarc tracks them while a stream of `CudaContext::new_stream` lives \
         (of the one `CudaContext` that memory and stream have in common); without one, use the stream where the memory was \
         allocated, not the per-thread one, or call `CudaContext::disable_event_tracking` and keep them in order yourself"
    )]
    Untracked,
    /// Memory or a stream of another context than the kernels'.
    #[error("memory or a stream of another context, on GPU {got}, was given to kernels on GPU {expected}")]
    Context {
        /// Ordinal of the kernels' GPU.
        expected: usize,
        /// Ordinal of the other's.
        got: usize,
    },
    /// There is no code of a kernel: it is not kept, no compiler is there, and it was not compiled ahead.
    #[error(
        "there is no code of {kernel}: the cache {cache}; NVRTC {nvrtc}; kernels compiled ahead (the feature `prebuilt`): {prebuilt}"
    )]
    NoCode {
        /// The module, or all of them.
        kernel: String,
        /// What the cache has.
        cache: String,
        /// Why nothing can be compiled.
        nvrtc: String,
        /// What was compiled ahead.
        prebuilt: String,
    },
    /// The GPU is older than the kernels allow.
    #[error("compute capability {}.{} is too old, expected 8.0 or newer", got.0, got.1)]
    Architecture {
        /// Compute capability of the GPU.
        got: (u32, u32),
    },
}

/// What a thread does that gives other bits than the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FloatingPoint {
    /// Subnormal results, operands or both are zeros: FTZ and DAZ of MXCSR, FZ of FPCR. It may round otherwise, too.
    FlushesSubnormals,
    /// Rounds toward +∞.
    RoundsUp,
    /// Rounds toward −∞.
    RoundsDown,
    /// Rounds toward 0.
    RoundsTowardZero,
}

impl std::fmt::Display for FloatingPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FloatingPoint::FlushesSubnormals => "flushes subnormals to zero",
            FloatingPoint::RoundsUp => "rounds toward +infinity",
            FloatingPoint::RoundsDown => "rounds toward -infinity",
            FloatingPoint::RoundsTowardZero => "rounds toward zero",
        })
    }
}
