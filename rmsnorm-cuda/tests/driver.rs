//! What the CUDA executor makes of the driver: errors instead of panics where it is absent, old, or fails, and exactly the
//! expected driver calls where it works. Here what may be absent or fail; in `driver/` the two layers.
//!
//! Needs a C compiler, no GPU: `stand_in_driver.c` takes the place of libcuda and NVRTC. A library is loaded once for a
//! process, so each test runs itself again in a process of its own, whose first place to look for libraries is a folder of its
//! own. Without `cc` the tests say so and pass.
#![cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use rmsnorm_cuda::cuda::library::{DRIVER_FUNCTIONS, driver, nvrtc};
use rmsnorm_cuda::cuda::{Cuda, Kernels, Layer};
use rmsnorm_cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use rmsnorm_cuda::cudarc::driver::{CudaContext, CudaStream, DriverError};
use rmsnorm_cuda::{
    Backward, Error, Executor, Forward, Slice, SliceMut, WeightGradient, WeightOffset, bf16, scratch_len,
};

#[path = "driver/ahead.rs"]
mod ahead;
#[path = "driver/loading.rs"]
mod loading;
mod machine;
#[path = "driver/prepared.rs"]
mod prepared;
#[path = "driver/raw.rs"]
mod raw;
#[path = "driver/typed.rs"]
mod typed;

/// Counts what the thread that asks has allocated.
struct Counting;

thread_local!(static ALLOCATIONS: Cell<usize> = const { Cell::new(0) });

// SAFETY: all is the system's; a count is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.try_with(|count| count.set(count.get() + 1)).ok();
        // SAFETY: as of this function.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as of this function.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What a process finds as libcuda.
#[derive(Clone, Copy)]
enum Library {
    /// Nothing.
    Absent,
    /// A file that is no library.
    Garbage,
    /// A library without functions.
    Empty,
    /// The stand-in.
    Complete,
    /// The stand-in without these functions.
    Without(&'static [&'static str]),
}

/// The value of this variable is the name of the test that runs in this process alone.
const CHILD: &str = "RMSNORM_DRIVER_TEST";

/// Runs `body` in a process of its own that finds `library`, with `variables` in its environment. Returns the calls it made,
/// or nothing in that process itself and where there is no C compiler.
fn alone(test: &str, library: Library, variables: &[(&str, &str)], body: impl FnOnce()) -> Option<Vec<String>> {
    if std::env::var_os(CHILD).is_some() {
        body();
        return None;
    }
    let folder = folder(test, library)?;
    let log = folder.join("log");
    std::fs::remove_file(&log).ok();
    let mut child = Command::new(std::env::current_exe().expect("this test's path"));
    child.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    child.env(CHILD, test).env("LD_LIBRARY_PATH", &folder).env("STAND_IN_LOG", &log);
    child.env("RMSNORM_NVRTC", folder.join("libcuda.so.1")).env("RMSNORM_CACHE", "off").envs(variables.iter().copied());
    let output = child.output().expect("a process for the test");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(output.status.success(), "{variables:?}: {}\n{text}", output.status);
    assert!(text.contains("test result: ok. 1 passed"), "{variables:?}\n{text}");
    assert!(!text.contains("panicked"), "{variables:?}\n{text}");
    Some(calls(&log))
}

/// A folder with `library` in it, made once for a test: none has two libraries.
fn folder(test: &str, library: Library) -> Option<PathBuf> {
    static MADE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver").join(test.replace("::", "-"));
    if !MADE.lock().unwrap_or_else(PoisonError::into_inner).insert(test.into())
        && folder.join("libcuda.so").is_symlink()
    {
        return Some(folder);
    }
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(&folder).expect("a folder for the stand-in");
    let path = folder.join("libcuda.so.1");
    let options: Vec<String> = match library {
        Library::Absent => return Some(folder),
        Library::Garbage => {
            std::fs::write(&path, "not a library").expect("a file in the folder");
            Vec::new()
        }
        Library::Empty => ["-xc", "/dev/null"].map(String::from).to_vec(),
        Library::Complete | Library::Without(_) => {
            let absent = if let Library::Without(names) = library { names } else { &[] };
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand_in_driver.c").to_string();
            absent.iter().map(|name| format!("-D{name}=absent_{name}")).chain([source]).collect()
        }
    };
    if !options.is_empty() {
        if !machine::has("CC", "cc") {
            return None;
        }
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(&path).args(options);
        let status = compiler.status().expect("a C compiler");
        assert!(status.success(), "the stand-in driver does not compile");
    }
    // The name that is looked for first, so that a machine's own driver stays out of it.
    std::os::unix::fs::symlink("libcuda.so.1", folder.join("libcuda.so")).expect("a link in the folder");
    Some(folder)
}

