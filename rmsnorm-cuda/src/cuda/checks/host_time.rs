//! What a prepared call costs the thread that makes it.

use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits};

use crate::cuda::kernels::{arg, launch};
use crate::cuda::loaded::Current;
use crate::cuda::steps::{self, Step, Steps};
use crate::cuda::{DeviceMemory, Kernels, Layer, driver_error};
use crate::{Backward, Dtype, Error, Forward, Rows, WeightGradient, WeightOffset, bf16, scratch_len};

/// Microseconds that one call takes the thread that makes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostTime {
    /// Nothing but `cuLaunchKernel`, for each kernel of the call.
    pub bare_us: f64,
    /// By the raw layer.
    pub raw_us: f64,
    /// By the typed layer's short form.
    pub typed_us: f64,
}

const ROWS: usize = 64;
const HIDDEN: usize = 4096;
const EPS: f32 = 1e-5;
/// A median of so many batches, each short enough that the stream takes it without waiting.
const BATCHES: usize = 31;
const CALLS: usize = 100;

/// Forward, and backward with dw, of 64 × 4096 elements of bf16. Wants a stream of a context without event tracking.
pub fn host_times(kernels: &Arc<Kernels>, stream: &Arc<CudaStream>) -> Result<[HostTime; 2], Error> {
    let (x, dy, weight) = (zeros(stream, ROWS * HIDDEN)?, zeros(stream, ROWS * HIDDEN)?, zeros(stream, HIDDEN)?);
    let (mut y, mut dx, mut dw) =
        (zeros(stream, ROWS * HIDDEN)?, zeros(stream, ROWS * HIDDEN)?, zeros(stream, HIDDEN)?);
    let (mut rstd, scratch) = (zeros::<f32>(stream, ROWS)?, zeros::<f32>(stream, scratch_len(ROWS, HIDDEN)?)?);
    let of = |buffer: &CudaSlice<bf16>| memory(stream, buffer, Dtype::Bf16);
    let of_f32 = |buffer: &CudaSlice<f32>| memory(stream, buffer, Dtype::F32);
    let rows = |buffer: &CudaSlice<bf16>| Rows::contiguous(of(buffer), HIDDEN);
    let forward = Forward {
        weight: Some(of(&weight).into()),
        rstd: Some(of_f32(&rstd).into()),
        ..Forward::with_rows((ROWS, HIDDEN), EPS, rows(&x), rows(&y))
    };
    let backward = Backward {
        weight: Some(of(&weight).into()),
        dw: Some(WeightGradient { dw: of(&dw).into(), scratch: of_f32(&scratch).into() }),
        ..Backward::with_rows((ROWS, HIDDEN), rows(&x), of_f32(&rstd).into(), rows(&dy), rows(&dx))
    };
    let raw = stream.cu_stream();
    // SAFETY: the buffers live until the end of this function, which waits, and are used on this stream only.
    let raw_us = [
        time(stream, || unsafe { kernels.forward(&forward, raw) })?,
        time(stream, || unsafe { kernels.backward(&backward, raw) })?,
    ];
    let tuning = kernels.tuning();
    let bare_us = [
        // SAFETY: as above.
        unsafe { bare(kernels, stream, &steps::forward(&forward, &tuning)?)? },
        // SAFETY: as above.
        unsafe { bare(kernels, stream, &steps::backward(&backward, &tuning)?)? },
    ];
    let mut layer = Layer::new(kernels, stream, (ROWS, HIDDEN), EPS, WeightOffset::Zero)?;
    let typed_us = [
        time(stream, || layer.forward(&x, Some((&weight).into()), &mut y, Some((&mut rstd).into())))?,
        time(stream, || layer.backward(&x, Some((&weight).into()), &rstd, &dy, &mut dx, Some((&mut dw).into())))?,
    ];
    Ok([0, 1].map(|i| HostTime { bare_us: bare_us[i], raw_us: raw_us[i], typed_us: typed_us[i] }))
}

/// # Safety
/// The operands that these steps work on live until the stream has passed.
unsafe fn bare(kernels: &Kernels, stream: &Arc<CudaStream>, steps: &Steps) -> Result<f64, Error> {
    let _current = Current::set(stream.context())?;
    let kernel = |step: &Step| if let Step::Kernel(kernel) = step { Some(*kernel) } else { None };
    let all = steps.iter().filter_map(kernel);
    let all = all.map(|kernel| Ok((kernel, kernels.function(&kernel, false)?))).collect::<Result<Vec<_>, Error>>()?;
    time(stream, || {
        all.iter().try_for_each(|(kernel, function)| {
            let shape = (kernel.blocks, kernel.threads, kernel.shared_bytes);
            // SAFETY: steps.rs fills the cells of this kernel; the operands live, as this function's own `# Safety` demands.
            unsafe { launch(*function, shape, &kernel.arguments.each_ref().map(arg), stream.cu_stream()) }
                .map_err(|e| driver_error("cuLaunchKernel", e))
        })
    })
}

fn time(stream: &CudaStream, mut call: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let wait = || stream.synchronize().map_err(|e| driver_error("cuStreamSynchronize", e));
    call()?; // Compiles.
    let mut us = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        wait()?;
        let begun = Instant::now();
        (0..CALLS).try_for_each(|_| call())?;
        us.push(begun.elapsed().as_secs_f64() * 1e6 / CALLS as f64);
    }
    wait()?;
    us.sort_by(f64::total_cmp);
    Ok(us[BATCHES / 2])
}

fn zeros<T: DeviceRepr + ValidAsZeroBits>(stream: &Arc<CudaStream>, elements: usize) -> Result<CudaSlice<T>, Error> {
    stream.alloc_zeros(elements).map_err(|e| driver_error("cuMemAllocAsync", e))
}

fn memory<T>(stream: &CudaStream, buffer: &CudaSlice<T>, dtype: Dtype) -> DeviceMemory {
    DeviceMemory { dtype, address: buffer.device_ptr(stream).0, elements: buffer.len() }
}
