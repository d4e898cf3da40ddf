//! What only a driver can show: captures beside loading and dropping, kernels dropped in flight, per-thread streams, the null
//! stream, a context made anew, a second GPU, fork. Bits are compared with the CPU's.
//!
//! Each test runs itself again in a process of its own, so that a crash or a hang is its own. Without a GPU the tests say so and
//! pass, unless `RMSNORM_REQUIRE_GPU=1`. The binary needs no Rust where it runs:
//! `cargo test --release -p rmsnorm-cuda --test gpu --no-run`, copy, `--nocapture --test-threads=1`.
#![cfg(all(feature = "cuda", target_os = "linux"))]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rmsnorm_cuda::cuda::library::driver;
use rmsnorm_cuda::cuda::{self, GpuSlice, GpuSliceMut, Kernels, Layer};
use rmsnorm_cuda::cudarc::driver::CudaContext;
use rmsnorm_cuda::cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use rmsnorm_cuda::{
    Backward, Cpu, Dtype, Error, Executor, Forward, Residual, Rows, Slice, SliceMut, WeightOffset, bf16,
};

use work::{EPS, Problem, Solved, Unseen, Work, assert_same, small, untracked};

#[path = "gpu/code.rs"]
mod code;
#[path = "../examples/foreign.rs"]
mod foreign;
#[path = "gpu/work.rs"]
mod work;

/// The value of this variable is the name of the test that runs in this process alone.
const CHILD: &str = "RMSNORM_GPU_TEST";

/// Far more than any test takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// To stderr even where the harness keeps what tests print.
fn say(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).ok();
}

