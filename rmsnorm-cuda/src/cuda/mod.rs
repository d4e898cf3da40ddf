//! The CUDA executor. Here is all `unsafe` code of the libraries: elsewhere the compiler refuses it.
//!
//! | you have | you call |
//! | --- | --- |
//! | rows without gaps in cudarc's slices, and a stream | [`Layer`] |
//! | any rows in cudarc's slices, and a stream | [`Kernels::forward_on`], [`Kernels::backward_on`] |
//! | device pointers and a raw stream | [`Kernels::forward`], [`Kernels::backward`], which are unsafe |
//! | operands in host memory, and a GPU to compare with the CPU | [`Cuda`] |
//!
//! The way down a call goes: `kernels` asks `steps` what it launches, on a plan; `module` says what that is compiled from, `code` where it comes from: `cache`
//! knows whether it was compiled before, `compile` has NVRTC do it, `prebuilt` has what was compiled ahead; `loaded` is what the driver has of it; `library` finds the driver and NVRTC. `typed` and `host` lend their memory to `kernels`.

mod arguments;
mod cache;
mod calls;
#[cfg(feature = "checks")]
#[doc(hidden)]
pub mod checks;
mod code;
mod extents;
mod folder;
mod grouping;
mod host;
mod loaded;
mod place;
pub mod typed;

/// Modules that only checks look into.
macro_rules! internal {
    ($($module:ident)*) => {$(
        #[cfg(feature = "checks")]
        #[doc(hidden)]
        pub mod $module;
        #[cfg(not(feature = "checks"))]
        #[allow(dead_code, unreachable_pub)] // Some of it is for checks alone.
        mod $module;
    )*};
}
internal! { compile kernels library module prebuilt steps }

use std::sync::Arc;

use cudarc::driver::CudaContext;

use crate::Error;
pub use crate::plan::Calls;
#[doc(hidden)]
pub use crate::plan::Tuning;
pub use cache::{Cache, Origin};
pub use host::Cuda;
pub use kernels::Kernels;
pub use place::DeviceMemory;
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
