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

pub use crate::plan::{Calls, Tuning};
use crate::{Error, Slice, SliceMut, bf16, f16};
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

/// Element types seen as bytes.
trait Bytes: Sized {
    fn bytes(data: &[Self]) -> &[u8];
    fn bytes_mut(data: &mut [Self]) -> &mut [u8];
}

macro_rules! bytes {
    ($($element:ty),*) => {$(
        impl Bytes for $element {
            fn bytes(data: &[Self]) -> &[u8] {
                // SAFETY: the element has no padding, and u8 no alignment.
                unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), std::mem::size_of_val(data)) }
            }
            fn bytes_mut(data: &mut [Self]) -> &mut [u8] {
                // SAFETY: as above, and every bit pattern is an element.
                unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), std::mem::size_of_val(data)) }
            }
        }
    )*};
}

bytes!(f32, f16, bf16);

/// The memory of an operand.
fn bytes<'a>(data: &Slice<'a>) -> &'a [u8] {
    match *data {
        Slice::F32(data) => f32::bytes(data),
        Slice::F16(data) => f16::bytes(data),
        Slice::Bf16(data) => bf16::bytes(data),
    }
}

fn bytes_mut<'a>(data: &'a mut SliceMut<'_>) -> &'a mut [u8] {
    match data {
        SliceMut::F32(data) => f32::bytes_mut(data),
        SliceMut::F16(data) => f16::bytes_mut(data),
        SliceMut::Bf16(data) => bf16::bytes_mut(data),
    }
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
