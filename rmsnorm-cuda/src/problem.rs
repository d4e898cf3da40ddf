//! What a call computes: sizes, element types, operands and errors.
//!
//! This is the only place that judges user input. Both executors call [`Forward::check`] or [`Backward::check`] first, and
//! nothing is launched or written before it has passed. All sizes, offsets and strides are in elements unless a name ends in
//! `_bytes`.

use crate::dtype::{Dtype, Operand};
use crate::order::column_order;

/// Widest row: beyond it `hidden` is not exact in f32, and the mean of squares would be divided by another number.
pub const HIDDEN_MAX: usize = 1 << 24;

/// What is added to the weight before it multiplies: nothing, or one ("zero-centred" weights).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightOffset {
    /// The weight as it is. No addition takes place, so a weight of −0.0 keeps its sign.
    #[default]
    Zero,
    /// `weight + 1`, rounded once to f32.
    One,
}

/// A matrix inside a buffer: row `r` is `data[offset + r·row_stride ..][..hidden]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<D> {
    /// The whole buffer.
    pub data: D,
    /// Where the first row begins, in elements. Any offset is allowed; it never changes a bit of the result.
    pub offset: usize,
    /// From one row to the next, in elements: at least `hidden`; 0 is allowed where the operand is only read (one row seen
    /// `rows` times). Irrelevant for fewer than two rows.
    pub row_stride: usize,
}

impl<D> Rows<D> {
    /// Rows without gaps from the start of `data`.
    pub fn contiguous(data: D, hidden: usize) -> Self {
        Rows { data, offset: 0, row_stride: hidden }
    }
}

impl<D> Rows<D> {
    fn try_map<N, E>(self, mut f: impl FnMut(D) -> Result<N, E>) -> Result<Rows<N>, E> {
        Ok(Rows { data: f(self.data)?, offset: self.offset, row_stride: self.row_stride })
    }
}

impl<D> Vector<D> {
    fn try_map<N, E>(self, mut f: impl FnMut(D) -> Result<N, E>) -> Result<Vector<N>, E> {
        Ok(Vector { data: f(self.data)?, offset: self.offset })
    }
}

/// A vector inside a buffer: element `i` is `data[offset + i]`.
#[derive(Clone, Copy, Debug)]
pub struct Vector<D> {
    /// The whole buffer.
    pub data: D,
    /// Where the vector begins, in elements.
    pub offset: usize,
}

impl<D> From<D> for Vector<D> {
    fn from(data: D) -> Self {
        Vector { data, offset: 0 }
    }
}

/// RMSNorm of every row: `rstd = 1/sqrt(mean(x²) + eps)`, `y = x·rstd·(weight + weight_offset)`.
///
/// `In` and `Out` are what an executor reads and writes: [`Slice`](crate::Slice) and [`SliceMut`](crate::SliceMut) on the host.
#[derive(Debug)]
pub struct Forward<In, Out> {
    /// Number of rows, M; 0 is allowed and writes nothing.
    pub rows: usize,
    /// Length of a row, N: 1 to [`HIDDEN_MAX`].
    pub hidden: usize,
    /// Added to the mean square; finite and not negative.
    pub eps: f32,
    /// Added to the weight; ignored without one.
    pub weight_offset: WeightOffset,
    /// M×N, any element type.
    pub x: Rows<In>,
    /// N, of the type of `x` or f32. Absent: a weight of one.
    pub weight: Option<Vector<In>>,
    /// M×N, of the type of `x`.
    pub y: Rows<Out>,
    /// M, f32: what [`Backward`] needs. Absent: not stored.
    pub rstd: Option<Vector<Out>>,
}

/// The gradients of [`Forward`]: with `x_hat = x·rstd` and `wdy = dy·(weight + weight_offset)`,
/// `dx = rstd·(wdy − x_hat·mean(wdy·x_hat))` and `dw = Σ_rows dy·x_hat`.
#[derive(Debug)]
pub struct Backward<In, Out> {
    /// Number of rows, M; with 0 rows `dw` is +0.0.
    pub rows: usize,
    /// Length of a row, N: 1 to [`HIDDEN_MAX`].
    pub hidden: usize,
    /// As in the forward call.
    pub weight_offset: WeightOffset,
    /// M×N, as in the forward call.
    pub x: Rows<In>,
    /// N, as in the forward call.
    pub weight: Option<Vector<In>>,
    /// M, f32, as the forward call stored it.
    pub rstd: Vector<In>,
    /// M×N, of the type of `x`: the gradient of `y`.
    pub dy: Rows<In>,
    /// M×N, of the type of `x`: the gradient of `x`.
    pub dx: Rows<Out>,
    /// The gradient of the weight. Absent: not computed (a frozen weight).
    pub dw: Option<WeightGradient<Out>>,
}

/// Where the gradient of the weight goes, and the memory it is computed in.
#[derive(Debug)]
pub struct WeightGradient<Out> {
    /// N, f32 or of the type of the weight.
    pub dw: Vector<Out>,
    /// f32, at least [`scratch_len`] elements. Its content before the call is irrelevant, and after the call unspecified.
    pub scratch: Vector<Out>,
}

