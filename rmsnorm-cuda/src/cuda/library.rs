//! Finds the two libraries that are not part of this crate, at run time: the driver and NVRTC.
//!
//! A machine without them gets an [`Error::Library`] that says what was looked for and where. cudarc panics in that case, so
//! nothing of cudarc is called before [`driver`] has succeeded, and NVRTC is called through the functions found here.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsString, c_char, c_int, c_uint, c_ulonglong};
use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

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
pub(super) fn driver_with(functions: &[&str]) -> Result<(), Error> {
    let driver = DRIVER.get_or_init(load_driver).as_ref().map_err(Clone::clone)?;
    let process = std::process::id();
    if driver.process != process {
        return Err(unusable(format!(
            "process {} initialised it, and this one, {process}, is a fork of that, where it does not work; fork before the \
             first use of CUDA, or start a new process (Python's multiprocessing: `spawn` or `forkserver`)",
            driver.process
        )));
    }
    demand(driver.name, &driver.library, functions)
}

/// A number that no other context of this process has, had or will have. (Not through cudarc, which has the function only where
/// it is built for CUDA 12 or newer.)
pub(super) fn context_id(context: CUcontext) -> Result<u64, Error> {
    type GetId = unsafe extern "C" fn(CUcontext, *mut c_ulonglong) -> CUresult;
    let Driver { library, .. } = DRIVER.get_or_init(load_driver).as_ref().map_err(Clone::clone)?;
    let mut id = 0;
    // SAFETY: the type is that of `cuda.h`, and cudarc's of a living context; it writes one integer.
    unsafe { library.get::<GetId>("cuCtxGetId").map_err(|e| unusable(cause(&e)))?(context, &mut id) }
        .result()
        .map_err(|e| driver_error("cuCtxGetId", e))?;
    Ok(id)
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
    process: u32,
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
             folders of LD_LIBRARY_PATH (Windows: PATH), then in the system's"
        )));
    };
    demand(name, &library, &DRIVER_FUNCTIONS)?;
    // SAFETY: the type is that of `cuda.h`, and no flags are defined.
    let code = unsafe {
        let init = library.get::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit");
        init.map_err(|e| unusable(cause(&e)))?(0)
    };
    match code {
        0 => Ok(Driver { name, version: driver_version(&library)?, library, process: std::process::id() }),
        // cudarc looks for the names in the same order and would load the stub again, whatever is loaded here.
        STUB_LIBRARY => Err(unusable(format!(
            "{name} is the toolkit's stub, which is there to link against and can nothing ({}): the loader finds a folder \
             `stubs` first; take it out of LD_LIBRARY_PATH, so that the driver's own libcuda.so.1 is found",
            init_error(code)
        ))),
        code => Err(Error::Driver { call: "cuInit", code: init_error(code) }),
    }
}

/// What the loader said. The error itself only says that it failed.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
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

/// What to say of a module that the driver refused as no module of its own: that NVRTC is newer than the driver, if it is.
pub(super) fn too_new(refused: Error) -> Error {
    let Some(Ok(Driver { version: driver, .. })) = DRIVER.get() else { return refused };
    let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(nvrtc) = found.values().flatten().find(|nvrtc| nvrtc.version > *driver) else { return refused };
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
    /// The architectures that it knows: 90 is compute capability 9.0.
    pub architectures: Vec<u32>,
    /// What was loaded.
    pub path: String,
}

/// The NVRTC that compiles for compute capability `major.minor`: the first that knows it and fits the driver, if one is loaded
/// by then. Where only one is found that has the driver's major version and a later minor one, it is that: mostly the driver
/// takes what it compiles.
///
/// `RMSNORM_NVRTC` names the only file to try. Without it the loader's path is tried, then toolkits (`CUDA_HOME`, `CUDA_PATH`,
/// the usual folders), then Python environments (`VIRTUAL_ENV`, `CONDA_PREFIX`, that of the first `python3` on `PATH`). Of every
/// variable only absolute paths count, and none of them in a program with other rights than its user.
///
/// Searched once for the process, the capability and the driver, and so is the error: a [`Error::Library`] that says which
/// version is needed and what was found where.
pub fn nvrtc(capability: (u32, u32)) -> Result<&'static Nvrtc, Error> {
    let driver = DRIVER.get().and_then(|driver| Some(driver.as_ref().ok()?.version));
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    found.entry((capability, driver)).or_insert_with(|| search(capability, driver)).clone()
}

