//! The CUDA executor on host memory: what checks use.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUstream};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, result};

use super::extents::{Extent, Extents};
use super::{DeviceMemory, Kernels, Tuning, context, driver_error};
use crate::plan::Arch;
use crate::{Backward, Error, Executor, Forward, Input, Operand, Slice, SliceMut};

/// Runs calls on host memory on a GPU: copies the buffers there, launches, and copies the outputs back.
///
/// Whole buffers travel, gaps and surroundings included, to device addresses equal to the host's modulo 256: what a check
/// placed around an operand is around it on the GPU too. (Of buffers beyond 1 GiB only the operand travels, and zeros are around
/// it.) Calls on clones of one executor wait for each other;
/// [`on_new_stream`](Cuda::on_new_stream) makes one that does not.
#[derive(Clone)]
pub struct Cuda {
    pub(super) kernels: Arc<Kernels>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) tuning: Tuning,
    shared: Arc<Mutex<Option<Shared>>>,
}

impl Cuda {
    /// The executor on GPU `ordinal`.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
        let context = context(ordinal)?;
        let stream = context.new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        let kernels = Arc::new(Kernels::new(&context)?);
        let tuning = kernels.tuning();
        Ok(Cuda { kernels, stream, tuning, shared: Arc::default() })
    }

    /// The same executor with the kernels of `bundle` alone, which were compiled ahead.
    #[cfg(feature = "checks")]
    #[doc(hidden)]
    pub fn of_bundle(&self, bundle: &'static super::prebuilt::Bundle) -> Result<Self, Error> {
        let kernels = Arc::new(Kernels::of_bundle(self.stream.context(), bundle)?);
        Ok(Cuda { kernels, ..self.on_new_stream()? })
    }

    /// The same executor with a stream of its own, for another thread.
    pub fn on_new_stream(&self) -> Result<Self, Error> {
        let stream = self.stream.context().new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        Ok(Cuda { stream, shared: Arc::default(), ..self.clone() })
    }

    /// The same executor with another choice of what decides only speed: for checks that it decides nothing else.
    #[doc(hidden)]
    pub fn with_tuning(&self, tuning: Tuning) -> Self {
        Cuda { tuning, ..self.clone() }
    }

    /// What decides only speed: by default what fits the GPU found.
    #[doc(hidden)]
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// The kernels that run here.
    pub fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }

    /// The GPU.
    #[doc(hidden)]
    pub fn arch(&self) -> Arch {
        self.kernels.tuning().arch
    }

    /// A forward call whose operands are on the device; `how` uploads and launches them.
    pub(super) fn forward_as(
        &self,
        call: Forward<Input<Slice<'_>>, SliceMut<'_>>,
        how: impl FnOnce(&Placed<'_, '_>, &dyn Fn(CUstream) -> Result<(), Error>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let call = call.found()?;
        call.check()?;
        self.with_memory(Extents::of(&call.operands()), |placed| {
            let call = call.try_map(|found| placed.input(found.input()), |data| placed.written(data))?.placed()?;
            // SAFETY: each operand is live memory of this stream's device, as long as the host buffer that `check` measured, and
            // no two overlap but an input and the output that it lies in.
            how(placed, &|stream| unsafe { self.kernels.forward_tuned(&call, &self.tuning, stream) })
        })
    }

    /// The same of a backward call.
    pub(super) fn backward_as(
        &self,
        call: Backward<Input<Slice<'_>>, SliceMut<'_>>,
        how: impl FnOnce(&Placed<'_, '_>, &dyn Fn(CUstream) -> Result<(), Error>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let call = call.found()?;
        call.check()?;
        self.with_memory(Extents::of(&call.operands()), |placed| {
            let call = call.try_map(|found| placed.input(found.input()), |data| placed.written(data))?.placed()?;
            // SAFETY: as in `forward_as`.
            how(placed, &|stream| unsafe { self.kernels.backward_tuned(&call, &self.tuning, stream) })
        })
    }

    fn with_memory<'a>(
        &self,
        extents: Extents,
        run: impl FnOnce(&Placed<'_, 'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = match &mut *shared {
            Some(shared) => shared,
            none => none.insert(Shared::new(&self.stream)?),
        };
        let extents = RefCell::new(extents);
        let (used, in_place) = (Cell::new(0), Cell::new(false));
        let placed =
            Placed { shared, extents, used, in_place, inputs: RefCell::default(), outputs: RefCell::default() };
        run(&placed)?;
        placed.download()
    }
}

impl Executor for Cuda {
    fn name(&self) -> String {
        let (major, minor) = self.arch().compute_capability;
        format!("cuda ({}, sm_{major}{minor})", self.kernels.gpu_name())
    }

    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.forward_in_place(call.with_inputs())
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.backward_in_place(call.with_inputs())
    }

    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.forward_as(call, |placed, launch| placed.run(launch))
    }

    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.backward_as(call, |placed, launch| placed.run(launch))
    }
}

