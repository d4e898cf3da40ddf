//! The driver.

use super::cause;
use crate::Error;
use crate::cuda::driver_error;
use crate::process::Process;
use cudarc::driver::sys::{CUcontext, CUresult};
use libloading::Library;
use std::ffi::{c_int, c_uint, c_ulonglong};
use std::mem::ManuallyDrop;
use std::sync::OnceLock;

/// What the driver is called, in the order in which cudarc looks for it: the first that loads is the one that cudarc will use.
///
/// cudarc uses another where a file has a name that it tries in between (`libcuda.so.12`, for one; no driver has it), or where a crate
/// links cudarc to `libcuda.so.1` and the loader finds a different `libcuda.so` first.
const DRIVER_NAMES: [&str; 2] = if cfg!(windows) { ["cuda.dll", "nvcuda.dll"] } else { ["libcuda.so", "libcuda.so.1"] };

/// The driver functions that calls need, in alphabetical order. `tests/driver.rs` sees to it that no other is called;
/// only the checks call more.
pub const DRIVER_FUNCTIONS: [&str; 37] = [
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxGetId",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamGetCtx",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

/// Loads the driver, sees whether it has every one of [`DRIVER_FUNCTIONS`], and initialises it; once for the process, and so is
/// the error. After it has succeeded, cudarc finds what it would otherwise panic about.
///
/// An error too in a process that was forked after it had succeeded: a driver does not work on in a fork.
pub fn driver() -> Result<(), Error> {
    driver_with(&[])
}

/// The same, and whether it has `functions` too.
pub(in crate::cuda) fn driver_with(functions: &[&str]) -> Result<(), Error> {
    let driver = DRIVER.get_or_init(load_driver).as_ref().map_err(Clone::clone)?;
    if let Some(first) = driver.process.forked_from() {
        return Err(unusable(format!(
            "process {first} initialised it, and this one, {}, is a fork of that, where it does not work; fork before the \
             first use of CUDA, or start a new process (Python's multiprocessing: `spawn` or `forkserver`)",
            std::process::id()
        )));
    }
    demand(driver.name, &driver.library, functions)
}

/// A number that no other context of this process has, had or will have. (Not through cudarc, which has the function only where
/// it is built for CUDA 12 or newer.)
pub(in crate::cuda) fn context_id(context: CUcontext) -> Result<u64, Error> {
    type GetId = unsafe extern "C" fn(CUcontext, *mut c_ulonglong) -> CUresult;
    let Driver { library, .. } = DRIVER.get_or_init(load_driver).as_ref().map_err(Clone::clone)?;
    let mut id = 0;
    // SAFETY: the type is that of `cuda.h`, and cudarc's of a living context; it writes one integer.
    unsafe { library.get::<GetId>("cuCtxGetId").map_err(|e| unusable(cause(&e)))?(context, &mut id) }
        .result()
        .map_err(|e| driver_error("cuCtxGetId", e))?;
    Ok(id)
}

/// The newest CUDA that the driver can do, if it is loaded by now.
pub(super) fn version() -> Option<(i32, i32)> {
    DRIVER.get().and_then(|driver| Some(driver.as_ref().ok()?.version))
}

/// The driver, as the process that loaded it knows it.
struct Driver {
    /// Under which it was found.
    name: &'static str,
    /// Never unloaded, not even after an error: threads of the driver may run by then.
    library: ManuallyDrop<Library>,
    /// The newest CUDA that it can do, major and minor.
    version: (i32, i32),
    /// Which initialised it.
    process: Process,
}

static DRIVER: OnceLock<Result<Driver, Error>> = OnceLock::new();

fn demand(name: &str, library: &Library, functions: &[&str]) -> Result<(), Error> {
    // SAFETY: no symbol is called or read here.
    let is_missing = |function: &&&str| unsafe { library.get::<*const ()>(**function) }.is_err();
    let missing: Vec<&str> = functions.iter().filter(is_missing).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let version = match driver_version(library) {
        Ok((major, minor)) => format!("a driver for CUDA {major}.{minor}"),
        Err(_) => "of an unknown version".to_string(),
    };
    let missing = missing.join(", ");
    Err(unusable(format!("{name} ({version}) has no {missing}; the driver is too old, or this is not one")))
}

fn unusable(reason: String) -> Error {
    Error::Library { library: "the CUDA driver", reason }
}

fn load_driver() -> Result<Driver, Error> {
    let mut tried = Vec::new();
    let loaded = DRIVER_NAMES.into_iter().find_map(|name| {
        // SAFETY: the initialisers of the vendor's driver library are trusted, as everywhere.
        match unsafe { Library::new(name) } {
            Ok(library) => Some((name, ManuallyDrop::new(library))),
            Err(error) => {
                let cause = cause(&error);
                tried.push(format!("{name}: {}", cause.strip_prefix(&format!("{name}: ")).unwrap_or(&cause)));
                None
            }
        }
    });
    let Some((name, library)) = loaded else {
        let tried = tried.join("; ");
        return Err(unusable(format!(
            "{tried}; it comes with the GPU's driver (see `nvidia-smi`) and is looked for where the loader looks: in the \
             folders of LD_LIBRARY_PATH (Windows: PATH), then in those of the system"
        )));
    };
    demand(name, &library, &DRIVER_FUNCTIONS)?;
    // SAFETY: the type is that of `cuda.h`, and no flags are defined.
    let code = unsafe {
        let init = library.get::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit");
        init.map_err(|e| unusable(cause(&e)))?(0)
    };
    match code {
        0 => Ok(Driver { name, version: driver_version(&library)?, library, process: Process::this() }),
        // cudarc looks for the names in the same order and would load the stub again, whatever is loaded here.
        STUB_LIBRARY => Err(unusable(format!(
            "{name} is the toolkit's stub, which is there to link against and can nothing ({}): the loader finds a folder \
             `stubs` first; take it out of LD_LIBRARY_PATH, so that the driver's own libcuda.so.1 is found",
            init_error(code)
        ))),
        code => Err(Error::Driver { call: "cuInit", code: init_error(code) }),
    }
}

/// The newest CUDA that the driver can do. May be asked before `cuInit`.
fn driver_version(library: &Library) -> Result<(i32, i32), Error> {
    let mut version = 0;
    // SAFETY: the type is that of `cuda.h`; it writes one integer.
    let code = unsafe {
        let get = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDriverGetVersion");
        get.map_err(|e| unusable(cause(&e)))?(&mut version)
    };
    if code == 0 {
        Ok((version / 1000, version % 1000 / 10))
    } else {
        Err(Error::Driver { call: "cuDriverGetVersion", code: init_error(code) })
    }
}

/// What `cuda.h` calls the errors that `cuInit` is known to return. (cudarc's list of them cannot be asked for a number that it
/// may not have.)
fn init_error(code: c_int) -> String {
    let name = match code {
        2 => "OUT_OF_MEMORY",
        3 => "NOT_INITIALIZED",
        STUB_LIBRARY => "STUB_LIBRARY",
        46 => "DEVICE_UNAVAILABLE",
        100 => "NO_DEVICE",
        101 => "INVALID_DEVICE",
        304 => "OPERATING_SYSTEM",
        802 => "SYSTEM_NOT_READY",
        803 => "SYSTEM_DRIVER_MISMATCH",
        804 => "COMPAT_NOT_SUPPORTED_ON_DEVICE",
        999 => "UNKNOWN",
        _ => return format!("error {code}"),
    };
    format!("CUDA_ERROR_{name}")
}

const STUB_LIBRARY: c_int = 34;
