//! The raw layer: exactly the expected driver calls.

use rmsnorm_cuda::cuda::library::driver;
use rmsnorm_cuda::cuda::steps::{Step, backward};
use rmsnorm_cuda::cuda::{DeviceMemory, Kernels, Tuning};
use rmsnorm_cuda::cudarc::driver::{CudaContext, sys::CUstream};
use rmsnorm_cuda::{Backward, BiasGradient, Dtype, Error, Forward, Rows, WeightGradient, scratch_len};

use super::{Library, alone, calls_of, context_and_stream, names};

/// The kernels, and a stream that is only a number.
pub(super) fn kernels() -> (Kernels, CUstream) {
    driver().expect("a stand-in");
    let context = CudaContext::new(0).expect("a stand-in");
    (Kernels::new(&context).expect("a stand-in"), std::ptr::without_provenance_mut(77))
}

/// Operands where no memory is, but for `dw`, which a call without rows clears: the stand-in touches nothing else.
pub(super) struct Operands {
    dtype: Dtype,
    rows: usize,
    hidden: usize,
    next: std::cell::Cell<u64>,
    dw: Vec<f32>,
}

impl Operands {
    pub(super) fn new(dtype: Dtype, rows: usize, hidden: usize) -> Self {
        Operands { dtype, rows, hidden, next: 512.into(), dw: vec![1.0; hidden] }
    }

    pub(super) fn memory(&self, dtype: Dtype, elements: usize) -> DeviceMemory {
        let address = self.next.get();
        // Room for one more, by which a test may shift it.
        self.next.set(address + (((elements + 1) * dtype.bytes()) as u64).next_multiple_of(512));
        DeviceMemory { dtype, address, elements }
    }

    fn matrix(&self) -> Rows<DeviceMemory> {
        Rows::contiguous(self.memory(self.dtype, self.rows * self.hidden), self.hidden)
    }

    pub(super) fn forward(&self) -> Forward<DeviceMemory, DeviceMemory> {
        Forward {
            weight: Some(self.memory(self.dtype, self.hidden).into()),
            rstd: Some(self.memory(Dtype::F32, self.rows).into()),
            ..Forward::with_rows((self.rows, self.hidden), 1e-6, self.matrix(), self.matrix())
        }
    }

    pub(super) fn backward(&self) -> Backward<DeviceMemory, DeviceMemory> {
        let needed = scratch_len(self.rows, self.hidden).expect("a width");
        Backward {
            weight: Some(self.memory(self.dtype, self.hidden).into()),
            dw: Some(WeightGradient {
                dw: DeviceMemory { dtype: self.dtype, address: self.dw.as_ptr() as u64, elements: self.hidden }.into(),
                scratch: self.memory(Dtype::F32, needed).into(),
            }),
            ..Backward::with_rows(
                (self.rows, self.hidden),
                self.matrix(),
                self.memory(Dtype::F32, self.rows).into(),
                self.matrix(),
                self.matrix(),
            )
        }
    }
}

/// What a compiled call does: it launches. It allocates nothing, waits for nothing, copies nothing.
#[test]
fn the_calls_of_a_call() {
    alone("raw::the_calls_of_a_call", Library::Complete, &[], || {
        let (kernels, stream) = kernels();
        let forward = |rows, hidden| {
            let call = Operands::new(Dtype::Bf16, rows, hidden).forward();
            // SAFETY: the stand-in runs no kernel, so no operand is read or written.
            unsafe { kernels.forward(&call, stream) }.expect("a forward call");
        };
        let backward = |rows, hidden| {
            let operands = Operands::new(Dtype::Bf16, rows, hidden);
            // SAFETY: as above, but `dw` may be cleared: it is a buffer of its length that lives until the end of this closure.
            unsafe { kernels.backward(&operands.backward(), stream) }.expect("a backward call");
        };
        for (rows, hidden, forward_calls, backward_calls) in GOLDEN {
            forward(rows, hidden); // Compiles, and so does the next.
            backward(rows, hidden);
            assert_eq!(calls_of(|| forward(rows, hidden)), forward_calls, "forward {rows}×{hidden}");
            assert_eq!(calls_of(|| backward(rows, hidden)), backward_calls, "backward {rows}×{hidden}");
        }
    });
}

