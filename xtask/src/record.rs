//! What every report says of its binary and machine, and how it gets into a file.

use anyhow::{Context, Result};
use rmsnorm_cuda::BITS_VERSION;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The binary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// Version of the workspace.
    pub(crate) version: String,
    /// `rmsnorm_cuda::BITS_VERSION`.
    pub(crate) bits_version: u32,
    /// The commit it was built from, or `unknown`.
    pub(crate) commit: String,
    /// Whether the sources differed from the commit: `yes`, `no`, or `unknown`.
    pub(crate) dirty: String,
    /// SHA-256 of name, length and text of each kernel source; `unknown` in a build without CUDA.
    pub(crate) kernel_sources_sha256: String,
}

impl Build {
    /// This binary.
    pub(crate) fn this() -> Build {
        Build {
            version: env!("CARGO_PKG_VERSION").into(),
            bits_version: BITS_VERSION,
            commit: env!("RMSNORM_COMMIT").into(),
            dirty: env!("RMSNORM_DIRTY").into(),
            kernel_sources_sha256: kernel_sources_sha256(),
        }
    }

    /// The commit, short, with a mark if the sources differed from it.
    pub(crate) fn commit(&self) -> String {
        let commit: String = self.commit.chars().take(12).collect();
        if self.dirty == "yes" { format!("{commit}, changed") } else { commit }
    }
}

#[cfg(feature = "cuda")]
fn kernel_sources_sha256() -> String {
    use sha2::{Digest, Sha256};
    let hash = rmsnorm_cuda::cuda::module::SOURCES.iter().fold(Sha256::new(), |hash, (name, text)| {
        hash.chain_update(format!("{name} {}\n", text.len())).chain_update(text)
    });
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(not(feature = "cuda"))]
fn kernel_sources_sha256() -> String {
    "unknown".into()
}

/// What Linux tells of the GPU's driver: the first word that looks like a version.
#[cfg(feature = "cuda")]
pub(crate) fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    text.lines().next()?.split_whitespace().find(is_version).map(Into::into)
}

/// What there is to compile with for a GPU of this compute capability: the version of NVRTC, and where it is; or `none`, and what there is instead.
#[cfg(feature = "cuda")]
pub(crate) fn compiler(capability: (u32, u32)) -> (String, String) {
    use rmsnorm_cuda::cuda::{library::nvrtc, prebuilt::Bundle};
    match (nvrtc(capability), Bundle::installed()) {
        (Ok(found), _) => (format!("{}.{}", found.version.0, found.version.1), found.path.clone()),
        (Err(_), Ok(bundle)) => ("none".into(), format!("compiled ahead: {}", bundle.describe())),
        (Err(_), Err(_)) => ("none".into(), "what the cache has".into()),
    }
}

/// Writes a file, which is then either the old one or the whole new one. A link is followed; what is neither a file nor a folder, such
/// as a device, stays what it is and is written to.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let content = content.as_ref();
    let written = match Place::of(path) {
        Ok(Place::Regular(path)) => beside(&path).and_then(|mut file| {
            file.write_all(content)?;
            if let Ok(there) = path.metadata() {
                file.as_file().set_permissions(there.permissions())?;
            }
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        }),
        Ok(Place::Other) => OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(content)),
        Err(error) => Err(error),
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Whether [`write()`] will be able to write `paths`, as far as can be known before the work: the error is that of `write`.
pub(crate) fn can_write<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    for path in paths {
        let tried = Place::of(path).and_then(|place| match place {
            Place::Regular(path) => beside(&path).map(drop),
            Place::Other => Ok(()),
        });
        tried.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What a path leads to.
enum Place {
    /// A regular file, or none yet, without links.
    Regular(PathBuf),
    /// A device, a pipe or a socket.
    Other,
}

impl Place {
    fn of(path: &Path) -> io::Result<Place> {
        match path.metadata() {
            Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(there) if there.is_file() => Ok(Place::Regular(path.canonicalize()?)),
            Ok(_) => Ok(Place::Other),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            // A link to a file that is not there yet.
            Err(_) => match path.read_link() {
                Ok(target) => Place::of(&path.parent().unwrap_or(Path::new("")).join(target)),
                Err(_) => Ok(Place::Regular(path.to_path_buf())),
            },
        }
    }
}

/// An empty file in the folder of `path`, which goes when it is dropped.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    let prefix = [OsStr::new("."), name, OsStr::new(".")].into_iter().collect::<OsString>();
    // As the umask lets any new file be.
    builder.prefix(&prefix).permissions(Permissions::from_mode(0o666)).tempfile_in(folder)
}

/// Says how far the work is. That nobody can read it is no reason to end it.
pub(crate) fn tell(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// `1 fuzzer`, `2 fuzzers`.
pub(crate) fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Writes a report.
pub(crate) fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    write(path, serde_json::to_string_pretty(report)? + "\n")
}

/// Reads a report.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, symlink};

    #[test]
    fn a_file_is_written_whole_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        can_write([&path]).unwrap();
        assert!(!path.exists());
        write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        write(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [target, link, absent, loose] = ["target", "link", "absent", "loose"].map(|name| folder.path().join(name));
        fs::write(&target, "old").unwrap();
        symlink("target", &link).unwrap();
        symlink("absent", &loose).unwrap();
        for link in [&link, &loose] {
            can_write([link]).unwrap();
            write(link, "new").unwrap();
            assert!(link.is_symlink());
        }
        assert_eq!([target, absent].map(|path| fs::read_to_string(path).unwrap()), ["new", "new"]);
    }

    #[test]
    fn what_is_no_file_is_written_to_and_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        can_write([&pipe]).unwrap();
        let read = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read_to_string(pipe).unwrap()
        });
        write(&pipe, "new").unwrap();
        assert_eq!(read.join().unwrap(), "new");
        assert!(pipe.metadata().unwrap().file_type().is_fifo());
        for wrong in [folder.path().to_path_buf(), folder.path().join("no/such"), folder.path().join("..")] {
            for refused in [can_write([&wrong]), write(&wrong, "new")] {
                assert!(refused.unwrap_err().to_string().starts_with("cannot write "), "{wrong:?}");
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
