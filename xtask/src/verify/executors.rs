//! The executors under test.

use super::Device;
use super::report::Gpu;
use rayon::ThreadPool;
use rmsnorm_cuda::{Backward, Cpu, Error, Executor, Forward, Slice, SliceMut};

/// An executor under test.
pub(super) struct Target<'a> {
    /// [`CPU`] or [`CUDA`].
    pub(super) name: &'static str,
    pub(super) executor: &'a dyn Executor,
    /// Other runs of the same that must give the same bits.
    pub(super) again: Vec<Again<'a>>,
    /// The same, where a change of an input shows too.
    pub(super) strict: &'a dyn Executor,
    /// None for the CPU.
    pub(super) launches: &'a [Launch],
    /// Each of its launches is refused by the driver; not for the CPU.
    pub(super) refused: Option<&'a dyn Executor>,
}

/// Another run that must give the same bits.
#[derive(Clone, Copy)]
pub(super) struct Again<'a> {
    pub(super) how: &'static str,
    pub(super) executor: &'a dyn Executor,
    /// Whether the first run is repeated meanwhile, in another thread.
    pub(super) at_once: bool,
}

/// The CUDA executor with another choice of what decides only speed.
pub(super) struct Launch {
    pub(super) what: String,
    pub(super) executor: Box<dyn Executor>,
    /// Cases with more elements are left out, for this reason.
    pub(super) elements_max: usize,
    pub(super) left_out: &'static str,
    /// Whether it compiles kernels that nothing else needs, and is for the hard cases alone.
    pub(super) hard_only: bool,
}

/// A GPU that can be used.
pub(super) struct Found {
    pub(super) gpu: Gpu,
    pub(super) executor: Box<dyn Executor>,
    /// Calls from graphs whose inputs have changed.
    pub(super) replayed: Box<dyn Executor>,
    /// Calls beside others that take all multiprocessors.
    pub(super) beside: Box<dyn Executor>,
    /// Calls with more blocks than a grid can have.
    pub(super) refused: Box<dyn Executor>,
    pub(super) launches: Vec<Launch>,
}

impl Found {
    pub(super) fn target(&self) -> Target<'_> {
        let again = |how, executor, at_once| Again { how, executor, at_once };
        let again = vec![
            again("on another stream, both at once", &*self.executor, true),
            again("beside competing kernels", &*self.beside, false),
            again("replayed from a graph after its inputs changed", &*self.replayed, false),
        ];
        let (executor, launches) = (&*self.executor, &self.launches[..]);
        Target { name: CUDA, executor, again, strict: &*self.replayed, launches, refused: Some(&*self.refused) }
    }
}

/// The CPU executor as a target: `again` runs the same on one thread.
pub(super) fn cpu_target<'a>(executor: &'a dyn Executor, again: &'a dyn Executor) -> Target<'a> {
    let again = vec![Again { how: "the second run", executor: again, at_once: false }];
    Target { name: CPU, executor, again, strict: executor, launches: &[], refused: None }
}

/// Looks for a GPU, and says why there is none.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
pub(super) fn find(device: Device, quick: bool) -> Result<Found, String> {
    match device {
        Device::Cpu => Err("not asked for".into()),
        #[cfg(feature = "cuda")]
        _ => super::gpu::find(quick).map_err(|error| format!("{NO_GPU}: {error}")),
        #[cfg(not(feature = "cuda"))]
        _ => Err("built without CUDA: build xtask with its feature `cuda`".into()),
    }
}

/// The CPU executor on a pool of its own, whose threads share every call.
pub(super) struct OnAllThreads(pub(super) ThreadPool);

impl Executor for OnAllThreads {
    fn name(&self) -> String {
        self.0.install(|| Cpu.name())
    }
    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.0.install(|| Cpu.forward(call))
    }
    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.0.install(|| Cpu.backward(call))
    }
}

pub(super) const CPU: &str = "cpu";
pub(super) const CUDA: &str = "cuda";
pub(super) const NO_GPU: &str = "no usable GPU";
