//! What every report says of its binary and machine, and how it gets into a file.

use anyhow::{Context, Result};
use rmsnorm_cuda::BITS_VERSION;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::Path;

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
    let hash = rmsnorm_cuda::cuda::compile::SOURCES.iter().fold(Sha256::new(), |hash, (name, text)| {
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

/// Writes `text` so that the file is either the old one or the whole new one.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
    let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a report.
pub(crate) fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    write(path, &(serde_json::to_string_pretty(report)? + "\n"))
}

/// Reads a report.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
}
