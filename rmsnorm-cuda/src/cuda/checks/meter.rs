//! Times calls and the ceilings they are compared with: replays of a CUDA graph over buffer sets larger than the L2 cache.

mod tensors;

use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUevent, CUstream};
use cudarc::driver::{CudaContext, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;
use rayon::prelude::*;

pub use tensors::{Downloaded, DownloadedSum, Host, Tensors};

use super::host_time::{HostTime, host_times};
use crate::cuda::compile::compile_source;
use crate::cuda::kernels::launch;
use crate::cuda::loaded::Current;
use crate::cuda::{Calls, Kernels, Tuning, driver_error, library};
use crate::{Dtype, Error, Rows};

/// One problem to time: contiguous rows, a weight of the same type, rstd stored, dw of the same type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Element type of every tensor, but those of a residual stream in f32.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Length of a row.
    pub hidden: usize,
    /// Whether forward adds a residual, and backward a dz.
    pub residual: bool,
    /// Whether there is a residual stream in f32: the residual, z, dz and dx. It has a residual, then.
    pub stream: bool,
    /// Whether forward adds a bias, and backward gives its gradient, both of the same type.
    pub bias: bool,
    /// Whether x, y, dy and dx begin one to four elements after a multiple of 256 bytes, each at another.
    pub moved: bool,
    /// Heads with a weight each, which take turns; x and dx are packed with [others](Cell::packed). 1: all rows have the same weight.
    pub heads: usize,
}

impl Cell {
    /// Its calls, as a plan sees them.
    pub fn calls(&self) -> Calls {
        let Cell { dtype, rows, hidden, residual, stream: _, bias, moved, heads } = *self;
        let streamed = self.stream_dtype();
        let aligned = (hidden * dtype.bytes()).is_multiple_of(16) && !moved;
        Calls {
            weight: Some(dtype),
            dw: Some(dtype),
            bias: bias.then_some(dtype),
            db: bias.then_some(dtype),
            residual: residual.then_some([dtype, streamed]),
            y: dtype,
            dy: dtype,
            dz: residual.then_some(streamed),
            aligned,
            heads,
            ..Calls::new((rows / heads, hidden), streamed)
        }
    }

    /// Element type of the residual, z, dz and dx.
    pub fn stream_dtype(&self) -> Dtype {
        if self.stream { Dtype::F32 } else { self.dtype }
    }

    /// Heads that x and dx have room for: a fifth more, as keys and values have beside queries.
    pub fn packed(&self) -> usize {
        if self.heads > 1 { self.heads + self.heads / 5 } else { 1 }
    }

    /// The rows of x or dx.
    pub fn packed_rows<D>(&self, data: D) -> Rows<D> {
        let outer_stride = (self.heads > 1).then_some(self.packed() * self.hidden);
        Rows { outer_stride, ..Rows::contiguous(data, self.hidden) }
    }

    /// Elements of x or dx.
    pub fn packed_elements(&self) -> usize {
        self.rows / self.heads * self.packed() * self.hidden
    }
}

/// The `eps` of every call that is timed.
pub const EPS: f32 = 1e-5;

/// Times of one call in microseconds, over all replays; each replay's time is the mean over its buffer sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Median.
    pub us_median: f64,
    /// A tenth of the replays were faster.
    pub us_p10: f64,
    /// A tenth of the replays were slower.
    pub us_p90: f64,
    /// Number of replays.
    pub replays: usize,
}

/// A GPU with a stream of its own and what is needed to time on it.
pub struct Meter {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: Arc<Kernels>,
    module: Arc<CudaModule>,
}

/// No more than so many timed calls of one kind, unless that leaves too few replays for a spread.
const LAUNCHES_MAX: usize = 1 << 16;
const REPLAYS_OF_LONG_GRAPHS: usize = 9;

impl Meter {
    /// GPU `ordinal`.
    pub fn new(ordinal: usize) -> Result<Arc<Self>, Error> {
        library::driver_with(&[
            "cuEventElapsedTime_v2",
            "cuMemcpyDtoDAsync_v2",
            "cuStreamBeginCapture_v2",
            "cuGraphLaunch",
        ])?;
        let context = CudaContext::new(ordinal).map_err(|e| driver_error("cuDevicePrimaryCtxRetain", e))?;
        // SAFETY: every buffer here is used on one stream only.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        let kernels = Arc::new(Kernels::new(&context)?);
        let compiled = compile_source(include_str!("meter.cu"), "meter.cu", kernels.tuning().arch.compute_capability)?;
        let module =
            context.load_module(Ptx::from_binary(compiled.cubin)).map_err(|e| driver_error("cuModuleLoadData", e))?;
        Ok(Arc::new(Meter { context, stream, kernels, module }))
    }

    /// The kernels that are timed.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// Compiles on all cores what the calls of these cells at these speeds need. Otherwise each does when it is first timed.
    pub fn prepare(&self, cells: &[(Cell, Tuning)]) -> Result<(), Error> {
        cells.par_iter().try_for_each(|(cell, tuning)| self.kernels.prepare_at(&cell.calls(), tuning))
    }

