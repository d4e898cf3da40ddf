//! Times calls and the ceilings they are compared with: replays of a CUDA graph over buffer sets larger than the L2 cache.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUevent, CUstream};
use cudarc::driver::{CudaContext, CudaModule, CudaSlice, CudaStream, DevicePtr};
use cudarc::nvrtc::Ptx;

use super::compile::compile_source;
use super::launch::arg;
use super::{Bytes, DeviceMemory, Kernels, driver_error, library};
use crate::{Backward, Dtype, Error, Forward, Rows, Slice, SliceMut, WeightGradient, WeightOffset, scratch_len};

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

/// Times of one call in microseconds, over all replays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Median.
    pub us_median: f64,
    /// A tenth of the replays were faster.
    pub us_p10: f64,
    /// A tenth of the replays were slower.
    pub us_p90: f64,
}

/// A GPU with a stream of its own and what is needed to time on it.
pub struct Meter {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: Kernels,
    module: Arc<CudaModule>,
}

/// The tensors of a cell, `sets` times over.
pub struct Tensors {
    cell: Cell,
    sets: Vec<Set>,
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

/// Launch shapes of the ceilings: kernel, blocks (0: one access a thread, otherwise so many per multiprocessor), threads.
const COPIES: [(&str, u32, u32); 6] = [
    ("copy_1", 0, 512),
    ("copy_1", 0, 256),
    ("copy_2", 8, 256),
    ("copy_4", 4, 512),
    ("copy_4", 8, 256),
    ("copy_4", 2, 1024),
];
const ADDS: [(&str, u32, u32); 6] =
    [("add_1", 0, 512), ("add_1", 0, 256), ("add_2", 8, 256), ("add_4", 4, 512), ("add_2", 4, 512), ("add_1", 2, 1024)];

impl Meter {
    /// GPU `ordinal`.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
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
        let kernels = Kernels::new(&context)?;
        let compiled =
            compile_source(include_str!("measure.cu"), "measure.cu", kernels.speed().arch.compute_capability)?;
        let module =
            context.load_module(Ptx::from_binary(compiled.cubin)).map_err(|e| driver_error("cuModuleLoadData", e))?;
        Ok(Meter { context, stream, kernels, module })
    }

    /// The kernels that are timed.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
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

    /// Fills the tensors of `cell` with normal numbers, in as many sets as leave the L2 cache fourfold.
    pub fn tensors(&self, cell: Cell) -> Result<Tensors, Error> {
        let bytes = cell.rows * cell.hidden * cell.dtype.bytes();
        let sets = (4 * self.l2_bytes()?).div_ceil(2 * bytes).clamp(2, 256);
        let sets = (0..sets as u32).map(|i| self.set(cell, i)).collect::<Result<_, _>>()?;
        self.wait()?;
        Ok(Tensors { cell, sets })
    }

    /// Times forward.
    pub fn forward(&self, tensors: &Tensors, replays: usize) -> Result<Timing, Error> {
        self.time(tensors.sets.len(), replays, |set, stream| {
            let call = tensors.sets[set].forward(tensors.cell);
            // SAFETY: the buffers live in `tensors`, were sized by `set` and are used on this stream only.
            unsafe { self.kernels.forward(&call, &self.kernels.speed(), stream) }
        })
    }

    /// Times backward, dx and dw. Run [`Meter::forward`] first: it stores rstd.
    pub fn backward(&self, tensors: &Tensors, replays: usize) -> Result<Timing, Error> {
        self.time(tensors.sets.len(), replays, |set, stream| {
            let call = tensors.sets[set].backward(tensors.cell)?;
            // SAFETY: as in `forward`.
            unsafe { self.kernels.backward(&call, &self.kernels.speed(), stream) }
        })
    }

