//! Carries out calls on device memory: hands the steps of a call to a stream.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUstream};
use cudarc::driver::{CudaContext, CudaFunction};
use cudarc::nvrtc::Ptx;

use super::compile::{Module, compile};
use super::steps::{DeviceMemory, Kernel, Speed, Step, backward, forward};
use super::{driver_error, library};
use crate::plan::Arch;
use crate::{Backward, Error, Forward};

/// The kernels of this crate on one GPU, compiled as they are first needed.
pub struct Kernels {
    context: Arc<CudaContext>,
    gpu_name: String,
    speed: Speed,
    modules: Mutex<HashMap<Module, Loaded>>,
}

/// A module that is there, failed to compile, or is being compiled by the thread that asked first.
type Loaded = Arc<OnceLock<Result<HashMap<&'static str, CudaFunction>, Error>>>;

impl Kernels {
    /// The kernels on `context`'s GPU. Compiles nothing yet, but fails where nothing could be compiled.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, Error> {
        library::driver()?;
        library::nvrtc()?;
        let attribute = |a| context.attribute(a).map(|v| v as u32).map_err(|e| driver_error("cuDeviceGetAttribute", e));
        let arch = Arch {
            sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            threads_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
            block_shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
        };
        if arch.compute_capability < (8, 0) {
            return Err(Error::Architecture { got: arch.compute_capability });
        }
        let gpu_name = context.name().map_err(|e| driver_error("cuDeviceGetName", e))?;
        let speed = Speed { arch, blocks: None };
        Ok(Kernels { context: context.clone(), gpu_name, speed, modules: Mutex::default() })
    }

    /// The GPU's name.
    pub fn gpu_name(&self) -> &str {
        &self.gpu_name
    }

    /// What fits this GPU.
    pub fn speed(&self) -> Speed {
        self.speed
    }

    /// Launches a forward call on `stream`.
    ///
    /// # Safety
    /// Every operand is memory of this GPU that stays alive, and is not written by others, until the stream has passed.
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
        self.bind()?;
        for step in steps {
            match step {
                Step::Clear { address, bytes } => {
                    // SAFETY: the caller's promise.
                    unsafe { sys::cuMemsetD8Async(*address, 0, *bytes, stream) }
                        .result()
                        .map_err(|e| driver_error("cuMemsetD8Async", e))?;
                }
                Step::Kernel(kernel) => {
                    let function = self.function(kernel)?;
                    let arguments = kernel.arguments.each_ref().map(arg);
                    let shape = (kernel.blocks, kernel.threads, kernel.shared_bytes);
                    // SAFETY: steps.rs lists the arguments of each kernel in the order of its parameters, four-byte ones in the
                    // low half of a cell, which comes first in memory; cells past the last parameter are not read.
                    unsafe { self.launch(&function, shape, &arguments, stream)? };
                }
            }
        }
        Ok(())
    }

    fn function(&self, kernel: &Kernel) -> Result<CudaFunction, Error> {
        let slot = {
            let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
            modules.entry(kernel.module).or_default().clone()
        };
        // The map is free while a module compiles; who needs the same module waits for it.
        let loaded = slot.get_or_init(|| self.load(&kernel.module)).as_ref().map_err(Clone::clone)?;
        loaded.get(kernel.name).cloned().ok_or_else(|| Error::Compile {
            kernel: kernel.module.to_string(),
            log: format!("it has no kernel {}", kernel.name),
        })
    }

    fn load(&self, module: &Module) -> Result<HashMap<&'static str, CudaFunction>, Error> {
        let compiled = compile(module, self.speed.arch.compute_capability)?;
        let loaded = self
            .context
            .load_module(Ptx::from_binary(compiled.cubin))
            .map_err(|e| driver_error("cuModuleLoadData", e))?;
        let function = |name: &'static str| {
            let function = loaded.load_function(name).map_err(|e| driver_error("cuModuleGetFunction", e))?;
            Ok((name, function))
        };
        module.kernels().iter().map(|name| function(name)).collect()
    }

    fn bind(&self) -> Result<(), Error> {
        self.context.bind_to_thread().map_err(|e| driver_error("cuCtxSetCurrent", e))
    }

    /// Launches `blocks` of `threads` with `shared_bytes` of dynamic shared memory each.
    ///
    /// # Safety
    /// `arguments` point to values of the types that `function` takes, in order.
    pub(super) unsafe fn launch(
        &self,
        function: &CudaFunction,
        (blocks, threads, shared_bytes): (u32, u32, u32),
        arguments: &[*mut c_void],
        stream: CUstream,
    ) -> Result<(), Error> {
        if shared_bytes > 48 << 10 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(attribute, shared_bytes as i32)
                .map_err(|e| driver_error("cuFuncSetAttribute", e))?;
        }
        let (function, arguments) = (function.cu_function(), arguments.as_ptr().cast_mut());
        let extra = std::ptr::null_mut();
        // SAFETY: the caller's promise; the function belongs to the current context.
        unsafe { sys::cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared_bytes, stream, arguments, extra) }
            .result()
            .map_err(|e| driver_error("cuLaunchKernel", e))
    }
}

/// A kernel argument as the driver takes it.
pub(super) fn arg<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}
