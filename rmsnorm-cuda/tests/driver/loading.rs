//! What is loaded, when, and for how long: beside captures, beyond its owner, again after an error, and by which NVRTC.

use rmsnorm_cuda::cuda::{Calls, Kernels};
use rmsnorm_cuda::cudarc::driver::CudaContext;
use rmsnorm_cuda::{Dtype, Error};

use super::raw::{Operands, count, forward, kernels};
use super::{
    CAPTURE_MODES, Library, alone, assert_library, begin_capture, calls_of, context_and_stream, end_capture, names,
};

/// What is loaded is captured, event tracking or not; what is not is loaded first, and is what the capture holds.
#[test]
fn captures_of_the_raw_layer() {
    alone("loading::captures_of_the_raw_layer", Library::Complete, &[], || {
        let (context, stream) = context_and_stream();
        assert!(context.is_managing_stream_synchronization());
        let kernels = Kernels::new(&context).expect("a stand-in");
        for (mode, hidden) in CAPTURE_MODES.into_iter().zip([64, 4096, 5000]) {
            stream.begin_capture(mode).expect("a capture");
            let first = calls_of(|| forward(&kernels, hidden, stream.cu_stream()).expect("loaded and captured"));
            let second = calls_of(|| forward(&kernels, hidden, stream.cu_stream()).expect("captured"));
            end_capture(&stream);
            let relaxed = "cuThreadExchangeStreamCaptureMode 2".to_string();
            assert_eq!(
                first[..2],
                ["cuCtxGetCurrent".to_string(), "nvrtcCompileProgram --gpu-architecture=sm_90".into()]
            );
            assert_eq!(first[2..4], [relaxed, "cuModuleLoadData".into()]);
            // The thread's own mode again, before anything else.
            let at = first.len() - 2;
            assert_eq!(first[at], "cuThreadExchangeStreamCaptureMode 0", "{first:#?}");
            assert!(first[at + 1].starts_with("cuLaunchKernel forward"), "{first:#?}");
            assert_eq!(names(&second), ["cuCtxGetCurrent", "cuLaunchKernel"]);
        }
    });
}

/// Whatever the mode, on the capturing thread and on others: a capture survives kernels that are made, prepared, first used on
/// another stream, and dropped.
#[test]
fn captures_beside_other_kernels() {
    alone("loading::captures_beside_other_kernels", Library::Complete, &[], || {
        let (context, stream) = context_and_stream();
        let kernels = Kernels::new(&context).expect("a stand-in");
        forward(&kernels, 64, stream.cu_stream()).expect("a forward call");
        let mut hidden = 64;
        for mode in CAPTURE_MODES {
            for on_another_thread in [false, true] {
                let others = Kernels::new(&context).expect("a stand-in");
                forward(&others, 8192, stream.cu_stream()).expect("a forward call");
                hidden *= 2;
                let beside = || {
                    drop(others);
                    let others = Kernels::new(&context).expect("a stand-in");
                    let kind = Calls { dw: Some(Dtype::F32), ..Calls::new((8, hidden), Dtype::F32) };
                    others.prepare(&kind).expect("prepared");
                    let other_stream = context.new_stream().expect("a stand-in");
                    forward(&others, hidden, other_stream.cu_stream()).expect("a first call on another stream");
                };
                stream.begin_capture(mode).expect("a capture");
                forward(&kernels, 64, stream.cu_stream()).expect("captured");
                let calls = calls_of(|| match on_another_thread {
                    true => std::thread::scope(|scope| scope.spawn(beside).join().expect("no panic")),
                    false => beside(),
                });
                assert!(count(&calls, "cuModuleLoadData") >= 2 && count(&calls, "cuModuleUnload") == 0, "{calls:#?}");
                forward(&kernels, 64, stream.cu_stream()).expect("captured");
                end_capture(&stream);
            }
        }
    });
}

/// A driver that loads nothing during a capture after all is told apart from one that fails.
#[test]
fn a_capture_that_forbids_loading() {
    for call in ["cuModuleLoadData", "cuModuleGetFunction"] {
        let fail = format!("{call} 1 900");
        let body = || {
            let (context, stream) = context_and_stream();
            let kernels = Kernels::new(&context).expect("a stand-in");
            begin_capture(&stream);
            let error = forward(&kernels, 64, stream.cu_stream()).expect_err("not loaded");
            println!("{error}");
            let Error::NotPrepared { kernel } = error else { panic!("{error:?}") };
            assert!(kernel.contains("bf16"), "{kernel}");
            end_capture(&stream);
            forward(&kernels, 64, stream.cu_stream()).expect("loaded");
        };
        let test = "loading::a_capture_that_forbids_loading";
        if alone(test, Library::Complete, &[("STAND_IN_FAIL", &fail)], body).is_none() {
            return;
        }
    }
}