/// Runs `body` in a process of its own, if there are `gpus` GPUs.
fn alone(test: &str, gpus: usize, body: impl FnOnce()) {
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        return body();
    }
    let there = driver().map(|()| CudaContext::device_count().expect("a number of GPUs") as usize);
    if !there.as_ref().is_ok_and(|there| *there >= gpus) {
        assert!(
            gpus > 1 && there.is_ok() || std::env::var_os("RMSNORM_REQUIRE_GPU").is_none_or(|v| v != "1"),
            "RMSNORM_REQUIRE_GPU is set, but: {there:?}"
        );
        return say(&match there {
            Ok(there) => format!("SKIPPED: {there} GPUs, {test} needs {gpus}"),
            Err(error) => format!("SKIPPED: no GPU: {test}: {error}"),
        });
    }
    let mut child = Command::new(std::env::current_exe().expect("this test's path"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .stdin(Stdio::null())
        .spawn()
        .expect("a process for the test");
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the test's process") {
            break status;
        }
        if begun.elapsed() > TIMEOUT {
            child.kill().ok();
            panic!("{test} has not ended after {TIMEOUT:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    say(&format!("{test}: {status}, {:.1} s", begun.elapsed().as_secs_f64()));
    assert!(status.success(), "{test}: {status}");
}

/// Each kind of kernel in place, by the typed layer: y where x was, dx where dy was.
#[test]
fn in_place() {
    alone("in_place", 1, || {
        let stream = cuda::context(0).expect("a GPU").new_stream().expect("a stream");
        let kernels = Arc::new(Kernels::new(stream.context()).expect("kernels"));
        let shapes = [(1, 4096), (37, 128), (8, 8192), (300, 4096), (2000, 1024), (70, 4097), (9, 20_000), (5, 20_001)];
        for (rows, hidden) in shapes.into_iter().chain([(40, 65_536), (3, 140_000)]) {
            let problem = Problem::new(rows, hidden, WeightOffset::One, rows as u64);
            let mut layer = Layer::new(&kernels, &stream, (rows, hidden), EPS, WeightOffset::One).expect("a layer");
            layer.prepare(rows, Dtype::Bf16, Some(Dtype::F32), Some(Dtype::F32)).expect("prepared");
            let loaded = kernels.loaded().len();
            let upload = |host: &[bf16]| stream.clone_htod(host).expect("memory");
            let (x, mut y, mut dx) = (upload(&problem.x), upload(&problem.x), upload(&problem.dy));
            let weight = stream.clone_htod(&problem.weight).expect("memory");
            let zeros = |n| stream.alloc_zeros::<f32>(n).expect("memory");
            let (mut rstd, mut dw) = (zeros(rows), zeros(hidden));
            let w = Some((&weight).into());
            layer.forward_in_place(&mut y, w, Some((&mut rstd).into())).expect("forward");
            layer.backward_in_place(&x, w, &rstd, &mut dx, Some((&mut dw).into())).expect("backward");
            let bf16s = |m| stream.clone_dtoh(m).expect("a download");
            let f32s = |v| stream.clone_dtoh(v).expect("a download");
            let got = Solved { y: bf16s(&y), rstd: f32s(&rstd), dx: bf16s(&dx), dw: f32s(&dw) };
            assert_same(&got, &problem.solved(), &format!("{rows}×{hidden} in place"));
            assert_eq!(kernels.loaded().len(), loaded, "{rows}×{hidden}: what is prepared is prepared for both");
        }
    });
}

/// What the short forms of a layer do not take: a residual, a bias, dz and db, with the bits of a layer on the CPU.
#[test]
fn calls_of_a_layer() {
    alone("calls_of_a_layer", 1, || {
        let stream = cuda::context(0).expect("a GPU").new_stream().expect("a stream");
        let kernels = Arc::new(Kernels::new(stream.context()).expect("kernels"));
        for (rows, hidden) in [(37, 128), (300, 4096), (9, 20_001)] {
            let Problem { x, dy, weight, .. } = Problem::new(rows, hidden, WeightOffset::Zero, 7);
            let upload = |host: &[bf16]| stream.clone_htod(host).expect("memory");
            let zeros = |n| stream.alloc_zeros::<bf16>(n).expect("memory");
            let vector = |n| stream.alloc_zeros::<f32>(n).expect("memory");

            let mut layer = Layer::new(&kernels, &stream, (rows, hidden), EPS, WeightOffset::Zero).expect("a layer");
            let [on_gpu_x, on_gpu_dy] = [&x, &dy].map(|host| upload(host));
            let bias = stream.clone_htod(&weight).expect("memory");
            let [mut z, mut y, mut dx] = [(); 3].map(|()| zeros(rows * hidden));
            let (mut rstd, mut db) = (vector(rows), vector(hidden));
            let residual = Rows::contiguous((&on_gpu_dy).into(), hidden);
            let call = Forward {
                residual: Some(Residual { residual, z: Rows::contiguous((&mut z).into(), hidden) }),
                bias: Some(GpuSlice::from(&bias).into()),
                rstd: Some(GpuSliceMut::from(&mut rstd).into()),
                ..layer.forward_call(&on_gpu_x, &mut y)
            };
            kernels.forward_on(&stream, call).expect("forward");
            let call = Backward {
                dz: Some(Rows::contiguous((&on_gpu_x).into(), hidden)),
                ..layer.backward_call(&z, &rstd, &on_gpu_dy, &mut dx, (None, Some((&mut db).into())))
            };
            kernels.backward_on(&stream, call).expect("backward");
            let got = [&z, &y, &dx].map(|m| stream.clone_dtoh(m).expect("a download"));
            let got_db = stream.clone_dtoh(&db).expect("a download");

            let mut layer = rmsnorm_cuda::Layer::new(hidden, EPS, WeightOffset::Zero).expect("a layer");
            let [mut z, mut y, mut dx] = [(); 3].map(|()| vec![bf16::ZERO; rows * hidden]);
            let (mut rstd, mut db) = (vec![0.0; rows], vec![0.0; hidden]);
            let residual = Rows::contiguous(Slice::from(&dy[..]), hidden);
            let call = Forward {
                residual: Some(Residual { residual, z: Rows::contiguous((&mut z[..]).into(), hidden) }),
                bias: Some(Slice::from(&weight[..]).into()),
                rstd: Some(SliceMut::from(&mut rstd[..]).into()),
                ..layer.forward_call(&x[..], &mut y[..])
            };
            Cpu.forward(call).expect("forward");
            let gradients = (None, Some((&mut db[..]).into()));
            let call = layer.backward_call(&z[..], &rstd[..], &dy[..], &mut dx[..], gradients).expect("scratch");
            let dz = Some(Rows::contiguous(Slice::from(&x[..]), hidden));
            Cpu.backward(Backward { dz, ..call }).expect("backward");
            let bits = |m: &[bf16]| m.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(got.iter().zip([&z, &y, &dx]).all(|(got, want)| bits(got) == bits(want)), "{rows}×{hidden}");
            assert!(got_db.iter().zip(&db).all(|(got, want)| got.to_bits() == want.to_bits()), "{rows}×{hidden}: db");
        }
    });
}

/// Kernels are dropped, and others made and first used, beside a capture, on its thread and on another, and the captured stream
/// meets a call that is not loaded. The graph replays all of it, after its own kernels were dropped too.
#[test]
fn captures_beside_loading_and_dropping() {
    alone("captures_beside_loading_and_dropping", 1, || {
        let (context, stream) = untracked();
        let other_stream = context.new_stream().expect("a stream");
        let mut blocking = std::ptr::null_mut();
        // SAFETY: receives a handle that is never destroyed.
        unsafe { sys::cuStreamCreate(&mut blocking, 0) }.result().expect("a stream");
        // SAFETY: as above; it is used here only.
        let blocking = unsafe { context.wrap_borrowed_stream(blocking) };
        let mut unseen = Unseen::new();
        let tuning = Kernels::new(&context).expect("kernels").tuning();
        let [used, dropped] = [(); 2].map(|()| unseen.work(&stream, &tuning));
        let modes = [
            CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL,
            CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED,
        ];
        let streams = [("", &stream, false), ("", &stream, true), ("blocking ", &blocking, false)];
        for (mode, (kind, captured, on_another_thread)) in
            modes.into_iter().flat_map(|mode| streams.map(|stream| (mode, stream)))
        {
            let what = format!("{kind}stream, {mode:?}, beside on another thread: {on_another_thread}");
            let kernels = Kernels::new(&context).expect("kernels");
            let others = Kernels::new(&context).expect("kernels");
            used.launch(&kernels, captured.cu_stream()).expect("launched");
            dropped.launch(&others, other_stream.cu_stream()).expect("launched");
            context.synchronize().expect("idle");
            let [beside, inside] = [(); 2].map(|()| unseen.work(&stream, &tuning));

            captured.begin_capture(mode).expect("a capture");
            used.launch(&kernels, captured.cu_stream()).unwrap_or_else(|e| panic!("{what}: prepared: {e}"));
            let work = || {
                drop(others);
                let others = Kernels::new(&context).expect("kernels");
                beside.launch(&others, other_stream.cu_stream()).unwrap_or_else(|e| panic!("{what}: beside: {e}"));
            };
            match on_another_thread {
                true => std::thread::scope(|scope| scope.spawn(work).join().expect("no panic")),
                false => work(),
            }
            inside.launch(&kernels, captured.cu_stream()).unwrap_or_else(|e| panic!("{what}: inside: {e}"));
            let graph = captured.end_capture(CUgraphInstantiate_flags(0));
            let graph = graph.unwrap_or_else(|e| panic!("{what}: the capture is lost: {e:?}")).expect("a graph");
            drop(kernels);
            beside.check(&format!("{what}: beside"));
            graph.launch().unwrap_or_else(|e| panic!("{what}: replay: {e:?}"));
            used.check(&format!("{what}: used"));
            inside.check(&format!("{what}: inside"));
        }
    });
}

/// Dropped right behind launches that take long, and other kernels loaded behind that.
#[test]
fn kernels_dropped_in_flight() {
    alone("kernels_dropped_in_flight", 1, || {
        let (context, stream) = untracked();
        let other_stream = context.new_stream().expect("a stream");
        let long = Work::new(&stream, Problem::new(8192, 4096, WeightOffset::Zero, 3));
        let kernels = Kernels::new(&context).expect("kernels");
        let other = small(&stream);
        long.launch(&kernels, stream.cu_stream()).expect("launched");
        stream.synchronize().expect("idle");
        for _ in 0..200 {
            long.launch(&kernels, stream.cu_stream()).expect("launched");
        }
        drop(kernels);
        // SAFETY: the stream is alive.
        let status = unsafe { sys::cuStreamQuery(stream.cu_stream()) };
        assert_eq!(status, CUresult::CUDA_ERROR_NOT_READY, "the launches were over before the kernels were dropped");
        let others = Kernels::new(&context).expect("kernels");
        other.launch(&others, other_stream.cu_stream()).expect("launched");
        long.check("the long launches");
        other.check("the one behind");
    });
}

/// A context that ended and was made anew has none of the old one's modules, though it has its handle.
#[test]
fn a_context_made_anew() {
    alone("a_context_made_anew", 1, || {
        let mut handles = Vec::new();
        for round in 0..3 {
            let (context, stream) = untracked();
            let work = small(&stream);
            let kernels = Kernels::new(&context).expect("kernels");
            work.launch(&kernels, stream.cu_stream()).expect("launched");
            work.check(&format!("context {round}"));
            drop(kernels);
            // Other kernels on the living context find what is loaded.
            let kernels = Kernels::new(&cuda::context(0).expect("a GPU")).expect("kernels");
            let work = small(&stream);
            work.launch(&kernels, stream.cu_stream()).expect("launched");
            work.check(&format!("context {round}, again"));
            handles.push(context.cu_ctx());
        }
        println!("handles {handles:?}");
    });
}

/// One layer, two threads, each on its own per-thread stream.
#[test]
fn a_layer_on_per_thread_streams() {
    alone("a_layer_on_per_thread_streams", 1, || {
        let context = cuda::context(0).expect("a GPU");
        let stream = context.per_thread_stream();
        let kernels = Arc::new(Kernels::new(&context).expect("kernels"));
        let (rows, hidden) = (4096, 2048);
        let new = || Layer::new(&kernels, &stream, (rows, hidden), EPS, WeightOffset::Zero).expect("a layer");
        let problems = [5, 6].map(|seed| Problem::new(rows, hidden, WeightOffset::Zero, seed));
        let expected = problems.each_ref().map(Problem::solved);
        let calls = |layer: &Mutex<Layer>, problem: &Problem, times: usize| -> Result<Vec<Solved>, Error> {
            let matrix = |host: &[bf16]| stream.clone_htod(host).expect("memory");
            let [x, dy] = [&problem.x, &problem.dy].map(|host| matrix(host));
            let weight = stream.clone_htod(&problem.weight).expect("memory");
            let memory = |n| stream.alloc_zeros::<f32>(n).expect("memory");
            let mut solved = Vec::new();
            for _ in 0..times {
                let (mut y, mut dx, mut rstd, mut dw) =
                    (matrix(&problem.x), matrix(&problem.x), memory(rows), memory(hidden));
                let mut layer = layer.lock().expect("no panic");
                layer.forward(&x, Some((&weight).into()), &mut y, Some((&mut rstd).into()))?;
                layer.backward(&x, Some((&weight).into()), &rstd, &dy, &mut dx, Some((&mut dw).into()))?;
                drop(layer);
                let [y, dx] = [&y, &dx].map(|m| stream.clone_dtoh(m).expect("a download"));
                let [rstd, dw] = [&rstd, &dw].map(|v| stream.clone_dtoh(v).expect("a download"));
                solved.push(Solved { y, rstd, dx, dw });
            }
            Ok(solved)
        };
        let untracked = calls(&Mutex::new(new()), &problems[0], 1);
        assert_eq!(untracked.err(), Some(Error::Untracked));

        let _tracked_from_here_on = context.new_stream().expect("a stream");
        let layer = Mutex::new(new());
        std::thread::scope(|scope| {
            let threads = problems.each_ref().map(|problem| scope.spawn(|| calls(&layer, problem, 25)));
            for (thread, expected) in threads.into_iter().zip(&expected) {
                let solved = thread.join().expect("no panic").expect("tracked");
                solved.iter().enumerate().for_each(|(i, got)| assert_same(got, expected, &format!("call {i}")));
            }
        });
    });
}

/// The handles that stand for a stream rather than being one.
#[test]
fn null_legacy_and_per_thread_streams() {
    alone("null_legacy_and_per_thread_streams", 1, || {
        let (context, stream) = untracked();
        let kernels = Kernels::new(&context).expect("kernels");
        for handle in 0..3 {
            let work = small(&stream);
            work.launch(&kernels, std::ptr::without_provenance_mut(handle)).expect("launched");
            work.check(&format!("raw, stream {handle}"));
        }
        // The typed layer on the only stream there is.
        let context = cuda::context(0).expect("a GPU");
        let null = context.default_stream();
        assert!(!context.is_in_multi_stream_mode());
        let (kernels, mut work) = (Arc::new(kernels), small(&null));
        let Problem { rows, hidden, .. } = work.problem;
        let mut layer = Layer::new(&kernels, &null, (rows, hidden), EPS, WeightOffset::Zero).expect("a layer");
        let ([x, dy, y, dx], [weight, rstd, dw, _]) = (&mut work.matrices, &mut work.vectors);
        layer.forward(&*x, Some((&*weight).into()), y, Some((&mut *rstd).into())).expect("launched");
        layer.backward(&*x, Some((&*weight).into()), &*rstd, &*dy, dx, Some(dw.into())).expect("launched");
        work.check("typed, the null stream");
    });
}

/// Memory and a stream of another wrapper of the driver, as the example has them.
#[test]
fn foreign_memory_and_stream() {
    alone("foreign_memory_and_stream", 1, || foreign::run().expect("the bits of the CPU"));
}

/// Whichever GPU is current; what belongs to the wrong one is refused; both give the same bits.
#[test]
fn two_gpus() {
    alone("two_gpus", 2, || {
        let contexts = [0, 1].map(|i| cuda::context(i).expect("a GPU"));
        // SAFETY: each piece of work has one stream.
        contexts.iter().for_each(|context| unsafe { context.disable_event_tracking() });
        let streams = contexts.each_ref().map(|context| context.new_stream().expect("a stream"));
        let kernels = contexts.each_ref().map(|context| Arc::new(Kernels::new(context).expect("kernels")));
        for (here, there) in [(0, 1), (1, 0)] {
            let [work, other] = [here, there].map(|gpu| small(&streams[gpu]));
            contexts[there].bind_to_thread().expect("current");
            let current = || {
                let mut current = std::ptr::null_mut();
                // SAFETY: receives a handle.
                unsafe { sys::cuCtxGetCurrent(&mut current) }.result().expect("a context");
                current
            };
            let stream = streams[here].cu_stream();
            work.launch(&kernels[here], stream).expect("launched with the other GPU current");
            assert_eq!(current(), contexts[there].cu_ctx());
            work.check(&format!("GPU {here}"));

            let expected = Error::Context { expected: here, got: there };
            for (ours, theirs) in [(here, there), (there, here)] {
                contexts[ours].bind_to_thread().expect("current");
                let launched = work.launch(&kernels[here], streams[there].cu_stream());
                assert_eq!(launched, Err(expected.clone()), "raw, a stream of the other GPU, {theirs} not current");
                assert_eq!(current(), contexts[ours].cu_ctx());
            }
            let Problem { rows, hidden, .. } = work.problem;
            let layer = |stream| Layer::new(&kernels[here], stream, (rows, hidden), EPS, WeightOffset::Zero);
            assert_eq!(layer(&streams[there]).err(), Some(expected.clone()));
            let (layer, mut y) = (layer(&streams[here]).expect("a layer"), work.matrices[2].clone());
            assert_eq!(layer.forward(&other.matrices[0], None, &mut y, None), Err(expected));
            assert_eq!(layer.forward(&work.matrices[0], None, &mut y, None), Ok(()));
            streams[here].synchronize().expect("nothing of it broke the context");
        }
    });
}

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
    fn _exit(status: i32) -> !;
}

/// In a forked process every way in is an error, and none hangs.
#[test]
fn fork_after_a_call() {
    alone("fork_after_a_call", 1, || {
        let (context, stream) = untracked();
        let kernels = Kernels::new(&context).expect("kernels");
        let work = small(&stream);
        type Call<'a> = (&'a str, &'a dyn Fn() -> Result<(), Error>);
        let calls: [Call<'_>; 3] = [
            ("a prepared call", &|| work.launch(&kernels, stream.cu_stream())),
            ("Kernels::new", &|| Kernels::new(&context).map(drop)),
            ("cuda::context", &|| cuda::context(0).map(drop)),
        ];
        for (name, call) in calls {
            assert_eq!(call(), Ok(()), "{name}");
        }
        for (name, call) in calls {
            // SAFETY: the child makes one call, prints and ends, without unwinding or dropping what is the parent's.
            let child = unsafe { fork() };
            if child == 0 {
                let result = call();
                say(&format!("{name}, forked: {result:?}"));
                // SAFETY: ends the process.
                unsafe { _exit(i32::from(result.is_ok())) }
            }
            assert!(child > 0);
            let (begun, mut status) = (Instant::now(), 0);
            // SAFETY: a child of this process, asked for without waiting (WNOHANG); the status is one integer.
            while unsafe { waitpid(child, &mut status, 1) } == 0 {
                if begun.elapsed() > Duration::from_secs(15) {
                    // SAFETY: as above.
                    unsafe { kill(child, 9) };
                    panic!("{name}: the forked process hangs");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(status, 0, "{name}: the forked process ended with {status:#x}");
        }
        work.launch(&kernels, stream.cu_stream()).expect("the parent is as before");
        work.check("after the forks");
    });
}
