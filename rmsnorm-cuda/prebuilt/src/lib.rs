//! The kernels of `rmsnorm-cuda` compiled ahead, as its feature `prebuilt` takes them. Data, and nothing to call.
#![no_std]
#![forbid(unsafe_code)]

/// PTX of every module of the portable set, compressed, behind a list of what is in it. Empty in a checkout where `cargo xtask prebuilt` was
/// not run; what is published has it.
pub const BUNDLE: &[u8] = include_bytes!("../kernels.bundle");
