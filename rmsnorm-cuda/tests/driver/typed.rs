//! The typed layer: the raw layer's calls, in order with other uses of the memory.

use std::sync::Arc;

use rmsnorm_cuda::cuda::library::{DRIVER_FUNCTIONS, driver};
use rmsnorm_cuda::cuda::{GpuSlice, Kernels, Layer};
use rmsnorm_cuda::cudarc::driver::sys::CUresult;
use rmsnorm_cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use rmsnorm_cuda::{Backward, Dtype, Error, Forward, Residual, Rounding, Rows, WeightOffset, bf16};

use super::raw::Operands;
use super::{Library, alone, begin_capture, calls_of, context_and_stream, end_capture, names};

/// A layer and what it works on: 64 rows of 4096 in bf16, a weight in f32.
struct Training {
    layer: Layer,
    matrices: [CudaSlice<bf16>; 4],
    weight: CudaSlice<f32>,
    rstd: CudaSlice<f32>,
    dw: CudaSlice<f32>,
}

impl Training {
    fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Self {
        let kernels = Arc::new(Kernels::new(context).expect("a stand-in"));
        let (rows, hidden) = (64, 4096);
        let layer = Layer::new(&kernels, stream, (rows, hidden), 1e-6, WeightOffset::Zero).expect("a layer");
        let layer = layer.with_rounding(Rounding::Twice);
        layer.prepare(rows, Dtype::Bf16, Some(Dtype::F32), Some(Dtype::F32)).expect("prepared");
        // What is prepared and what is launched are of one kind: a step would load it otherwise.
        let loaded = kernels.loaded();
        assert!(loaded.iter().all(|(name, _)| name.contains("rounded twice") || name.contains("fold")), "{loaded:?}");
        let matrices = [(); 4].map(|()| stream.alloc_zeros::<bf16>(rows * hidden).expect("memory"));
        let vector = |elements| stream.alloc_zeros::<f32>(elements).expect("memory");
        Training { layer, matrices, weight: vector(hidden), rstd: vector(rows), dw: vector(hidden) }
    }

    /// Forward, then backward, and what each asked of the driver.
    fn step(&mut self) -> [(Result<(), Error>, Vec<String>); 2] {
        let Training { layer, matrices: [x, y, dy, dx], weight, rstd, dw } = self;
        let (mut forward, mut backward) = (Ok(()), Ok(()));
        let forward_calls = calls_of(|| {
            forward = layer.forward(&*x, Some((&*weight).into()), y, Some((&mut *rstd).into()));
        });
        let backward_calls = calls_of(|| {
            backward = layer.backward(&*x, Some((&*weight).into()), &*rstd, &*dy, dx, Some(dw.into()));
        });
        [(forward, forward_calls), (backward, backward_calls)]
    }
}

/// The typed layer orders its launches with other uses of the memory, by cudarc's events and by nothing else.
#[test]
fn the_typed_layer_waits_and_records() {
    fn shared_between_threads<T: Send + Sync + 'static>(_: &T) {}
    alone("typed::the_typed_layer_waits_and_records", Library::Complete, &[], || {
        let (context, stream) = context_and_stream();
        let mut training = Training::new(&context, &stream);
        shared_between_threads(&training.layer);
        for (result, calls) in training.step() {
            assert_eq!(result, Ok(()));
            let names = names(&calls);
            let at = |name: &str| {
                let at: Vec<usize> = (0..names.len()).filter(|i| names[*i] == name).collect();
                (at.len(), at.first().copied().unwrap_or(0), at.last().copied().unwrap_or(0))
            };
            let (launches, first_launch, last_launch) = at("cuLaunchKernel");
            let (waits, _, last_wait) = at("cuStreamWaitEvent");
            let (records, first_record, _) = at("cuEventRecord");
            // Four operands; or seven, the scratch among them. What is written waits for readers and writers.
            assert!(matches!((launches, waits, records), (1, 6, 4) | (1, 10, 7)), "{calls:#?}");
            assert!(last_wait < first_launch && last_launch < first_record, "{calls:#?}");
            assert_eq!(at("cuStreamIsCapturing").0, 1);
            assert!(names.iter().all(|name| DRIVER_FUNCTIONS.contains(name)), "{calls:#?}");
            assert_eq!(at("cuCtxGetCurrent").0 + launches + waits + records + 1, names.len(), "{calls:#?}");
        }
        // Without tracking: only the launches.
        let (context, stream) = context_and_stream();
        // SAFETY: everything below is used on one stream.
        unsafe { context.disable_event_tracking() };
        let mut training = Training::new(&context, &stream);
        let [(forward, forward_calls), (backward, backward_calls)] = training.step();
        assert_eq!((forward, backward), (Ok(()), Ok(())));
        assert_eq!(names(&forward_calls), ["cuCtxGetCurrent", "cuLaunchKernel"]);
        assert_eq!(names(&backward_calls), ["cuCtxGetCurrent", "cuLaunchKernel"]);
    });
}

