//! Safe calls on cudarc's device memory.
//!
//! A call is described as on the host, with [`GpuSlice`] and [`GpuSliceMut`] in the places of [`Slice`](crate::Slice) and
//! [`SliceMut`](crate::SliceMut). It is in order with everything else that uses the same memory through cudarc, on any stream,
//! by cudarc's events; or on the only stream there is; or, after `CudaContext::disable_event_tracking`, by its caller's care.
//! Otherwise it is refused ([`Error::Untracked`]).
//!
//! Two things cudarc itself forgets, of these and of its own calls: who reads memory on one stream, once another stream reads
//! the same memory; and all earlier uses, once the last stream of `CudaContext::new_stream` is dropped. Wait for a stream before
//! its memory is written or freed in the first case, before it is dropped in the second.
//!
//! [`Layer`] is the short form for rows without gaps:
//!
//! ```no_run
//! use rmsnorm_cuda::{bf16, cuda::{self, Kernels, Layer}, WeightOffset};
//! use std::sync::Arc;
//!
//! let (rows, hidden) = (64, 4096);
//! let stream = cuda::context(0)?.new_stream()?;
//! let kernels = Arc::new(Kernels::new(stream.context())?);
//! let mut layer = Layer::new(&kernels, &stream, (rows, hidden), 1e-6, WeightOffset::Zero)?;
//! let [x, mut y, dy, mut dx] = [(); 4].map(|()| stream.alloc_zeros::<bf16>(rows * hidden).unwrap());
//! let [weight, mut rstd, mut dw] = [hidden, rows, hidden].map(|n| stream.alloc_zeros::<f32>(n).unwrap());
//! layer.forward(&x, Some((&weight).into()), &mut y, Some((&mut rstd).into()))?;
//! layer.backward(&x, Some((&weight).into()), &rstd, &dy, &mut dx, Some((&mut dw).into()))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! In place, one tensor is lent as what is written, and read as it was before: `layer.forward_in_place(&mut x, …)`; of any rows,
//! [`Kernels::forward_in_place_on`] with [`Input::Output`] in the place of what is read.

mod slices;

use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

use cudarc::driver::sys::CUstream;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, DriverError, SyncOnDrop};

pub use self::slices::{GpuSlice, GpuSliceMut};
use self::slices::{Read, Write};
use super::loaded::Current;
use super::{Calls, DeviceMemory, Kernels, driver_error};
use crate::{
    Backward, BiasGradient, Dtype, Error, Forward, Input, Rounding, Vector, WeightGradient, WeightOffset, scratch_len,
};

impl Kernels {
    /// Launches a forward call on `stream`. Nothing is waited for.
    ///
    /// Fails before anything is launched: as [`Forward::check`] does; where memory or stream belong to another context
    /// ([`Error::Context`]); where nothing keeps the uses of the memory in order ([`Error::Untracked`]); on a stream that is being
    /// captured, where cudarc tracks the memory ([`Error::EventTracking`]).
    pub fn forward_on<'a>(
        &'a self,
        stream: &'a Arc<CudaStream>,
        call: Forward<GpuSlice<'a>, GpuSliceMut<'a>>,
    ) -> Result<(), Error> {
        self.forward_in_place_on(stream, call.with_inputs())
    }

    /// The same of a call whose inputs may lie in its outputs. Fails with [`Error::NoOutput`], too.
    pub fn forward_in_place_on<'a>(
        &'a self,
        stream: &'a Arc<CudaStream>,
        call: Forward<Input<GpuSlice<'a>>, GpuSliceMut<'a>>,
    ) -> Result<(), Error> {
        let loan = Loan::on(self, stream)?;
        let call = call.try_map(|input| loan.input(input), |data| loan.write(data)).and_then(Forward::placed);
        // SAFETY: every operand is a live allocation of this context, lent until `end` is done: cudarc has the stream wait for
        // the uses before, and later uses, the release of the memory among them, wait for the stream. An input that lies in an output
        // is the memory that the output lends.
        loan.end(|| unsafe { self.forward(&call?, stream.cu_stream()) })
    }

    /// Launches a backward call on `stream`. As [`Kernels::forward_on`].
    pub fn backward_on<'a>(
        &'a self,
        stream: &'a Arc<CudaStream>,
        call: Backward<GpuSlice<'a>, GpuSliceMut<'a>>,
    ) -> Result<(), Error> {
        self.backward_in_place_on(stream, call.with_inputs())
    }

    /// The same of a call whose inputs may lie in its outputs. As [`Kernels::forward_in_place_on`].
    pub fn backward_in_place_on<'a>(
        &'a self,
        stream: &'a Arc<CudaStream>,
        call: Backward<Input<GpuSlice<'a>>, GpuSliceMut<'a>>,
    ) -> Result<(), Error> {
        let loan = Loan::on(self, stream)?;
        let call = call.try_map(|input| loan.input(input), |data| loan.write(data)).and_then(Backward::placed);
        // SAFETY: as in `forward_in_place_on`.
        loan.end(|| unsafe { self.backward(&call?, stream.cu_stream()) })
    }
}

