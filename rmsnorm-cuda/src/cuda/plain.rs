//! Runs calls on a GPU with each operand in an allocation of its own, just as long, and outputs and scratch as the driver hands
//! them out: so that compute-sanitizer sees what is touched past an end, and what is read before it was written.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::result::{free_sync, malloc_sync, memcpy_dtoh_sync, memcpy_htod_sync};
use cudarc::driver::{CudaContext, CudaStream};

use super::{Bytes, DeviceMemory, Kernels, Speed, context, driver_error, steps};
use crate::{Backward, Error, Executor, Forward, Operand, Slice, SliceMut, bf16, f16};

/// The executor.
pub struct Plain {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: Kernels,
    speed: Speed,
    launches: AtomicUsize,
}

impl Plain {
    /// The executor on GPU `ordinal`.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
        let context = context(ordinal)?;
        let stream = context.new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        let kernels = Kernels::new(&context)?;
        let speed = kernels.speed();
        Ok(Plain { context, stream, kernels, speed, launches: AtomicUsize::new(0) })
    }

    /// Another number of blocks for every kernel over rows.
    pub fn with_blocks(self, blocks: u32) -> Self {
        Plain { speed: Speed { blocks: Some(blocks), ..self.speed }, ..self }
    }

    /// Kernels launched so far.
    pub fn launches(&self) -> usize {
        self.launches.load(Ordering::Relaxed)
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
        let memory = Memory::default();
        let call = call.try_map(|data| memory.read(data), |data| memory.written(data))?;
        // SAFETY: each operand is a live allocation as long as the host buffer that `check` measured; outputs are allocations
        // of their own, used on this stream only.
        unsafe { self.kernels.forward(&call, &self.speed, self.stream.cu_stream())? };
        self.finish(memory, steps::forward(&call, &self.speed)?.len())
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        self.context.bind_to_thread().map_err(|e| driver_error("cuCtxSetCurrent", e))?;
        let scratch = call.dw.as_ref().map(|gradient| gradient.scratch.data.address());
        let memory = Memory { scratch, ..Memory::default() };
        let call = call.try_map(|data| memory.read(data), |data| memory.written(data))?;
        // SAFETY: as in `forward`.
        unsafe { self.kernels.backward(&call, &self.speed, self.stream.cu_stream())? };
        self.finish(memory, steps::backward(&call, &self.speed)?.len())
    }
}

/// The operands of one call on the device.
#[derive(Default)]
struct Memory<'a> {
    kept: RefCell<Vec<Allocation>>,
    outputs: RefCell<Vec<(Allocation, SliceMut<'a>)>>,
    /// Where the caller's scratch is. It is not copied back: nobody promises that all of it was written.
    scratch: Option<u64>,
}

impl<'a> Memory<'a> {
    fn read(&self, data: Slice<'_>) -> Result<DeviceMemory, Error> {
        let host = match data {
            Slice::F32(d) => f32::bytes(d),
            Slice::F16(d) => f16::bytes(d),
            Slice::Bf16(d) => bf16::bytes(d),
        };
        let allocation = Allocation::new(host.len())?;
        if !host.is_empty() {
            // SAFETY: the allocation has this many bytes.
            unsafe { memcpy_htod_sync(allocation.0, host) }.map_err(|e| driver_error("cuMemcpyHtoD", e))?;
        }
        let memory = DeviceMemory { dtype: data.dtype(), address: allocation.0, elements: data.elements() };
        self.kept.borrow_mut().push(allocation);
        Ok(memory)
    }

    fn written(&self, data: SliceMut<'a>) -> Result<DeviceMemory, Error> {
        let shared = match &data {
            SliceMut::F32(d) => Slice::F32(d),
            SliceMut::F16(d) => Slice::F16(d),
            SliceMut::Bf16(d) => Slice::Bf16(d),
        };
        let (dtype, elements) = (shared.dtype(), shared.elements());
        let allocation = Allocation::new(elements * dtype.bytes())?;
        let memory = DeviceMemory { dtype, address: allocation.0, elements };
        if self.scratch == Some(data.address()) {
            self.kept.borrow_mut().push(allocation);
        } else {
            self.outputs.borrow_mut().push((allocation, data));
        }
        Ok(memory)
    }

    /// Copies the outputs back.
    fn download(self) -> Result<(), Error> {
        for (allocation, data) in self.outputs.into_inner() {
            let host = match data {
                SliceMut::F32(d) => f32::bytes_mut(d),
                SliceMut::F16(d) => f16::bytes_mut(d),
                SliceMut::Bf16(d) => bf16::bytes_mut(d),
            };
            if !host.is_empty() {
                // SAFETY: the allocation has this many bytes.
                unsafe { memcpy_dtoh_sync(host, allocation.0) }.map_err(|e| driver_error("cuMemcpyDtoH", e))?;
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
