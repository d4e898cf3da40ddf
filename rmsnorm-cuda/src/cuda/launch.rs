//! Carries out calls on device memory: hands the steps of a call to a stream.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::result::{ctx, device, function, module, stream};
use cudarc::driver::sys::{
    self, CUcontext, CUdevice_attribute_enum as Attribute, CUfunction, CUfunction_attribute_enum as FunctionAttribute,
    CUmodule, CUresult, CUstream, CUstreamCaptureStatus,
};
use cudarc::driver::{CudaContext, CudaFunction};

use super::cache::Cache;
use super::compile::Module;
use super::steps::{DeviceMemory, Kernel, Speed, Step, backward, forward};
use super::{driver_error, library};
use crate::plan::Arch;
use crate::{Backward, Dtype, Error, Forward, Rows, WeightGradient, WeightOffset, scratch_len};

/// The kernels of this crate on one GPU, compiled as they are first needed. One value serves any number of threads and streams
/// of its context.
///
/// No setting of the context is changed, the calling thread's current context is afterwards what it was, and an error that
/// cudarc keeps for its next call is left to that call. Drop it, and the kernels are unloaded: not before the streams and the
/// captured graphs that use them are done.
pub struct Kernels {
    context: Arc<CudaContext>,
    gpu_name: String,
    speed: Speed,
    cache: Cache,
    modules: Mutex<HashMap<Module, Arc<Slot>>>,
}

/// What decides which kernels calls need; see [`Kernels::prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Number of rows.
    pub rows: usize,
    /// Length of a row.
    pub hidden: usize,
    /// Element type of x, y, dy and dx.
    pub dtype: Dtype,
    /// Element type of the weight, if there is one.
    pub weight: Option<Dtype>,
    /// As in the calls.
    pub weight_offset: WeightOffset,
    /// Element type of the weight's gradient, if it is computed.
    pub dw: Option<Dtype>,
    /// Whether every row of every operand, weight and scratch too, begins on 16 bytes. So it is in whole buffers of cudarc's
    /// with rows of a multiple of 16 bytes.
    pub aligned: bool,
}

/// A module that is there, or that the thread with the lock is loading. An error is not kept: the next call tries again.
#[derive(Default)]
struct Slot {
    loaded: OnceLock<Loaded>,
    loading: Mutex<()>,
}