/// Where the operands of one call after another lie: a buffer on the device and one of the same length on the host, which the GPU
/// can copy from and to by itself. Small operands lie side by side, so that one copy takes all of them; this, and that nothing
/// is allocated, is what makes many small calls fast.
struct Shared {
    stream: Arc<CudaStream>,
    _device: CudaSlice<u8>,
    address: u64,
    host: *mut u8,
}

// SAFETY: `host` is memory of this value alone, which any thread may use.
unsafe impl Send for Shared {}

impl Shared {
    fn new(stream: &Arc<CudaStream>) -> Result<Self, Error> {
        stream.context().bind_to_thread().map_err(|e| driver_error("cuCtxSetCurrent", e))?;
        // SAFETY: `Placed` writes what it reads.
        let device = unsafe { stream.alloc::<u8>(SHARED_BYTES) }.map_err(|e| driver_error("cuMemAlloc", e))?;
        // SAFETY: the context is current; the memory is freed in `drop`.
        let host =
            unsafe { result::malloc_host(SHARED_BYTES, 0) }.map_err(|e| driver_error("cuMemHostAlloc", e))?.cast();
        let address = device.device_ptr(stream).0;
        Ok(Shared { stream: stream.clone(), _device: device, address, host })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // There is no one to tell of an error.
        self.stream.context().bind_to_thread().ok();
        // SAFETY: allocated by `new`, freed once; every call waited for the stream.
        unsafe { result::free_host(self.host.cast::<c_void>()).ok() };
    }
}

