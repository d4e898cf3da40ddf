//! What tests take of the machine: programs and libraries that may be missing, and folders of their own.
#![allow(dead_code, unreachable_pub)]

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Says past libtest's capture that a test did not run, and why; fails it where `RMSNORM_REQUIRE_`*need* says that the machine has
/// what it needs.
pub fn skip(need: &str, why: impl Display) {
    let variable = format!("RMSNORM_REQUIRE_{need}");
    assert!(std::env::var_os(&variable).is_none_or(|value| value.is_empty()), "{variable} is set, but: {why}");
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIPPED {}: {why}", thread.name().unwrap_or("a test"));
}

/// Whether there is such a program; if not, the test is skipped.
pub fn has(need: &str, program: impl AsRef<OsStr>) -> bool {
    let program = program.as_ref();
    let tried = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if let Err(error) = &tried {
        skip(need, format_args!("{}: {error}", program.display()));
    }
    tried.is_ok()
}

/// Whether there is a C++ compiler, the one that the emulator takes.
pub fn has_cxx() -> bool {
    has("CXX", std::env::var_os("CXX").unwrap_or_else(|| "c++".into()))
}

/// A new folder that only this user can enter. It goes with the value.
#[cfg(unix)]
pub fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let mut builder = tempfile::Builder::new();
    builder.prefix("rmsnorm-test-").permissions(std::fs::Permissions::from_mode(0o700));
    builder.tempdir().expect("a folder")
}
