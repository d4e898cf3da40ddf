//! Runs calls on a GPU with each operand in an allocation of its own, just as long, and outputs and scratch as the driver hands
//! them out: so that compute-sanitizer sees what is touched past an end, and what is read before it was written.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::result::{free_sync, malloc_sync, memcpy_dtoh_sync, memcpy_htod_sync, memset_d8_sync};
use cudarc::driver::{CudaContext, CudaStream};
use cudarc::nvrtc::Ptx;

use crate::cuda::compile::compile_source;
use crate::cuda::extents::{Extent, Extents};
use crate::cuda::kernels::{arg, launch};
use crate::cuda::module::Module;
use crate::cuda::steps::Step;
use crate::cuda::{DeviceMemory, Kernels, Tuning, context, driver_error, steps};
use crate::{Backward, Error, Executor, Forward, Operand, Slice, SliceMut};

/// The executor.
pub struct Plain {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: Kernels,
    tuning: Tuning,
    launches: AtomicUsize,
}

impl Plain {
    /// The executor on GPU `ordinal`.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
        let context = context(ordinal)?;
        let stream = context.new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        let kernels = Kernels::new(&context)?;
        let tuning = kernels.tuning();
        Ok(Plain { context, stream, kernels, tuning, launches: AtomicUsize::new(0) })
    }

    /// Another number of blocks for every kernel over rows.
    pub fn with_blocks(self, blocks: u32) -> Self {
        Plain { tuning: Tuning { blocks: Some(blocks), ..self.tuning }, ..self }
    }

    /// Kernels launched so far.
    pub fn launches(&self) -> usize {
        self.launches.load(Ordering::Relaxed)
    }

    /// Runs the kernel of faults.cu that has a fault for this tool of compute-sanitizer. Without the tool it may do anything.
    pub fn fault(&self, tool: &str) -> Result<(), Error> {
        let compiled = compile_source(include_str!("faults.cu"), "faults.cu", self.tuning.arch.compute_capability)?;
        let module = self.context.load_module(Ptx::from_binary(compiled.cubin));
        let function = module.and_then(|module| module.load_function(tool));
        let function = function.map_err(|e| driver_error("cuModuleLoadData", e))?;
        let (memory, elements) = (Allocation::new(64 * size_of::<f32>())?, 64_u32);
        let arguments = [arg(&memory.0), arg(&elements)];
        // SAFETY: the kernel takes an address and a number. What it does is a fault, in a process that has no other purpose.
        unsafe { launch(function.cu_function(), (1, 64, 0), &arguments, self.stream.cu_stream()) }
            .map_err(|e| driver_error("cuLaunchKernel", e))?;
        self.stream.synchronize().map_err(|e| driver_error("cuStreamSynchronize", e))
    }

    fn finish(&self, memory: Memory<'_>, steps: usize) -> Result<(), Error> {
        self.launches.fetch_add(steps, Ordering::Relaxed);
        self.stream.synchronize().map_err(|e| driver_error("cuStreamSynchronize", e))?;
        memory.download()
    }
}

impl Executor for Plain {
    fn name(&self) -> String {
        format!("cuda ({}, plain allocations)", self.kernels.gpu_name())
    }

    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        self.context.bind_to_thread().map_err(|e| driver_error("cuCtxSetCurrent", e))?;
        let memory = Memory::of(Extents::of(&call.operands()));
        let call = call.try_map(|data| memory.read(data), |data| memory.written(data))?;
        let steps = steps::forward(&call, &self.tuning)?;
        let is_staged =
            |step: &Step| matches!(step, Step::Kernel(k) if matches!(k.module, Module::Forward { staged: true, .. }));
        if steps.iter().any(is_staged) {
            // initcheck does not see what bulk copies write from shared memory. An element that none wrote is then a NaN in place of a report.
            let DeviceMemory { dtype, address, elements } = call.y.data;
            // SAFETY: the allocation has this many bytes, and nothing uses it yet.
            unsafe { memset_d8_sync(address, 0xff, elements * dtype.bytes()) }
                .map_err(|e| driver_error("cuMemsetD8", e))?;
        }
        // SAFETY: each operand is a live allocation as long as the host buffer that `check` measured; outputs are allocations
        // of their own, used on this stream only.
        unsafe { self.kernels.forward_tuned(&call, &self.tuning, self.stream.cu_stream())? };
        self.finish(memory, steps.len())
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        self.context.bind_to_thread().map_err(|e| driver_error("cuCtxSetCurrent", e))?;
        let memory = Memory::of(Extents::of(&call.operands()));
        let call = call.try_map(|data| memory.read(data), |data| memory.written(data))?;
        // SAFETY: as in `forward`.
        unsafe { self.kernels.backward_tuned(&call, &self.tuning, self.stream.cu_stream())? };
        self.finish(memory, steps::backward(&call, &self.tuning)?.len())
    }
}

/// The operands of one call on the device.
struct Memory<'a> {
    inputs: RefCell<Vec<Allocation>>,
    /// What is written of the outputs to come.
    extents: RefCell<VecDeque<Extent>>,
    outputs: RefCell<Vec<(Allocation, SliceMut<'a>, Option<Extent>)>>,
}

impl<'a> Memory<'a> {
    fn of(extents: Extents) -> Self {
        Memory { inputs: RefCell::default(), extents: RefCell::new(extents.written), outputs: RefCell::default() }
    }

    fn read(&self, data: Slice<'_>) -> Result<DeviceMemory, Error> {
        let host = data.bytes();
        let allocation = Allocation::new(host.len())?;
        if !host.is_empty() {
            // SAFETY: the allocation has this many bytes.
            unsafe { memcpy_htod_sync(allocation.0, host) }.map_err(|e| driver_error("cuMemcpyHtoD", e))?;
        }
        let memory = DeviceMemory { dtype: data.dtype(), address: allocation.0, elements: data.elements() };
        self.inputs.borrow_mut().push(allocation);
        Ok(memory)
    }

    fn written(&self, data: SliceMut<'a>) -> Result<DeviceMemory, Error> {
        let (dtype, elements) = (data.dtype(), data.elements());
        let allocation = Allocation::new(elements * dtype.bytes())?;
        let memory = DeviceMemory { dtype, address: allocation.0, elements };
        let extent = self.extents.borrow_mut().pop_front();
        self.outputs.borrow_mut().push((allocation, data, extent));
        Ok(memory)
    }

    /// Copies back what the call was to write, and nothing else.
    fn download(self) -> Result<(), Error> {
        for (allocation, mut data, extent) in self.outputs.into_inner() {
            let size = data.dtype().bytes();
            let host = data.bytes_mut();
            for piece in extent.into_iter().flat_map(|extent| extent.pieces(size)) {
                let address = allocation.0 + piece.start as u64;
                // SAFETY: `check` found the operand within the buffer, and the allocation is as long.
                unsafe { memcpy_dtoh_sync(&mut host[piece], address) }.map_err(|e| driver_error("cuMemcpyDtoH", e))?;
            }
        }
        Ok(())
    }
}

/// Memory of `cuMemAlloc`, of no pool.
struct Allocation(u64);

impl Allocation {
    fn new(bytes: usize) -> Result<Self, Error> {
        // SAFETY: nothing reads it before it was written but a kernel with a defect, which is looked for.
        unsafe { malloc_sync(bytes.max(1)) }.map(Allocation).map_err(|e| driver_error("cuMemAlloc", e))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once; the stream has passed, or nothing was launched.
        let _ = unsafe { free_sync(self.0) };
    }
}