/// The operands of one call on the device.
pub(super) struct Placed<'s, 'a> {
    shared: &'s Shared,
    /// Of the operands that have no place yet.
    extents: RefCell<Extents>,
    /// Bytes taken of the shared buffers.
    used: Cell<usize>,
    /// Whether an input lies in an output.
    in_place: Cell<bool>,
    inputs: RefCell<Vec<(Place, Slice<'a>)>>,
    outputs: RefCell<Vec<(Place, SliceMut<'a>)>>,
}

/// Where one operand lies.
struct Place {
    memory: DeviceMemory,
    /// In the shared buffers, so many bytes after their beginning.
    offset: Option<usize>,
    /// Or in an allocation of its own.
    _own: Option<CudaSlice<u8>>,
    /// What of the buffer travels.
    extent: Extent,
}

impl Place {
    fn bytes(&self) -> usize {
        self.memory.elements * self.memory.dtype.bytes()
    }
}

impl<'a> Placed<'_, 'a> {
    fn input(&self, input: Input<Slice<'a>>) -> Result<Input<DeviceMemory>, Error> {
        match input {
            Input::Memory(data) => self.read(data).map(Input::Memory),
            Input::Output(output) => {
                self.extents.borrow_mut().read.pop_front();
                self.in_place.set(true);
                Ok(Input::Output(output))
            }
        }
    }

    fn read(&self, data: Slice<'a>) -> Result<DeviceMemory, Error> {
        let extent = self.extents.borrow_mut().read.pop_front();
        let place = self.place(data, extent)?;
        let memory = place.memory;
        self.inputs.borrow_mut().push((place, data));
        Ok(memory)
    }

    fn written(&self, data: SliceMut<'a>) -> Result<DeviceMemory, Error> {
        let extent = self.extents.borrow_mut().written.pop_front();
        let place = self.place(data.as_slice(), extent)?;
        let memory = place.memory;
        self.outputs.borrow_mut().push((place, data));
        Ok(memory)
    }

    /// A place for a copy; the copy itself, if it is a large one.
    fn place(&self, data: Slice<'_>, operand: Option<Extent>) -> Result<Place, Error> {
        let host = data.bytes();
        let lead = host.as_ptr() as usize % ALIGNMENT;
        let memory = |address| DeviceMemory { dtype: data.dtype(), address, elements: data.elements() };
        let whole = Extent::whole(data.elements());
        let offset = self.used.get().next_multiple_of(ALIGNMENT) + lead;
        let Shared { stream, address, host: shared, .. } = self.shared;
        if offset + host.len() <= SHARED_BYTES {
            self.used.set(offset + host.len());
            // SAFETY: both have this many bytes there, and the GPU is not copying: every call waits.
            unsafe { std::ptr::copy_nonoverlapping(host.as_ptr(), shared.add(offset), host.len()) };
            let memory = memory(address + offset as u64);
            return Ok(Place { memory, offset: Some(offset), _own: None, extent: whole });
        }
        let extent = operand.filter(|_| host.len() > WHOLE_BYTES_MAX).unwrap_or(whole);
        // SAFETY: the operand is copied there at once; nobody reads what lies before it.
        let own = unsafe { stream.alloc::<u8>(lead + host.len()) }.map_err(|e| driver_error("cuMemAlloc", e))?;
        let memory = memory(own.device_ptr(stream).0 + lead as u64);
        let place = Place { memory, offset: None, _own: Some(own), extent };
        if host.len() > WHOLE_BYTES_MAX {
            self.fill(&place, 0)?;
        }
        self.upload_own(&place, data)?;
        Ok(place)
    }

    /// Gives an operand in an allocation of its own what its host buffer holds.
    fn upload_own(&self, place: &Place, data: Slice<'_>) -> Result<(), Error> {
        let mut pieces = place.extent.pieces(place.memory.dtype.bytes());
        pieces.try_for_each(|piece| self.copy_to(place.memory.address + piece.start as u64, &data.bytes()[piece]))
    }

    fn fill(&self, place: &Place, byte: u8) -> Result<(), Error> {
        if place.bytes() == 0 {
            return Ok(());
        }
        // SAFETY: an operand's copy, which has this length and is used on this stream only.
        unsafe { sys::cuMemsetD8Async(place.memory.address, byte, place.bytes(), self.stream()) }
            .result()
            .map_err(|e| driver_error("cuMemsetD8Async", e))
    }

    /// Uploads, then launches.
    fn run(&self, launch: &dyn Fn(CUstream) -> Result<(), Error>) -> Result<(), Error> {
        self.upload()?;
        launch(self.stream())
    }

    pub(super) fn stream(&self) -> CUstream {
        self.shared.stream.cu_stream()
    }

    /// Gives every operand what its host buffer holds.
    pub(super) fn upload(&self) -> Result<(), Error> {
        self.copy_shared(self.used.get())
    }

    /// Gives every input what its host buffer holds, again.
    #[cfg(feature = "checks")]
    pub(super) fn upload_inputs(&self) -> Result<(), Error> {
        let inputs = self.inputs.borrow();
        for (place, data) in inputs.iter().filter(|(place, _)| place.offset.is_none()) {
            self.upload_own(place, *data)?;
        }
        if self.in_place.get() {
            // Some lie in outputs: all these once more.
            for (place, data) in self.outputs.borrow().iter().filter(|(place, _)| place.offset.is_none()) {
                self.upload_own(place, data.as_slice())?;
            }
            return self.upload();
        }
        // `try_map` visits inputs first.
        let end = |(place, _): &(Place, Slice<'_>)| Some(place.offset? + place.bytes());
        self.copy_shared(inputs.iter().filter_map(end).max().unwrap_or(0))
    }

    /// Gives every input other numbers: 0.0115 or 1.06.
    #[cfg(feature = "checks")]
    pub(super) fn disturb_inputs(&self) -> Result<(), Error> {
        self.inputs.borrow().iter().try_for_each(|(place, _)| self.fill(place, 0x3c))
    }

    /// An element of an input's buffer that is no longer what its host buffer holds.
    #[cfg(feature = "checks")]
    pub(super) fn changed_input(&self) -> Result<Option<usize>, Error> {
        for (place, data) in &*self.inputs.borrow() {
            for piece in place.extent.pieces(place.memory.dtype.bytes()) {
                let mut there = vec![0; piece.len()];
                self.copy_from(place.memory.address + piece.start as u64, &mut there)?;
                self.wait()?;
                let here = &data.bytes()[piece.clone()];
                if let Some(byte) = there.iter().zip(here).position(|(there, here)| there != here) {
                    return Ok(Some((piece.start + byte) / place.memory.dtype.bytes()));
                }
            }
        }
        Ok(None)
    }

    /// Gives the host buffers of the outputs what the operands hold, and waits.
    fn download(self) -> Result<(), Error> {
        let mut outputs = self.outputs.take();
        let offsets = outputs.iter().filter_map(|(place, _)| place.offset);
        let ends = outputs.iter().filter_map(|(place, _)| Some(place.offset? + place.bytes()));
        let (first, end) = (offsets.min().unwrap_or(0), ends.max().unwrap_or(0));
        let Shared { address, host: shared, .. } = self.shared;
        if first < end {
            // SAFETY: a part of the shared buffer, which nobody else refers to until the stream was waited for.
            let there = unsafe { std::slice::from_raw_parts_mut(shared.add(first), end - first) };
            self.copy_from(address + first as u64, there)?;
        }
        for (place, data) in outputs.iter_mut().filter(|(place, _)| place.offset.is_none()) {
            let (host, address) = (data.bytes_mut(), place.memory.address);
            let mut pieces = place.extent.pieces(place.memory.dtype.bytes());
            pieces.try_for_each(|piece| self.copy_from(address + piece.start as u64, &mut host[piece]))?;
        }
        self.wait()?;
        for (place, data) in &mut outputs {
            let host = data.bytes_mut();
            if let Some(offset) = place.offset {
                // SAFETY: both have this many bytes there; the GPU is done.
                unsafe { std::ptr::copy_nonoverlapping(shared.add(offset), host.as_mut_ptr(), host.len()) };
            }
        }
        Ok(())
    }

    /// Copies the first bytes of the shared buffer of the host to the device's.
    fn copy_shared(&self, len: usize) -> Result<(), Error> {
        // SAFETY: they are at least as long; the GPU is done with them before they are written again.
        self.copy_to(self.shared.address, unsafe { std::slice::from_raw_parts(self.shared.host, len) })
    }

    fn copy_to(&self, address: u64, host: &[u8]) -> Result<(), Error> {
        if host.is_empty() {
            return Ok(());
        }
        // SAFETY: the callers pass an operand's address and a buffer as long, which lives until the stream was waited for.
        unsafe { result::memcpy_htod_async(address, host, self.stream()) }.map_err(|e| driver_error("cuMemcpyHtoD", e))
    }

    fn copy_from(&self, address: u64, host: &mut [u8]) -> Result<(), Error> {
        if host.is_empty() {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(host, address, self.stream()) }.map_err(|e| driver_error("cuMemcpyDtoH", e))
    }

    pub(super) fn wait(&self) -> Result<(), Error> {
        self.shared.stream.synchronize().map_err(|e| driver_error("cuStreamSynchronize", e))
    }
}

impl Drop for Placed<'_, '_> {
    /// However the call ended: the GPU is done with the buffers of the host and the device.
    fn drop(&mut self) {
        self.wait().ok();
    }
}

/// Buffers of no more bytes travel whole.
const WHOLE_BYTES_MAX: usize = 1 << 30;
/// Bytes of the shared buffers: what most calls need.
const SHARED_BYTES: usize = 8 << 20;
/// An operand's address is the host's modulo this.
const ALIGNMENT: usize = 256;