/// Dropping the kernels takes nothing from under a kernel or a graph, and the next ones on that context find what is loaded. On
/// a context made anew, which has the handle of the one before, they do not.
#[test]
fn kernels_outlive_their_owner() {
    alone("loading::kernels_outlive_their_owner", Library::Complete, &[], || {
        let (context, stream) = context_and_stream();
        let kernels = Kernels::new(&context).expect("a stand-in");
        forward(&kernels, 64, stream.cu_stream()).expect("a forward call");
        assert_eq!(calls_of(|| drop(kernels)), [""; 0]);
        // Another value for the same context.
        let again = CudaContext::new(0).expect("a stand-in");
        assert_eq!(again, context);
        let kernels = Kernels::new(&again).expect("a stand-in");
        let calls = calls_of(|| forward(&kernels, 64, stream.cu_stream()).expect("a forward call"));
        assert_eq!(names(&calls), ["cuCtxGetCurrent", "cuLaunchKernel"]);
        let handle = context.cu_ctx();
        drop((kernels, again, stream, context));

        let (context, stream) = context_and_stream();
        assert_eq!(context.cu_ctx(), handle);
        let kernels = Kernels::new(&context).expect("a stand-in");
        let calls = calls_of(|| forward(&kernels, 64, stream.cu_stream()).expect("a forward call"));
        assert_eq!(count(&calls, "cuModuleLoadData"), 1, "{calls:#?}");
    });
}

/// An error is not remembered: what failed to load is loaded by the next call.
#[test]
fn a_module_that_did_not_load_is_tried_again() {
    let fail = [("STAND_IN_FAIL", "cuModuleGetFunction 1 2")];
    alone("loading::a_module_that_did_not_load_is_tried_again", Library::Complete, &fail, || {
        let (kernels, stream) = kernels();
        let call = Operands::new(Dtype::Bf16, 64, 4096).forward();
        // SAFETY: the stand-in runs no kernel, so no operand is read or written.
        let forward = || unsafe { kernels.forward(&call, stream) };
        let code = "CUDA_ERROR_OUT_OF_MEMORY".to_string();
        let calls = calls_of(|| assert_eq!(forward(), Err(Error::Driver { call: "cuModuleGetFunction", code })));
        assert_eq!(calls[calls.len() - 2..], ["cuModuleUnload", "cuThreadExchangeStreamCaptureMode 0"]);
        assert_eq!(forward(), Ok(()));
    });
}

/// A later minor version may do; whether it did is seen when the driver is given what it compiled.
#[test]
fn an_nvrtc_newer_than_the_driver() {
    let load = |nvrtc: &'static str| {
        let fail = ("STAND_IN_FAIL", "cuModuleLoadData 1 200");
        let variables = [("STAND_IN_NVRTC", nvrtc), ("STAND_IN_VERSION", "12040"), fail];
        alone("loading::an_nvrtc_newer_than_the_driver", Library::Complete, &variables, || {
            let (kernels, stream) = kernels();
            let call = Operands::new(Dtype::Bf16, 64, 4096).forward();
            // SAFETY: the stand-in runs no kernel, so no operand is read or written.
            let error = unsafe { kernels.forward(&call, stream) }.expect_err("refused");
            println!("{error}");
            if std::env::var("STAND_IN_NVRTC").is_ok_and(|version| version == "12080") {
                assert_library(
                    &error,
                    "NVRTC",
                    &["NVRTC 12.8", "CUDA 12.4", "NVRTC 12.0 to 12.4 fits", "RMSNORM_NVRTC"],
                );
            } else {
                let code = "CUDA_ERROR_INVALID_IMAGE".to_string();
                assert_eq!(error, Error::Driver { call: "cuModuleLoadData", code });
            }
        })
    };
    if load("12080").is_some() {
        load("12040");
    }
}

/// A later major version does not.
#[test]
fn an_nvrtc_much_newer_than_the_driver() {
    let variables = [("STAND_IN_NVRTC", "13050"), ("STAND_IN_VERSION", "12040")];
    alone("loading::an_nvrtc_much_newer_than_the_driver", Library::Complete, &variables, || {
        let (context, _) = context_and_stream();
        let error = Kernels::new(&context).err().expect("refused");
        println!("{error}");
        let Error::NoCode { nvrtc: reason, .. } = error else { panic!("another error") };
        let error = Error::Library { library: "NVRTC", reason };
        let expected =
            ["9.0 needs version 12.0 or newer, none newer than 12.x for a driver for CUDA 12.4", "13.5 is too new"];
        assert_library(&error, "NVRTC", &expected);
    });
}
