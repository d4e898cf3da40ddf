//! What is loaded into a context, and how a thread comes to stand in it.

use std::ffi::CString;

use cudarc::driver::result::{ctx, function, module};
use cudarc::driver::sys::{
    self, CUcontext, CUfunction, CUfunction_attribute_enum as FunctionAttribute, CUmodule, CUresult,
    CUstreamCaptureMode,
};
use cudarc::driver::{CudaContext, DriverError};

use super::cache::Origin;
use super::module::Module;
use super::{driver_error, library};
use crate::Error;

/// The functions of a module on the GPU.
pub(super) struct Loaded {
    functions: Vec<(&'static str, CUfunction)>,
    pub(super) origin: Origin,
}

// SAFETY: these are the driver's handles, which any thread may use, also several at once.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Loaded {
    /// The context must be current.
    pub(super) fn new(module: &Module, image: &[u8], origin: Origin, block_shared_bytes: u32) -> Result<Self, Error> {
        let _relaxed = Relaxed::set()?;
        // SAFETY: a complete module: NVRTC made it, and it is not empty; or text with a zero behind it.
        let handle = unsafe { module::load_data(image.as_ptr().cast()) }.map_err(|e| match e.0 {
            _ if origin == Origin::Prebuilt => load_error("cuModuleLoadData", e, module),
            CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => library::too_new(driver_error("cuModuleLoadData", e)),
            _ => load_error("cuModuleLoadData", e, module),
        })?;
        let functions = Loaded::functions(handle, module, block_shared_bytes);
        if functions.is_err() {
            // SAFETY: loaded above, and nothing of it was ever launched. There is no one to tell of another error.
            unsafe { module::unload(handle).ok() };
        }
        functions.map(|functions| Loaded { functions, origin })
    }

    /// A driver that loads lazily loads a kernel when it is asked for by name: all of them here, none at a launch.
    fn functions(
        handle: CUmodule,
        module: &Module,
        block_shared_bytes: u32,
    ) -> Result<Vec<(&'static str, CUfunction)>, Error> {
        let function = |name: &&'static str| {
            let text = CString::new(*name).unwrap_or_default();
            // SAFETY: the module is loaded.
            let f = unsafe { module::get_function(handle, text) }
                .map_err(|e| load_error("cuModuleGetFunction", e, module))?;
            if module.has_dynamic_shared_memory() {
                allow_shared_memory(f, block_shared_bytes)?;
            }
            Ok((*name, f))
        };
        module.kernels().iter().map(function).collect()
    }

    pub(super) fn function(&self, name: &str) -> Option<CUfunction> {
        self.functions.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
    }
}

/// The error of a driver that did not load a module: that a capture keeps it from doing so, if that is why.
fn load_error(call: &'static str, error: DriverError, module: &Module) -> Error {
    match error.0 {
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED | CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT => {
            Error::NotPrepared { kernel: module.to_string() }
        }
        _ => driver_error(call, error),
    }
}

/// While it lives, the calling thread may do what a capture forbids it because no graph would hold it: load a module. Otherwise
/// the driver refuses that beside a capture of this thread, and beside any of another that was begun in global mode; and the
/// capture is lost.
struct Relaxed(CUstreamCaptureMode);

impl Relaxed {
    fn set() -> Result<Self, Error> {
        exchange(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
            .map(Relaxed)
            .map_err(|e| driver_error("cuThreadExchangeStreamCaptureMode", e))
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // There is no one to tell of an error.
        exchange(self.0).ok();
    }
}

/// The calling thread's mode before.
fn exchange(mut mode: CUstreamCaptureMode) -> Result<CUstreamCaptureMode, DriverError> {
    // SAFETY: `mode` is read, and overwritten with another of the three.
    unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result().map(|()| mode)
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
pub(super) struct Current {
    before: CUcontext,
    changed: bool,
}

impl Current {
    pub(super) fn set(context: &CudaContext) -> Result<Self, Error> {
        Current::set_raw(context.cu_ctx())
    }

    /// The same for a context that is alive as long as this value.
    pub(super) fn set_raw(context: CUcontext) -> Result<Self, Error> {
        let before = ctx::get_current().map_err(|e| driver_error("cuCtxGetCurrent", e))?;
        let changed = before != Some(context);
        if changed {
            // SAFETY: the context is alive.
            unsafe { ctx::set_current(context) }.map_err(|e| driver_error("cuCtxSetCurrent", e))?;
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