/// Elements of f32 scratch that a backward call with `dw` needs: one partial row for each row group.
pub fn scratch_len(rows: usize, hidden: usize) -> Result<usize, Error> {
    check_hidden(hidden)?;
    // At most 15 groups of 2^24 columns, below 2^28: no overflow.
    Ok(column_order(rows, hidden).groups * hidden)
}

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
        /// What is allowed.
        expected: String,
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
        "{output} overlaps {other}, expected memory of its own for every output: computing in place is not supported"
    )]
    Overlap {
        /// Name of the output.
        output: &'static str,
        /// Name of the other operand.
        other: &'static str,
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

impl<In: Operand, Out: Operand> Forward<In, Out> {
    /// Whether this call can be carried out. Reads no data and writes nothing.
    pub fn check(&self) -> Result<(), Error> {
        check_hidden(self.hidden)?;
        // Bits, since a thread that flushes takes a negative subnormal for zero.
        let bits = self.eps.to_bits();
        if bits > f32::MAX.to_bits() && bits != (-0.0_f32).to_bits() {
            return Err(Error::Eps { got: self.eps });
        }
        let dtype = self.x.data.dtype();
        let mut operands = Vec::with_capacity(4);
        operands.push(rows_extent("x", &self.x, Role::Read, self.rows, self.hidden)?);
        if let Some(weight) = &self.weight {
            check_type_or_f32("weight", &weight.data, dtype)?;
            operands.push(vector_extent("weight", weight, Role::Read, self.hidden)?);
        }
        check_type("y", &self.y.data, dtype)?;
        operands.push(rows_extent("y", &self.y, Role::Written, self.rows, self.hidden)?);
        if let Some(rstd) = &self.rstd {
            check_type("rstd", &rstd.data, Dtype::F32)?;
            operands.push(vector_extent("rstd", rstd, Role::Written, self.rows)?);
        }
        check_overlap(&operands)
    }
}

impl<In, Out> Forward<In, Out> {
    /// The same call on other operands: `read` and `write` say what stands for each that is read or written.
    pub fn try_map<I, O, E>(
        self,
        mut read: impl FnMut(In) -> Result<I, E>,
        mut write: impl FnMut(Out) -> Result<O, E>,
    ) -> Result<Forward<I, O>, E> {
        Ok(Forward {
            rows: self.rows,
            hidden: self.hidden,
            eps: self.eps,
            weight_offset: self.weight_offset,
            x: self.x.try_map(&mut read)?,
            weight: self.weight.map(|w| w.try_map(&mut read)).transpose()?,
            y: self.y.try_map(&mut write)?,
            rstd: self.rstd.map(|r| r.try_map(&mut write)).transpose()?,
        })
    }
}

impl<In: Operand, Out: Operand> Backward<In, Out> {
    /// Whether this call can be carried out. Reads no data and writes nothing.
    pub fn check(&self) -> Result<(), Error> {
        check_hidden(self.hidden)?;
        let dtype = self.x.data.dtype();
        let mut operands = Vec::with_capacity(7);
        operands.push(rows_extent("x", &self.x, Role::Read, self.rows, self.hidden)?);
        if let Some(weight) = &self.weight {
            check_type_or_f32("weight", &weight.data, dtype)?;
            operands.push(vector_extent("weight", weight, Role::Read, self.hidden)?);
        }
        check_type("rstd", &self.rstd.data, Dtype::F32)?;
        operands.push(vector_extent("rstd", &self.rstd, Role::Read, self.rows)?);
        check_type("dy", &self.dy.data, dtype)?;
        operands.push(rows_extent("dy", &self.dy, Role::Read, self.rows, self.hidden)?);
        check_type("dx", &self.dx.data, dtype)?;
        operands.push(rows_extent("dx", &self.dx, Role::Written, self.rows, self.hidden)?);
        if let Some(WeightGradient { dw, scratch }) = &self.dw {
            let weight = self.weight.as_ref().map_or(Dtype::F32, |w| w.data.dtype());
            check_type_or_f32("dw", &dw.data, weight)?;
            operands.push(vector_extent("dw", dw, Role::Written, self.hidden)?);
            check_type("scratch", &scratch.data, Dtype::F32)?;
            let needed = scratch_len(self.rows, self.hidden)?;
            operands.push(vector_extent("scratch", scratch, Role::Written, needed)?);
        }
        check_overlap(&operands)
    }
}

impl<In, Out> Backward<In, Out> {
    /// The same call on other operands: `read` and `write` say what stands for each that is read or written.
    pub fn try_map<I, O, E>(
        self,
        mut read: impl FnMut(In) -> Result<I, E>,
        mut write: impl FnMut(Out) -> Result<O, E>,
    ) -> Result<Backward<I, O>, E> {
        let gradient = |g: WeightGradient<Out>, write: &mut dyn FnMut(Out) -> Result<O, E>| {
            Ok(WeightGradient { dw: g.dw.try_map(&mut *write)?, scratch: g.scratch.try_map(write)? })
        };
        Ok(Backward {
            rows: self.rows,
            hidden: self.hidden,
            weight_offset: self.weight_offset,
            x: self.x.try_map(&mut read)?,
            weight: self.weight.map(|w| w.try_map(&mut read)).transpose()?,
            rstd: self.rstd.try_map(&mut read)?,
            dy: self.dy.try_map(&mut read)?,
            dx: self.dx.try_map(&mut write)?,
            dw: self.dw.map(|g| gradient(g, &mut write)).transpose()?,
        })
    }
}

fn check_hidden(hidden: usize) -> Result<(), Error> {
    if hidden == 0 || hidden > HIDDEN_MAX { Err(Error::Hidden { got: hidden }) } else { Ok(()) }
}

fn check_type(operand: &'static str, data: &impl Operand, expected: Dtype) -> Result<(), Error> {
    let got = data.dtype();
    if got == expected { Ok(()) } else { Err(Error::ElementType { operand, expected: expected.to_string(), got }) }
}

fn check_type_or_f32(operand: &'static str, data: &impl Operand, dtype: Dtype) -> Result<(), Error> {
    let got = data.dtype();
    if got == dtype || got == Dtype::F32 {
        return Ok(());
    }
    let expected = if dtype == Dtype::F32 { "f32".into() } else { format!("{dtype} or f32") };
    Err(Error::ElementType { operand, expected, got })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Read,
    Written,
}

/// The bytes an operand touches: `count` runs of `run` bytes, `stride` apart, from `start`.
struct Extent {
    operand: &'static str,
    role: Role,
    start: u64,
    run: u64,
    stride: u64,
    count: u64,
}

impl Extent {
    fn end(&self) -> u64 {
        self.start + (self.count - 1) * self.stride + self.run
    }

    /// Exact for two operands with the same stride (views of one matrix, interleaved), else by their outer ranges.
    fn overlaps(&self, other: &Extent) -> bool {
        if self.count == 0 || other.count == 0 || self.end() <= other.start || other.end() <= self.start {
            return false;
        }
        if self.stride != other.stride || self.stride == 0 {
            return true;
        }
        let ahead = (i128::from(other.start) - i128::from(self.start)).rem_euclid(i128::from(self.stride)) as u64;
        ahead < self.run || self.stride - ahead < other.run
    }
}

fn rows_extent<D: Operand>(
    operand: &'static str,
    view: &Rows<D>,
    role: Role,
    rows: usize,
    hidden: usize,
) -> Result<Extent, Error> {
    let stride = if rows < 2 { hidden } else { view.row_stride };
    let broadcast = role == Role::Read;
    if stride < hidden && !(stride == 0 && broadcast) {
        return Err(Error::RowStride { operand, got: stride, hidden, broadcast });
    }
    extent(operand, role, &view.data, view.offset, rows, stride, hidden)
}

fn vector_extent<D: Operand>(operand: &'static str, view: &Vector<D>, role: Role, len: usize) -> Result<Extent, Error> {
    extent(operand, role, &view.data, view.offset, usize::from(len > 0), len, len)
}

fn extent(
    operand: &'static str,
    role: Role,
    data: &impl Operand,
    offset: usize,
    count: usize,
    stride: usize,
    run: usize,
) -> Result<Extent, Error> {
    let bytes = data.dtype().bytes();
    let too_far = Error::AddressRange { operand, rows: count, row_stride: stride, offset };
    let needed = match count {
        0 => 0,
        _ => (count - 1)
            .checked_mul(stride)
            .and_then(|last| last.checked_add(run))
            .and_then(|span| span.checked_add(offset))
            .filter(|needed| *needed <= isize::MAX as usize / bytes)
            .ok_or_else(|| too_far.clone())?,
    };
    if needed > data.elements() {
        return Err(Error::Length { operand, needed, got: data.elements() });
    }
    let address = data.address();
    if !address.is_multiple_of(bytes as u64) {
        return Err(Error::Misaligned { operand, address, bytes });
    }
    // No sum below can overflow: `needed` elements lie inside a buffer that exists.
    if address.checked_add((needed * bytes) as u64).is_none() {
        return Err(too_far);
    }
    // Without elements nothing was said of the offset, and nothing comes of it.
    let [start, stride, run] = [offset, stride, run].map(|elements| elements.saturating_mul(bytes) as u64);
    Ok(Extent { operand, role, start: if count == 0 { 0 } else { address + start }, run, stride, count: count as u64 })
}

fn check_overlap(operands: &[Extent]) -> Result<(), Error> {
    for (i, output) in operands.iter().enumerate().filter(|(_, e)| e.role == Role::Written) {
        for (j, other) in operands.iter().enumerate() {
            // Each pair once, named from the output.
            let seen = other.role == Role::Written && j <= i;
            if !seen && output.overlaps(other) {
                return Err(Error::Overlap { output: output.operand, other: other.operand });
            }
        }
    }
    Ok(())
}
