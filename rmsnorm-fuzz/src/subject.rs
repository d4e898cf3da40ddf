//! What is judged: an executor, and whatever else must give the same bits as it.

use crate::case::Case;
use rmsnorm_cuda::{Backward, Cpu, Error, Executor, Forward, Input, Slice, SliceMut};

#[cfg(feature = "cuda")]
mod gpu;

/// An executor, how it can be run in other ways, and what a caller can see of it.
pub struct Subject {
    /// `cpu` or `cuda`: what reports call it.
    pub name: &'static str,
    /// As a user has it.
    pub executor: Box<dyn Executor>,
    /// Further runs of the same, for property 3.
    pub again: Vec<Again>,
    /// The same, where a change of an input shows too, if that is not [`executor`](Self::executor) itself.
    pub strict: Option<Box<dyn Executor>>,
    /// The kernels with other choices of what decides only speed, for property 5.
    pub launches: Vec<OtherLaunch>,
    /// The same, but the driver refuses each of its launches: for property 12.
    pub refused: Option<Box<dyn Executor>>,
    /// Whether operands of several types are left out of what is fuzzed: each mixture has kernels of its own, which would be compiled for longer than
    /// they run.
    pub of_one_type: bool,
    /// Whether the kernels run in the emulator, which takes a thousand times longer than a GPU.
    pub is_emulated: bool,
}

/// Another run that must give the same bits.
pub struct Again {
    /// What is other about it.
    pub how: &'static str,
    /// Who runs it, if not the same executor.
    pub executor: Option<Box<dyn Executor>>,
    /// Whether the first run is repeated meanwhile, in another thread.
    pub at_once: bool,
}

/// The kernels with another choice of what decides only speed.
pub struct OtherLaunch {
    /// The choice.
    pub what: String,
    /// Who makes it.
    pub executor: Box<dyn Executor>,
    /// Cases with more elements are left out, ...
    pub elements_max: usize,
    /// ... for this reason.
    pub left_out: &'static str,
    /// How many cases are tried with it.
    pub tried: Tried,
}

/// How many cases are tried with a launch. Where that is not all, it needs kernels of its own, and compiling them is what takes the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tried {
    /// Every one.
    Always,
    /// Those that stand for others: kernels that differ by the weight alone differ in what is multiplied, and not in who works on what.
    Often,
    /// Those in which the most is looked at.
    Seldom,
}

impl Subject {
    /// An executor by itself, which is run a second time.
    pub fn of(executor: impl Executor + 'static) -> Subject {
        Subject {
            name: "cpu",
            executor: Box::new(executor),
            again: vec![Again::itself("the second run")],
            strict: None,
            launches: Vec::new(),
            refused: None,
            of_one_type: false,
            is_emulated: false,
        }
    }

    /// The CPU executor, its calls shared by all threads of the machine; and again on the threads of whoever asks.
    pub fn cpu() -> Result<Subject, rayon::ThreadPoolBuildError> {
        let second = Again { executor: Some(Box::new(Cpu)), ..Again::itself("the second run") };
        let pool = rayon::ThreadPoolBuilder::new().build()?;
        Ok(Subject { again: vec![second], ..Subject::of(OnAllThreads(pool)) })
    }

    /// The launches that every case is tried with, if it is not too large for them.
    pub(crate) fn always(&self, case: &Case) -> impl Iterator<Item = &OtherLaunch> {
        let elements = case.elements();
        self.launches.iter().filter(move |launch| launch.tried == Tried::Always && elements <= launch.elements_max)
    }

    /// The executor of which a change of an input shows too.
    pub(crate) fn strict(&self) -> &dyn Executor {
        self.strict.as_deref().unwrap_or(&*self.executor)
    }
}

impl Again {
    /// The same executor once more.
    pub fn itself(how: &'static str) -> Again {
        Again { how, executor: None, at_once: false }
    }
}

impl OtherLaunch {
    /// A choice that every case is tried with.
    pub fn new(what: impl Into<String>, executor: impl Executor + 'static) -> OtherLaunch {
        let executor = Box::new(executor);
        OtherLaunch { what: what.into(), executor, elements_max: usize::MAX, left_out: "", tried: Tried::Always }
    }

    /// A number of blocks, one of [`FORCED_BLOCKS`].
    pub fn forced((blocks, elements_max): (u32, usize), executor: impl Executor + 'static) -> OtherLaunch {
        let left_out = "one or two blocks on more than 2^22 elements";
        OtherLaunch { elements_max, left_out, ..OtherLaunch::new(format!("forced to {blocks} blocks"), executor) }
    }
}

/// Numbers of blocks that the plan would not choose, and the largest case that they are tried on.
pub const FORCED_BLOCKS: [(u32, usize); 5] =
    [(1, 1 << 22), (2, 1 << 22), (114, usize::MAX), (132, usize::MAX), (148, usize::MAX)];

/// The CPU executor on a pool of its own, whose threads share every call.
struct OnAllThreads(rayon::ThreadPool);

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
    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.0.install(|| Cpu.forward_in_place(call))
    }
    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.0.install(|| Cpu.backward_in_place(call))
    }
}
