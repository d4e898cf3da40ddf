//! The CUDA executor as checks want it: [`Replayed`] from a graph whose inputs have changed since it was captured, [`Beside`] other
//! work on the GPU. Slow, and of no use to anything but checks.

use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUmemPool_attribute, CUstream, CUstreamCaptureMode};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys};

use crate::cuda::host::Placed;
use crate::cuda::{Cuda, DeviceMemory, driver_error, library};
use crate::{Backward, Dtype, Error, Executor, Forward, Input, Rows, Slice, SliceMut, WeightGradient, scratch_len};

impl Cuda {
    /// Lets the device's memory pool keep what is freed. Otherwise every wait gives memory back to the system, and the next call asks
    /// for it again. This changes the device's pool for the whole process.
    pub fn keep_freed_memory(&self) -> Result<(), Error> {
        library::driver_with(&["cuDeviceGetDefaultMemPool", "cuMemPoolSetAttribute"])?;
        let mut pool = std::ptr::null_mut();
        let mut threshold = u64::MAX;
        // SAFETY: the device of a live context; the attribute's value is a u64, which is read during the call.
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&mut pool, self.stream.context().cu_device())
                .result()
                .map_err(|e| driver_error("cuDeviceGetDefaultMemPool", e))?;
            let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            sys::cuMemPoolSetAttribute(pool, attribute, std::ptr::from_mut(&mut threshold).cast())
                .result()
                .map_err(|e| driver_error("cuMemPoolSetAttribute", e))
        }
    }
}

/// Captures each call in a graph, replays it while its inputs hold other numbers, then with the inputs that the caller gave. Whether
/// the inputs are unchanged afterwards is looked at on the GPU, redzones included: another executor does not copy them back.
pub struct Replayed(Cuda);

impl Replayed {
    /// The executor, on the stream of `cuda`.
    pub fn new(cuda: &Cuda) -> Result<Self, Error> {
        library::driver_with(&[
            "cuStreamBeginCapture_v2",
            "cuStreamEndCapture",
            "cuGraphInstantiateWithFlags",
            "cuGraphLaunch",
            "cuGraphExecDestroy",
            "cuGraphDestroy",
        ])?;
        Ok(Replayed(cuda.clone()))
    }

    fn replay(&self, placed: &Placed<'_, '_>, launch: &dyn Fn(CUstream) -> Result<(), Error>) -> Result<(), Error> {
        let Cuda { stream, .. } = &self.0;
        placed.upload()?;
        placed.disturb_inputs()?;
        launch(stream.cu_stream())?; // Loads what a capture could not.
        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(|e| driver_error("cuStreamBeginCapture", e))?;
        let launched = launch(stream.cu_stream());
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).map_err(|e| driver_error("cuStreamEndCapture", e));
        launched?;
        let graph = graph?.ok_or(Error::Driver { call: "cuStreamEndCapture", code: "no graph".into() })?;
        let replay = || graph.launch().map_err(|e| driver_error("cuGraphLaunch", e));
        // The outputs hold what follows from those numbers, until a replay makes them anew from the caller's.
        replay()?;
        placed.upload_inputs()?;
        replay()?;
        placed.wait()?;
        match placed.changed_input()? {
            None => Ok(()),
            Some(element) => {
                let code = format!("it changed element {element} of the buffer of an input");
                Err(Error::Driver { call: "a replayed call", code })
            }
        }
    }
}

impl Executor for Replayed {
    fn name(&self) -> String {
        self.0.name()
    }

    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.forward_in_place(call.with_inputs())
    }

    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.0.forward_as(call, |placed, launch| self.replay(placed, launch))
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.backward_in_place(call.with_inputs())
    }

    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.0.backward_as(call, |placed, launch| self.replay(placed, launch))
    }
}

/// Runs each call while another stream has a queue of calls that take all multiprocessors, ring and all.
pub struct Beside {
    cuda: Cuda,
    other: Arc<CudaStream>,
    // Held until the last of those calls is done: `drop` waits.
    _tensors: Vec<CudaSlice<u8>>,
    call: Backward<DeviceMemory, DeviceMemory>,
}

impl Beside {
    /// The executor, on the stream of `cuda`.
    pub fn new(cuda: &Cuda) -> Result<Self, Error> {
        let other = cuda.stream.context().new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        let (rows, hidden) = (COMPETING_ROWS, COMPETING_HIDDEN);
        let mut tensors = Vec::new();
        let mut tensor = |dtype: Dtype, elements: usize| {
            let bytes = other.alloc_zeros::<u8>(elements * dtype.bytes()).map_err(|e| driver_error("cuMemAlloc", e))?;
            let address = bytes.device_ptr(&other).0;
            tensors.push(bytes);
            Ok::<_, Error>(DeviceMemory { dtype, address, elements })
        };
        let matrix = |data| Rows::contiguous(data, hidden);
        let (t, f32) = (Dtype::Bf16, Dtype::F32);
        let call = Backward {
            dw: Some(WeightGradient {
                dw: tensor(f32, hidden)?.into(),
                scratch: tensor(f32, scratch_len(rows, hidden)?)?.into(),
            }),
            ..Backward::with_rows(
                (rows, hidden),
                matrix(tensor(t, rows * hidden)?),
                tensor(f32, rows)?.into(),
                matrix(tensor(t, rows * hidden)?),
                matrix(tensor(t, rows * hidden)?),
            )
        };
        other.synchronize().map_err(|e| driver_error("cuStreamSynchronize", e))?;
        Ok(Beside { cuda: cuda.clone(), other, _tensors: tensors, call })
    }

    /// The call's operands are copied first, so that its kernels are what meets the others.
    fn run(&self, placed: &Placed<'_, '_>, launch: &dyn Fn(CUstream) -> Result<(), Error>) -> Result<(), Error> {
        placed.upload()?;
        self.compete()?;
        launch(placed.stream())
    }

    fn compete(&self) -> Result<(), Error> {
        for _ in 0..COMPETING_CALLS {
            // SAFETY: the tensors live until `drop` has waited, and calls on one stream run one after the other.
            unsafe { self.cuda.kernels.backward_tuned(&self.call, &self.cuda.tuning, self.other.cu_stream())? };
        }
        Ok(())
    }
}

impl Executor for Beside {
    fn name(&self) -> String {
        self.cuda.name()
    }

    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.forward_in_place(call.with_inputs())
    }

    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.cuda.forward_as(call, |placed, launch| self.run(placed, launch))
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.backward_in_place(call.with_inputs())
    }

    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.cuda.backward_as(call, |placed, launch| self.run(placed, launch))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.other.synchronize().ok(); // There is no one to tell.
    }
}

/// Wide enough for rings, and each call a few times as long as launching it takes.
const COMPETING_ROWS: usize = 4096;
const COMPETING_HIDDEN: usize = 4096;
const COMPETING_CALLS: usize = 3;
