//! Trains the weight of one layer on a GPU through the raw layer: addresses and a raw stream, as another library may have them.
//! A step is one CUDA graph, captured once and replayed; cudarc's event tracking may stay on.
use rmsnorm_cuda::cuda::{self, Calls, DeviceMemory, Kernels};
use rmsnorm_cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use rmsnorm_cuda::cudarc::driver::{CudaSlice, DevicePtr, DriverError, result::launch_kernel};
use rmsnorm_cuda::cudarc::nvrtc::compile_ptx;
use rmsnorm_cuda::{Backward, Dtype, Forward, Rows, Vector, WeightGradient, WeightOffset, scratch_len};

const ADD: &str = r#"extern "C" __global__ void add(float* to, float scale, const float* what, unsigned n) {
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) to[i] += scale * what[i];
}"#;

fn train() -> Result<(), Box<dyn std::error::Error>> {
    let (rows, hidden, eps, weight_offset, dtype) = (64, 256, 1e-6, WeightOffset::Zero, Dtype::F32);
    let context = cuda::context(0)?;
    let stream = context.new_stream()?;
    let (kernels, raw) = (Kernels::new(&context)?, stream.cu_stream());
    let add = context.load_module(compile_ptx(ADD)?)?.load_function("add")?;
    let add = |to: DeviceMemory, scale: f32, what: DeviceMemory| -> Result<(), DriverError> {
        let n = what.elements as u32;
        let args = [&raw const to.address as _, &raw const scale as _, &raw const what.address as _, &raw const n as _];
        // SAFETY: the arguments are those of `add`, and both buffers have n elements.
        unsafe { launch_kernel(add.cu_function(), (n.div_ceil(256), 1, 1), (256, 1, 1), 0, raw, &mut { args }) }
    };

    // A target that some weight reaches, and a weight of ones to begin with.
    let x = (0..rows * hidden).map(|i| (i as f32).sin()).collect();
    let wanted = (0..hidden).map(|i| (i as f32).cos()).collect();
    let sizes = [rows * hidden, rows * hidden, rows * hidden, rows, hidden, scratch_len(rows, hidden)?];
    let [y, target, dx, rstd, dw, scratch] = sizes.map(|elements| vec![0.0; elements]);
    let host = [x, y, target, dx, wanted, vec![1.0; hidden], rstd, dw, scratch];
    let data = host.iter().map(|host| stream.clone_htod(host)).collect::<Result<Vec<CudaSlice<f32>>, _>>()?;
    let memory = |i: usize| DeviceMemory { dtype, address: data[i].device_ptr(&stream).0, elements: data[i].len() };
    let [x, y, target, dx] = [0, 1, 2, 3].map(|i| Rows::contiguous(memory(i), hidden));
    let [wanted, weight, rstd, dw, scratch] = [4, 5, 6, 7, 8].map(|i| Vector::from(memory(i)));

    let forward = |weight, y| {
        let call = Forward {
            weight_offset,
            weight: Some(weight),
            rstd: Some(rstd),
            ..Forward::with_rows((rows, hidden), eps, x, y)
        };
        // SAFETY: `data` holds all operands, and they are used on this stream only.
        unsafe { kernels.forward(&call, raw) }
    };
    let (w, dw_to) = (Some(weight), Some(WeightGradient { dw, scratch }));
    let backward =
        Backward { weight_offset, weight: w, dw: dw_to, ..Backward::with_rows((rows, hidden), x, rstd, y, dx) };
    let same = Some(dtype);
    kernels.prepare(&Calls { weight: same, weight_offset, dw: same, ..Calls::new((rows, hidden), dtype) })?;
    forward(wanted, target)?;

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    forward(weight, y)?;
    add(y.data, -1.0, target.data)?; // The gradient of half the squared distance.
    // SAFETY: as in `forward`.
    unsafe { kernels.backward(&backward, raw)? };
    add(weight.data, -0.01, dw.data)?;
    let step = stream.end_capture(CUgraphInstantiate_flags(0))?.ok_or("nothing was captured")?;

    for i in 0..10 {
        step.launch()?;
        let loss: f32 = stream.clone_dtoh(&data[1])?.iter().map(|d| d * d).sum();
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
