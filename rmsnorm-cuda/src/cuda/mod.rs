//! The CUDA executor. Here is all `unsafe` code of the libraries: elsewhere the compiler refuses it.
//!
//! [`steps`] says what a call launches, [`module`] what that is compiled from, [`compile`] has NVRTC do so, [`cache`] keeps the result
//! on disk, [`library`] finds the driver and NVRTC, [`kernels`] hands the steps to a stream, [`typed`] does so safely, and [`Cuda`] runs
//! calls on host memory, which is what checks use. [`measure`] times.

pub mod cache;
pub mod compile;
#[cfg(all(feature = "emulator", target_arch = "x86_64", target_os = "linux"))]
pub mod emulator;
mod folder;
mod host;
pub mod kernels;
pub mod library;
pub mod measure;
pub mod module;
pub mod plain;
pub mod replay;
pub mod steps;
pub mod typed;

use std::sync::Arc;

use cudarc::driver::CudaContext;

use crate::Error;
pub use crate::plan::{Calls, Tuning};
pub use cache::Cache;
pub use host::Cuda;
pub use kernels::Kernels;
pub use steps::DeviceMemory;
pub use typed::{GpuSlice, GpuSliceMut, Layer};

/// The primary context of GPU `ordinal`; an error where `CudaContext::new` panics, without a driver.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>, Error> {
    library::driver()?;
    CudaContext::new(ordinal).map_err(|e| driver_error("cuDevicePrimaryCtxRetain", e))
}

/// The driver's error by its name. (Its `Display` asks the driver for a text, which panics where there is none.)
pub(crate) fn driver_error(call: &'static str, error: cudarc::driver::DriverError) -> Error {
    let code = format!("{:?}", error.0);
    match error.0 as u32 {
        // After `driver` has succeeded only a child of that process gets this.
        3 => Error::Driver { call, code: format!("{code}: a process forked from one that uses CUDA cannot use it") },
        // What a kernel did is told by whatever is called after it, and by every call from then on.
        700 | 702 | 710 | 714..=719 => Error::Fault { call, code },
        _ => Error::Driver { call, code },
    }
}