/// db adds two launches to whatever else there is, with dw and without it, and one write of zeros where there are no rows.
#[test]
fn db_is_two_launches_more() {
    alone("raw::db_is_two_launches_more", Library::Complete, &[], || {
        let (kernels, stream) = kernels();
        for (rows, hidden, expected) in [
            (512, 4096, [256, 128]),
            (4096, 4096, [256, 128]),
            (1000, 65536, [256, 2048]),
            (100, 131_200, [513, 4100]),
            (65536, 128, [128, 4]),
        ] {
            let operands = Operands::new(Dtype::Bf16, rows, hidden);
            let needed = scratch_len(rows, hidden).expect("a width");
            let [with_dw, without] = [true, false].map(|with_dw| {
                let backward = |with_db: bool| {
                    let mut call = operands.backward();
                    call.dw = call.dw.filter(|_| with_dw);
                    let memory = |dtype, elements| operands.memory(dtype, elements).into();
                    let db = || BiasGradient { db: memory(Dtype::F32, hidden), scratch: memory(Dtype::F32, needed) };
                    call.db = with_db.then(db);
                    // SAFETY: the stand-in runs no kernel, so no operand is read or written.
                    unsafe { kernels.backward(&call, stream) }.expect("a backward call");
                };
                backward(true); // Compiles, and so does the next.
                backward(false);
                let (with_db, plain) = (calls_of(|| backward(true)), calls_of(|| backward(false)));
                // They come first, since dx may be where dy is.
                assert_eq!((&with_db[..1], &with_db[3..]), (&plain[..1], &plain[1..]), "{rows}×{hidden}");
                with_db[1..3].to_vec()
            });
            assert_eq!(with_dw, without, "{rows}×{hidden}");
            let [sums, folds] = expected.map(|blocks| format!("grid {blocks}x1x1 block "));
            assert!(with_dw[0].contains(&format!("bias_partials {sums}1024x")), "{rows}×{hidden}: {with_dw:?}");
            assert!(with_dw[1].contains(&format!("fold_partials {folds}")), "{rows}×{hidden}: {with_dw:?}");
        }
    });
}

/// Rows, width, and the calls of a forward and a backward call in bf16 on an H200.
const GOLDEN: [(usize, usize, &[&str], &[&str]); 6] = [
    (
        4096,
        4096,
        &["cuCtxGetCurrent", "cuLaunchKernel forward grid 2048x1x1 block 128x1x1 shared 0 stream 77"],
        &[
            "cuCtxGetCurrent",
            "cuLaunchKernel backward grid 128x1x1 block 512x1x1 shared 131072 stream 77",
            "cuLaunchKernel fold_partials grid 128x1x1 block 1024x1x1 shared 0 stream 77",
        ],
    ),
    (
        512,
        4096,
        &["cuCtxGetCurrent", "cuLaunchKernel forward_few grid 512x1x1 block 256x1x1 shared 0 stream 77"],
        &["cuCtxGetCurrent", "cuLaunchKernel backward_few grid 640x1x1 block 128x1x1 shared 0 stream 77"],
    ),
    (
        65536,
        128,
        &["cuCtxGetCurrent", "cuLaunchKernel forward grid 512x1x1 block 512x1x1 shared 0 stream 77"],
        &[
            "cuCtxGetCurrent",
            "cuLaunchKernel backward grid 512x1x1 block 256x1x1 shared 0 stream 77",
            "cuLaunchKernel fold_partials grid 4x1x1 block 1024x1x1 shared 0 stream 77",
        ],
    ),
    (
        1000,
        65536,
        &["cuCtxGetCurrent", "cuLaunchKernel forward grid 4000x1x1 block 256x1x1 shared 34816 stream 77"],
        &[
            "cuCtxGetCurrent",
            "cuLaunchKernel backward grid 120x1x1 block 1024x1x1 shared 198656 stream 77",
            "cuLaunchKernel fold_partials grid 2048x1x1 block 64x1x1 shared 0 stream 77",
        ],
    ),
    (
        100,
        131_200,
        &["cuCtxGetCurrent", "cuLaunchKernel forward grid 100x1x1 block 1024x1x1 shared 0 stream 77"],
        &[
            "cuCtxGetCurrent",
            "cuLaunchKernel columns grid 255x1x1 block 1024x1x1 shared 0 stream 77",
            "cuLaunchKernel backward grid 100x1x1 block 1024x1x1 shared 0 stream 77",
            "cuLaunchKernel fold_partials grid 4100x1x1 block 32x1x1 shared 0 stream 77",
        ],
    ),
    (0, 4096, &["cuCtxGetCurrent"], &["cuCtxGetCurrent", "cuMemsetD8Async 0 8192 bytes stream 77"]),
];