/// RMSNorm of rows without gaps on one stream, with the scratch that the gradients of the weight and of the bias need.
pub struct Layer {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    norm: Norm,
    rows_max: usize,
    /// Of the weight's gradient, and of the bias's.
    scratch: [CudaSlice<f32>; 2],
}

/// What all calls of a layer share.
#[derive(Clone, Copy)]
struct Norm {
    hidden: usize,
    eps: f32,
    weight_offset: WeightOffset,
    rounding: Rounding,
    heads: usize,
}

impl Layer {
    /// Rows of `hidden` elements, at most `rows_max` of them in a backward call with a gradient of the weight or of the bias. Allocates the scratch
    /// on `stream`, where every call will be launched.
    pub fn new(
        kernels: &Arc<Kernels>,
        stream: &Arc<CudaStream>,
        (rows_max, hidden): (usize, usize),
        eps: f32,
        weight_offset: WeightOffset,
    ) -> Result<Self, Error> {
        let needed = scratch_len(rows_max, hidden)?;
        kernels.expect_context(stream.context())?;
        let norm = Norm { hidden, eps, weight_offset, rounding: Rounding::Once, heads: 1 };
        let scratch = scratch(stream, needed)?;
        Ok(Layer { kernels: kernels.clone(), stream: stream.clone(), norm, rows_max, scratch })
    }

    /// The same, with y rounded this often.
    pub fn with_rounding(mut self, rounding: Rounding) -> Self {
        self.norm.rounding = rounding;
        self
    }

    /// The same of so many heads, which take turns in the rows: of [.., heads, hidden]. Weight and bias and their gradients are [heads, hidden], and each head gets
    /// the bits of a layer of its own. Allocates scratch for them.
    pub fn with_heads(mut self, heads: usize) -> Result<Self, Error> {
        let of_head = scratch_len(self.rows_max / heads.max(1), self.norm.hidden)?;
        self.norm.heads = heads;
        self.scratch = scratch(&self.stream, of_head.saturating_mul(heads))?;
        Ok(self)
    }

    /// Compiles and loads what calls on whole buffers of cudarc's need: `rows` rows; x, y, dy and dx of type `dtype`; a weight
    /// and its gradient, if any, of these types; in place or not. See [`Kernels::prepare`], which takes what this does not.
    pub fn prepare(&self, rows: usize, dtype: Dtype, weight: Option<Dtype>, dw: Option<Dtype>) -> Result<(), Error> {
        let Norm { hidden, weight_offset, rounding, heads, .. } = self.norm;
        let heads = heads.max(1);
        let calls = Calls { heads, ..Calls::new((rows / heads, hidden), dtype) };
        self.kernels.prepare(&Calls { weight, weight_offset, rounding, dw, ..calls })
    }