impl Kernels {
    /// The kernels on `context`'s GPU. Compiles nothing yet, but fails where nothing could be compiled. Compiled kernels are
    /// kept where [`Cache::from_environment`] says.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, Error> {
        Kernels::with_cache(context, Cache::from_environment())
    }

    /// The same with another place for compiled kernels.
    pub fn with_cache(context: &Arc<CudaContext>, cache: Cache) -> Result<Self, Error> {
        library::driver()?;
        library::nvrtc()?;
        // Not `CudaContext::attribute`, which may return an error that has nothing to do with it.
        let attribute = |a| {
            // SAFETY: the device is that of a live context.
            let value = unsafe { device::get_attribute(context.cu_device(), a) };
            value.map(|v| v as u32).map_err(|e| driver_error("cuDeviceGetAttribute", e))
        };
        let arch = Arch {
            sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            threads_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
            block_shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            memory_bytes_per_us: memory_bytes_per_us(
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
            ),
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
        };
        if arch.compute_capability < (8, 0) {
            return Err(Error::Architecture { got: arch.compute_capability });
        }
        let gpu_name = device::get_name(context.cu_device()).map_err(|e| driver_error("cuDeviceGetName", e))?;
        let speed = Speed::of(arch);
        Ok(Kernels { context: context.clone(), gpu_name, speed, cache, modules: Mutex::default() })
    }

    /// The GPU's name.
    pub fn gpu_name(&self) -> &str {
        &self.gpu_name
    }

    /// What fits this GPU.
    pub fn speed(&self) -> Speed {
        self.speed
    }

    /// Where compiled kernels are kept, and whether that works.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Compiles (or reads from the [`cache`](Kernels::cache)) and loads what a forward call and a backward call of this kind
    /// need. Afterwards these only launch: they compile, allocate and wait for nothing, and can be captured in a CUDA graph.
    /// Loading may wait for the GPU.
    pub fn prepare(&self, calls: &Calls) -> Result<(), Error> {
        self.prepare_at(calls, &self.speed)
    }

    /// The same for calls at another speed.
    pub(super) fn prepare_at(&self, calls: &Calls, speed: &Speed) -> Result<(), Error> {
        let steps = [forward(&calls.forward()?, speed)?, backward(&calls.backward()?, speed)?];
        let _current = Current::set(&self.context)?;
        for step in steps.iter().flatten() {
            if let Step::Kernel(kernel) = step {
                let slot = self.slot(&kernel.module);
                if slot.loaded.get().is_none() {
                    self.load(&kernel.module, &slot)?;
                }
            }
        }
        Ok(())
    }

    /// Launches a forward call on `stream`.
    ///
    /// # Safety
    /// Every operand is memory of this GPU that stays alive, and is not written by others, until the stream has passed. The
    /// stream is one of this context.
    pub unsafe fn forward(
        &self,
        call: &Forward<DeviceMemory, DeviceMemory>,
        speed: &Speed,
        stream: CUstream,
    ) -> Result<(), Error> {
        // SAFETY: the steps touch nothing but the operands, which `check` measured; the caller vouches for the memory.
        unsafe { self.run(&forward(call, speed)?, stream) }
    }

    /// Launches a backward call on `stream`.
    ///
    /// # Safety
    /// As for [`Kernels::forward`].
    pub unsafe fn backward(
        &self,
        call: &Backward<DeviceMemory, DeviceMemory>,
        speed: &Speed,
        stream: CUstream,
    ) -> Result<(), Error> {
        // SAFETY: as in `forward`.
        unsafe { self.run(&backward(call, speed)?, stream) }
    }

    /// # Safety
    /// The steps are those of one call, whose operands the caller vouches for.
    unsafe fn run(&self, steps: &[Step], stream: CUstream) -> Result<(), Error> {
        let _current = Current::set(&self.context)?;
        for step in steps {
            match step {
                Step::Clear { address, bytes } => {
                    // SAFETY: the caller's promise.
                    unsafe { sys::cuMemsetD8Async(*address, 0, *bytes, stream) }
                        .result()
                        .map_err(|e| driver_error("cuMemsetD8Async", e))?;
                }
                Step::Kernel(kernel) => {
                    let function = self.function(kernel, stream)?;
                    let arguments = kernel.arguments.each_ref().map(arg);
                    let shape = (kernel.blocks, kernel.threads, kernel.shared_bytes);
                    // SAFETY: steps.rs lists the arguments of each kernel in the order of its parameters, four-byte ones in the
                    // low half of a cell, which comes first in memory; cells past the last parameter are not read.
                    unsafe { launch(function, shape, &arguments, stream)? };
                }
            }
        }
        Ok(())
    }

    /// The function of a kernel that is about to be launched on `stream`.
    fn function(&self, kernel: &Kernel, stream: CUstream) -> Result<CUfunction, Error> {
        let slot = self.slot(&kernel.module);
        let loaded = match slot.loaded.get() {
            Some(loaded) => loaded,
            None => {
                if self.is_captured(stream)? {
                    return Err(Error::NotPrepared { kernel: kernel.module.to_string() });
                }
                self.load(&kernel.module, &slot)?
            }
        };
        loaded.function(kernel.name).ok_or_else(|| Error::Compile {
            kernel: kernel.module.to_string(),
            log: format!("it has no kernel {}", kernel.name),
        })
    }

    /// Whether what `stream` is given goes into a graph.
    pub(super) fn is_captured(&self, stream: CUstream) -> Result<bool, Error> {
        let _current = Current::set(&self.context)?;
        // SAFETY: a stream of this context, on which the caller is about to launch.
        let status = unsafe { stream::is_capturing(stream) }.map_err(|e| driver_error("cuStreamIsCapturing", e))?;
        Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Whether `context` is the one where the kernels are.
    pub(super) fn expect_context(&self, context: &Arc<CudaContext>) -> Result<(), Error> {
        let (expected, got) = (self.context.ordinal(), context.ordinal());
        if *context == self.context { Ok(()) } else { Err(Error::Context { expected, got }) }
    }

    fn slot(&self, module: &Module) -> Arc<Slot> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.entry(*module).or_default().clone()
    }

    /// Compiles and loads a module into its slot. The map is free meanwhile; who needs the same module waits for it.
    fn load<'a>(&self, module: &Module, slot: &'a Slot) -> Result<&'a Loaded, Error> {
        let _alone = slot.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = slot.loaded.get() {
            return Ok(loaded);
        }
        let cubin = self.cache.cubin(module, self.speed.arch.compute_capability)?;
        let loaded = Loaded::new(&self.context, module, &cubin, self.speed.arch.block_shared_bytes)?;
        Ok(slot.loaded.get_or_init(|| loaded))
    }

    /// Launches `blocks` of `threads` with `shared_bytes` of dynamic shared memory each.
    ///
    /// # Safety
    /// `arguments` point to values of the types that `function` takes, in order; the context is current.
    pub(super) unsafe fn launch(
        &self,
        function: &CudaFunction,
        shape: (u32, u32, u32),
        arguments: &[*mut c_void],
        stream: CUstream,
    ) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { launch(function.cu_function(), shape, arguments, stream) }
    }
}

