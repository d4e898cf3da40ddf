//! The kernels on memory and a stream of some other wrapper of the driver, here forty lines that stand for cuda-core, cust, or a host program in C++. What is
//! common is the context, the GPU's primary one. Prints whether the bits are those of the CPU.
use rmsnorm_cuda::cuda::{self, DeviceMemory, Kernels};
use rmsnorm_cuda::{Cpu, Dtype, Executor, Forward, Slice, SliceMut, WeightOffset};

/// Another wrapper of the driver: it knows nothing of cudarc.
mod theirs {
    use std::ffi::{c_int, c_uint, c_void};

    pub(crate) struct Driver(libloading::Library);
    pub(crate) type Stream = *mut c_void;
    type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

    macro_rules! call {
        ($driver:expr, $name:literal($($type:ty: $argument:expr),*)) => {{
            // SAFETY: the types are those that cuda.h gives the function, and pointers lead to as many bytes as it is told of.
            let code = unsafe {
                let function = $driver.0.get::<unsafe extern "C" fn($($type),*) -> c_int>($name)?;
                function($($argument),*)
            };
            if code != 0 {
                return Err(format!("error {code} of {}", String::from_utf8_lossy($name)).into());
            }
        }};
    }

    impl Driver {
        /// With the primary context of the first GPU current in this thread.
        pub(crate) fn new() -> Result<Self> {
            // SAFETY: the initialisers of the vendor's library are trusted.
            let driver = Driver(unsafe { libloading::Library::new("libcuda.so.1") }?);
            let (mut device, mut context) = (0, std::ptr::null_mut());
            call!(driver, b"cuInit"(c_uint: 0));
            call!(driver, b"cuDeviceGet"(*mut c_int: &mut device, c_int: 0));
            call!(driver, b"cuDevicePrimaryCtxRetain"(*mut *mut c_void: &mut context, c_int: device));
            call!(driver, b"cuCtxSetCurrent"(*mut c_void: context));
            Ok(driver)
        }
        pub(crate) fn stream(&self) -> Result<Stream> {
            let mut stream = std::ptr::null_mut();
            call!(self, b"cuStreamCreate"(*mut Stream: &mut stream, c_uint: 1));
            Ok(stream)
        }
        /// The address of a copy of `data`.
        pub(crate) fn copy_of(&self, data: &[f32], stream: Stream) -> Result<u64> {
            let mut address = 0;
            call!(self, b"cuMemAlloc_v2"(*mut u64: &mut address, usize: size_of_val(data)));
            let (from, bytes) = (data.as_ptr().cast(), size_of_val(data));
            call!(self, b"cuMemcpyHtoDAsync_v2"(u64: address, *const c_void: from, usize: bytes, Stream: stream));
            Ok(address)
        }
        pub(crate) fn read(&self, data: &mut [f32], address: u64, stream: Stream) -> Result<()> {
            let (to, bytes) = (data.as_mut_ptr().cast(), size_of_val(data));
            call!(self, b"cuMemcpyDtoHAsync_v2"(*mut c_void: to, u64: address, usize: bytes, Stream: stream));
            call!(self, b"cuStreamSynchronize"(Stream: stream));
            Ok(())
        }
    }
}

/// The norm of some rows by way of their memory and their stream; fails if it has not the bits of the CPU.
pub(crate) fn run() -> Result<(), Box<dyn std::error::Error>> {
    let (rows, hidden, eps) = (100, 1000, 1e-6);
    let x: Vec<f32> = (0..rows * hidden).map(|i| (i as f32).sin()).collect();
    let weight: Vec<f32> = (0..hidden).map(|i| (i as f32).cos()).collect();
    let [mut y, mut expected] = [(); 2].map(|()| vec![f32::NAN; rows * hidden]);

    // Ours first: without a driver it says where it looked.
    let kernels = Kernels::new(&cuda::context(0)?)?;
    let driver = theirs::Driver::new()?;
    let stream = driver.stream()?;
    let memory = |data: &[f32]| {
        let address = driver.copy_of(data, stream)?;
        Ok::<_, Box<dyn std::error::Error>>(DeviceMemory { dtype: Dtype::F32, address, elements: data.len() })
    };
    let (x_there, weight_there, y_there) = (memory(&x)?, memory(&weight)?, memory(&y)?);
    let call = Forward {
        weight_offset: WeightOffset::One,
        weight: Some(weight_there.into()),
        ..Forward::new((rows, hidden), eps, x_there, y_there)
    };
    // SAFETY: the memory is of this GPU, stays, and is used on this stream only.
    unsafe { kernels.forward(&call, stream.cast()) }?;
    driver.read(&mut y, y_there.address, stream)?;

    Cpu.forward(Forward {
        weight_offset: WeightOffset::One,
        weight: Some(Slice::F32(&weight).into()),
        ..Forward::new((rows, hidden), eps, Slice::F32(&x), SliceMut::F32(&mut expected))
    })?;
    let same = y.iter().zip(&expected).all(|(y, e)| y.to_bits() == e.to_bits());
    if same { Ok(()) } else { Err("other bits than on the CPU".into()) }
}

#[allow(dead_code)] // The test `gpu` calls `run` itself.
fn main() {
    match run() {
        Ok(()) => println!("the bits of the CPU"),
        Err(error) => {
            eprintln!("not run: {error}");
            std::process::exit(1);
        }
    }
}
