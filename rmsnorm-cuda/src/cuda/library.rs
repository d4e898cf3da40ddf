//! Finds the two libraries that are not part of this crate, at run time: the driver and NVRTC.
//!
//! A machine without them gets an [`Error::Library`] that says what was looked for and where. cudarc panics in that case, so
//! nothing of cudarc is called before [`driver`] has succeeded, and NVRTC is called through the functions found here.

use std::ffi::{c_char, c_int};
use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::Library;

use crate::Error;

/// Loads the driver, once for the process.
pub fn driver() -> Result<(), Error> {
    static DRIVER: OnceLock<Result<Library, Error>> = OnceLock::new();
    let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    let load = || {
        // SAFETY: the initialisers of the vendor's driver library are trusted, as everywhere.
        let library = unsafe { Library::new(name) };
        library.map_err(|e| Error::Library {
            library: "the CUDA driver",
            reason: format!("{e}; it comes with the GPU's driver, look for it with `nvidia-smi`"),
        })
    };
    DRIVER.get_or_init(load).as_ref().map(|_| ()).map_err(Clone::clone)
}

/// A program being compiled.
pub(super) type Program = *mut std::ffi::c_void;

/// NVRTC's functions, as `nvrtc.h` declares them. Zero is success.
pub struct Nvrtc {
    pub(super) create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> c_int,
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
            reason: format!("could not load {}; set RMSNORM_NVRTC to the path of libnvrtc.so.13 or .12", tried.join(", ")),
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
                *library.get($name).map_err(|e| format!("{}: {e}", path.display()))?
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