/// A compute capability, and the driver's version if that is known.
type Wanted = ((u32, u32), Option<(i32, i32)>);
static FOUND: Mutex<BTreeMap<Wanted, Result<&'static Nvrtc, Error>>> = Mutex::new(BTreeMap::new());

fn search(capability: (u32, u32), driver: Option<(i32, i32)>) -> Result<&'static Nvrtc, Error> {
    let failed = |reason| Error::Library { library: "NVRTC", reason };
    let (candidates, looked) = match absolute(NAMED, &environment) {
        Ok(Some(path)) => (vec![path], None),
        Ok(None) => (PLACES.candidates(&environment, Path::new("/")), Some(PLACES.description(&environment))),
        Err(got) => return Err(failed(format!("{NAMED} is {}, expected an absolute path", got.display()))),
    };
    let (mut seen, mut refused, mut second) = (HashSet::new(), Vec::new(), None);
    for path in candidates {
        // One file has several names. A name alone is for the loader to find.
        if path.is_absolute()
            && let Ok(file) = fs::canonicalize(&path)
            && !seen.insert(file)
        {
            continue;
        }
        let fit = Nvrtc::load(&path).and_then(|nvrtc| Ok((nvrtc.fit(capability, driver)?, nvrtc)));
        match fit {
            Ok((Fit::Good, nvrtc)) => return Ok(nvrtc.keep(&path)),
            Ok((Fit::Doubtful, nvrtc)) => second = second.or(Some((nvrtc, path))),
            Err(reason) => refused.push(format!("{}: {reason}", path.display())),
        }
    }
    if let Some((nvrtc, path)) = second {
        return Ok(nvrtc.keep(&path));
    }
    let (major, minor) = capability;
    refused.extend(looked);
    let driver = driver.map_or_else(String::new, |(major, minor)| {
        format!(", none newer than {major}.x for a driver for CUDA {major}.{minor}")
    });
    Err(failed(format!(
        "compute capability {major}.{minor} needs version {}{driver}; {}; `pip install nvidia-cuda-nvrtc` brings one, and \
         {NAMED}=/path/to/{} names one",
        needed(capability),
        refused.join("; "),
        PLACES.names[0]
    )))
}

/// A compute capability and the versions that know it: from, and up to where it was dropped again.
type Known = ((u32, u32), (i32, i32), Option<(i32, i32)>);

/// Of NVRTC 12.0 to 13.0, as each says itself.
const KNOWN: [Known; 12] = [
    ((8, 0), (12, 0), None),
    ((8, 6), (12, 0), None),
    ((8, 7), (12, 0), None),
    ((8, 8), (13, 0), None),
    ((8, 9), (12, 0), None),
    ((9, 0), (12, 0), None),
    ((10, 0), (12, 8), None),
    ((10, 1), (12, 8), Some((12, 9))),
    ((10, 3), (12, 9), None),
    ((11, 0), (13, 0), None),
    ((12, 0), (12, 8), None),
    ((12, 1), (12, 9), None),
];

fn needed(capability: (u32, u32)) -> String {
    match KNOWN.iter().find(|(known, ..)| *known == capability) {
        Some((_, (major, minor), None)) => format!("{major}.{minor} or newer"),
        Some((_, (major, minor), Some((last_major, last_minor)))) => {
            format!("{major}.{minor} to {last_major}.{last_minor}")
        }
        None => "newer than 13.0".into(),
    }
}

enum Fit {
    Good,
    /// Newer than the driver, with the same major version.
    Doubtful,
}

