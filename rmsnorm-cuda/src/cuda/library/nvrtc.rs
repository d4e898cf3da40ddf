//! NVRTC: which versions there are, and which of them compiles.

use super::places::PLACES;
use super::{absolute, cause, driver, environment};
use crate::Error;
use libloading::Library;
use std::collections::{BTreeMap, HashSet};
use std::ffi::{c_char, c_int};
use std::fs;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A program being compiled.
pub(in crate::cuda) type Program = *mut std::ffi::c_void;

/// NVRTC's functions, as `nvrtc.h` declares them. Zero is success.
pub struct Nvrtc {
    pub(in crate::cuda) create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    pub(in crate::cuda) compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    pub(in crate::cuda) destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    pub(in crate::cuda) log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    pub(in crate::cuda) log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    pub(in crate::cuda) cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    pub(in crate::cuda) cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    pub(in crate::cuda) ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    pub(in crate::cuda) ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
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
    let driver = driver::version();
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    found.entry((capability, driver)).or_insert_with(|| search(capability, driver)).clone()
}

/// What to say of a module that the driver refused as no module of its own: that NVRTC is newer than the driver, if it is.
pub(in crate::cuda) fn too_new(refused: Error) -> Error {
    let Some(driver) = driver::version() else { return refused };
    let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(nvrtc) = found.values().flatten().find(|nvrtc| nvrtc.version > driver) else { return refused };
    let ((major, minor), (driver_major, driver_minor)) = (nvrtc.version, driver);
    let reason = format!(
        "{} is NVRTC {major}.{minor}, and the driver, which is for CUDA {driver_major}.{driver_minor}, does not take what it \
         compiles ({refused}); NVRTC 12.0 to {driver_major}.{driver_minor} fits (RMSNORM_NVRTC names the file to load), or a \
         driver for CUDA {major}.{minor}",
        nvrtc.path
    );
    Error::Library { library: "NVRTC", reason }
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

/// The variable that names the file to load.
const NAMED: &str = "RMSNORM_NVRTC";
/// The oldest major version that is taken.
const OLDEST: i32 = 12;

#[cfg(test)]
mod tests {
    use super::*;

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