    /// Writes y and, if asked, rstd, of as many rows as x has.
    pub fn forward<'a>(
        &'a self,
        x: impl Into<GpuSlice<'a>>,
        weight: Option<GpuSlice<'a>>,
        y: impl Into<GpuSliceMut<'a>>,
        rstd: Option<GpuSliceMut<'a>>,
    ) -> Result<(), Error> {
        let (weight, rstd) = (weight.map(Vector::from), rstd.map(Vector::from));
        self.kernels.forward_on(&self.stream, Forward { weight, rstd, ..self.forward_call(x, y) })
    }

    /// A call for as many rows as x has, with what this layer knows of it: for what [`forward`](Layer::forward) does not take. The rest by struct
    /// update; to be launched by [`Kernels::forward_on`].
    ///
    /// ```no_run
    /// # use rmsnorm_cuda::cudarc::driver::{CudaSlice, CudaStream};
    /// # use rmsnorm_cuda::{bf16, cuda::{Kernels, Layer}, Error, Forward, Residual, Rows};
    /// # use std::sync::Arc;
    /// # fn block(kernels: &Kernels, layer: &Layer, stream: &Arc<CudaStream>, hidden: usize,
    /// #     x: &CudaSlice<bf16>, residual: &CudaSlice<bf16>, z: &mut CudaSlice<bf16>, y: &mut CudaSlice<bf16>) -> Result<(), Error> {
    /// let rows = Residual { residual: Rows::contiguous(residual.into(), hidden), z: Rows::contiguous(z.into(), hidden) };
    /// kernels.forward_on(stream, Forward { residual: Some(rows), ..layer.forward_call(x, y) })?;
    /// # Ok(()) }
    /// ```
    pub fn forward_call<'a>(
        &'a self,
        x: impl Into<GpuSlice<'a>>,
        y: impl Into<GpuSliceMut<'a>>,
    ) -> Forward<GpuSlice<'a>, GpuSliceMut<'a>> {
        let (norm, x) = (self.norm, x.into());
        let call = Forward::new(norm.shape(x.len()), norm.eps, x, y.into());
        let (inner, per_head) = (norm.heads, norm.heads > 1);
        Forward { weight_offset: norm.weight_offset, rounding: norm.rounding, inner, per_head, ..call }
    }

    /// The same in place: y takes the place of x.
    pub fn forward_in_place<'a>(
        &'a self,
        x: impl Into<GpuSliceMut<'a>>,
        weight: Option<GpuSlice<'a>>,
        rstd: Option<GpuSliceMut<'a>>,
    ) -> Result<(), Error> {
        let (norm, x) = (self.norm, x.into());
        let call = Forward {
            weight_offset: norm.weight_offset,
            rounding: norm.rounding,
            inner: norm.heads,
            per_head: norm.heads > 1,
            weight: weight.map(|weight| Input::Memory(weight).into()),
            rstd: rstd.map(Vector::from),
            ..Forward::in_place(norm.shape(x.len()), norm.eps, x)
        };
        self.kernels.forward_in_place_on(&self.stream, call)
    }

    /// Writes dx and, if asked, dw, from as many rows as x has and the rstd of their forward call.
    pub fn backward<'a>(
        &'a mut self,
        x: impl Into<GpuSlice<'a>>,
        weight: Option<GpuSlice<'a>>,
        rstd: impl Into<GpuSlice<'a>>,
        dy: impl Into<GpuSlice<'a>>,
        dx: impl Into<GpuSliceMut<'a>>,
        dw: Option<GpuSliceMut<'a>>,
    ) -> Result<(), Error> {
        let Layer { kernels, stream, norm, scratch, .. } = self;
        let call = norm.backward_call(scratch, [x.into(), rstd.into(), dy.into()], dx.into(), (dw, None));
        kernels.backward_on(stream, Backward { weight: weight.map(Vector::from), ..call })
    }

    /// A call for as many rows as x has, with what this layer knows of it and scratch for the gradients of the weight and of the bias, if they are asked
    /// for: for what [`backward`](Layer::backward) does not take, such as a `dz`. The rest by struct update; to be launched by [`Kernels::backward_on`].
    pub fn backward_call<'a>(
        &'a mut self,
        x: impl Into<GpuSlice<'a>>,
        rstd: impl Into<GpuSlice<'a>>,
        dy: impl Into<GpuSlice<'a>>,
        dx: impl Into<GpuSliceMut<'a>>,
        gradients: (Option<GpuSliceMut<'a>>, Option<GpuSliceMut<'a>>),
    ) -> Backward<GpuSlice<'a>, GpuSliceMut<'a>> {
        self.norm.backward_call(&mut self.scratch, [x.into(), rstd.into(), dy.into()], dx.into(), gradients)
    }

    /// The same as [`backward`](Layer::backward) in place: dx takes the place of dy.
    pub fn backward_in_place<'a>(
        &'a mut self,
        x: impl Into<GpuSlice<'a>>,
        weight: Option<GpuSlice<'a>>,
        rstd: impl Into<GpuSlice<'a>>,
        dy: impl Into<GpuSliceMut<'a>>,
        dw: Option<GpuSliceMut<'a>>,
    ) -> Result<(), Error> {
        let Layer { kernels, stream, norm, scratch: [scratch, _], .. } = self;
        let x = x.into();
        let call = Backward {
            weight_offset: norm.weight_offset,
            rounding: norm.rounding,
            inner: norm.heads,
            per_head: norm.heads > 1,
            weight: weight.map(|weight| Input::Memory(weight).into()),
            dw: dw.map(|dw| WeightGradient { dw: dw.into(), scratch: GpuSliceMut::from(scratch).into() }),
            ..Backward::in_place(norm.shape(x.len()), x, rstd.into(), dy.into())
        };
        kernels.backward_in_place_on(stream, call)
    }
}

