//! Compiled kernels on disk, so that a process need not compile what an earlier one did.
//!
//! A file is named after the SHA-256 of everything that its content is a function of: this crate's version, NVRTC's, the
//! options (the architecture among them) and the source. It begins with the SHA-256 of that name and the content, so that a
//! file cut short, changed or renamed is not taken for another; it is compiled again and replaced. A file appears under its
//! name complete or not at all, so any number of processes may share a folder.
//!
//! What is loaded from here runs on the GPU: a folder, or a file in it, that others can write to, or that someone else owns, is
//! not used. One process compiles, and others that want the same meanwhile wait for it.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::compile::{compile_source, options, real};
use super::folder::Folder;
use super::library::{absolute, environment, is_privileged, nvrtc};
use super::module::Module;
use crate::Error;

/// Where compiled kernels are kept, if anywhere.
///
/// Nothing that happens to the folder fails a call. The first thing that is wrong with it is the [`warning`](Cache::warning),
/// and from then on nothing is kept.
#[derive(Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
    warning: OnceLock<Error>,
}

impl Cache {
    /// The folder that `RMSNORM_CACHE` names; none if that is `off`. Without the variable, `rmsnorm-cuda` in `XDG_CACHE_HOME`,
    /// else in `.cache` of `HOME` (Windows: in `LOCALAPPDATA`). Only absolute paths count, and none in a program with other rights
    /// than its user; if that leaves none, the [`warning`](Cache::warning) says so.
    pub fn from_environment() -> Self {
        match absolute("RMSNORM_CACHE", &environment) {
            Err(off) if off.as_os_str() == "off" => return Cache::off(),
            Err(relative) => {
                return Cache::refused(&relative, "RMSNORM_CACHE is expected to be an absolute path or `off`".into());
            }
            Ok(Some(folder)) => return Cache::at(folder),
            Ok(None) => {}
        }
        let set = |(name, below): &(&str, &str)| Some(absolute(name, &environment).ok()??.join(below));
        DEFAULTS.iter().find_map(set).map_or_else(
            || {
                let (name, below) = DEFAULTS[DEFAULTS.len() - 1];
                let names = DEFAULTS.map(|(name, _)| name).join(" nor ");
                let secure =
                    if is_privileged() { ", since the environment of a privileged program is not heeded" } else { "" };
                let reason = format!("neither RMSNORM_CACHE nor {names} is an absolute path{secure}");
                Cache::refused(Path::new(&format!("${name}/{below}")), reason)
            },
            Cache::at,
        )
    }

    /// This folder, which is made when it is first needed.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Cache { folder: Some(folder.into()), warning: OnceLock::new() }
    }

    /// Nothing is kept.
    pub fn off() -> Self {
        Cache { folder: None, warning: OnceLock::new() }
    }

    fn refused(path: &Path, reason: String) -> Self {
        let cache = Cache::off();
        cache.warn(path, reason);
        cache
    }

    /// The folder, if there is to be one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Why nothing is kept although there is to be a folder: an [`Error::Cache`]. The first reason found stays.
    pub fn warning(&self) -> Option<&Error> {
        self.warning.get()
    }

    /// The machine code of `module` for compute capability `major.minor`: from the folder, or compiled and put there.
    pub fn cubin(&self, module: &Module, capability: (u32, u32)) -> Result<Vec<u8>, Error> {
        self.cubin_and_origin(module, capability).map(|(cubin, _)| cubin)
    }

    /// The same, and whether it was in the folder.
    pub(super) fn cubin_and_origin(&self, module: &Module, capability: (u32, u32)) -> Result<(Vec<u8>, Origin), Error> {
        let (source, name) = (module.source(), module.to_string());
        let version = nvrtc(capability)?.version;
        let place = self.place(&source, capability, version);
        let kept = || place.as_ref().and_then(|place| self.kept(place));
        if let Some(cubin) = kept() {
            return Ok((cubin, Origin::Cache));
        }
        let _alone = place.as_ref().and_then(Lock::wait_for);
        if let Some(cubin) = kept() {
            return Ok((cubin, Origin::Cache));
        }
        let cubin = compile_source(&source, &name, capability)?.cubin;
        if cubin.is_empty() {
            return Err(Error::Compile { kernel: name, log: "NVRTC returned no machine code".into() });
        }
        if let Some(place) = place.as_ref().filter(|_| self.warning.get().is_none())
            && let Err(e) = store(place, &cubin)
        {
            self.warn(place.path, e.to_string());
        }
        Ok((cubin, Origin::Nvrtc))
    }

    /// What any NVRTC compiled of `module`, if it is kept: for where there is none.
    pub(super) fn cubin_of_any(&self, module: &Module, capability: (u32, u32)) -> Option<Vec<u8>> {
        let source = module.source();
        let versions = [12, 13].into_iter().flat_map(|major| (0..10).map(move |minor| (major, minor)));
        versions.rev().find_map(|version| self.kept(&self.place(&source, capability, version)?))
    }

    /// Whether something is kept.
    pub(super) fn keeps_any(&self) -> bool {
        let names = self.folder.as_deref().and_then(|path| Folder::open(path).ok()?.names().ok()).unwrap_or_default();
        names.iter().filter_map(|name| is_ours(name)).any(|name| name.ends_with(CUBIN))
    }

    /// Where what that NVRTC compiles of `source` is kept, if it is.
    fn place(&self, source: &str, capability: (u32, u32), nvrtc: (i32, i32)) -> Option<Place<'_>> {
        let path = self.folder.as_deref().filter(|_| self.warning.get().is_none())?;
        match Folder::trusted(path) {
            Ok(folder) => Some(Place { path, folder, key: key(source, capability, nvrtc) }),
            Err(reason) => {
                self.warn(path, format!("{reason}; RMSNORM_CACHE=/a/folder names another"));
                None
            }
        }
    }

    fn kept(&self, Place { path, folder, key }: &Place) -> Option<Vec<u8>> {
        let name = file_name(key, CUBIN);
        match folder.read(&name) {
            Ok(file) => checked(key, &file?).map(<[u8]>::to_vec),
            Err(e) => {
                self.warn(&path.join(name), e.to_string());
                None
            }
        }
    }

    /// Deletes every file that a cache of any version put into the folder, and nothing else. Returns how many there were.
    pub fn clear(&self) -> Result<usize, Error> {
        let Some(path) = &self.folder else { return Ok(0) };
        let failed = |e: io::Error| Error::Cache { path: path.clone(), reason: e.to_string() };
        let folder = match Folder::open(path) {
            Ok(folder) => folder,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(failed(e)),
        };
        let mut deleted = 0;
        for name in folder.names().map_err(failed)?.iter().filter_map(|name| is_ours(name)) {
            match folder.remove(name) {
                Ok(()) => deleted += 1,
                // Another process was faster.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(deleted)
    }

    fn warn(&self, path: &Path, reason: String) {
        self.warning.get_or_init(|| Error::Cache { path: path.to_path_buf(), reason });
    }
}

/// Where the code of a kernel came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The [`Cache`].
    Cache,
    /// NVRTC.
    Nvrtc,
    /// The kernels compiled ahead: the feature `prebuilt`.
    Prebuilt,
}

