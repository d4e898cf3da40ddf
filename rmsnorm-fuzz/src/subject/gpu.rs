//! The CUDA executor as it is judged: on several streams, beside competing kernels, replayed from graphs, with every launch.

use super::{Again, FORCED_BLOCKS, OtherLaunch, Subject, Tried};
use rmsnorm_cuda::cuda::checks::replay::{Beside, Replayed};
use rmsnorm_cuda::cuda::library::nvrtc;
use rmsnorm_cuda::cuda::prebuilt::Bundle;
use rmsnorm_cuda::cuda::{Cuda, Tuning};
use rmsnorm_cuda::plan::{Arch, variants};
use rmsnorm_cuda::{Backward, Dtype, Error, Executor, Forward, Input, Operand, Slice, SliceMut};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

impl Subject {
    /// The CUDA executor on the GPU of `cuda`. Plans of other GPUs, which need kernels of their own, are tried often, and in a quick run
    /// seldom.
    pub fn cuda(cuda: &Cuda, quick: bool) -> Result<Subject, Error> {
        cuda.keep_freed_memory().ok(); // Only speed depends on it.
        let streams = Streams::new(cuda)?;
        let replayed = || Box::new(Streams { replayed: true, ..streams.clone() });
        let beside = Beside::new(&cuda.on_new_stream()?)?;
        let blocks = Some(u32::MAX); // More than a grid can have.
        let again = |how, executor| Again { executor: Some(executor), ..Again::itself(how) };
        Ok(Subject {
            name: "cuda",
            again: vec![
                Again { at_once: true, ..Again::itself("on another stream, both at once") },
                again("beside competing kernels", Box::new(beside)),
                again("replayed from a graph after its inputs changed", replayed()),
            ],
            strict: Some(replayed()),
            launches: launches(&streams, cuda.arch(), quick).into_iter().chain(ahead(cuda)?).collect(),
            refused: Some(Box::new(streams.with(Tuning { blocks, ..streams.tuning }))),
            ..Subject::of(streams)
        })
    }
}

/// The kernels compiled ahead, if they are in this program: nothing else is then compiled for them.
fn ahead(cuda: &Cuda) -> Result<Option<OtherLaunch>, Error> {
    let Ok(bundle) = Bundle::installed() else { return Ok(None) };
    Ok(Some(OtherLaunch::new("compiled ahead", Streams::new(&cuda.of_bundle(bundle)?)?)))
}

/// Numbers of blocks that the plan would not choose, the plans of other GPUs, and other classes.
fn launches(streams: &Streams, gpu: Arch, quick: bool) -> Vec<OtherLaunch> {
    let forced = FORCED_BLOCKS
        .map(|forced| OtherLaunch::forced(forced, streams.with(Tuning { blocks: Some(forced.0), ..streams.tuning })));
    let planned = Arch::ALL.map(|(name, arch)| {
        // Shared memory and bulk copies are what a plan may need that another GPU lacks.
        let fits = arch.block_shared_bytes <= gpu.block_shared_bytes
            && (arch.compute_capability < (9, 0) || gpu.compute_capability >= (9, 0));
        OtherLaunch {
            elements_max: if fits { usize::MAX } else { 0 },
            left_out: "a plan that does not fit this GPU",
            tried: match () {
                _ if quick && arch.block_shared_bytes != gpu.block_shared_bytes => Tried::Seldom,
                _ if arch.compute_capability != gpu.compute_capability => Tried::Often,
                _ => Tried::Always,
            },
            ..OtherLaunch::new(format!("planned for {name}"), streams.with(Tuning { arch, ..streams.tuning }))
        }
    });
    let has_compiler = nvrtc(gpu.compute_capability).is_ok();
    let others = (0..VARIANTS).map(|turn| {
        let varied = Varied { streams: streams.clone(), turn };
        OtherLaunch {
            elements_max: if has_compiler { usize::MAX } else { 0 },
            left_out: "a class that is not compiled ahead",
            tried: Tried::Seldom,
            ..OtherLaunch::new(format!("variant {turn}"), varied)
        }
    });
    forced.into_iter().chain(planned).chain(others).collect()
}

/// Each call with another of the classes that can work on its rows than the plan's; which, is drawn from the shape and `turn`.
struct Varied {
    streams: Streams,
    turn: usize,
}

impl Varied {
    /// `dtypes`: of rows of the call. (A class for narrower ones than they are is ignored.)
    fn streams(&self, rows: usize, hidden: usize, dtypes: &[Dtype]) -> Streams {
        let widest = dtypes.iter().copied().max_by_key(|dtype| dtype.bytes()).unwrap_or(Dtype::F32);
        let classes = variants(hidden, widest);
        let class = Some(classes[(rows * 31 + hidden * 17 + self.turn) % classes.len()]);
        self.streams.with(Tuning { forward: class, backward: class, ..self.streams.tuning })
    }
}

impl Executor for Varied {
    fn name(&self) -> String {
        self.streams.name()
    }
    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.streams(call.rows, call.hidden, &[call.x.data.dtype(), call.y.data.dtype()]).forward(call)
    }
    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.streams(call.rows, call.hidden, &[call.x.data.dtype(), call.dy.data.dtype(), call.dx.data.dtype()])
            .backward(call)
    }
    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.streams(call.rows, call.hidden, &[call.y.data.dtype()]).forward_in_place(call)
    }
    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.streams(call.rows, call.hidden, &[call.dx.data.dtype()]).backward_in_place(call)
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

    fn with(&self, tuning: Tuning) -> Streams {
        Streams { tuning, ..self.clone() }
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
    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.run(|executor| executor.forward_in_place(call))
    }
    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.run(|executor| executor.backward_in_place(call))
    }
}

/// Variants that a case is tried with.
const VARIANTS: usize = 1;