fn calls(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().map(|line| line.trim_end().to_string()).collect()
}

/// The calls that `body` makes, in the process of [`alone`].
fn calls_of(body: impl FnOnce()) -> Vec<String> {
    let log = PathBuf::from(std::env::var_os("STAND_IN_LOG").expect("a log"));
    let before = calls(&log).len();
    body();
    calls(&log).split_off(before)
}

/// The error of every way in, which has to be the same.
fn refused() -> Error {
    let error = driver().expect_err("a driver that should not be usable");
    println!("{error}\n{error:?}");
    assert_eq!(Cuda::new(0).err().as_ref(), Some(&error));
    assert_eq!(driver(), Err(error.clone()));
    error
}

fn assert_library(error: &Error, expected: &str, parts: &[&str]) {
    let Error::Library { library, reason } = error else { panic!("{error:?}") };
    assert_eq!(*library, expected);
    for part in parts {
        assert!(reason.contains(part), "no {part:?} in {reason:?}");
    }
}

#[test]
fn no_driver() {
    alone("no_driver", Library::Absent, &[], || {
        if driver().is_ok() {
            return machine::skip("NO_DRIVER", "this machine has a driver");
        }
        assert_library(&refused(), "the CUDA driver", &["libcuda.so:", "libcuda.so.1:", "nvidia-smi"]);
    });
}

#[test]
fn a_driver_that_is_no_library() {
    alone("a_driver_that_is_no_library", Library::Garbage, &[], || {
        assert_library(&refused(), "the CUDA driver", &["libcuda.so", "libcuda.so.1", "file too short"]);
    });
}

#[test]
fn a_driver_without_functions() {
    alone("a_driver_without_functions", Library::Empty, &[], || {
        let all = DRIVER_FUNCTIONS.join(", ");
        assert_library(&refused(), "the CUDA driver", &["libcuda.so (of an unknown version) has no", &all, "too old"]);
    });
}

#[test]
fn an_old_driver() {
    let later = &["cuMemAllocAsync", "cuMemFreeAsync"];
    alone("an_old_driver", Library::Without(later), &[("STAND_IN_VERSION", "11010")], || {
        let expected = ["libcuda.so (a driver for CUDA 11.1) has no cuMemAllocAsync, cuMemFreeAsync;", "too old"];
        assert_library(&refused(), "the CUDA driver", &expected);
    });
}

#[test]
fn no_device() {
    let calls = alone("no_device", Library::Complete, &[("STAND_IN_FAIL", "cuInit 0 100")], || {
        let code = "CUDA_ERROR_NO_DEVICE".to_string();
        assert_eq!(refused(), Error::Driver { call: "cuInit", code });
    });
    assert!(calls.is_none_or(|calls| calls == ["cuInit flags 0 -> 100"]));
}

#[test]
fn an_error_without_a_name() {
    alone("an_error_without_a_name", Library::Complete, &[("STAND_IN_FAIL", "cuInit 0 4321")], || {
        assert_eq!(refused(), Error::Driver { call: "cuInit", code: "error 4321".into() });
    });
}

#[test]
fn a_stub() {
    alone("a_stub", Library::Complete, &[("STAND_IN_FAIL", "cuInit 0 34")], || {
        assert_library(
            &refused(),
            "the CUDA driver",
            &["libcuda.so is", "stub", "`stubs`", "LD_LIBRARY_PATH", "libcuda.so.1"],
        );
    });
}