    /// The fastest of the ways to read one tensor of the cell and write another, with its name.
    pub fn ceiling_forward(&self, tensors: &Tensors, replays: usize) -> Result<(Timing, String), Error> {
        let mut best = self.ceiling(tensors, replays, &COPIES, |set| [&set.x, &set.x, &set.y])?;
        let copied = self.time(tensors.sets.len(), replays, |set, stream| {
            let (x, y) = (&tensors.sets[set].x, &tensors.sets[set].y);
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
    pub fn ceiling_backward(&self, tensors: &Tensors, replays: usize) -> Result<(Timing, String), Error> {
        self.ceiling(tensors, replays, &ADDS, |set| [&set.x, &set.dy, &set.dx])
    }

    /// A launch that does nothing, as one of many in a graph.
    pub fn bare_launch(&self, replays: usize) -> Result<Timing, Error> {
        self.time(64, replays, |_, stream| self.launch("nothing", 1, 32, &[], stream))
    }

    /// Copies the buffers of set 0 to the host: what the timed launches read and wrote.
    pub fn download(&self, tensors: &Tensors) -> Result<Downloaded, Error> {
        let set = &tensors.sets[0];
        let get = |b: &Buffer| self.stream.clone_dtoh(&b.bytes).map_err(|e| driver_error("cuMemcpyDtoH", e));
        let d = Downloaded {
            cell: tensors.cell,
            x: get(&set.x)?,
            dy: get(&set.dy)?,
            weight: get(&set.weight)?,
            y: get(&set.y)?,
            rstd: get(&set.rstd)?,
            dx: get(&set.dx)?,
            dw: get(&set.dw)?,
        };
        self.wait()?;
        Ok(d)
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
            self.launch("fill_normal", 4096, 256, &arguments, self.stream.cu_stream())?;
        }
        Ok(set)
    }

    fn buffer(&self, dtype: Dtype, elements: usize) -> Result<Buffer, Error> {
        // SAFETY: written before it is read: x, dy and weight by `fill_normal`, the others by the calls that are timed.
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
                let blocks = match per_sm {
                    0 => n.div_ceil(u64::from(threads)) as u32,
                    _ => per_sm * self.kernels.speed().arch.sm_count,
                };
                let arguments = [arg(&a.memory.address), arg(&b.memory.address), arg(&o.memory.address), arg(&n)];
                self.launch(name, blocks, threads, &arguments, stream)
            })?;
            if best.as_ref().is_none_or(|(b, _)| timing.us_median < b.us_median) {
                best = Some((timing, format!("{name} {per_sm}×{threads}")));
            }
        }
        best.ok_or(Error::Driver { call: "ceiling", code: "no shape".into() })
    }

    /// Captures `launch(0) … launch(sets − 1)` in a graph and replays it; a time is that of one launch.
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
        Ok(Timing { us_median: at(0.5), us_p10: at(0.1), us_p90: at(0.9) })
    }

    fn launch(
        &self,
        name: &str,
        blocks: u32,
        threads: u32,
        arguments: &[*mut std::ffi::c_void],
        stream: CUstream,
    ) -> Result<(), Error> {
        let function = self.module.load_function(name).map_err(|e| driver_error("cuModuleGetFunction", e))?;
        // SAFETY: each caller above passes what the kernel of that name in measure.cu takes, over buffers it sized.
        unsafe { self.kernels.launch(&function, (blocks, threads, 0), arguments, stream) }
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
            rows: cell.rows,
            hidden: cell.hidden,
            eps: 1e-5,
            weight_offset: WeightOffset::Zero,
            x: Rows::contiguous(self.x.memory, cell.hidden),
            weight: Some(self.weight.memory.into()),
            y: Rows::contiguous(self.y.memory, cell.hidden),
            rstd: Some(self.rstd.memory.into()),
        }
    }

    fn backward(&self, cell: Cell) -> Result<Backward<DeviceMemory, DeviceMemory>, Error> {
        Ok(Backward {
            rows: cell.rows,
            hidden: cell.hidden,
            weight_offset: WeightOffset::Zero,
            x: Rows::contiguous(self.x.memory, cell.hidden),
            weight: Some(self.weight.memory.into()),
            rstd: self.rstd.memory.into(),
            dy: Rows::contiguous(self.dy.memory, cell.hidden),
            dx: Rows::contiguous(self.dx.memory, cell.hidden),
            dw: Some(WeightGradient { dw: self.dw.memory.into(), scratch: self.scratch.memory.into() }),
        })
    }
}