#[test]
fn captures_of_the_typed_layer() {
    alone("typed::captures_of_the_typed_layer", Library::Complete, &[], || {
        let (context, stream) = context_and_stream();
        let mut training = Training::new(&context, &stream);
        begin_capture(&stream);
        for (result, calls) in training.step() {
            let error = result.expect_err("tracked memory");
            println!("{error}");
            assert_eq!(error, Error::EventTracking);
            assert!(error.to_string().contains("disable_event_tracking"));
            // Nothing that would end the capture.
            assert!(
                !names(&calls).iter().any(|name| ["cuStreamWaitEvent", "cuLaunchKernel"].contains(name)),
                "{calls:#?}"
            );
        }
        end_capture(&stream);
        assert!(context.is_event_tracking(), "the setting is the caller's");
        // SAFETY: everything below is used on one stream.
        unsafe { context.disable_event_tracking() };
        begin_capture(&stream);
        for (result, calls) in training.step() {
            assert_eq!(result, Ok(()));
            assert!(
                names(&calls).iter().all(|name| ["cuCtxGetCurrent", "cuLaunchKernel"].contains(name)),
                "{calls:#?}"
            );
        }
        end_capture(&stream);
    });
}

/// A stream that could not be made to wait is given nothing to do, and a use that could not be recorded is told at once.
#[test]
fn an_event_that_fails_is_the_error_of_its_call() {
    let body = || {
        let waits = std::env::var("STAND_IN_FAIL").is_ok_and(|fail| fail.starts_with("cuStreamWaitEvent"));
        let (context, stream) = context_and_stream();
        let mut training = Training::new(&context, &stream);
        let [(forward, calls), (backward, _)] = training.step();
        let call = if waits { "cuStreamWaitEvent" } else { "cuEventRecord" };
        let code = "CUDA_ERROR_ILLEGAL_ADDRESS".to_string();
        assert_eq!(forward, Err(Error::Fault { call, code }), "{calls:#?}");
        assert_eq!(names(&calls).contains(&"cuLaunchKernel"), !waits, "{calls:#?}");
        assert_eq!(backward, Ok(()));
    };
    // Zeroing the seven buffers takes 14 waits and 7 records; the next 6 and 4 are forward's.
    for fail in ["cuStreamWaitEvent 19 700", "cuEventRecord 9 700"] {
        let test = "typed::an_event_that_fails_is_the_error_of_its_call";
        if alone(test, Library::Complete, &[("STAND_IN_FAIL", fail)], body).is_none() {
            return;
        }
    }
}