/// The child says so; the parent goes on.
#[test]
fn a_fork_of_a_process_with_a_driver() {
    unsafe extern "C" {
        fn fork() -> i32;
        fn waitpid(child: i32, status: *mut i32, options: i32) -> i32;
        fn _exit(status: i32) -> !;
    }
    alone("a_fork_of_a_process_with_a_driver", Library::Complete, &[], || {
        assert_eq!(driver(), Ok(()));
        // SAFETY: of the child only this thread exists, and it ends here.
        let child = unsafe { fork() };
        if child == 0 {
            let expected = ["is a fork", "spawn", &std::process::id().to_string()];
            let as_expected = |error: &Error| matches!(error, Error::Library { reason, .. } if expected.iter().all(|part| reason.contains(part)));
            let told = driver().is_err_and(|error| as_expected(&error))
                && Cuda::new(0).is_err_and(|error| as_expected(&error));
            // SAFETY: ends the process.
            unsafe { _exit(if told { 7 } else { 8 }) };
        }
        let mut status = 0;
        // SAFETY: writes one integer.
        assert_eq!(unsafe { waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 7 << 8, "the child's exit status, shifted");
        assert_eq!(driver(), Ok(()));
    });
}

#[test]
fn no_such_gpu() {
    alone("no_such_gpu", Library::Complete, &[], || {
        let Err(Error::Driver { code, .. }) = Cuda::new(1) else { panic!("there is one GPU") };
        assert_eq!(code, "CUDA_ERROR_INVALID_DEVICE");
    });
}

#[test]
fn no_nvrtc() {
    let path = "/nonexistent/libnvrtc.so.13";
    alone("no_nvrtc", Library::Complete, &[("RMSNORM_NVRTC", path)], || {
        driver().expect("a stand-in");
        let error = nvrtc((9, 0)).err().expect("no NVRTC");
        println!("{error}\n{error:?}");
        assert_library(&error, "NVRTC", &[path, "RMSNORM_NVRTC"]);
        let Some(Error::NoCode { nvrtc, cache, prebuilt, .. }) = Cuda::new(0).err() else { panic!("another error") };
        let Error::Library { reason, .. } = error else { panic!("another error") };
        assert_eq!((nvrtc, cache.as_str(), prebuilt.is_empty()), (reason, "is off", false));
    });
}

/// Calls that reach every function of the driver but those that an error needs.
fn everything() -> Result<(), Error> {
    let cuda = Cuda::new(0)?;
    host_calls(&cuda, 64)?;
    host_calls(&cuda, 1025)?; // With a ring.
    host_calls(&cuda.on_new_stream()?, 0)?;
    typed_call(cuda.kernels())
}

fn typed_call(kernels: &Arc<Kernels>) -> Result<(), Error> {
    let theirs = |e: DriverError| Error::Fault { call: "cudarc's", code: format!("{:?}", e.0) };
    let stream = CudaContext::new(0).and_then(|context| context.new_stream()).map_err(theirs)?;
    let (x, mut y) = (stream.alloc_zeros::<f32>(64).map_err(theirs)?, stream.alloc_zeros::<f32>(64).map_err(theirs)?);
    Layer::new(kernels, &stream, (1, 64), 0.0, WeightOffset::Zero)?.forward(&x, None, &mut y, None)
}

fn host_calls(cuda: &Cuda, rows: usize) -> Result<(), Error> {
    let hidden = 4096;
    let (x, weight) = (vec![bf16::ONE; rows * hidden], vec![bf16::ONE; hidden]);
    let (mut y, mut dx, mut dw) = (x.clone(), x.clone(), weight.clone());
    let (mut rstd, mut scratch) = (vec![0.0_f32; rows], vec![0.0_f32; scratch_len(rows, hidden)?]);
    cuda.forward(Forward {
        weight: Some(Slice::Bf16(&weight).into()),
        rstd: Some(SliceMut::F32(&mut rstd).into()),
        ..Forward::new((rows, hidden), 1e-6, Slice::Bf16(&x), SliceMut::Bf16(&mut y))
    })?;
    cuda.backward(Backward {
        weight: Some(Slice::Bf16(&weight).into()),
        dw: Some(WeightGradient { dw: SliceMut::Bf16(&mut dw).into(), scratch: SliceMut::F32(&mut scratch).into() }),
        ..Backward::new((rows, hidden), Slice::Bf16(&x), Slice::F32(&rstd), Slice::Bf16(&y), SliceMut::Bf16(&mut dx))
    })
}

#[test]
fn no_other_function_is_called() {
    let test = "no_other_function_is_called";
    let run = |variables: &[(&str, &str)]| {
        alone(test, Library::Complete, variables, || match std::env::var("STAND_IN_DEVICES") {
            Err(_) => everything().expect(test),
            Ok(_) => {
                everything().expect_err("a module that does not load");
                raw::refuse_a_stream_of_another_gpu();
            }
        })
    };
    let Some(with_pools) = run(&[]) else { return };
    let Some(without) = run(&[("STAND_IN_POOLS", "0")]) else { return };
    let fail = ("STAND_IN_FAIL", "cuModuleGetFunction 1 2");
    let Some(refused) = run(&[("STAND_IN_DEVICES", "2"), fail]) else { return };
    let lines = with_pools.iter().chain(&without).chain(&refused);
    let called: BTreeSet<&str> =
        lines.filter_map(|line| line.split(' ').next()).filter(|n| n.starts_with("cu")).collect();
    assert_eq!(called, BTreeSet::from(DRIVER_FUNCTIONS));
}

/// What is called where a value is dropped and nobody can be told.
const UNHEARD: [&str; 7] = [
    "cuDevicePrimaryCtxRelease_v2",
    "cuEventDestroy_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuStreamDestroy_v2",
    // The third: cudarc waits for the last use of memory before it frees it.
    "cuStreamWaitEvent 3",
];

/// Whichever function fails, at first or later, there is an error; never a panic.
#[test]
fn every_function_can_fail() {
    let body = || {
        let fail = std::env::var("STAND_IN_FAIL").expect("what fails");
        let mut result = Ok(());
        let failed = calls_of(|| result = everything()).iter().any(|call| call.ends_with("-> 700"));
        match result {
            Ok(()) => assert!(!failed || UNHEARD.iter().any(|name| fail.starts_with(name)), "{fail}: no error"),
            Err(Error::Fault { code, .. }) if code == "CUDA_ERROR_ILLEGAL_ADDRESS" => {}
            Err(Error::Driver { call: "cuInit" | "cuDriverGetVersion", code }) if code == "error 700" => {}
            Err(error) => panic!("{fail}: {error:?}"),
        }
    };
    for function in DRIVER_FUNCTIONS {
        for (time, pools) in [(1, "1"), (3, "1"), (1, "0")] {
            let fail = format!("{function} {time} 700");
            let variables = [("STAND_IN_FAIL", fail.as_str()), ("STAND_IN_POOLS", pools)];
            if alone("every_function_can_fail", Library::Complete, &variables, body).is_none() {
                return;
            }
        }
    }
}

#[test]
fn out_of_memory() {
    alone("out_of_memory", Library::Complete, &[("STAND_IN_FAIL", "cuMemAllocAsync 3 2")], || {
        let cuda = Cuda::new(0).expect("a stand-in");
        // Operands too large for the buffer that calls share.
        let rows = 1100;
        let error = host_calls(&cuda, rows).expect_err("no memory");
        println!("{error}\n{error:?}");
        assert_eq!(error, Error::Driver { call: "cuMemAlloc", code: "CUDA_ERROR_OUT_OF_MEMORY".into() });
        host_calls(&cuda, rows).expect("memory again");
    });
}

/// A context with this thread's stream on it.
fn context_and_stream() -> (Arc<CudaContext>, Arc<CudaStream>) {
    driver().expect("a stand-in");
    let context = CudaContext::new(0).expect("a stand-in");
    let stream = context.new_stream().expect("a stand-in");
    (context, stream)
}

const CAPTURE_MODES: [CUstreamCaptureMode; 3] = [
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL,
    CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
];

fn begin_capture(stream: &CudaStream) {
    stream.begin_capture(CAPTURE_MODES[0]).expect("a capture");
}

fn end_capture(stream: &Arc<CudaStream>) {
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).expect("a graph").expect("a graph");
    graph.launch().expect("a launch");
}

fn names(calls: &[String]) -> Vec<&str> {
    calls.iter().filter_map(|call| call.split(' ').next()).collect()
}
