//! Compiled kernels on disk, so that a process need not compile what an earlier one did.
//!
//! A file is named after the SHA-256 of everything that its content is a function of: this crate's version, NVRTC's, the
//! options (the architecture among them) and the source. It begins with the SHA-256 of that name and the content, so that a
//! file cut short, changed or renamed is not taken for another; it is compiled again and replaced. A file appears under its
//! name complete or not at all, so any number of processes may share a folder.
//!
//! What is loaded from here runs on the GPU: a folder that others can write to, or that someone else owns, is not used.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use super::compile::{Module, compile_source, options};
use super::library::nvrtc;
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
    /// else in `.cache` of `HOME` (Windows: in `LOCALAPPDATA`).
    pub fn from_environment() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let below = |name: &str, path: &str| Some(PathBuf::from(set(name)?).join(path)).filter(|p| p.is_absolute());
        match set("RMSNORM_CACHE") {
            Some(off) if off == "off" => Cache::off(),
            Some(folder) => Cache::at(folder),
            None if cfg!(windows) => Cache { folder: below("LOCALAPPDATA", "rmsnorm-cuda"), ..Cache::off() },
            None => {
                let folder = below("XDG_CACHE_HOME", "rmsnorm-cuda").or_else(|| below("HOME", ".cache/rmsnorm-cuda"));
                Cache { folder, ..Cache::off() }
            }
        }
    }

    /// This folder, which is made when it is first needed.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Cache { folder: Some(folder.into()), warning: OnceLock::new() }
    }

    /// Nothing is kept.
    pub fn off() -> Self {
        Cache { folder: None, warning: OnceLock::new() }
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
        let (source, name) = (module.source(), module.to_string());
        let path = match &self.folder {
            Some(folder) if self.warning.get().is_none() => match usable(folder) {
                Ok(()) => Some((folder, key(&source, capability)?)),
                Err(reason) => {
                    self.warn(folder, reason);
                    None
                }
            },
            _ => None,
        };
        if let Some((folder, key)) = &path {
            match fs::read(folder.join(file_name(key))) {
                Ok(file) => {
                    if let Some(cubin) = checked(key, &file) {
                        return Ok(cubin.to_vec());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => self.warn(&folder.join(file_name(key)), e.to_string()),
            }
        }
        let cubin = compile_source(&source, &name, capability)?.cubin;
        if cubin.is_empty() {
            return Err(Error::Compile { kernel: name, log: "NVRTC returned no machine code".into() });
        }
        if let Some((folder, key)) = path.filter(|_| self.warning.get().is_none())
            && let Err(e) = store(folder, &key, &cubin)
        {
            self.warn(folder, e.to_string());
        }
        Ok(cubin)
    }

    /// Deletes every file that a cache of any version put into the folder, and nothing else. Returns how many there were.
    pub fn clear(&self) -> Result<usize, Error> {
        let Some(folder) = &self.folder else { return Ok(0) };
        let failed = |e: io::Error| Error::Cache { path: folder.clone(), reason: e.to_string() };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(failed(e)),
        };
        let mut deleted = 0;
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if is_ours(&entry.file_name()) {
                match fs::remove_file(entry.path()) {
                    Ok(()) => deleted += 1,
                    // Another process was faster.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(failed(e)),
                }
            }
        }
        Ok(deleted)
    }

    fn warn(&self, path: &Path, reason: String) {
        self.warning.get_or_init(|| Error::Cache { path: path.to_path_buf(), reason });
    }
}

type Key = [u8; 32];

/// Of everything that a cubin is a function of. Each part is preceded by its length, so that no two lists run together alike.
fn key(source: &str, capability: (u32, u32)) -> Result<Key, Error> {
    let (major, minor) = nvrtc(capability)?.version;
    let version = format!("{major}.{minor}");
    let mut hash = Sha256::new();
    let options = options(capability);
    let parts = [env!("CARGO_PKG_VERSION"), &version].into_iter().chain(options.iter().map(String::as_str));
    for part in parts.chain([source]) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Ok(hash.finalize().into())
}

fn file_name(key: &Key) -> String {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    hex + CUBIN
}

fn is_ours(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let hex = |stem: &str, digits: usize| stem.len() == digits && stem.bytes().all(|b| b.is_ascii_hexdigit());
    name.strip_suffix(CUBIN).is_some_and(|stem| hex(stem, 64))
        || name.strip_suffix(UNFINISHED).is_some_and(|stem| hex(stem, 16))
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
fn store(folder: &Path, key: &Key, cubin: &[u8]) -> io::Result<()> {
    // Random, since processes that share a folder need not see each other's numbers.
    let unfinished = folder.join(format!("{:016x}{UNFINISHED}", RandomState::new().build_hasher().finish()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&unfinished)?;
    let written = file.write_all(&checksum(key, cubin)).and_then(|()| file.write_all(cubin));
    // Closed first: some systems do not rename an open file.
    drop(file);
    let stored = written.and_then(|()| fs::rename(&unfinished, folder.join(file_name(key))));
    if stored.is_err() {
        fs::remove_file(&unfinished).ok();
    }
    stored
}

/// Makes the folder if it is not there, and sees whether only this user can write to it.
fn usable(folder: &Path) -> Result<(), String> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|e| e.to_string())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        unsafe extern "C" {
            // Declared by POSIX; cannot fail.
            safe fn geteuid() -> u32;
        }
        let folder = fs::metadata(folder).map_err(|e| e.to_string())?;
        if folder.uid() != geteuid() {
            return Err(format!("it belongs to user {}, and this is user {}", folder.uid(), geteuid()));
        }
        if folder.mode() & 0o022 != 0 {
            return Err(format!("others can write to it (mode {:o}); chmod 700 mends that", folder.mode() & 0o7777));
        }
    }
    Ok(())
}

const CHECKSUM_BYTES: usize = 32;
const CUBIN: &str = ".cubin";
const UNFINISHED: &str = ".unfinished";