impl Norm {
    fn backward_call<'a>(
        self,
        scratch: &'a mut [CudaSlice<f32>; 2],
        [x, rstd, dy]: [GpuSlice<'a>; 3],
        dx: GpuSliceMut<'a>,
        (dw, db): (Option<GpuSliceMut<'a>>, Option<GpuSliceMut<'a>>),
    ) -> Backward<GpuSlice<'a>, GpuSliceMut<'a>> {
        let [of_dw, of_db] = scratch.each_mut().map(GpuSliceMut::from);
        Backward {
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            inner: self.heads,
            per_head: self.heads > 1,
            dw: dw.map(|dw| WeightGradient { dw: dw.into(), scratch: of_dw.into() }),
            db: db.map(|db| BiasGradient { db: db.into(), scratch: of_db.into() }),
            ..Backward::new(self.shape(x.len()), x, rstd, dy, dx)
        }
    }

    /// Of the rows that so many elements are.
    fn shape(self, elements: usize) -> (usize, usize) {
        (elements.div_ceil(self.hidden), self.hidden)
    }
}

/// For each of two gradients.
fn scratch(stream: &Arc<CudaStream>, needed: usize) -> Result<[CudaSlice<f32>; 2], Error> {
    let scratch = || {
        // SAFETY: a backward call writes what it reads of the scratch.
        let mut scratch =
            unsafe { stream.alloc::<f32>(needed.max(1)) }.map_err(|e| driver_error("cuMemAllocAsync", e))?;
        if stream.cu_stream() == PER_THREAD {
            // Other threads' streams of that handle wait for the allocation as for a write.
            drop(scratch.device_ptr_mut(stream));
        }
        Ok::<_, Error>(scratch)
    };
    Ok([scratch()?, scratch()?])
}

/// Operands of one call on a stream, as cudarc lends them: the stream waits for their earlier uses, and when the loan ends, its
/// use of them is recorded.
struct Loan<'a> {
    kernels: &'a Kernels,
    stream: &'a Arc<CudaStream>,
    /// Where cudarc tracks: whether the stream is being captured, and what restores the context that is current, since cudarc
    /// leaves its own.
    tracked: OnceCell<(bool, Current)>,
    held: RefCell<Vec<SyncOnDrop<'a>>>,
    /// What cudarc kept of an earlier failure. Out of the way while the loan lasts: cudarc would neither wait nor record.
    earlier: Result<(), DriverError>,
}

