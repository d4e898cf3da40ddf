//! Times calls and the ceilings they are compared with: replays of a CUDA graph over buffer sets larger than the L2 cache.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUevent, CUstream};
use cudarc::driver::{CudaContext, CudaModule, CudaSlice, CudaStream, DevicePtr};
use cudarc::nvrtc::Ptx;
use rayon::prelude::*;

use super::host_time::{HostTime, host_times};
use crate::cuda::compile::compile_source;
use crate::cuda::kernels::{Current, arg, launch};
use crate::cuda::{Calls, DeviceMemory, Kernels, Tuning, driver_error, library};
use crate::{
    Backward, Dtype, Error, Forward, Slice, SliceMut, WeightGradient, WeightOffset, bf16, f16, scratch_len, with_dtype,
};

/// One problem to time: contiguous rows, a weight of the same type, rstd stored, dw of the same type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Element type of every tensor.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Length of a row.
    pub hidden: usize,
}

impl Cell {
    /// Its calls, as a plan sees them.
    pub fn calls(&self) -> Calls {
        let Cell { dtype, rows, hidden } = *self;
        let (weight, dw, weight_offset) = (Some(dtype), Some(dtype), WeightOffset::Zero);
        Calls { rows, hidden, dtype, weight, weight_offset, dw, aligned: (hidden * dtype.bytes()).is_multiple_of(16) }
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

/// The tensors of a cell, several times over.
pub struct Tensors {
    meter: Arc<Meter>,
    cell: Cell,
    sets: Vec<Set>,
}

impl Tensors {
    /// How many times over.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Times forward.
    pub fn forward(&self, tuning: &Tuning, replays: usize) -> Result<Timing, Error> {
        self.meter.time(self.sets.len(), replays, |set, stream| {
            let call = self.sets[set].forward(self.cell);
            // SAFETY: the buffers live as long as `self`, were sized by `Meter::set` on the stream of the same meter, and are used on no other.
            unsafe { self.meter.kernels.forward_tuned(&call, tuning, stream) }
        })
    }

    /// Times backward, dx and dw. Run [`Tensors::forward`] first: it stores rstd.
    pub fn backward(&self, tuning: &Tuning, replays: usize) -> Result<Timing, Error> {
        self.meter.time(self.sets.len(), replays, |set, stream| {
            let call = self.sets[set].backward(self.cell)?;
            // SAFETY: as in `forward`.
            unsafe { self.meter.kernels.backward_tuned(&call, tuning, stream) }
        })
    }

    /// The fastest of the ways to read one tensor of the cell and write another, with its name.
    pub fn ceiling_forward(&self, replays: usize) -> Result<(Timing, String), Error> {
        let mut best = self.meter.ceiling(self, replays, &COPIES, |set| [&set.x, &set.x, &set.y])?;
        let copied = self.meter.time(self.sets.len(), replays, |set, stream| {
            let (x, y) = (&self.sets[set].x, &self.sets[set].y);
            // SAFETY: both buffers have this length.
            unsafe { sys::cuMemcpyDtoDAsync_v2(y.memory.address, x.memory.address, x.bytes.len(), stream) }
                .result()
                .map_err(|e| driver_error("cuMemcpyDtoDAsync", e))
        })?;
        if copied.us_median < best.0.us_median {
            best = (copied, "cuMemcpyDtoD".into());
        }
        Ok(best)
    }

    /// The fastest of the ways to read two tensors of the cell and write one, with its name.
    pub fn ceiling_backward(&self, replays: usize) -> Result<(Timing, String), Error> {
        self.meter.ceiling(self, replays, &ADDS, |set| [&set.x, &set.dy, &set.dx])
    }

    /// Copies the buffers of set 0 to the host: what the timed launches read and wrote.
    pub fn download(&self) -> Result<Downloaded, Error> {
        let set = &self.sets[0];
        Ok(Downloaded {
            x: self.meter.to_host(&set.x)?,
            dy: self.meter.to_host(&set.dy)?,
            weight: self.meter.to_host(&set.weight)?,
            y: self.meter.to_host(&set.y)?,
            rstd: self.meter.to_host(&set.rstd)?,
            dx: self.meter.to_host(&set.dx)?,
            dw: self.meter.to_host(&set.dw)?,
        })
    }
}

struct Set {
    x: Buffer,
    dy: Buffer,
    weight: Buffer,
    y: Buffer,
    rstd: Buffer,
    dx: Buffer,
    dw: Buffer,
    scratch: Buffer,
}

struct Buffer {
    memory: DeviceMemory,
    bytes: CudaSlice<u8>,
}

/// Launch shapes of the ceilings: kernel, blocks (0: as many as take all in one go, otherwise so many per multiprocessor),
/// threads. The digit is the number of 16-byte accesses of a thread to each tensor in one go.
const COPIES: [(&str, u32, u32); 10] = [
    ("copy_1", 0, 512),
    ("copy_1", 0, 256),
    ("copy_2", 8, 256),
    ("copy_4", 4, 512),
    ("copy_4", 8, 256),
    ("copy_4", 2, 1024),
    ("copy_cached_1", 0, 128),
    ("copy_cached_1", 0, 512),
    ("copy_cached_2", 0, 256),
    ("copy_cached_4", 0, 128),
];
const ADDS: [(&str, u32, u32); 12] = [
    ("add_1", 0, 512),
    ("add_1", 0, 256),
    ("add_2", 8, 256),
    ("add_4", 4, 512),
    ("add_2", 4, 512),
    ("add_1", 2, 1024),
    ("add_cached_1", 0, 128),
    ("add_cached_1", 0, 256),
    ("add_cached_1", 0, 1024),
    ("add_cached_2", 0, 128),
    ("add_cached_2", 0, 256),
    ("add_cached_4", 0, 128),
];

/// Most buffer sets of a cell: one graph node or more for each.
const SETS_MAX: usize = 1 << 14;
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

    /// Fills x, dy and weight of `cell` with normal numbers and the outputs with NaN, in so many sets that x and y alone are four
    /// times as large as the L2 cache, but no more than 2^14.
    pub fn tensors(self: &Arc<Self>, cell: Cell) -> Result<Tensors, Error> {
        let bytes = cell.rows * cell.hidden * cell.dtype.bytes();
        let sets = (4 * self.l2_bytes()?).div_ceil(2 * bytes.max(1)).clamp(2, SETS_MAX);
        let sets = (0..sets as u32).map(|i| self.set(cell, i)).collect::<Result<_, _>>()?;
        self.wait()?;
        Ok(Tensors { meter: self.clone(), cell, sets })
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

    fn to_host(&self, buffer: &Buffer) -> Result<Host, Error> {
        let mut host = Host::zeros(buffer.memory.dtype, buffer.memory.elements);
        let mut data = host.slice_mut();
        let bytes = data.bytes_mut();
        if !bytes.is_empty() {
            let copied = self.stream.memcpy_dtoh(&buffer.bytes.slice(..bytes.len()), bytes);
            copied.map_err(|e| driver_error("cuMemcpyDtoH", e))?;
        }
        self.wait()?;
        Ok(host)
    }

    fn set(&self, cell: Cell, seed: u32) -> Result<Set, Error> {
        let n = cell.rows * cell.hidden;
        let t = cell.dtype;
        let set = Set {
            x: self.buffer(t, n)?,
            dy: self.buffer(t, n)?,
            weight: self.buffer(t, cell.hidden)?,
            y: self.buffer(t, n)?,
            rstd: self.buffer(Dtype::F32, cell.rows)?,
            dx: self.buffer(t, n)?,
            dw: self.buffer(t, cell.hidden)?,
            scratch: self.buffer(Dtype::F32, scratch_len(cell.rows, cell.hidden)?)?,
        };
        for (i, buffer) in [&set.x, &set.dy, &set.weight].into_iter().enumerate() {
            let (address, n) = (buffer.memory.address, buffer.memory.elements as u64);
            let (bytes, half, seed) = (t.bytes() as u32, u32::from(t == Dtype::F16), 3 * seed + i as u32);
            let arguments = [arg(&address), arg(&n), arg(&bytes), arg(&half), arg(&seed)];
            let blocks = n.div_ceil(256).clamp(1, 4096) as u32;
            // SAFETY: `fill_normal` writes n elements of so many bytes, which the buffer has.
            unsafe { self.launch("fill_normal", blocks, 256, &arguments, self.stream.cu_stream())? };
        }
        // All ones are a NaN of every type: an element that no launch writes is found.
        for output in [&set.y, &set.rstd, &set.dx, &set.dw, &set.scratch] {
            // SAFETY: the buffer has this length.
            unsafe { sys::cuMemsetD8Async(output.memory.address, 0xff, output.bytes.len(), self.stream.cu_stream()) }
                .result()
                .map_err(|e| driver_error("cuMemsetD8Async", e))?;
        }
        Ok(set)
    }

    fn buffer(&self, dtype: Dtype, elements: usize) -> Result<Buffer, Error> {
        // SAFETY: `set` writes all of it before anything reads it.
        let bytes = unsafe { self.stream.alloc::<u8>((elements * dtype.bytes()).max(16)) }
            .map_err(|e| driver_error("cuMemAllocAsync", e))?;
        let address = bytes.device_ptr(&self.stream).0;
        Ok(Buffer { memory: DeviceMemory { dtype, address, elements }, bytes })
    }

    fn ceiling(
        &self,
        tensors: &Tensors,
        replays: usize,
        shapes: &[(&'static str, u32, u32)],
        operands: impl Fn(&Set) -> [&Buffer; 3],
    ) -> Result<(Timing, String), Error> {
        let mut best: Option<(Timing, String)> = None;
        for &(name, per_sm, threads) in shapes {
            let timing = self.time(tensors.sets.len(), replays, |set, stream| {
                let [a, b, o] = operands(&tensors.sets[set]);
                let n = (o.bytes.len() / 16) as u64;
                let depth = u64::from(name.as_bytes()[name.len() - 1] - b'0');
                let blocks = match per_sm {
                    0 => n.div_ceil(depth * u64::from(threads)).max(1) as u32,
                    _ => per_sm * self.kernels.tuning().arch.sm_count,
                };
                let arguments = [arg(&a.memory.address), arg(&b.memory.address), arg(&o.memory.address), arg(&n)];
                // SAFETY: both kinds of kernel take three buffers of n times 16 bytes.
                unsafe { self.launch(name, blocks, threads, &arguments, stream) }
            })?;
            if best.as_ref().is_none_or(|(b, _)| timing.us_median < b.us_median) {
                best = Some((timing, format!("{name} {per_sm}×{threads}")));
            }
        }
        best.ok_or(Error::Driver { call: "ceiling", code: "no shape".into() })
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

impl Set {
    fn forward(&self, cell: Cell) -> Forward<DeviceMemory, DeviceMemory> {
        Forward {
            weight: Some(self.weight.memory.into()),
            rstd: Some(self.rstd.memory.into()),
            ..Forward::new((cell.rows, cell.hidden), EPS, self.x.memory, self.y.memory)
        }
    }

    fn backward(&self, cell: Cell) -> Result<Backward<DeviceMemory, DeviceMemory>, Error> {
        Ok(Backward {
            weight: Some(self.weight.memory.into()),
            dw: Some(WeightGradient { dw: self.dw.memory.into(), scratch: self.scratch.memory.into() }),
            ..Backward::new((cell.rows, cell.hidden), self.x.memory, self.rstd.memory, self.dy.memory, self.dx.memory)
        })
    }
}

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub enum Host {
    /// f32.
    F32(Vec<f32>),
    /// f16.
    F16(Vec<f16>),
    /// bf16.
    Bf16(Vec<bf16>),
}

impl Host {
    /// `elements` zeros.
    pub fn zeros(dtype: Dtype, elements: usize) -> Host {
        match dtype {
            Dtype::F32 => Host::F32(vec![0.0; elements]),
            Dtype::F16 => Host::F16(vec![f16::ZERO; elements]),
            Dtype::Bf16 => Host::Bf16(vec![bf16::ZERO; elements]),
        }
    }

    /// As an operand that is read.
    pub fn slice(&self) -> Slice<'_> {
        with_dtype!(Host(data) = self => data[..].into())
    }

    /// As an operand that is written.
    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        with_dtype!(Host(data) = self => (&mut data[..]).into())
    }
}

/// What the launches on one set read and wrote.
pub struct Downloaded {
    /// Rows × hidden.
    pub x: Host,
    /// Rows × hidden.
    pub dy: Host,
    /// Hidden.
    pub weight: Host,
    /// Rows × hidden.
    pub y: Host,
    /// Rows, f32.
    pub rstd: Host,
    /// Rows × hidden.
    pub dx: Host,
    /// Hidden.
    pub dw: Host,
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
