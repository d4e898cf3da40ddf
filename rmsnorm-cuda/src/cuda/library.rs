//! Finds the two libraries that are not part of this crate, at run time: the driver and NVRTC.
//!
//! A machine without them gets an `Error::Library` that says what was looked for and where. cudarc panics in that case, so
//! nothing of cudarc is called before [`driver()`] has succeeded, and NVRTC is called through the functions found here.

mod driver;
mod nvrtc;
mod places;

#[cfg(feature = "checks")]
pub use driver::DRIVER_FUNCTIONS;
pub(super) use driver::context_id;
pub use driver::driver;
#[cfg(feature = "checks")]
pub(super) use driver::driver_with;
pub use nvrtc::{Nvrtc, nvrtc};
pub(super) use nvrtc::{Program, too_new};

use std::ffi::OsString;
use std::path::PathBuf;

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

/// What the loader said. The error itself only says that it failed.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
