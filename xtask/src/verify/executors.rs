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
    /// The same once more, for two runs that must be equal.
    pub(super) again: &'a dyn Executor,
    /// None for the CPU.
    pub(super) launches: Vec<Launch>,
}

/// The CUDA executor with another choice of what decides only speed.
pub(super) struct Launch {
    pub(super) what: String,
    pub(super) executor: Box<dyn Executor>,
    /// Cases with more elements are left out, for this reason.
    pub(super) elements_max: usize,
    pub(super) left_out: &'static str,
}

/// A GPU that can be used.
pub(super) struct Found {
    pub(super) gpu: Gpu,
    pub(super) executor: Box<dyn Executor>,
    pub(super) launches: Vec<Launch>,
}

/// Looks for a GPU, and says why there is none.
pub(super) fn find(device: Device) -> Result<Found, String> {
    match device {
        Device::Cpu => Err("not asked for".into()),
        #[cfg(feature = "cuda")]
        _ => super::gpu::find().map_err(|error| format!("{NO_GPU}: {error}")),
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
