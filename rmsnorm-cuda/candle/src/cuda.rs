//! Calls on a GPU. Here is all `unsafe` code: memory is allocated as candle allocates it, and kernels are launched where and in the order in which
//! candle launches its own. So the raw layer of rmsnorm-cuda is what fits: its safe one refuses the per-thread stream of `Device::new_cuda`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Shape};
use rmsnorm_cuda::cuda::{Calls, DeviceMemory, Kernels};
use rmsnorm_cuda::cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop};
use rmsnorm_cuda::{Dtype, Vector, bf16, f16, scratch_len};

use crate::ops::{At, Options, RmsNorm, dtype};
use crate::rows::Place;

/// y, and rstd if gradients are wanted.
pub(crate) fn forward(
    op: &RmsNorm,
    x: &CudaStorage,
    weight: Option<At<CudaStorage>>,
) -> Result<(CudaStorage, Option<CudaStorage>)> {
    let Place { rows, hidden, .. } = op.at;
    let (device, stream) = (x.device(), x.device().cuda_stream());
    let kernels = kernels(device)?;
    let mut y = uninitialised(device, x.dtype(), rows * hidden)?;
    let mut rstd = op.tracked.then(|| uninitialised(device, DType::F32, rows)).transpose()?;
    {
        let (x, _x) = read(x, &stream)?;
        let (weight, _weight) = weight.map(|weight| vector(weight, &stream)).transpose()?.unzip();
        let (y, _y) = write(&mut y, &stream)?;
        let (rstd, _rstd) = rstd.as_mut().map(|rstd| write(rstd, &stream)).transpose()?.unzip();
        // SAFETY: every operand is a live allocation of this device, which cudarc lends until the guards go; on this stream it is used in the
        // order that candle gives to all its uses.
        unsafe { kernels.forward(&op.forward(x, weight, y, rstd), stream.cu_stream()) }.map_err(Error::wrap)?;
    }
    Ok((y, rstd))
}

/// dx, and dw if it is wanted.
pub(crate) fn backward(
    op: &RmsNorm,
    (x, weight, rstd): (&CudaStorage, Option<At<CudaStorage>>, &CudaStorage),
    (dy, dy_at): (&CudaStorage, Place),
    wants_dw: bool,
) -> Result<(CudaStorage, Option<CudaStorage>)> {
    let Place { rows, hidden, .. } = op.at;
    let (device, stream) = (x.device(), x.device().cuda_stream());
    let kernels = kernels(device)?;
    let mut dx = uninitialised(device, x.dtype(), rows * hidden)?;
    let dw = |(weight, _): At<CudaStorage>| {
        let needed = scratch_len(rows, hidden).map_err(Error::wrap)?;
        let dw = uninitialised(device, weight.dtype(), hidden)?;
        Ok::<_, Error>((dw, uninitialised(device, DType::F32, needed)?))
    };
    let mut dw = weight.filter(|_| wants_dw).map(dw).transpose()?;
    {
        let ((x, _x), (rstd, _rstd), (dy, _dy)) = (read(x, &stream)?, read(rstd, &stream)?, read(dy, &stream)?);
        let (weight, _weight) = weight.map(|weight| vector(weight, &stream)).transpose()?.unzip();
        let (dx, _dx) = write(&mut dx, &stream)?;
        let gradient = |(dw, scratch)| Ok::<_, Error>((write(dw, &stream)?, write(scratch, &stream)?));
        let dw = dw.as_mut().map(|(dw, scratch)| gradient((dw, scratch))).transpose()?;
        let (dw, _dw) = dw.map(|((dw, d), (scratch, s))| ((dw, scratch), (d, s))).unzip();
        // SAFETY: as in `forward`.
        unsafe { kernels.backward(&op.backward((x, weight, rstd), (dy, dy_at), dx, dw), stream.cu_stream()) }
            .map_err(Error::wrap)?;
    }
    Ok((dx, dw.map(|(dw, _)| dw)))
}