/// One set's tensors on the host, as bytes.
pub struct Downloaded {
    cell: Cell,
    x: Vec<u8>,
    dy: Vec<u8>,
    weight: Vec<u8>,
    y: Vec<u8>,
    rstd: Vec<u8>,
    dx: Vec<u8>,
    dw: Vec<u8>,
}

impl Downloaded {
    /// Computes everything again with `executor` and counts the elements of (y, rstd, dx, dw) that differ in any bit.
    pub fn mismatches(&self, executor: &dyn crate::Executor) -> Result<[usize; 4], Error> {
        match self.cell.dtype {
            Dtype::F32 => self.mismatches_as::<f32>(executor),
            Dtype::F16 => self.mismatches_as::<crate::f16>(executor),
            Dtype::Bf16 => self.mismatches_as::<crate::bf16>(executor),
        }
    }

    fn mismatches_as<T>(&self, executor: &dyn crate::Executor) -> Result<[usize; 4], Error>
    where
        T: Bytes + crate::arith::Element,
        for<'a> Slice<'a>: From<&'a [T]>,
        for<'a> SliceMut<'a>: From<&'a mut [T]>,
    {
        let Cell { rows, hidden, .. } = self.cell;
        let from = |bytes: &[u8]| {
            let mut v = vec![T::default(); bytes.len() / size_of::<T>()];
            let size = size_of_val(&v[..]);
            T::bytes_mut(&mut v).copy_from_slice(&bytes[..size]);
            v
        };
        let (x, dy, weight) = (from(&self.x), from(&self.dy), from(&self.weight));
        let (mut y, mut dx, mut dw) =
            (vec![T::default(); x.len()], vec![T::default(); x.len()], vec![T::default(); hidden]);
        let mut rstd = vec![0.0f32; rows];
        let mut scratch = vec![f32::NAN; scratch_len(rows, hidden)?];
        executor.forward(Forward {
            rows,
            hidden,
            eps: 1e-5,
            weight_offset: WeightOffset::Zero,
            x: Rows::contiguous(x[..].into(), hidden),
            weight: Some(Slice::from(&weight[..hidden]).into()),
            y: Rows::contiguous((&mut y[..]).into(), hidden),
            rstd: Some(SliceMut::F32(&mut rstd).into()),
        })?;
        executor.backward(Backward {
            rows,
            hidden,
            weight_offset: WeightOffset::Zero,
            x: Rows::contiguous(x[..].into(), hidden),
            weight: Some(Slice::from(&weight[..hidden]).into()),
            rstd: Slice::F32(&rstd).into(),
            dy: Rows::contiguous(dy[..].into(), hidden),
            dx: Rows::contiguous((&mut dx[..]).into(), hidden),
            dw: Some(WeightGradient {
                dw: SliceMut::from(&mut dw[..]).into(),
                scratch: SliceMut::F32(&mut scratch).into(),
            }),
        })?;
        let differ = |got: &[u8], want: &[u8], size: usize| {
            got.chunks_exact(size).zip(want.chunks_exact(size)).filter(|(g, w)| g != w).count()
        };
        let size = size_of::<T>();
        Ok([
            differ(&self.y, T::bytes(&y), size),
            differ(&self.rstd, f32::bytes(&rstd), 4),
            differ(&self.dx, T::bytes(&dx), size),
            differ(&self.dw, T::bytes(&dw), size),
        ])
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
