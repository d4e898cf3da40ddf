//! The GPU: what is known of it, and its executor on several streams and with every launch.

use super::executors::{Found, Launch};
use super::report::Gpu;
use rmsnorm_cuda::cuda::checks::replay::{Beside, Replayed};
use rmsnorm_cuda::cuda::library::nvrtc;
use rmsnorm_cuda::cuda::{Cuda, Tuning};
use rmsnorm_cuda::plan::{Arch, variants};
use rmsnorm_cuda::{Backward, Dtype, Error, Executor, Forward, Operand, Slice, SliceMut};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The first GPU. For a quick run, plans of other GPUs that need kernels of their own are for the hard cases alone: compiling is what
/// takes the time.
pub(super) fn find(quick: bool) -> Result<Found, Error> {
    let cuda = Cuda::new(0)?;
    let nvrtc = nvrtc(cuda.arch().compute_capability)?;
    let gpu = Gpu {
        name: cuda.name(),
        driver: driver_version().unwrap_or_else(|| "unknown".into()),
        nvrtc: format!("{}.{}", nvrtc.version.0, nvrtc.version.1),
        nvrtc_path: nvrtc.path.clone(),
    };
    cuda.keep_freed_memory().ok(); // Only tuning depends on it.
    let streams = Streams::new(&cuda)?;
    let blocks = Some(u32::MAX);
    Ok(Found {
        gpu,
        launches: launches(&streams, cuda.arch(), quick),
        replayed: Box::new(Streams { replayed: true, ..streams.clone() }),
        beside: Box::new(Beside::new(&cuda.on_new_stream()?)?),
        refused: Box::new(Streams { tuning: Tuning { blocks, ..streams.tuning }, ..streams.clone() }),
        executor: Box::new(streams),
    })
}

/// Numbers of blocks that the plan would not choose, and the plans of other GPUs.
fn launches(streams: &Streams, gpu: Arch, quick: bool) -> Vec<Launch> {
    let launch = |what: String, tuning: Tuning, elements_max, left_out, hard_only| {
        let executor = Box::new(Streams { tuning, ..streams.clone() });
        Launch { what, executor, elements_max, left_out, hard_only }
    };
    let forced = FORCED_BLOCKS.map(|(blocks, elements_max)| {
        let tuning = Tuning { blocks: Some(blocks), ..streams.tuning };
        launch(
            format!("forced to {blocks} blocks: "),
            tuning,
            elements_max,
            "one or two blocks on more than 2^22 elements",
            false,
        )
    });
    let planned = Arch::ALL.map(|(name, arch)| {
        // Shared memory and bulk copies are what a plan may need that another GPU lacks.
        let fits = arch.block_shared_bytes <= gpu.block_shared_bytes
            && (arch.compute_capability < (9, 0) || gpu.compute_capability >= (9, 0));
        let elements_max = if fits { usize::MAX } else { 0 };
        let tuning = Tuning { arch, ..streams.tuning };
        let (left_out, same_kernels) =
            ("a plan that does not fit this GPU", arch.block_shared_bytes == gpu.block_shared_bytes);
        launch(format!("planned for {name}: "), tuning, elements_max, left_out, quick && !same_kernels)
    });
    let others = (0..VARIANTS).map(|turn| Launch {
        what: format!("variant {turn}: "),
        executor: Box::new(Varied { streams: streams.clone(), turn }),
        elements_max: usize::MAX,
        left_out: "",
        hard_only: true,
    });
    forced.into_iter().chain(planned).chain(others).collect()
}

/// Each call with another of the classes that can work on its rows than the plan's; which, is drawn from the shape and `turn`.
struct Varied {
    streams: Streams,
    turn: usize,
}

impl Varied {
    fn streams(&self, rows: usize, hidden: usize, dtype: Dtype) -> Streams {
        let classes = variants(hidden, dtype);
        let class = Some(classes[(rows * 31 + hidden * 17 + self.turn) % classes.len()]);
        let tuning = Tuning { forward: class, backward: class, ..self.streams.tuning };
        Streams { tuning, ..self.streams.clone() }
    }
}

impl Executor for Varied {
    fn name(&self) -> String {
        self.streams.name()
    }
    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.streams(call.rows, call.hidden, call.x.data.dtype()).forward(call)
    }
    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.streams(call.rows, call.hidden, call.x.data.dtype()).backward(call)
    }
}

/// The CUDA executor on several streams, each call on the one that has been idle for longest: what runs beside a call changes
/// from call to call.
#[derive(Clone)]
struct Streams {
    first: Cuda,
    tuning: Tuning,
    replayed: bool,
    idle: Arc<Mutex<VecDeque<Cuda>>>,
}

impl Streams {
    fn new(cuda: &Cuda) -> Result<Streams, Error> {
        let idle = VecDeque::from([cuda.clone(), cuda.on_new_stream()?]);
        Ok(Streams { first: cuda.clone(), tuning: cuda.tuning(), replayed: false, idle: Arc::new(Mutex::new(idle)) })
    }

    fn run(&self, call: impl FnOnce(&dyn Executor) -> Result<(), Error>) -> Result<(), Error> {
        let found = self.idle().pop_front();
        let cuda = found.map_or_else(|| self.first.on_new_stream(), Ok)?;
        let chosen = cuda.with_tuning(self.tuning);
        if self.replayed {
            // A stream whose capture failed is not used again.
            Replayed::new(&chosen).and_then(|replayed| call(&replayed))?;
            self.idle().push_back(cuda);
            return Ok(());
        }
        let done = call(&chosen);
        self.idle().push_back(cuda);
        done
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Cuda>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Executor for Streams {
    fn name(&self) -> String {
        self.first.name()
    }
    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.run(|executor| executor.forward(call))
    }
    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.run(|executor| executor.backward(call))
    }
}

/// What Linux tells of the driver: the first word that looks like a version.
fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    text.lines().next()?.split_whitespace().find(is_version).map(Into::into)
}

/// Variants that a case is tried with.
const VARIANTS: usize = 2;
/// Numbers of blocks that every launch is forced to, and the largest case that they are tried on.
const FORCED_BLOCKS: [(u32, usize); 5] =
    [(1, 1 << 22), (2, 1 << 22), (114, usize::MAX), (132, usize::MAX), (148, usize::MAX)];
