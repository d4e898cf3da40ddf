//! The CUDA executor: the only `unsafe` in the workspace.
//!
//! [`library`] finds the driver and NVRTC, [`compile`] turns the kernels in this crate into modules for the GPU found,
//! [`launch`] carries out calls on device memory, and [`Cuda`] here does so for host memory, which is what checks use.

pub mod compile;
pub mod launch;
pub mod library;
pub mod measure;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};

use crate::{
    Backward, Dtype, Error, Executor, Forward, Operand, Rows, Slice, SliceMut, Vector, WeightGradient, bf16, f16,
    plan::Arch,
};
pub use launch::{DeviceMemory, Kernels, Speed};

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
        library::driver()?;
        let context = CudaContext::new(ordinal).map_err(|e| driver_error("cuDevicePrimaryCtxRetain", e))?;
        let stream = context.new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        let kernels = Arc::new(Kernels::new(&context)?);
        let speed = kernels.speed();
        Ok(Cuda { kernels, stream, speed })
    }

    /// The same executor with another choice of what decides only speed: for checks that it decides nothing else.
    pub fn with_speed(&self, speed: Speed) -> Self {
        Cuda { speed, ..self.clone() }
    }

    /// What decides only speed: by default what fits the GPU found.
    pub fn speed(&self) -> Speed {
        self.speed
    }

    /// The GPU.
    pub fn arch(&self) -> Arch {
        self.kernels.speed().arch
    }

    /// The kernels and the GPU they were compiled for.
    pub fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }

    fn upload(&self, data: Slice<'_>) -> Result<Copy, Error> {
        match data {
            Slice::F32(d) => self.upload_as(d, Dtype::F32),
            Slice::F16(d) => self.upload_as(d, Dtype::F16),
            Slice::Bf16(d) => self.upload_as(d, Dtype::Bf16),
        }
    }

    fn upload_as<T: Bytes>(&self, data: &[T], dtype: Dtype) -> Result<Copy, Error> {
        let lead = data.as_ptr() as usize % 256;
        let mut bytes = self
            .stream
            .alloc_zeros::<u8>((lead + std::mem::size_of_val(data)).max(1))
            .map_err(|e| driver_error("cuMemAlloc", e))?;
        if !data.is_empty() {
            self.stream
                .memcpy_htod(T::bytes(data), &mut bytes.slice_mut(lead..lead + std::mem::size_of_val(data)))
                .map_err(|e| driver_error("cuMemcpyHtoD", e))?;
        }
        let address = bytes.device_ptr(&self.stream).0 + lead as u64;
        Ok(Copy { memory: DeviceMemory { dtype, address, elements: data.len() }, lead, bytes })
    }

    fn download(&self, copy: Copy, data: SliceMut<'_>) -> Result<(), Error> {
        match data {
            SliceMut::F32(d) => self.download_as(copy, d),
            SliceMut::F16(d) => self.download_as(copy, d),
            SliceMut::Bf16(d) => self.download_as(copy, d),
        }
    }

    fn download_as<T: Bytes>(&self, copy: Copy, data: &mut [T]) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let size = std::mem::size_of_val(data);
        self.stream
            .memcpy_dtoh(&copy.bytes.slice(copy.lead..copy.lead + size), T::bytes_mut(data))
            .map_err(|e| driver_error("cuMemcpyDtoH", e))
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
        let x = self.upload(call.x.data)?;
        let weight = call.weight.map(|w| self.upload(w.data)).transpose()?;
        let y = self.upload(shared(&call.y.data))?;
        let rstd = call.rstd.as_ref().map(|r| self.upload(shared(&r.data))).transpose()?;
        let on_device = Forward {
            rows: call.rows,
            hidden: call.hidden,
            eps: call.eps,
            weight_offset: call.weight_offset,
            x: rows(&x, &call.x),
            weight: call.weight.as_ref().zip(weight.as_ref()).map(|(w, copy)| vector(copy, w)),
            y: rows(&y, &call.y),
            rstd: call.rstd.as_ref().zip(rstd.as_ref()).map(|(r, copy)| vector(copy, r)),
        };
        // SAFETY: each operand is a live allocation on this stream's device, as long as the host buffer that `check` measured;
        // the outputs are allocations of their own.
        unsafe { self.kernels.forward(&on_device, &self.speed, self.stream.cu_stream())? };
        self.wait()?;
        self.download(y, call.y.data)?;
        if let (Some(copy), Some(rstd)) = (rstd, call.rstd) {
            self.download(copy, rstd.data)?;
        }
        self.wait()
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        let x = self.upload(call.x.data)?;
        let weight = call.weight.map(|w| self.upload(w.data)).transpose()?;
        let rstd = self.upload(call.rstd.data)?;
        let dy = self.upload(call.dy.data)?;
        let dx = self.upload(shared(&call.dx.data))?;
        let gradient = match &call.dw {
            Some(g) => Some((self.upload(shared(&g.dw.data))?, self.upload(shared(&g.scratch.data))?)),
            None => None,
        };
        let on_device = Backward {
            rows: call.rows,
            hidden: call.hidden,
            weight_offset: call.weight_offset,
            x: rows(&x, &call.x),
            weight: call.weight.as_ref().zip(weight.as_ref()).map(|(w, copy)| vector(copy, w)),
            rstd: vector(&rstd, &call.rstd),
            dy: rows(&dy, &call.dy),
            dx: rows(&dx, &call.dx),
            dw: call.dw.as_ref().zip(gradient.as_ref()).map(|(g, (dw, scratch))| WeightGradient {
                dw: vector(dw, &g.dw),
                scratch: vector(scratch, &g.scratch),
            }),
        };
        // SAFETY: as in `forward`.
        unsafe { self.kernels.backward(&on_device, &self.speed, self.stream.cu_stream())? };
        self.wait()?;
        self.download(dx, call.dx.data)?;
        if let (Some((dw, scratch)), Some(host)) = (gradient, call.dw) {
            self.download(dw, host.dw.data)?;
            self.download(scratch, host.scratch.data)?;
        }
        self.wait()
    }
}

/// A host buffer's copy on the device.
struct Copy {
    memory: DeviceMemory,
    lead: usize,
    bytes: CudaSlice<u8>,
}

fn rows<D>(copy: &Copy, host: &Rows<D>) -> Rows<DeviceMemory> {
    Rows { data: copy.memory, offset: host.offset, row_stride: host.row_stride }
}

fn vector<D: Operand>(copy: &Copy, host: &Vector<D>) -> Vector<DeviceMemory> {
    Vector { data: copy.memory, offset: host.offset }
}

fn shared<'a>(data: &'a SliceMut<'_>) -> Slice<'a> {
    match data {
        SliceMut::F32(d) => Slice::F32(d),
        SliceMut::F16(d) => Slice::F16(d),
        SliceMut::Bf16(d) => Slice::Bf16(d),
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
    Error::Driver { call, code: format!("{:?}", error.0) }
}