impl Nvrtc {
    fn load(path: &Path) -> Result<Nvrtc, String> {
        // SAFETY: the initialisers of the vendor's library are trusted; every symbol is used with the type `nvrtc.h` gives it,
        // and the library stays.
        unsafe {
            // One that is not taken stays loaded as well: nobody promises that it can be unloaded.
            let library = ManuallyDrop::new(Library::new(path).map_err(|e| not_loaded(path, &e))?);
            macro_rules! symbol {
                ($name:literal) => {
                    *library.get(concat!($name, "\0").as_bytes()).map_err(|e| cause(&e))?
                };
            }
            type Numbers = unsafe extern "C" fn(*mut c_int) -> c_int;
            let get_version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = symbol!("nvrtcVersion");
            let mut version = (0, 0);
            get_version(&mut version.0, &mut version.1);
            if version.0 < OLDEST {
                return Err(format!("{OLDEST} or 13 expected, found {}.{}", version.0, version.1));
            }
            let (get_count, get_all): (Numbers, Numbers) =
                (symbol!("nvrtcGetNumSupportedArchs"), symbol!("nvrtcGetSupportedArchs"));
            let mut count = 0;
            get_count(&mut count);
            let mut architectures = vec![0; usize::try_from(count).unwrap_or(0)];
            get_all(architectures.as_mut_ptr());
            Ok(Nvrtc {
                create: symbol!("nvrtcCreateProgram"),
                compile: symbol!("nvrtcCompileProgram"),
                destroy: symbol!("nvrtcDestroyProgram"),
                log_size: symbol!("nvrtcGetProgramLogSize"),
                log: symbol!("nvrtcGetProgramLog"),
                cubin_size: symbol!("nvrtcGetCUBINSize"),
                cubin: symbol!("nvrtcGetCUBIN"),
                ptx_size: symbol!("nvrtcGetPTXSize"),
                ptx: symbol!("nvrtcGetPTX"),
                version,
                architectures: architectures.into_iter().filter_map(|number| u32::try_from(number).ok()).collect(),
                path: path.display().to_string(),
            })
        }
    }

    fn fit(&self, (major, minor): (u32, u32), driver: Option<(i32, i32)>) -> Result<Fit, String> {
        let (own_major, own_minor) = self.version;
        if !self.architectures.contains(&(major * 10 + minor)) {
            return Err(format!("version {own_major}.{own_minor} does not know sm_{major}{minor}"));
        }
        match driver {
            Some((driver_major, driver_minor)) if own_major > driver_major => Err(format!(
                "version {own_major}.{own_minor} is too new for a driver for CUDA {driver_major}.{driver_minor}"
            )),
            Some(driver) if self.version > driver => Ok(Fit::Doubtful),
            _ => Ok(Fit::Good),
        }
    }

    /// Makes it the one that compiles.
    fn keep(self, path: &Path) -> &'static Nvrtc {
        // It opens its built-in functions by name; some versions do not look beside themselves.
        let beside = path.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        for file in beside.filter(|file| file.file_name().to_string_lossy().starts_with(PLACES.builtins)) {
            // SAFETY: a data library of the same vendor. Kept loaded: NVRTC refers to it by name later.
            unsafe { Library::new(file.path()).map(std::mem::forget).ok() };
        }
        Box::leak(Box::new(self))
    }
}

/// Why the loader did not load it. Of a library for another machine it says that there is no such file.
fn not_loaded(path: &Path, error: &libloading::Error) -> String {
    let cause = cause(error);
    let said = cause.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&cause);
    // Class and byte order, and the machine, of a file in the format of Linux.
    let machine = |path: &Path| {
        let mut head = [0; 20];
        std::io::Read::read_exact(&mut fs::File::open(path).ok()?, &mut head).ok()?;
        head.starts_with(b"\x7fELF").then_some(([head[4], head[5]], [head[18], head[19]]))
    };
    match (machine(path), machine(Path::new("/proc/self/exe"))) {
        (Some(its), Some(ours)) if its != ours => format!("a library for another machine ({said})"),
        _ => said.into(),
    }
}

