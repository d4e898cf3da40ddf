//! Trains the weight of one layer on a GPU through the typed layer. A step is one CUDA graph, captured once and replayed.
use std::sync::Arc;

use rmsnorm_cuda::cuda::{self, Kernels, Layer};
use rmsnorm_cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use rmsnorm_cuda::cudarc::driver::{CudaSlice, DriverError, LaunchConfig, PushKernelArg};
use rmsnorm_cuda::cudarc::nvrtc::compile_ptx;
use rmsnorm_cuda::{Dtype, WeightOffset};

const ADD: &str = r#"extern "C" __global__ void add(float* to, float scale, const float* what, unsigned n) {
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) to[i] += scale * what[i];
}"#;

fn train() -> Result<(), Box<dyn std::error::Error>> {
    let (rows, hidden) = (64, 256);
    let context = cuda::context(0)?;
    // SAFETY: all memory is used on one stream. A capture could not wait for the events that would track it.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    let kernels = Arc::new(Kernels::new(&context)?);
    let add = context.load_module(compile_ptx(ADD)?)?.load_function("add")?;
    let add = |to: &mut CudaSlice<f32>, scale: f32, what: &CudaSlice<f32>| -> Result<(), DriverError> {
        let n = what.len() as u32;
        // SAFETY: the arguments are those of `add`, and both buffers have n elements.
        unsafe {
            stream.launch_builder(&add).arg(to).arg(&scale).arg(what).arg(&n).launch(LaunchConfig::for_num_elems(n))
        }
        .map(drop)
    };

    // A target that some weight reaches, and a weight of ones to begin with.
    let x = stream.clone_htod(&(0..rows * hidden).map(|i| (i as f32).sin()).collect::<Vec<_>>())?;
    let wanted = stream.clone_htod(&(0..hidden).map(|i| (i as f32).cos()).collect::<Vec<_>>())?;
    let mut weight = stream.clone_htod(&vec![1.0_f32; hidden])?;
    let zeros = |elements| stream.alloc_zeros::<f32>(elements);
    let (mut target, mut y, mut dx) = (zeros(x.len())?, zeros(x.len())?, zeros(x.len())?);
    let (mut rstd, mut dw) = (zeros(rows)?, zeros(hidden)?);
    let mut layer = Layer::new(&kernels, &stream, (rows, hidden), 1e-6, WeightOffset::Zero)?;
    layer.prepare(rows, Dtype::F32, Some(Dtype::F32), Some(Dtype::F32))?;
    layer.forward(&x, Some((&wanted).into()), &mut target, None)?;

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    layer.forward(&x, Some((&weight).into()), &mut y, Some((&mut rstd).into()))?;
    add(&mut y, -1.0, &target)?; // The gradient of half the squared distance.
    layer.backward(&x, Some((&weight).into()), &rstd, &y, &mut dx, Some((&mut dw).into()))?;
    add(&mut weight, -0.01, &dw)?;
    let step = stream.end_capture(CUgraphInstantiate_flags(0))?.ok_or("nothing was captured")?;

    for i in 0..10 {
        step.launch()?;
        let loss: f32 = stream.clone_dtoh(&y)?.iter().map(|d| d * d).sum();
        println!("step {i}: loss {loss:.3e}");
    }
    Ok(())
}

fn main() {
    if let Err(error) = train() {
        eprintln!("cannot train: {error}");
        std::process::exit(1);
    }
}