type Key = [u8; 32];

/// Of one cubin.
struct Place<'a> {
    path: &'a Path,
    folder: Folder,
    key: Key,
}

/// While one process has it, no other compiles the same.
struct Lock<'a> {
    place: &'a Place<'a>,
    file: File,
}

impl<'a> Lock<'a> {
    /// None if it cannot be had, or not in time: then there are two compilations, which is no harm. The system releases the lock
    /// of a process that ends, however it does.
    fn wait_for(place: &'a Place<'a>) -> Option<Self> {
        let file = place.folder.open_or_create(&file_name(&place.key, LOCK)).ok()?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Some(Lock { place, file }),
                Err(TryLockError::WouldBlock) if begun.elapsed() < WAIT_MAX => std::thread::sleep(POLL),
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // Whoever waits has the file open, and whoever comes later finds the cubin.
        self.place.folder.remove(&file_name(&self.place.key, LOCK)).ok();
        self.file.unlock().ok();
    }
}

/// Of everything that a cubin is a function of. Each part is preceded by its length, so that no two lists run together alike.
fn key(source: &str, capability: (u32, u32), (major, minor): (i32, i32)) -> Key {
    let version = format!("{major}.{minor}");
    let mut hash = Sha256::new();
    let options = options(real(capability), (major, minor));
    let parts = [env!("CARGO_PKG_VERSION"), &version].into_iter().chain(options.iter().map(String::as_str));
    for part in parts.chain([source]) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn file_name(key: &Key, ending: &str) -> String {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    hex + ending
}

/// The name, if a cache chose it.
fn is_ours(name: &OsStr) -> Option<&str> {
    let name = name.to_str()?;
    let hex = |ending, digits| {
        let stem: Option<&str> = name.strip_suffix(ending);
        stem.is_some_and(|stem| stem.len() == digits && stem.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    (hex(CUBIN, 64) || hex(LOCK, 64) || hex(UNFINISHED, 16)).then_some(name)
}

fn checksum(key: &Key, cubin: &[u8]) -> [u8; CHECKSUM_BYTES] {
    Sha256::new().chain_update(key).chain_update(cubin).finalize().into()
}

/// The cubin in a file, if it is the one that was stored under `key`.
fn checked<'a>(key: &Key, file: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, cubin) = file.split_at_checked(CHECKSUM_BYTES)?;
    (sum == checksum(key, cubin)).then_some(cubin)
}

/// Writes a file of another name, then gives it its own.
fn store(Place { folder, key, .. }: &Place, cubin: &[u8]) -> io::Result<()> {
    // Random, since processes that share a folder need not see each other's numbers.
    let unfinished = format!("{:016x}{UNFINISHED}", RandomState::new().build_hasher().finish());
    let mut file = folder.create(&unfinished)?;
    let written = file.write_all(&checksum(key, cubin)).and_then(|()| file.write_all(cubin));
    // Closed first: some systems do not rename an open file.
    drop(file);
    let stored = written.and_then(|()| folder.rename(&unfinished, &file_name(key, CUBIN)));
    if stored.is_err() {
        folder.remove(&unfinished).ok();
    }
    stored
}

/// Variables, and where below what they name, in order.
#[cfg(windows)]
const DEFAULTS: [(&str, &str); 1] = [("LOCALAPPDATA", "rmsnorm-cuda")];
#[cfg(not(windows))]
const DEFAULTS: [(&str, &str); 2] = [("XDG_CACHE_HOME", "rmsnorm-cuda"), ("HOME", ".cache/rmsnorm-cuda")];

/// A module takes about a second of one core, and a machine that is starting is busy.
const WAIT_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

const CHECKSUM_BYTES: usize = 32;
const CUBIN: &str = ".cubin";
const LOCK: &str = ".lock";
const UNFINISHED: &str = ".unfinished";
