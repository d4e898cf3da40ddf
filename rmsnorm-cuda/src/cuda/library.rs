//! Finds the two libraries that are not part of this crate, at run time: the driver and NVRTC.
//!
//! A machine without them gets an [`Error::Library`] that says what was looked for and where. cudarc panics in that case, so
//! nothing of cudarc is called before [`driver`] has succeeded, and NVRTC is called through the functions found here.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::driver::sys::{CUcontext, CUresult};
use libloading::Library;

use super::driver_error;
use crate::Error;

/// What the driver is called, in the order in which cudarc looks for it: the first that loads is the one cudarc will use. Not
/// so where it finds a name that it tries in between, `libcuda.so.12` among them, which no driver has; nor where another crate
/// has cudarc linked to `libcuda.so.1` and a different `libcuda.so` comes first.
const DRIVER_NAMES: [&str; 2] = if cfg!(windows) { ["cuda.dll", "nvcuda.dll"] } else { ["libcuda.so", "libcuda.so.1"] };

/// The driver functions that calls need, in alphabetical order. `tests/driver.rs` sees to it that no other is called;
/// [`measure`](super::measure) alone calls more.
pub const DRIVER_FUNCTIONS: [&str; 36] = [
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
pub fn driver() -> Result<(), Error> {
    driver_with(&[])
}

/// The same, and whether it has `functions` too.
pub(super) fn driver_with(functions: &[&str]) -> Result<(), Error> {
    demand(DRIVER.get_or_init(load_driver).as_ref().map_err(Clone::clone)?, functions)
}

/// A number that no other context of this process has, had or will have. (Not through cudarc, which has the function only where
/// it is built for CUDA 12 or newer.)
pub(super) fn context_id(context: CUcontext) -> Result<u64, Error> {
    type GetId = unsafe extern "C" fn(CUcontext, *mut c_ulonglong) -> CUresult;
    let (_, library) = DRIVER.get_or_init(load_driver).as_ref().map_err(Clone::clone)?;
    let mut id = 0;
    // SAFETY: the type is that of `cuda.h`, and cudarc's of a living context; it writes one integer.
    unsafe { library.get::<GetId>("cuCtxGetId").map_err(|e| unusable(cause(&e)))?(context, &mut id) }
        .result()
        .map_err(|e| driver_error("cuCtxGetId", e))?;
    Ok(id)
}

/// The driver library, and the name under which it was found.
type Driver = (&'static str, ManuallyDrop<Library>);

/// Never unloaded, not even after an error: threads of the driver may run by then.
static DRIVER: OnceLock<Result<Driver, Error>> = OnceLock::new();

fn demand((name, library): &Driver, functions: &[&str]) -> Result<(), Error> {
    // SAFETY: no symbol is called or read here.
    let is_missing = |function: &&&str| unsafe { library.get::<*const ()>(**function) }.is_err();
    let missing: Vec<&str> = functions.iter().filter(is_missing).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let version = match driver_version(library) {
        Some((major, minor)) => format!("a driver for CUDA {major}.{minor}"),
        None => "of an unknown version".to_string(),
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
    let Some(driver) = loaded else {
        let tried = tried.join("; ");
        return Err(unusable(format!(
            "{tried}; it comes with the GPU's driver (see `nvidia-smi`) and is looked for where the loader looks: in the \
             folders of LD_LIBRARY_PATH (Windows: PATH), then in the system's"
        )));
    };
    demand(&driver, &DRIVER_FUNCTIONS)?;
    // SAFETY: the type is that of `cuda.h`, and no flags are defined.
    let code = unsafe {
        let init = driver.1.get::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit");
        init.map_err(|e| unusable(cause(&e)))?(0)
    };
    if code == 0 { Ok(driver) } else { Err(Error::Driver { call: "cuInit", code: init_error(code) }) }
}

/// What the loader said. The error itself only says that it failed.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The newest CUDA that the driver can do. Asked before `cuInit`, which it allows.
fn driver_version(library: &Library) -> Option<(i32, i32)> {
    let mut version = 0;
    // SAFETY: the type is that of `cuda.h`; it writes one integer.
    let code =
        unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDriverGetVersion").ok()?(&mut version) };
    (code == 0).then_some((version / 1000, version % 1000 / 10))
}

/// What to say of a module that the driver refused as no module of its own: that NVRTC is newer than the driver, if it is.
pub(super) fn too_new(refused: Error) -> Error {
    let Some(Ok((_, library))) = DRIVER.get() else { return refused };
    let (Some(driver), Ok(nvrtc)) = (driver_version(library), nvrtc()) else { return refused };
    if nvrtc.version <= driver {
        return refused;
    }
    let ((major, minor), (driver_major, driver_minor)) = (nvrtc.version, driver);
    let reason = format!(
        "{} is NVRTC {major}.{minor}, and the driver, which is for CUDA {driver_major}.{driver_minor}, does not take what it \
         compiles ({refused}); NVRTC 12.0 to {driver_major}.{driver_minor} fits (RMSNORM_NVRTC names the file to load), or a \
         driver for CUDA {major}.{minor}",
        nvrtc.path
    );
    Error::Library { library: "NVRTC", reason }
}

/// What `cuda.h` calls the errors that `cuInit` is known to return. (cudarc's list of them cannot be asked for a number that it
/// may not have.)
fn init_error(code: c_int) -> String {
    let name = match code {
        2 => "OUT_OF_MEMORY",
        3 => "NOT_INITIALIZED",
        34 => "STUB_LIBRARY",
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

/// A program being compiled.
pub(super) type Program = *mut std::ffi::c_void;

/// NVRTC's functions, as `nvrtc.h` declares them. Zero is success.
pub struct Nvrtc {
    pub(super) create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    pub(super) compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    pub(super) destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    pub(super) log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    pub(super) log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    pub(super) cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    pub(super) cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    pub(super) ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    pub(super) ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    /// Major and minor version.
    pub version: (i32, i32),
    /// What was loaded.
    pub path: String,
    _library: Library,
}

/// Loads NVRTC, once for the process. `RMSNORM_NVRTC` names the file to load; without it the loader's path is tried, then
/// `CUDA_HOME`, `CUDA_PATH`, `/usr/local/cuda` and the Python packages of an active environment.
pub fn nvrtc() -> Result<&'static Nvrtc, Error> {
    static NVRTC: OnceLock<Result<Nvrtc, Error>> = OnceLock::new();
    let search = || {
        let mut tried = Vec::new();
        for candidate in nvrtc_candidates() {
            match load_nvrtc(&candidate) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(reason) => tried.push(reason),
            }
        }
        Err(Error::Library {
            library: "NVRTC",
            reason: format!(
                "could not load {}; set RMSNORM_NVRTC to the path of libnvrtc.so.13 or .12",
                tried.join(", ")
            ),
        })
    };
    NVRTC.get_or_init(search).as_ref().map_err(Clone::clone)
}

fn nvrtc_candidates() -> Vec<PathBuf> {
    if let Some(path) = std::env::var_os("RMSNORM_NVRTC") {
        return vec![path.into()];
    }
    let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let mut folders: Vec<PathBuf> = vec![PathBuf::new()];
    folders.extend(["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(var).map(|p| p.join("lib64")));
    folders.push("/usr/local/cuda/lib64".into());
    for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(var) {
        for python in std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten() {
            let packages = python.path().join("site-packages/nvidia");
            folders.extend(["cu13/lib", "cuda_nvrtc/lib"].map(|p| packages.join(p)).into_iter().filter(|p| p.is_dir()));
        }
    }
    folders.iter().flat_map(|folder| names.map(|name| folder.join(name))).collect()
}

fn load_nvrtc(path: &std::path::Path) -> Result<Nvrtc, String> {
    // NVRTC opens its built-in functions by name; some versions do not look beside themselves.
    let builtins = path.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    for file in builtins.filter(|f| f.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so")) {
        // SAFETY: a data library of the same vendor. Kept loaded: NVRTC refers to it by name later.
        unsafe { Library::new(file.path()).map(std::mem::forget).ok() };
    }
    // SAFETY: the initialisers of the vendor's library are trusted; every symbol is used with the type `nvrtc.h` gives it.
    unsafe {
        let library = Library::new(path).map_err(|_| path.display().to_string())?;
        macro_rules! symbol {
            ($name:literal) => {
                *library.get($name).map_err(|e| format!("{} ({})", path.display(), cause(&e)))?
            };
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = symbol!(b"nvrtcVersion\0");
        let (mut major, mut minor) = (0, 0);
        version(&mut major, &mut minor);
        Ok(Nvrtc {
            create: symbol!(b"nvrtcCreateProgram\0"),
            compile: symbol!(b"nvrtcCompileProgram\0"),
            destroy: symbol!(b"nvrtcDestroyProgram\0"),
            log_size: symbol!(b"nvrtcGetProgramLogSize\0"),
            log: symbol!(b"nvrtcGetProgramLog\0"),
            cubin_size: symbol!(b"nvrtcGetCUBINSize\0"),
            cubin: symbol!(b"nvrtcGetCUBIN\0"),
            ptx_size: symbol!(b"nvrtcGetPTXSize\0"),
            ptx: symbol!(b"nvrtcGetPTX\0"),
            version: (major, minor),
            path: path.display().to_string(),
            _library: library,
        })
    }
}