impl<'a> Loan<'a> {
    fn on(kernels: &'a Kernels, stream: &'a Arc<CudaStream>) -> Result<Self, Error> {
        kernels.expect_context(stream.context())?;
        let earlier = stream.context().check_err();
        Ok(Loan { kernels, stream, tracked: OnceCell::new(), held: RefCell::default(), earlier })
    }

    fn input(&self, input: Input<GpuSlice<'a>>) -> Result<Input<DeviceMemory>, Error> {
        match input {
            Input::Memory(data) => self.read(data).map(Input::Memory),
            Input::Output(output) => Ok(Input::Output(output)),
        }
    }

    fn read(&self, data: GpuSlice<'a>) -> Result<DeviceMemory, Error> {
        macro_rules! lend {
            ($data:expr, $dtype:expr) => {{
                self.admit($data.stream())?;
                let (address, guard) = $data.device_ptr(self.stream);
                self.held.borrow_mut().push(guard);
                Ok(DeviceMemory { dtype: $dtype, address, elements: $data.len() })
            }};
        }
        match data.0 {
            Read::F32(data) => lend!(data, Dtype::F32),
            Read::F16(data) => lend!(data, Dtype::F16),
            Read::Bf16(data) => lend!(data, Dtype::Bf16),
        }
    }

    fn write(&self, data: GpuSliceMut<'a>) -> Result<DeviceMemory, Error> {
        macro_rules! lend {
            ($data:expr, $dtype:expr) => {{
                self.admit($data.stream())?;
                let elements = $data.len();
                let (address, guard) = $data.device_ptr_mut(self.stream);
                self.held.borrow_mut().push(guard);
                Ok(DeviceMemory { dtype: $dtype, address, elements })
            }};
        }
        match data.0 {
            Write::F32(data) => lend!(data, Dtype::F32),
            Write::F16(data) => lend!(data, Dtype::F16),
            Write::Bf16(data) => lend!(data, Dtype::Bf16),
        }
    }

    /// Whether memory of `origin`, where it was allocated and will be freed, can be lent. The driver is asked only where cudarc
    /// is about to have the stream wait.
    fn admit(&self, origin: &Arc<CudaStream>) -> Result<(), Error> {
        let contexts = [origin.context(), self.stream.context()];
        self.kernels.expect_context(contexts[0])?;
        // Two values may stand for one context, each with tracking of its own: waiting is up to the memory's, recording to the
        // stream's.
        let ordered = match contexts.map(|c| c.is_managing_stream_synchronization()) {
            [true, true] => true,
            [false, false] => origin == self.stream && self.stream.cu_stream() != PER_THREAD,
            _ => false,
        };
        if !ordered && contexts.iter().all(|c| c.is_event_tracking()) {
            return Err(Error::Untracked);
        }
        if !contexts.iter().any(|c| c.is_managing_stream_synchronization()) {
            return Ok(());
        }
        let (captured, _) = match self.tracked.get() {
            Some(tracked) => tracked,
            None => {
                let current = Current::set(self.stream.context())?;
                let captured = self.kernels.is_captured(self.stream.cu_stream())?;
                self.tracked.get_or_init(|| (captured, current))
            }
        };
        if *captured { Err(Error::EventTracking) } else { Ok(()) }
    }

    /// Launches, unless a wait failed, and gives the operands back.
    fn end(self, launch: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let context = self.stream.context();
        let waited = context.check_err().map_err(|e| driver_error("cuStreamWaitEvent", e));
        let launched = waited.and_then(|()| launch());
        drop(self.held);
        let recorded = context.check_err().map_err(|e| driver_error("cuEventRecord", e));
        context.record_err(self.earlier);
        launched.and(recorded)
    }
}

/// The handle of a stream that is another one in each thread.
const PER_THREAD: CUstream = std::ptr::without_provenance_mut(2);