/// Where NVRTC is looked for.
struct Places {
    /// Of the file, best first.
    names: &'static [&'static str],
    /// How the name of the library of built-in functions begins, which lies beside it.
    builtins: &'static str,
    /// Pairs of what it may lie below, and where there, in order. A root `$NAME` is the folder that the variable names, `$PATH` each
    /// of that list, `$PYTHON` the folder of the first python in it and the one above that; an empty root is the loader's
    /// own path. A `*` is any text in one name; of several names the highest version comes first.
    below: &'static [(&'static [&'static str], &'static [&'static str])],
}

const PLACES: &Places = if cfg!(windows) { &WINDOWS } else { &UNIX };

const UNIX: Places = Places {
    names: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
    builtins: "libnvrtc-builtins.so",
    below: &[
        (&[""], &[""]),
        (&["$CUDA_HOME", "$CUDA_PATH", "/usr/local/cuda", "/usr/local/cuda-*"], &["lib64", "lib", "targets/*/lib"]),
        (
            &["$VIRTUAL_ENV", "$CONDA_PREFIX", "$PYTHON"],
            &[
                "lib",
                "targets/*/lib",
                "lib/python*/site-packages/nvidia/cu13/lib",
                "lib/python*/site-packages/nvidia/cuda_nvrtc/lib",
                "lib64/python*/site-packages/nvidia/cu13/lib",
                "lib64/python*/site-packages/nvidia/cuda_nvrtc/lib",
                "local/lib/python*/dist-packages/nvidia/cu13/lib",
                "local/lib/python*/dist-packages/nvidia/cuda_nvrtc/lib",
                "lib/python*/dist-packages/nvidia/cu13/lib",
                "lib/python*/dist-packages/nvidia/cuda_nvrtc/lib",
            ],
        ),
    ],
};

/// Not the loader's own path, which has the current folder in it.
const WINDOWS: Places = Places {
    names: &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"],
    builtins: "nvrtc-builtins64",
    below: &[
        (&["$PATH"], &[""]),
        (&["$CUDA_HOME", "$CUDA_PATH", "$ProgramFiles/NVIDIA GPU Computing Toolkit/CUDA/v*"], &["bin/x64", "bin"]),
        (
            &["$VIRTUAL_ENV", "$CONDA_PREFIX", "$PYTHON"],
            &[
                "Library/bin/x64",
                "Library/bin",
                "Lib/site-packages/nvidia/cu13/bin/x86_64",
                "Lib/site-packages/nvidia/cu13/bin",
                "Lib/site-packages/nvidia/cuda_nvrtc/bin",
            ],
        ),
    ],
};

impl Places {
    /// Every file that is there, and each name for the loader's own path. `system` is the root of the file system.
    fn candidates(&self, variables: Variables, system: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for (roots, folders) in self.below {
            for root in roots.iter().flat_map(|root| expand_root(root, variables, system)) {
                for folder in folders.iter().flat_map(|folder| expand(root.clone(), folder)) {
                    let files = self.names.iter().map(|name| folder.join(name));
                    // A link that leads nowhere is worth an error of its own.
                    found.extend(files.filter(|path| path.is_relative() || fs::symlink_metadata(path).is_ok()));
                }
            }
        }
        found
    }

    /// In words.
    fn description(&self, variables: Variables) -> String {
        let roots = self.below.iter().flat_map(|(roots, _)| *roots).filter(|root| !root.is_empty());
        let roots = roots.map(|root| match root.strip_prefix('$').filter(|name| !name.contains(['/', '\\'])) {
            None | Some("PATH") => (*root).to_string(),
            Some("PYTHON") => "the first python on PATH".into(),
            Some(name) => match absolute(name, variables) {
                Ok(Some(path)) => format!("{root} ({})", path.display()),
                Ok(None) => format!("{root} (not set)"),
                Err(path) => format!("{root} ({} is no absolute path)", path.display()),
            },
        });
        format!("looked where the loader looks, and below {}", roots.collect::<Vec<_>>().join(", "))
    }
}

fn expand_root(pattern: &str, variables: Variables, system: &Path) -> Vec<PathBuf> {
    let Some(variable) = pattern.strip_prefix('$') else {
        return match pattern.strip_prefix('/') {
            Some(below) => expand(system.into(), below),
            None => vec![PathBuf::new()],
        };
    };
    let (name, below) = variable.split_once('/').unwrap_or((variable, ""));
    let list = || variables("PATH").map(|list| std::env::split_paths(&list).collect::<Vec<_>>()).unwrap_or_default();
    let list = || list().into_iter().filter(|folder| folder.is_absolute());
    let roots = match name {
        "PATH" => list().collect(),
        "PYTHON" => {
            let has_python = |folder: &PathBuf| PYTHONS.iter().any(|python| folder.join(python).is_file());
            let folder = list().find(has_python);
            folder.iter().flat_map(|folder| folder.ancestors().take(2)).map(Path::to_path_buf).collect()
        }
        _ => absolute(name, variables).ok().flatten().into_iter().collect::<Vec<_>>(),
    };
    roots.into_iter().flat_map(|root| expand(root, below)).collect()
}

const PYTHONS: [&str; 3] = ["python3", "python", "python.exe"];

/// What `pattern` stands for below `root`.
fn expand(root: PathBuf, pattern: &str) -> Vec<PathBuf> {
    pattern.split('/').filter(|part| !part.is_empty()).fold(vec![root], |folders, part| match part.split_once('*') {
        None => folders.into_iter().map(|folder| folder.join(part)).collect(),
        Some((head, tail)) => folders.iter().flat_map(|folder| matching(folder, head, tail)).collect(),
    })
}

/// The entries of `folder` whose names begin and end so, by the numbers in their names, highest first.
fn matching(folder: &Path, head: &str, tail: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let matches = |name: &String| name.strip_prefix(head).is_some_and(|rest| rest.ends_with(tail));
    let mut names: Vec<String> = names.filter(matches).collect();
    let numbers = |name: &str| {
        let digits = name.split(|c: char| !c.is_ascii_digit());
        digits.filter_map(|number| number.parse().ok()).collect::<Vec<u64>>()
    };
    names.sort_by(|a, b| numbers(b).cmp(&numbers(a)).then_with(|| a.cmp(b)));
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// Where variables are looked up.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment; empty in a program with other rights than the user who chose the environment (setuid).
pub(super) fn environment(name: &str) -> Option<OsString> {
    if is_privileged() { None } else { std::env::var_os(name) }
}

/// The absolute path that a variable names; a relative one, which would mean a file of whoever owns the current folder, as an
/// error. Empty is as not set.
pub(super) fn absolute(name: &str, variables: Variables) -> Result<Option<PathBuf>, PathBuf> {
    match variables(name).filter(|value| !value.is_empty()).map(PathBuf::from) {
        Some(path) if path.is_relative() => Err(path),
        path => Ok(path),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn is_privileged() -> bool {
    unsafe extern "C" {
        // Of the C library; returns 0 for what it does not know.
        safe fn getauxval(kind: std::ffi::c_ulong) -> std::ffi::c_ulong;
    }
    const AT_SECURE: std::ffi::c_ulong = 23;
    getauxval(AT_SECURE) != 0
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn is_privileged() -> bool {
    false
}

/// The variable that names the file to load.
const NAMED: &str = "RMSNORM_NVRTC";
/// The oldest major version that is taken.
const OLDEST: i32 = 12;

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates in a system where these files are and these variables are set, `/` standing for its root.
    fn candidates(places: &Places, files: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
        let system = tempfile::tempdir().expect("a folder");
        let real = |path: &str| system.path().join(path.trim_start_matches('/'));
        for file in files {
            fs::create_dir_all(real(file).parent().expect("a folder")).expect("a folder");
            fs::write(real(file), "").expect("a file");
        }
        let variables = |name: &str| {
            let (_, value) = variables.iter().find(|(variable, _)| *variable == name)?;
            let paths = value.split(':').map(|path| if path.starts_with('/') { real(path) } else { path.into() });
            std::env::join_paths(paths).ok()
        };
        let found = places.candidates(&variables, system.path());
        let shown = |path: &PathBuf| match path.strip_prefix(system.path()) {
            Ok(path) => format!("/{}", path.display()),
            Err(_) => path.display().to_string(),
        };
        found.iter().map(shown).collect()
    }

    /// Each file is the only one that is found beside the loader's own.
    #[test]
    fn layouts() {
        let unix = |file: &str, variables: &[(&str, &str)]| {
            let found = candidates(&UNIX, &[file, "/usr/bin/python3", "/p/bin/python"], variables);
            assert_eq!(found[..3], *UNIX.names, "the loader's own come first");
            assert_eq!(found[3..], [file], "{variables:?}");
        };
        for variable in ["CUDA_HOME", "CUDA_PATH"] {
            unix("/t/lib64/libnvrtc.so.12", &[(variable, "/t")]);
            unix("/t/lib/libnvrtc.so", &[(variable, "/t")]);
            unix("/t/targets/sbsa-linux/lib/libnvrtc.so.13", &[(variable, "/t")]);
        }
        unix("/usr/local/cuda/lib64/libnvrtc.so.13", &[]);
        unix("/usr/local/cuda/targets/x86_64-linux/lib/libnvrtc.so.13", &[]);
        unix("/usr/local/cuda-12.4/lib64/libnvrtc.so.12", &[]);
        unix("/c/lib/libnvrtc.so.12", &[("CONDA_PREFIX", "/c")]);
        unix("/c/targets/x86_64-linux/lib/libnvrtc.so.12", &[("CONDA_PREFIX", "/c")]);
        for variable in [("VIRTUAL_ENV", "/p"), ("CONDA_PREFIX", "/p"), ("PATH", "/none:/p/bin:/usr/bin")] {
            unix("/p/lib/python3.9/site-packages/nvidia/cu13/lib/libnvrtc.so.13", &[variable]);
            unix("/p/lib64/python3.13/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", &[variable]);
        }
        unix("/usr/lib/python3/dist-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", &[("PATH", "/usr/bin")]);
        unix("/usr/local/lib/python3.12/dist-packages/nvidia/cu13/lib/libnvrtc.so.13", &[("PATH", "/usr/bin:/p/bin")]);

        let windows = |file: &str, variables: &[(&str, &str)]| {
            assert_eq!(candidates(&WINDOWS, &[file, "/p/Scripts/python.exe"], variables), [file], "{variables:?}");
        };
        windows("/t/nvrtc64_120_0.dll", &[("PATH", "/none:/t")]);
        windows("/t/bin/nvrtc64_120_0.dll", &[("CUDA_PATH", "/t")]);
        windows("/t/bin/x64/nvrtc64_130_0.dll", &[("CUDA_HOME", "/t")]);
        let file = "/f/NVIDIA GPU Computing Toolkit/CUDA/v13.0/bin/x64/nvrtc64_130_0.dll";
        windows(file, &[("ProgramFiles", "/f")]);
        windows("/c/Library/bin/nvrtc64_120_0.dll", &[("CONDA_PREFIX", "/c")]);
        let file = "/p/Lib/site-packages/nvidia/cu13/bin/x86_64/nvrtc64_130_0.dll";
        windows(file, &[("VIRTUAL_ENV", "/p")]);
        windows(file, &[("PATH", "/p/Scripts")]);
    }

    #[test]
    fn the_order() {
        let files = [
            "/usr/local/cuda-9.2/lib64/libnvrtc.so",
            "/usr/local/cuda-12.10/lib64/libnvrtc.so.12",
            "/usr/local/cuda-12.9/lib64/libnvrtc.so.12",
            "/usr/local/cuda-12.9/lib64/libnvrtc.so",
            "/v/lib/python3.9/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "/v/lib/python3.10/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "/v/lib/python3.10/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "/h/lib/libnvrtc.so.12",
            "/h/lib64/libnvrtc.so.12",
        ];
        let found = candidates(&UNIX, &files, &[("VIRTUAL_ENV", "/v"), ("CUDA_HOME", "/h")]);
        assert_eq!(found[3..], [8, 7, 1, 2, 3, 0, 6, 4, 5].map(|i| files[i]));
    }

    #[test]
    fn what_is_not_absolute_is_not_looked_at() {
        for value in ["", ".", "here", "./there", "../c"] {
            let names = ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PATH", "ProgramFiles"];
            let variables = names.map(|name| (name, value));
            assert_eq!(candidates(&UNIX, &[], &variables), *UNIX.names, "{value:?}");
            assert_eq!(candidates(&WINDOWS, &[], &variables), [""; 0], "{value:?}");
        }
    }

    /// The table of versions against what the library says itself.
    #[test]
    fn known_architectures() {
        let nvrtc = match nvrtc((9, 0)) {
            Ok(nvrtc) => nvrtc,
            Err(error) => {
                let required = std::env::var_os("RMSNORM_REQUIRE_NVRTC");
                assert!(required.is_none(), "RMSNORM_REQUIRE_NVRTC is set, but: {error}");
                std::io::Write::write_fmt(
                    &mut std::io::stderr(),
                    format_args!("SKIPPED known_architectures: {error}\n"),
                )
                .ok();
                return;
            }
        };
        for (capability, from, last) in KNOWN {
            let expected = from <= nvrtc.version && last.is_none_or(|last| nvrtc.version <= last);
            assert_eq!(nvrtc.fit(capability, None).is_ok(), expected, "{capability:?} {:?}", nvrtc.architectures);
        }
        let newer = |number: &&u32| **number >= 80;
        for number in nvrtc.architectures.iter().filter(newer) {
            let capability = (number / 10, number % 10);
            assert!(KNOWN.iter().any(|(known, ..)| *known == capability), "{capability:?} is not in the table");
        }
    }
}