    /// Size of the L2 cache.
    pub fn l2_bytes(&self) -> Result<usize, Error> {
        self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
    }

    /// Two transfers a clock over the whole bus, as the driver states clock and width.
    pub fn theoretical_bytes_per_second(&self) -> Result<f64, Error> {
        let khz = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? as f64;
        let bits = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? as f64;
        Ok(2.0 * khz * 1e3 * bits / 8.0)
    }

    /// What a call costs the host.
    pub fn host_times(&self) -> Result<[HostTime; 2], Error> {
        host_times(&self.kernels, &self.stream)
    }

    /// A launch that does nothing, as one of many in a graph.
    pub fn bare_launch(&self, replays: usize) -> Result<Timing, Error> {
        self.time(64, replays, |_, stream| {
            // SAFETY: `nothing` takes nothing.
            unsafe { self.launch("nothing", 1, 32, &[], stream) }
        })
    }

    /// Captures `launch(0) … launch(sets − 1)` in a graph and replays it, less often if it is long; a time is that of one launch.
    fn time(
        &self,
        sets: usize,
        replays: usize,
        launch: impl Fn(usize, CUstream) -> Result<(), Error>,
    ) -> Result<Timing, Error> {
        let stream = self.stream.cu_stream();
        launch(0, stream)?; // Compiles and loads what the capture could not.
        self.wait()?;
        let e = |call: &'static str| move |e| driver_error(call, e);
        self.stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(e("cuStreamBeginCapture"))?;
        let launched = (0..sets).try_for_each(|set| launch(set, stream));
        let graph = self
            .stream
            .end_capture(sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
            .map_err(e("cuStreamEndCapture"));
        launched?;
        let graph = graph?.ok_or(Error::Driver { call: "cuStreamEndCapture", code: "no graph".into() })?;
        let replays = replays.min((LAUNCHES_MAX / sets).max(REPLAYS_OF_LONG_GRAPHS));
        let (start, stop) = (Event::new()?, Event::new()?);
        let mut us = Vec::with_capacity(replays);
        for replay in 0..replays + 3 {
            start.record(stream)?;
            graph.launch().map_err(e("cuGraphLaunch"))?;
            stop.record(stream)?;
            self.wait()?;
            if replay >= 3 {
                us.push(start.us_until(&stop)? / sets as f64);
            }
        }
        us.sort_by(f64::total_cmp);
        let at = |q: f64| us[((us.len() - 1) as f64 * q).round() as usize];
        Ok(Timing { us_median: at(0.5), us_p10: at(0.1), us_p90: at(0.9), replays })
    }

    /// # Safety
    /// `arguments` are those of the kernel of this name in meter.cu, over memory that it may use.
    unsafe fn launch(
        &self,
        name: &str,
        blocks: u32,
        threads: u32,
        arguments: &[*mut std::ffi::c_void],
        stream: CUstream,
    ) -> Result<(), Error> {
        let function = self.module.load_function(name).map_err(|e| driver_error("cuModuleGetFunction", e))?;
        let _current = Current::set(&self.context)?;
        // SAFETY: a function of this context's module; the rest is this function's own `# Safety`.
        unsafe { launch(function.cu_function(), (blocks, threads, 0), arguments, stream) }
            .map_err(|e| driver_error("cuLaunchKernel", e))
    }

    fn attribute(&self, attribute: Attribute) -> Result<usize, Error> {
        self.context.attribute(attribute).map(|v| v as usize).map_err(|e| driver_error("cuDeviceGetAttribute", e))
    }

    fn wait(&self) -> Result<(), Error> {
        self.stream.synchronize().map_err(|e| driver_error("cuStreamSynchronize", e))
    }
}

/// A driver event that records time.
struct Event(CUevent);

impl Event {
    fn new() -> Result<Self, Error> {
        let mut event = std::ptr::null_mut();
        // SAFETY: `event` receives a handle that `drop` destroys.
        unsafe { sys::cuEventCreate(&mut event, 0) }.result().map_err(|e| driver_error("cuEventCreate", e))?;
        Ok(Event(event))
    }

    fn record(&self, stream: CUstream) -> Result<(), Error> {
        // SAFETY: both handles are alive.
        unsafe { sys::cuEventRecord(self.0, stream) }.result().map_err(|e| driver_error("cuEventRecord", e))
    }

    fn us_until(&self, later: &Event) -> Result<f64, Error> {
        let mut ms = 0.0f32;
        // SAFETY: both events were recorded and have been waited for.
        unsafe { sys::cuEventElapsedTime_v2(&mut ms, self.0, later.0) }
            .result()
            .map_err(|e| driver_error("cuEventElapsedTime", e))?;
        Ok(f64::from(ms) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `cuEventCreate`, destroyed once.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