/// cudarc keeps an error that a drop met for the next call that can return one. That is not one of ours, and it stays kept.
#[test]
fn an_error_of_others_is_left_to_them() {
    alone("typed::an_error_of_others_is_left_to_them", Library::Complete, &[], || {
        let (context, stream) = context_and_stream();
        let mut training = Training::new(&context, &stream);
        let theirs = || Err::<(), _>(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
        context.record_err(theirs());
        let kernels = Kernels::new(&context).expect("a stand-in");
        let call = Operands::new(Dtype::Bf16, 64, 4096).forward();
        // SAFETY: the stand-in runs no kernel, so no operand is read or written.
        unsafe { kernels.forward(&call, stream.cu_stream()) }.expect("a forward call");
        let (x, weight) = {
            assert_eq!(context.check_err(), theirs());
            let memory = |n| stream.alloc_zeros::<bf16>(n).expect("memory");
            (memory(64 * 4096), memory(4096))
        };
        let mut y = stream.alloc_zeros::<bf16>(64 * 4096).expect("memory");
        context.record_err(theirs());
        let calls =
            calls_of(|| training.layer.forward(&x, Some((&weight).into()), &mut y, None).expect("a forward call"));
        assert_eq!(names(&calls).iter().filter(|name| **name == "cuStreamWaitEvent").count(), 4, "{calls:#?}");
        assert_eq!(context.check_err(), theirs());
        let [(forward, _), (backward, _)] = training.step();
        assert_eq!((forward, backward), (Ok(()), Ok(())));
    });
}

/// The thread's current context is afterwards what it was, and other GPUs' memory and streams are refused.
#[test]
fn two_gpus() {
    alone("typed::two_gpus", Library::Complete, &[("STAND_IN_DEVICES", "2")], || {
        let (context, stream) = context_and_stream();
        let mut training = Training::new(&context, &stream);
        let kernels = Kernels::new(&context).expect("a stand-in");
        let other = CudaContext::new(1).expect("a stand-in");
        let other_stream = other.new_stream().expect("a stand-in");
        let call = Operands::new(Dtype::Bf16, 64, 4096).forward();
        // SAFETY: the stand-in runs no kernel, so no operand is read or written.
        unsafe { kernels.forward(&call, stream.cu_stream()) }.expect("a forward call");
        drop(kernels);
        let other_is_current = || {
            let calls = calls_of(|| other.bind_to_thread().expect("the other context"));
            assert_eq!(names(&calls), ["cuCtxGetCurrent"], "the other context is not current any more");
        };
        other_is_current();
        for (result, _) in training.step() {
            assert_eq!(result, Ok(()));
            other_is_current();
        }

        let expected = Error::Context { expected: 0, got: 1 };
        let other_kernels = Arc::new(Kernels::new(&other).expect("a stand-in"));
        let error = Layer::new(&other_kernels, &stream, (1, 64), 0.0, WeightOffset::Zero).err();
        assert_eq!(error, Some(Error::Context { expected: 1, got: 0 }));
        let memory = |stream: &Arc<CudaStream>| stream.alloc_zeros::<bf16>(64 * 4096).expect("memory");
        let (x, mut y) = (memory(&stream), memory(&stream));
        let (other_x, mut other_y) = (memory(&other_stream), memory(&other_stream));
        assert_eq!(training.layer.forward(&other_x, None, &mut y, None), Err(expected.clone()));
        assert_eq!(training.layer.forward(&x, None, &mut other_y, None), Err(expected));
        let [(forward, _), (backward, _)] = training.step();
        assert_eq!((forward, backward), (Ok(()), Ok(())));
    });
}

/// Where cudarc does not track, a call is taken only if all uses are on one stream, or the caller said that order is theirs.
#[test]
fn untracked_memory() {
    let refused = |result: Result<(), Error>, calls: &[String]| {
        assert_eq!(result, Err(Error::Untracked));
        assert!(!names(calls).contains(&"cuLaunchKernel"), "{calls:#?}");
    };
    let launches = |calls: &[String]| names(calls).iter().filter(|name| **name == "cuLaunchKernel").count();
    alone("typed::untracked_memory", Library::Complete, &[], || {
        driver().expect("a stand-in");
        let context = CudaContext::new(0).expect("a stand-in");
        // No stream but the null stream: in order, without events.
        let mut training = Training::new(&context, &context.default_stream());
        for (result, calls) in training.step() {
            assert_eq!((result, names(&calls).len(), launches(&calls)), (Ok(()), 2, 1));
        }
        // The per-thread stream is another one in each thread, the scratch is the layer's, and nobody waits.
        let per_thread = context.per_thread_stream();
        let mut on_per_thread = Training::new(&context, &per_thread);
        for (result, calls) in on_per_thread.step() {
            refused(result, &calls);
        }
        // Memory of the one stream, used on the other.
        std::mem::swap(&mut training.matrices, &mut on_per_thread.matrices);
        for (result, calls) in training.step() {
            refused(result, &calls);
        }
        std::mem::swap(&mut training.matrices, &mut on_per_thread.matrices);

        // A stream of cudarc's own: now every use is tracked, on whatever stream.
        let stream = context.new_stream().expect("a stand-in");
        for training in [&mut training, &mut on_per_thread] {
            for ((result, calls), (waits, records)) in training.step().into_iter().zip([(6, 4), (10, 7)]) {
                assert_eq!(result, Ok(()));
                let count = |name: &str| names(&calls).iter().filter(|n| **n == name).count();
                assert_eq!((count("cuStreamWaitEvent"), count("cuEventRecord")), (waits, records), "{calls:#?}");
            }
        }
        // A second value for the context, without that stream: its calls would wait, but not record.
        let again = CudaContext::new(0).expect("a stand-in");
        let kernels = Kernels::new(&again).expect("a stand-in");
        let (x, mut y) = (&training.matrices[0], stream.alloc_zeros::<bf16>(64 * 4096).expect("memory"));
        let null = again.default_stream();
        let mut call = || {
            let call = Forward::new((64, 4096), 0.0, x.into(), (&mut y).into());
            let mut result = Ok(());
            let calls = calls_of(|| result = kernels.forward_on(&null, call));
            (result, calls)
        };
        let (result, calls) = call();
        refused(result, &calls);
        // SAFETY: nothing of this is used by the GPU.
        unsafe { again.disable_event_tracking() };
        assert_eq!(call().0, Ok(()));

        // Order is the caller's again.
        drop((kernels, y, stream));
        assert!(!context.is_in_multi_stream_mode());
        for (result, calls) in on_per_thread.step() {
            refused(result, &calls);
        }
        // SAFETY: as above.
        unsafe { context.disable_event_tracking() };
        for (result, _) in on_per_thread.step() {
            assert_eq!(result, Ok(()));
        }
    });
}

/// A thread that did not allocate the scratch on its own per-thread stream waits until it is there.
#[test]
fn the_scratch_of_the_per_thread_stream() {
    alone("typed::the_scratch_of_the_per_thread_stream", Library::Complete, &[], || {
        let (context, _stream) = context_and_stream();
        let kernels = Arc::new(Kernels::new(&context).expect("a stand-in"));
        let new = |stream: &Arc<CudaStream>| {
            calls_of(|| {
                Layer::new(&kernels, stream, (64, 4096), 1e-6, WeightOffset::Zero).expect("a layer");
            })
        };
        let calls = new(&context.per_thread_stream());
        let at = |name: &str| names(&calls).iter().position(|n| *n == name);
        assert!(at("cuMemAllocAsync").is_some() && at("cuMemAllocAsync") < at("cuEventRecord"), "{calls:#?}");
        assert!(!names(&new(&_stream)).contains(&"cuEventRecord"));
    });
}

/// The typed layer refuses what does not fit before anything is launched.
#[test]
fn shapes_of_the_typed_layer() {
    alone("typed::shapes_of_the_typed_layer", Library::Complete, &[], || {
        let (context, stream) = context_and_stream();
        let kernels = Arc::new(Kernels::new(&context).expect("a stand-in"));
        let layer = |rows, hidden| Layer::new(&kernels, &stream, (rows, hidden), 0.0, WeightOffset::Zero);
        assert_eq!(layer(4, 0).err(), Some(Error::Hidden { got: 0 }));
        let mut layer = layer(4, 8).expect("a layer");
        let memory = |n| stream.alloc_zeros::<f32>(n).expect("memory");
        let (x, mut y, weight) = (memory(33), memory(40), memory(8));
        let forward = layer.forward(&x, None, &mut y, None);
        assert_eq!(forward, Err(Error::Length { operand: "x", needed: 40, got: 33 }));
        let calls = calls_of(|| {
            let x = x.slice(1..33); // Four rows, not aligned.
            assert_eq!(layer.forward(&x, Some((&weight.slice(..8)).into()), &mut y.slice_mut(3..35), None), Ok(()));
        });
        assert_eq!(names(&calls).iter().filter(|name| **name == "cuLaunchKernel").count(), 1);
        let short = weight.slice(..7);
        let forward = layer.forward(&x.slice(..32), Some((&short).into()), &mut y, None);
        assert_eq!(forward, Err(Error::Length { operand: "weight", needed: 8, got: 7 }));
        let mut halves = stream.alloc_zeros::<bf16>(8).expect("memory");
        assert_eq!(
            layer.forward(&x.slice(..32), Some((&halves).into()), &mut y, None),
            Ok(()),
            "a bf16 weight of f32 rows"
        );
        let forward = layer.forward(&x.slice(..32), None, &mut y, Some((&mut halves).into()));
        assert_eq!(forward, Err(Error::ElementType { operand: "rstd", expected: Dtype::F32, got: Dtype::Bf16 }));
        // More rows than the scratch is for.
        let (many, rstd, mut dx, mut dw) = (memory(80), memory(10), memory(80), memory(8));
        let backward = layer.backward(&many, None, &rstd, &many, &mut dx, Some((&mut dw).into()));
        assert_eq!(backward, Err(Error::Length { operand: "scratch", needed: 80, got: 32 }));
        assert_eq!(layer.backward(&many, None, &rstd, &many, &mut dx, None), Ok(()));
    });
}

/// A layer of heads wants a weight each, has scratch for each, and launches as often as another.
#[test]
fn a_layer_of_heads() {
    alone("typed::a_layer_of_heads", Library::Complete, &[], || {
        let (context, stream) = context_and_stream();
        let kernels = Arc::new(Kernels::new(&context).expect("a stand-in"));
        let layer = Layer::new(&kernels, &stream, (3 * 16385, 8), 0.0, WeightOffset::Zero).expect("a layer");
        let mut layer = layer.with_heads(3).expect("memory");
        let memory = |n| stream.alloc_zeros::<f32>(n).expect("memory");
        let rows = 3 * 16385;
        let (x, mut y, rstd) = (memory(8 * rows), memory(8 * rows), memory(rows));
        let (weight, mut dw) = (memory(24), memory(24));
        let short = weight.slice(..23);
        let forward = layer.forward(&x, Some((&short).into()), &mut y, None);
        assert_eq!(forward, Err(Error::Length { operand: "weight", needed: 24, got: 23 }));
        let calls = calls_of(|| {
            assert_eq!(layer.forward(&x, Some((&weight).into()), &mut y, None), Ok(()));
            let dw = Some((&mut dw).into());
            assert_eq!(layer.backward(&x, Some((&weight).into()), &rstd, &x, &mut y, dw), Ok(()));
        });
        // y; rows and a fold.
        assert_eq!(names(&calls).iter().filter(|name| **name == "cuLaunchKernel").count(), 3);
        let Err(Error::Inner { got: 3, rows: 1 }) = layer.forward(&x.slice(..8), None, &mut y, None) else {
            panic!("one row of three heads")
        };
    });
}

/// A layer's calls take what its short forms do not, and have its scratch.
#[test]
fn calls_of_a_layer() {
    alone("typed::calls_of_a_layer", Library::Complete, &[], || {
        let (context, stream) = context_and_stream();
        let kernels = Arc::new(Kernels::new(&context).expect("a stand-in"));
        let mut layer = Layer::new(&kernels, &stream, (4, 8), 0.0, WeightOffset::Zero).expect("a layer");
        let memory = |n| stream.alloc_zeros::<f32>(n).expect("memory");
        let (x, residual, bias, rstd) = (memory(32), memory(32), memory(8), memory(4));
        let (mut z, mut y, mut dx, [mut dw, mut db]) = (memory(32), memory(32), memory(32), [memory(8), memory(8)]);
        let launches = |calls: Vec<String>| names(&calls).iter().filter(|name| **name == "cuLaunchKernel").count();
        let forward = calls_of(|| {
            let rows = Rows::contiguous((&residual).into(), 8);
            let residual = Some(Residual { residual: rows, z: Rows::contiguous((&mut z).into(), 8) });
            let bias = Some(GpuSlice::from(&bias).into());
            let call = Forward { residual, bias, ..layer.forward_call(&x, &mut y) };
            assert_eq!(kernels.forward_on(&stream, call), Ok(()));
        });
        assert_eq!(launches(forward), 1);
        let backward = calls_of(|| {
            let dz = Some(Rows::contiguous((&residual).into(), 8));
            let gradients = (Some((&mut dw).into()), Some((&mut db).into()));
            let call = Backward { dz, ..layer.backward_call(&z, &rstd, &x, &mut dx, gradients) };
            assert_eq!(kernels.backward_on(&stream, call), Ok(()));
        });
        // Rows and a fold, for each of the gradients.
        assert_eq!(launches(backward), 4);
        let (many, rstd, mut dx) = (memory(80), memory(10), memory(80));
        let call = layer.backward_call(&many, &rstd, &many, &mut dx, (None, Some((&mut db).into())));
        let short = Err(Error::Length { operand: "db_scratch", needed: 80, got: 32 });
        assert_eq!(kernels.backward_on(&stream, call), short);
    });
}
