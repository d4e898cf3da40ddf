//! The CUDA executor: the only `unsafe` in the workspace.
//!
//! [`steps`] says what a call launches, [`library`] finds the driver and NVRTC, [`compile`] turns the kernels of this crate into
//! modules for the GPU found, [`cache`] keeps them on disk, [`launch`] hands the steps to a stream, [`typed`] does so safely, and [`Cuda`] here runs calls on host memory, which is what
//! checks use. [`measure`] times.

pub mod cache;
pub mod compile;
#[cfg(all(feature = "emulator", target_arch = "x86_64", target_os = "linux"))]
pub mod emulator;
pub mod launch;
pub mod library;
pub mod measure;
pub mod plain;
pub mod replay;
pub mod steps;
pub mod typed;

use std::cell::RefCell;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};

use crate::{Backward, Error, Executor, Forward, Operand, Slice, SliceMut, bf16, f16, plan::Arch};
pub use cache::Cache;
pub use launch::{Calls, Kernels};
pub use steps::{DeviceMemory, Speed};
pub use typed::{GpuSlice, GpuSliceMut, Layer};

/// The primary context of GPU `ordinal`; an error where `CudaContext::new` panics, without a driver.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>, Error> {
    library::driver()?;
    CudaContext::new(ordinal).map_err(|e| driver_error("cuDevicePrimaryCtxRetain", e))
}

/// Runs calls on host memory on a GPU: copies the buffers there, launches, and copies the outputs back.
///
/// Whole buffers travel, gaps and surroundings included, to device addresses equal to the host's modulo 256: what a check
/// placed around an operand is around it on the GPU too.
#[derive(Clone)]
pub struct Cuda {
    kernels: Arc<Kernels>,
    stream: Arc<CudaStream>,
    speed: Speed,
}

impl Cuda {
    /// The executor on GPU `ordinal`.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
        let context = context(ordinal)?;
        let stream = context.new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        let kernels = Arc::new(Kernels::new(&context)?);
        let speed = kernels.speed();
        Ok(Cuda { kernels, stream, speed })
    }

    /// The same executor with a stream of its own, for another thread.
    pub fn on_new_stream(&self) -> Result<Self, Error> {
        let stream = self.stream.context().new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        Ok(Cuda { stream, ..self.clone() })
    }

    /// The same executor with another choice of what decides only speed: for checks that it decides nothing else.
    pub fn with_speed(&self, speed: Speed) -> Self {
        Cuda { speed, ..self.clone() }
    }

    /// What decides only speed: by default what fits the GPU found.
    pub fn speed(&self) -> Speed {
        self.speed
    }

    /// The kernels that run here.
    pub fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }

    /// The GPU.
    pub fn arch(&self) -> Arch {
        self.kernels.speed().arch
    }

    fn wait(&self) -> Result<(), Error> {
        self.stream.synchronize().map_err(|e| driver_error("cuStreamSynchronize", e))
    }
}

impl Executor for Cuda {
    fn name(&self) -> String {
        let (major, minor) = self.arch().compute_capability;
        format!("cuda ({}, sm_{major}{minor})", self.kernels.gpu_name())
    }

    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        let copies = Copies::on(&self.stream);
        let on_device = call.try_map(|data| copies.read(data), |data| copies.written(data))?;
        // SAFETY: each operand is a live allocation on this stream's device, as long as the host buffer that `check` measured;
        // the outputs are allocations of their own.
        unsafe { self.kernels.forward(&on_device, &self.speed, self.stream.cu_stream())? };
        self.wait()?;
        copies.download()?;
        self.wait()
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        let copies = Copies::on(&self.stream);
        let on_device = call.try_map(|data| copies.read(data), |data| copies.written(data))?;
        // SAFETY: as in `forward`.
        unsafe { self.kernels.backward(&on_device, &self.speed, self.stream.cu_stream())? };
        self.wait()?;
        copies.download()?;
        self.wait()
    }
}

/// Copies of host buffers on the device.
struct Copies<'a> {
    stream: &'a Arc<CudaStream>,
    inputs: RefCell<Vec<CudaSlice<u8>>>,
    outputs: RefCell<Vec<(CudaSlice<u8>, usize, SliceMut<'a>)>>,
}

impl<'a> Copies<'a> {
    fn on(stream: &'a Arc<CudaStream>) -> Self {
        Copies { stream, inputs: RefCell::default(), outputs: RefCell::default() }
    }

    fn read(&self, data: Slice<'_>) -> Result<DeviceMemory, Error> {
        let (memory, _, bytes) = self.upload(data)?;
        self.inputs.borrow_mut().push(bytes);
        Ok(memory)
    }

    fn written(&self, data: SliceMut<'a>) -> Result<DeviceMemory, Error> {
        let shared = match &data {
            SliceMut::F32(d) => Slice::F32(d),
            SliceMut::F16(d) => Slice::F16(d),
            SliceMut::Bf16(d) => Slice::Bf16(d),
        };
        let (memory, lead, bytes) = self.upload(shared)?;
        self.outputs.borrow_mut().push((bytes, lead, data));
        Ok(memory)
    }

    /// The copy, and how many bytes before it bring it to the host's address modulo 256.
    fn upload(&self, data: Slice<'_>) -> Result<(DeviceMemory, usize, CudaSlice<u8>), Error> {
        let host = match data {
            Slice::F32(d) => f32::bytes(d),
            Slice::F16(d) => f16::bytes(d),
            Slice::Bf16(d) => bf16::bytes(d),
        };
        let lead = host.as_ptr() as usize % 256;
        let mut bytes =
            self.stream.alloc_zeros::<u8>((lead + host.len()).max(1)).map_err(|e| driver_error("cuMemAlloc", e))?;
        if !host.is_empty() {
            self.stream
                .memcpy_htod(host, &mut bytes.slice_mut(lead..lead + host.len()))
                .map_err(|e| driver_error("cuMemcpyHtoD", e))?;
        }
        let address = bytes.device_ptr(self.stream).0 + lead as u64;
        Ok((DeviceMemory { dtype: data.dtype(), address, elements: data.elements() }, lead, bytes))
    }

    fn download(self) -> Result<(), Error> {
        for (bytes, lead, data) in self.outputs.into_inner() {
            let host = match data {
                SliceMut::F32(d) => f32::bytes_mut(d),
                SliceMut::F16(d) => f16::bytes_mut(d),
                SliceMut::Bf16(d) => bf16::bytes_mut(d),
            };
            if !host.is_empty() {
                self.stream
                    .memcpy_dtoh(&bytes.slice(lead..lead + host.len()), host)
                    .map_err(|e| driver_error("cuMemcpyDtoH", e))?;
            }
        }
        Ok(())
    }
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