/// See [`prepare`](crate::prepare).
pub(crate) fn prepare(
    device: &CudaDevice,
    (rows, hidden): (usize, usize),
    dtype: Dtype,
    weight: Option<Dtype>,
    Options { weight_offset, rounding, .. }: Options,
) -> Result<()> {
    let calls = Calls { weight, weight_offset, rounding, dw: weight, ..Calls::new((rows, hidden), dtype) };
    kernels(device)?.prepare(&calls).map_err(Error::wrap)
}

/// The kernels of the device's context, which they keep alive.
fn kernels(device: &CudaDevice) -> Result<Arc<Kernels>> {
    static KERNELS: Mutex<BTreeMap<usize, Arc<Kernels>>> = Mutex::new(BTreeMap::new());
    let stream = device.cuda_stream();
    let mut all = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    let context = stream.context().cu_ctx().addr();
    if let Some(kernels) = all.get(&context) {
        return Ok(kernels.clone());
    }
    let kernels = Arc::new(Kernels::new(stream.context()).map_err(Error::wrap)?);
    all.insert(context, kernels.clone());
    Ok(kernels)
}

/// Memory for an output or scratch.
fn uninitialised(device: &CudaDevice, dtype: DType, elements: usize) -> Result<CudaStorage> {
    // The driver gives no memory without bytes.
    let shape = Shape::from(elements.max(1));
    // SAFETY: a call writes every element of its outputs, and what it reads of scratch; if it fails, nobody gets the memory.
    unsafe { device.alloc_uninit(&shape, dtype) }
}

/// An operand as cudarc lends it: the stream waits for its earlier uses, and later ones wait for the guard.
type Lent<'a, T> = (T, SyncOnDrop<'a>);

fn read<'a>(storage: &'a CudaStorage, stream: &'a CudaStream) -> Result<Lent<'a, DeviceMemory>> {
    fn of<'a, T: CudaDType + DeviceRepr + 'static>(
        storage: &'a CudaStorage,
        stream: &'a CudaStream,
        dtype: Dtype,
    ) -> Result<Lent<'a, DeviceMemory>> {
        let slice = storage.as_cuda_slice::<T>()?;
        let (address, guard) = slice.device_ptr(stream);
        Ok((DeviceMemory { dtype, address, elements: slice.len() }, guard))
    }
    match dtype(storage.dtype())? {
        Dtype::F32 => of::<f32>(storage, stream, Dtype::F32),
        Dtype::F16 => of::<f16>(storage, stream, Dtype::F16),
        Dtype::Bf16 => of::<bf16>(storage, stream, Dtype::Bf16),
    }
}

fn write<'a>(storage: &'a mut CudaStorage, stream: &'a CudaStream) -> Result<Lent<'a, DeviceMemory>> {
    fn of<'a, T: CudaDType + DeviceRepr + 'static>(
        storage: &'a mut CudaStorage,
        stream: &'a CudaStream,
        dtype: Dtype,
    ) -> Result<Lent<'a, DeviceMemory>> {
        let slice = storage.as_cuda_slice_mut::<T>()?;
        let elements = slice.len();
        let (address, guard) = slice.device_ptr_mut(stream);
        Ok((DeviceMemory { dtype, address, elements }, guard))
    }
    match dtype(storage.dtype())? {
        Dtype::F32 => of::<f32>(storage, stream, Dtype::F32),
        Dtype::F16 => of::<f16>(storage, stream, Dtype::F16),
        Dtype::Bf16 => of::<bf16>(storage, stream, Dtype::Bf16),
    }
}

fn vector<'a>(
    (storage, layout): At<'a, CudaStorage>,
    stream: &'a CudaStream,
) -> Result<Lent<'a, Vector<DeviceMemory>>> {
    let (data, guard) = read(storage, stream)?;
    Ok((Vector { data, offset: layout.start_offset() }, guard))
}