impl Calls {
    fn forward(&self) -> Result<Forward<DeviceMemory, DeviceMemory>, Error> {
        let mut memory = self.memory();
        Ok(Forward {
            rows: self.rows,
            hidden: self.hidden,
            eps: 0.0,
            weight_offset: self.weight_offset,
            x: self.matrix(&mut memory)?,
            weight: self.weight.map(|dtype| Ok(memory(dtype, self.hidden)?.into())).transpose()?,
            y: self.matrix(&mut memory)?,
            rstd: None,
        })
    }

    fn backward(&self) -> Result<Backward<DeviceMemory, DeviceMemory>, Error> {
        let mut memory = self.memory();
        let needed = scratch_len(self.rows, self.hidden)?;
        Ok(Backward {
            rows: self.rows,
            hidden: self.hidden,
            weight_offset: self.weight_offset,
            x: self.matrix(&mut memory)?,
            weight: self.weight.map(|dtype| Ok(memory(dtype, self.hidden)?.into())).transpose()?,
            rstd: memory(Dtype::F32, self.rows)?.into(),
            dy: self.matrix(&mut memory)?,
            dx: self.matrix(&mut memory)?,
            dw: match self.dw {
                Some(dw) => Some(WeightGradient {
                    dw: memory(dw, self.hidden)?.into(),
                    scratch: memory(Dtype::F32, needed)?.into(),
                }),
                None => None,
            },
        })
    }

    /// Operands of such a call, one behind the other, where no memory need be.
    fn memory(&self) -> impl FnMut(Dtype, usize) -> Result<DeviceMemory, Error> {
        let (rows, row_stride) = (self.rows, self.hidden);
        let mut end = 512_u64;
        move |dtype, elements| {
            let address = end;
            let bytes = elements.checked_mul(dtype.bytes()).and_then(|bytes| bytes.checked_next_multiple_of(512));
            let next = bytes.and_then(|bytes| end.checked_add(bytes as u64));
            end = next.ok_or(Error::AddressRange { operand: "a call to prepare", rows, row_stride })?;
            Ok(DeviceMemory { dtype, address, elements })
        }
    }

    fn matrix(
        &self,
        memory: &mut impl FnMut(Dtype, usize) -> Result<DeviceMemory, Error>,
    ) -> Result<Rows<DeviceMemory>, Error> {
        // One element too many in front is what keeps every row from beginning on 16 bytes.
        let offset = usize::from(!self.aligned);
        let elements = self.rows.checked_mul(self.hidden).and_then(|elements| elements.checked_add(offset));
        let data = memory(self.dtype, elements.unwrap_or(usize::MAX))?;
        Ok(Rows { data, offset, row_stride: self.hidden })
    }
}

/// # Safety
/// As for [`Kernels::launch`].
unsafe fn launch(
    function: CUfunction,
    (blocks, threads, shared_bytes): (u32, u32, u32),
    arguments: &[*mut c_void],
    stream: CUstream,
) -> Result<(), Error> {
    let (arguments, extra) = (arguments.as_ptr().cast_mut(), std::ptr::null_mut());
    // SAFETY: the caller's promise; the function belongs to the current context.
    unsafe { sys::cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared_bytes, stream, arguments, extra) }
        .result()
        .map_err(|e| driver_error("cuLaunchKernel", e))
}