/// Of the host's memory too, prepared calls allocate nothing; one that compiles does.
#[test]
fn a_prepared_call_allocates_nothing() {
    alone("raw::a_prepared_call_allocates_nothing", Library::Complete, &[], || {
        let (kernels, stream) = kernels();
        for (rows, hidden) in [(64, 4096), (1000, 65536), (300, 128)] {
            let operands = Operands::new(Dtype::Bf16, rows, hidden);
            let (forward, backward) = (operands.forward(), operands.backward());
            // SAFETY: the stand-in runs no kernel, so no operand is read or written.
            let both = || unsafe { kernels.forward(&forward, stream).and(kernels.backward(&backward, stream)) };
            let allocated = || {
                let before = crate::ALLOCATIONS.get();
                assert_eq!(both(), Ok(()));
                crate::ALLOCATIONS.get() - before
            };
            assert!(allocated() > 0, "{rows}×{hidden}: it compiled");
            assert_eq!(allocated(), 0, "{rows}×{hidden}");
        }
    });
}

#[test]
fn a_failed_launch_is_the_error_of_its_call() {
    let fail = [("STAND_IN_FAIL", "cuLaunchKernel 2 701")];
    alone("raw::a_failed_launch_is_the_error_of_its_call", Library::Complete, &fail, || {
        let (kernels, stream) = kernels();
        let call = Operands::new(Dtype::Bf16, 64, 4096).forward();
        // SAFETY: the stand-in runs no kernel, so no operand is read or written.
        let launch = || unsafe { kernels.forward(&call, stream) };
        assert_eq!(launch(), Ok(()));
        let code = "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES".to_string();
        assert_eq!(launch(), Err(Error::Driver { call: "cuLaunchKernel", code }));
        assert_eq!(launch(), Ok(()));
    });
}

/// Every plan can be launched. Without asking, a block has 48 KiB, and what a kernel declares counts too: a ring of 45 KiB beside
/// 5 KiB is too much.
#[test]
fn every_ring_is_allowed() {
    alone("raw::every_ring_is_allowed", Library::Complete, &[], || {
        let (kernels, stream) = kernels();
        let mut just_below = 0;
        for dtype in Dtype::ALL {
            for hidden in (1..=512).chain((520..=20_000).step_by(40)) {
                let operands = Operands::new(dtype, 3, hidden);
                // The GPU's own plan, and that of one with less shared memory: a shorter ring.
                let mut small = kernels.tuning();
                small.arch.block_shared_bytes = 60 << 10;
                for tuning in [kernels.tuning(), small] {
                    let tuning = Tuning { few_rows: false, ..tuning };
                    // SAFETY: the stand-in runs no kernel, so no operand is read or written.
                    let launched = unsafe { kernels.forward_tuned(&operands.forward(), &tuning, stream) };
                    assert_eq!(launched, Ok(()), "forward 3×{hidden} {dtype}");
                    let call = operands.backward();
                    let steps = backward(&call, &tuning).expect("a call");
                    let rings =
                        steps.iter().map(|step| if let Step::Kernel(kernel) = step { kernel.shared_bytes } else { 0 });
                    just_below += rings.filter(|bytes| (44 << 10..=48 << 10).contains(bytes)).count();
                    // SAFETY: as above.
                    let launched = unsafe { kernels.backward_tuned(&call, &tuning, stream) };
                    assert_eq!(launched, Ok(()), "backward 3×{hidden} {dtype}");
                }
            }
        }
        println!("{just_below} rings of 44 to 48 KiB");
        assert!(just_below > 0);
    });
}

/// A call of this width, and so of a module of its own, on `stream`.
pub(super) fn forward(kernels: &Kernels, hidden: usize, stream: CUstream) -> Result<(), Error> {
    let call = Operands::new(Dtype::Bf16, 64, hidden).forward();
    // SAFETY: the stand-in runs no kernel, so no operand is read or written.
    unsafe { kernels.forward(&call, stream) }
}

pub(super) fn count(calls: &[String], name: &str) -> usize {
    names(calls).iter().filter(|n| **n == name).count()
}

/// The driver knows whose the stream is, and is asked only after it refused.
#[test]
fn a_stream_of_another_gpu() {
    alone(
        "raw::a_stream_of_another_gpu",
        Library::Complete,
        &[("STAND_IN_DEVICES", "2")],
        refuse_a_stream_of_another_gpu,
    );
}