/// Two transfers a clock over the whole bus.
fn memory_bytes_per_us(clock_khz: u32, bus_bits: u32) -> u32 {
    (2 * u64::from(clock_khz) * u64::from(bus_bits) / 8 / 1000).try_into().unwrap_or(u32::MAX)
}

/// A kernel argument as the driver takes it.
pub(super) fn arg<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

/// A module on the GPU.
struct Loaded {
    context: Arc<CudaContext>,
    module: CUmodule,
    functions: Vec<(&'static str, CUfunction)>,
}

// SAFETY: these are the driver's handles, which any thread may use, also several at once.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Loaded {
    /// The context must be current.
    fn new(context: &Arc<CudaContext>, module: &Module, cubin: &[u8], block_shared_bytes: u32) -> Result<Self, Error> {
        // SAFETY: a complete module: NVRTC made it, and it is not empty.
        let handle = unsafe { module::load_data(cubin.as_ptr().cast()) }.map_err(|e| match e.0 {
            CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => library::too_new(driver_error("cuModuleLoadData", e)),
            _ => driver_error("cuModuleLoadData", e),
        })?;
        // From here on it is unloaded if anything fails.
        let mut loaded = Loaded { context: context.clone(), module: handle, functions: Vec::new() };
        // A driver that loads lazily loads a kernel when it is asked for by name: all of them here, none at a launch.
        let uses_ring = matches!(module, Module::Rows { ring: true, .. });
        for name in module.kernels() {
            let text = CString::new(*name).unwrap_or_default();
            // SAFETY: the module was loaded above.
            let f =
                unsafe { module::get_function(handle, text) }.map_err(|e| driver_error("cuModuleGetFunction", e))?;
            if uses_ring {
                allow_shared_memory(f, block_shared_bytes)?;
            }
            loaded.functions.push((name, f));
        }
        Ok(loaded)
    }

    fn function(&self, name: &str) -> Option<CUfunction> {
        self.functions.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Ok(_current) = Current::set(&self.context) {
            // SAFETY: loaded by `new` and unloaded once; nobody has its functions any more. There is no one to tell of an error.
            unsafe { module::unload(self.module).ok() };
        }
    }
}

/// Lets the rings of a kernel have all that a block can have beside what the kernel declares itself. Without this, both
/// together may not exceed 48 KiB.
fn allow_shared_memory(f: CUfunction, block_shared_bytes: u32) -> Result<(), Error> {
    let (declared, dynamic) = (
        FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
        FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
    );
    // SAFETY: a function of a loaded module.
    let declared =
        unsafe { function::get_function_attribute(f, declared) }.map_err(|e| driver_error("cuFuncGetAttribute", e))?;
    let rest = i32::try_from(block_shared_bytes).unwrap_or(i32::MAX).saturating_sub(declared).max(0);
    // SAFETY: as above.
    unsafe { function::set_function_attribute(f, dynamic, rest) }.map_err(|e| driver_error("cuFuncSetAttribute", e))
}

/// While it lives, a context is the calling thread's current one. (cudarc's `bind_to_thread` may return an error that another
/// call left behind, and leaves the context current.)
struct Current {
    before: CUcontext,
    changed: bool,
}

impl Current {
    fn set(context: &CudaContext) -> Result<Self, Error> {
        let before = ctx::get_current().map_err(|e| driver_error("cuCtxGetCurrent", e))?;
        let changed = before != Some(context.cu_ctx());
        if changed {
            // SAFETY: the context is alive as long as its owner, whom the caller borrows.
            unsafe { ctx::set_current(context.cu_ctx()) }.map_err(|e| driver_error("cuCtxSetCurrent", e))?;
        }
        Ok(Current { before: before.unwrap_or(std::ptr::null_mut()), changed })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if self.changed {
            // SAFETY: it was current before. If that context is gone meanwhile there is nothing to go back to, nor anyone to tell.
            unsafe { ctx::set_current(self.before).ok() };
        }
    }
}