pub(super) fn refuse_a_stream_of_another_gpu() {
    let (context, stream) = context_and_stream();
    let other = CudaContext::new(1).expect("a second GPU").new_stream().expect("a stand-in");
    let kernels = Kernels::new(&context).expect("a stand-in");
    let expected = Err(Error::Context { expected: 0, got: 1 });
    assert_eq!(forward(&kernels, 64, other.cu_stream()), expected);
    let operands = Operands::new(Dtype::Bf16, 0, 64);
    // SAFETY: without rows only `dw` is touched, a buffer of its length that lives on.
    let clear = |stream| unsafe { kernels.backward(&operands.backward(), stream) };
    assert_eq!(clear(other.cu_stream()), expected);
    let calls = calls_of(|| other.context().bind_to_thread().expect("the other context"));
    assert_eq!(names(&calls), ["cuCtxGetCurrent"], "the other context is not current any more");
    assert_eq!((forward(&kernels, 64, stream.cu_stream()), clear(stream.cu_stream())), (Ok(()), Ok(())));
    for handle in [0, 1, 2] {
        assert_eq!(forward(&kernels, 64, std::ptr::without_provenance_mut(handle)), Ok(()), "stream {handle}");
    }
}

/// What an earlier kernel did is not this call's error, and is not told as if it were; any other error is.
#[test]
fn a_kernel_that_failed_before() {
    for code in [700, 702, 710, 714, 715, 716, 717, 718, 719, 1, 701] {
        let fail = format!("cuLaunchKernel 2 {code}");
        let body = || {
            let (kernels, stream) = kernels();
            assert_eq!(forward(&kernels, 64, stream), Ok(()));
            let error = forward(&kernels, 64, stream).expect_err("refused");
            println!("{error}");
            let fail = std::env::var("STAND_IN_FAIL").expect("what fails");
            match error {
                Error::Fault { call: "cuLaunchKernel", .. } => assert!(fail.contains(" 7") && !fail.ends_with("701")),
                Error::Driver { call: "cuLaunchKernel", .. } => assert!(fail.ends_with(" 1") || fail.ends_with("701")),
                error => panic!("{error:?}"),
            }
        };
        let test = "raw::a_kernel_that_failed_before";
        if alone(test, Library::Complete, &[("STAND_IN_FAIL", &fail)], body).is_none() {
            return;
        }
    }
}

/// One `Kernels` serves many threads, each with a stream of its own, and compiles nothing twice.
#[test]
fn many_threads_share_the_kernels() {
    fn shared_between_threads<T: Send + Sync + 'static>(_: &T) {}
    let slow = [("STAND_IN_COMPILE_MS", "50")];
    alone("raw::many_threads_share_the_kernels", Library::Complete, &slow, || {
        let (context, _stream) = context_and_stream();
        let kernels = Kernels::new(&context).expect("a stand-in");
        shared_between_threads(&kernels);
        let calls = calls_of(|| {
            let work = |_| {
                let stream = context.new_stream().expect("a stand-in");
                for hidden in [64, 4096, 180, 5000, 4096, 64] {
                    let operands = Operands::new(Dtype::F16, 16, hidden);
                    // SAFETY: the stand-in runs no kernel, so no operand is read or written.
                    unsafe { kernels.forward(&operands.forward(), stream.cu_stream()) }.expect("a forward call");
                }
            };
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || work(i))).collect();
                threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
            });
        });
        let count = |name: &str| names(&calls).iter().filter(|n| **n == name).count();
        assert_eq!((count("nvrtcCompileProgram"), count("cuModuleLoadData"), count("cuLaunchKernel")), (4, 4, 48));
    });
}

/// Sizes at the end of the address range, where a product overflows: errors, or calls that need none of it.
#[test]
fn no_size_overflows() {
    alone("raw::no_size_overflows", Library::Complete, &[], || {
        let (kernels, stream) = kernels();
        for huge in [usize::MAX, usize::MAX / 2, usize::MAX / 4 + 1, isize::MAX as usize] {
            for rows in [0, 1] {
                let mut call = Operands::new(Dtype::F32, rows, 64).forward();
                call.x.row_stride = huge; // Irrelevant: there is no second row.
                if rows == 0 {
                    call.x.offset = huge; // And no first.
                }
                // SAFETY: the stand-in runs no kernel, so no operand is read or written.
                assert_eq!(unsafe { kernels.forward(&call, stream) }, Ok(()), "{huge} {rows}");
            }
            let mut call = Operands::new(Dtype::F32, 2, 64).forward();
            call.x.row_stride = huge;
            // SAFETY: as above.
            let launched = unsafe { kernels.forward(&call, stream) };
            assert!(matches!(launched, Err(Error::AddressRange { .. } | Error::Length { .. })), "{launched:?}");
        }
    });
}
