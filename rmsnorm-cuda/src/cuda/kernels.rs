//! Carries out calls on device memory: hands the steps of a call to a stream.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::result::{device, stream};
use cudarc::driver::sys::{
    self, CUdevice_attribute_enum as Attribute, CUfunction, CUresult, CUstream, CUstreamCaptureStatus,
};
use cudarc::driver::{CudaContext, DriverError};

use super::cache::{Cache, Origin};
use super::code::Code;
use super::loaded::{Current, Loaded};
use super::module::Module;
use super::place::DeviceMemory;
use super::steps::{Kernel, Step, Steps, backward, forward};
use super::{driver_error, library};
use crate::plan::{Arch, Calls, ROW_COUNTS, Tuning};
use crate::{Backward, Error, Forward};

/// The kernels of this crate on one GPU, compiled as they are first needed. One value serves any number of threads and streams
/// of its context.
///
/// No setting of the context is changed, the calling thread's current context is afterwards what it was, and an error that
/// cudarc keeps for its next call is left to that call. It may be made, prepared and dropped at any time: while kernels run,
/// while streams are captured, before a graph is replayed. What is loaded stays so until its context ends, and the next
/// `Kernels` on that context finds it.
pub struct Kernels {
    context: Arc<CudaContext>,
    gpu_name: String,
    tuning: Tuning,
    code: Code,
    modules: Arc<Modules>,
}

/// The modules of one context, only ever added to, so that finding one takes no lock. Each hangs behind those of the same hash that were
/// asked for before it.
struct Modules([Link; 64]);

type Link = OnceLock<Box<Slot>>;

/// A module that is there, or that the thread with the lock is loading. An error is not kept: the next call tries again.
struct Slot {
    module: Module,
    /// Whether it is the one compiled ahead.
    ahead: bool,
    loaded: OnceLock<Loaded>,
    /// Set if nobody kept it and nobody can compile it, while there is a bundle.
    absent: OnceLock<()>,
    loading: Mutex<()>,
    next: Link,
}

/// The modules of each context by its handle, beside the context's id: a later context may get the handle of one that ended,
/// and the modules with it, but never the id.
static MODULES: Mutex<BTreeMap<usize, (u64, Arc<Modules>)>> = Mutex::new(BTreeMap::new());

impl Modules {
    /// Nothing is ever unloaded. A kernel may be running, or in a graph that is replayed later, and dropping a [`Kernels`] is
    /// safe; waiting instead would not do for the graph, and would end a capture. The driver frees modules with their context.
    fn of(context: &CudaContext) -> Result<Arc<Self>, Error> {
        let id = library::context_id(context.cu_ctx())?;
        let none = || Arc::new(Modules([const { Link::new() }; 64]));
        let mut contexts = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = contexts.entry(context.cu_ctx().addr()).or_insert_with(|| (id, none()));
        if entry.0 != id {
            *entry = (id, none());
        }
        Ok(entry.1.clone())
    }

    /// The place of `module`, compiled ahead or not.
    fn slot(&self, module: &Module, ahead: bool) -> &Slot {
        let mut hasher = DefaultHasher::new();
        (module, ahead).hash(&mut hasher);
        let mut link = &self.0[hasher.finish() as usize % self.0.len()];
        loop {
            // Whoever comes second finds the other's, of this module or not.
            let slot = link.get_or_init(|| {
                let (loaded, absent, loading, next) = Default::default();
                Box::new(Slot { module: *module, ahead, loaded, absent, loading, next })
            });
            if slot.module == *module && slot.ahead == ahead {
                return slot;
            }
            link = &slot.next;
        }
    }
}

impl Kernels {
    /// The kernels on `context`'s GPU. Compiled kernels are kept where [`Cache::from_environment`] says. What a call needs is looked for there, then
    /// compiled if there is an NVRTC, and without one taken from what was compiled ahead, if the feature `prebuilt` is on. Nothing of it happens
    /// yet, but where none of the three can give anything, this fails with [`Error::NoCode`].
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, Error> {
        Kernels::with_cache(context, Cache::from_environment())
    }

    /// The same with another place for compiled kernels. What an earlier `Kernels` loaded on this context is not looked for.
    pub fn with_cache(context: &Arc<CudaContext>, cache: Cache) -> Result<Self, Error> {
        Kernels::with_code(context, |capability| Code::new(cache, capability))
    }

    /// The kernels that were compiled ahead, as where there is neither a cache nor an NVRTC: for checks of `bundle`.
    #[cfg(feature = "checks")]
    #[doc(hidden)]
    pub fn of_bundle(context: &Arc<CudaContext>, bundle: &'static super::prebuilt::Bundle) -> Result<Self, Error> {
        Kernels::with_code(context, |capability| Ok(Code::of_bundle(bundle, capability)))
    }

    fn with_code(
        context: &Arc<CudaContext>,
        code: impl FnOnce((u32, u32)) -> Result<Code, Error>,
    ) -> Result<Self, Error> {
        library::driver()?;
        // Not `CudaContext::attribute`, which may return an error that has nothing to do with it.
        let attribute = |a| {
            // SAFETY: the device is that of a live context.
            let value = unsafe { device::get_attribute(context.cu_device(), a) };
            value.map(|v| v as u32).map_err(|e| driver_error("cuDeviceGetAttribute", e))
        };
        let arch = Arch {
            sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            threads_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
            block_shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            memory_bytes_per_us: memory_bytes_per_us(
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
            ),
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
        };
        if arch.compute_capability < (8, 0) {
            return Err(Error::Architecture { got: arch.compute_capability });
        }
        let code = code(arch.compute_capability)?;
        let gpu_name = device::get_name(context.cu_device()).map_err(|e| driver_error("cuDeviceGetName", e))?;
        let (tuning, modules) = (Tuning::of(arch), Modules::of(context)?);
        Ok(Kernels { context: context.clone(), gpu_name, tuning, code, modules })
    }

    /// What is loaded on this context so far, by name, and where it came from.
    pub fn loaded(&self) -> Vec<(String, Origin)> {
        let slots = self.modules.0.iter().flat_map(|link| std::iter::successors(link.get(), |slot| slot.next.get()));
        slots.filter_map(|slot| Some((slot.module.to_string(), slot.loaded.get()?.origin))).collect()
    }

    /// The GPU's name.
    pub fn gpu_name(&self) -> &str {
        &self.gpu_name
    }

    /// What fits this GPU.
    #[doc(hidden)]
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Where compiled kernels are kept, and whether that works.
    pub fn cache(&self) -> &Cache {
        &self.code.cache
    }

    /// Compiles (or reads from the [`cache`](Kernels::cache)) and loads what a forward call and a backward call of this kind
    /// need, at this and any other number of rows. Afterwards these only launch: they compile, allocate and wait for nothing.
    /// Loading may wait for the GPU; no capture is disturbed by it.
    pub fn prepare(&self, calls: &Calls) -> Result<(), Error> {
        self.prepare_at(calls, &self.tuning)
    }

    /// The same for calls at another speed.
    pub(super) fn prepare_at(&self, calls: &Calls, tuning: &Tuning) -> Result<(), Error> {
        let _current = Current::set(&self.context)?;
        // Without rows there is no kernel.
        for rows in ROW_COUNTS.into_iter().chain([calls.rows.max(1)]) {
            let calls = Calls { rows, ..*calls };
            let (of_forward, of_backward) = (calls.forward()?, calls.backward()?);
            self.prepare_steps(tuning, |tuning| forward(&of_forward, tuning))?;
            self.prepare_steps(tuning, |tuning| backward(&of_backward, tuning))?;
        }
        Ok(())
    }

    fn prepare_steps(&self, tuning: &Tuning, plan: impl Fn(&Tuning) -> Result<Steps, Error>) -> Result<(), Error> {
        let (steps, ahead) = self.chosen(plan(tuning)?, tuning, plan)?;
        kernels(&steps).try_for_each(|kernel| self.function(kernel, ahead).map(drop))
    }

    /// The steps as planned, if code for all of them is there or can be; else such as were compiled ahead, and true. The context must be current.
    fn chosen(
        &self,
        planned: Steps,
        tuning: &Tuning,
        plan: impl Fn(&Tuning) -> Result<Steps, Error>,
    ) -> Result<(Steps, bool), Error> {
        let Some(takes_kept) = self.code.ahead() else { return Ok((planned, false)) };
        if takes_kept && kernels(&planned).all(|kernel| self.is_kept(&kernel.module)) {
            return Ok((planned, false));
        }
        let arch = Arch { compute_capability: AHEAD, ..tuning.arch };
        let mut portable = plan(&Tuning { arch, few_rows: false, ..*tuning })?;
        for step in &mut portable {
            if let Step::Kernel(kernel) = step {
                kernel.module = kernel.module.portable();
            }
        }
        Ok((portable, true))
    }

    /// Whether the module is loaded, or was kept and can be.
    fn is_kept(&self, module: &Module) -> bool {
        let slot = self.modules.slot(module, false);
        if slot.loaded.get().is_none() && slot.absent.get().is_none() && self.load(slot).is_err() {
            slot.absent.get_or_init(|| ());
        }
        slot.loaded.get().is_some()
    }

    /// Launches a forward call on `stream`. A kernel that is not loaded is loaded, also while streams are captured. The stream of
    /// another context is refused ([`Error::Context`]).
    ///
    /// # Safety
    /// Every operand is memory of this GPU that stays alive, and is not written by others, until the stream has passed. The
    /// stream is alive.
    pub unsafe fn forward(
        &self,
        call: &Forward<DeviceMemory, DeviceMemory>,
        stream: CUstream,
    ) -> Result<(), Error> {
        // SAFETY: as below.
        unsafe { self.forward_tuned(call, &self.tuning, stream) }
    }

    /// The same, with what decides only speed chosen by `tuning`.
    ///
    /// # Safety
    /// As for [`Kernels::forward`].
    #[doc(hidden)]
    pub unsafe fn forward_tuned(
        &self,
        call: &Forward<DeviceMemory, DeviceMemory>,
        tuning: &Tuning,
        stream: CUstream,
    ) -> Result<(), Error> {
        // SAFETY: the steps touch nothing but the operands, which `check` measured; the caller vouches for the memory.
        unsafe { self.run(|tuning| forward(call, tuning), tuning, stream) }
    }

    /// Launches a backward call on `stream`.
    ///
    /// # Safety
    /// As for [`Kernels::forward`].
    pub unsafe fn backward(
        &self,
        call: &Backward<DeviceMemory, DeviceMemory>,
        stream: CUstream,
    ) -> Result<(), Error> {
        // SAFETY: as below.
        unsafe { self.backward_tuned(call, &self.tuning, stream) }
    }

    /// The same, with what decides only speed chosen by `tuning`.
    ///
    /// # Safety
    /// As for [`Kernels::forward`].
    #[doc(hidden)]
    pub unsafe fn backward_tuned(
        &self,
        call: &Backward<DeviceMemory, DeviceMemory>,
        tuning: &Tuning,
        stream: CUstream,
    ) -> Result<(), Error> {
        // SAFETY: as in `forward_tuned`.
        unsafe { self.run(|tuning| backward(call, tuning), tuning, stream) }
    }

    /// # Safety
    /// The steps are those of one call, whose operands the caller vouches for.
    unsafe fn run(
        &self,
        plan: impl Fn(&Tuning) -> Result<Steps, Error>,
        tuning: &Tuning,
        stream: CUstream,
    ) -> Result<(), Error> {
        let planned = plan(tuning)?;
        let _current = Current::set(&self.context)?;
        let (steps, ahead) = self.chosen(planned, tuning, plan)?;
        for step in &steps {
            match step {
                Step::Clear { address, bytes } => {
                    // SAFETY: the caller's promise.
                    unsafe { sys::cuMemsetD8Async(*address, 0, *bytes, stream) }
                        .result()
                        .map_err(|e| self.refused("cuMemsetD8Async", e, stream))?;
                }
                Step::Kernel(kernel) => {
                    let function = self.function(kernel, ahead)?;
                    let arguments = kernel.arguments.each_ref().map(arg);
                    let shape = (kernel.blocks, kernel.threads, kernel.shared_bytes);
                    // SAFETY: steps.rs lists the arguments of each kernel in the order of its parameters, four-byte ones in the
                    // low half of a cell, which comes first in memory; cells past the last parameter are not read.
                    unsafe { launch(function, shape, &arguments, stream) }
                        .map_err(|e| self.refused("cuLaunchKernel", e, stream))?;
                }
            }
        }
        Ok(())
    }

    /// The function of a kernel that is about to be launched.
    pub(super) fn function(&self, kernel: &Kernel, ahead: bool) -> Result<CUfunction, Error> {
        let slot = self.modules.slot(&kernel.module, ahead);
        let loaded = match slot.loaded.get() {
            Some(loaded) => loaded,
            None => self.load(slot)?,
        };
        loaded.function(kernel.name).ok_or_else(|| Error::Compile {
            kernel: kernel.module.to_string(),
            log: format!("it has no kernel {}", kernel.name),
        })
    }

    /// The error of a driver that took nothing for `stream`: that the stream is of another context, if it is. (Asked only here,
    /// so that a call that succeeds does not pay for it.)
    fn refused(&self, call: &'static str, error: DriverError, stream: CUstream) -> Error {
        let got = match error.0 {
            CUresult::CUDA_ERROR_INVALID_HANDLE | CUresult::CUDA_ERROR_INVALID_CONTEXT => self.other_gpu(stream),
            _ => None,
        };
        got.map_or_else(|| driver_error(call, error), |got| Error::Context { expected: self.context.ordinal(), got })
    }

    /// The ordinal of the GPU of a stream of another context.
    fn other_gpu(&self, stream: CUstream) -> Option<usize> {
        let (mut theirs, mut device) = (std::ptr::null_mut(), 0);
        // SAFETY: the stream is alive, as the caller of the launch vouches.
        unsafe { sys::cuStreamGetCtx(stream, &mut theirs) }.result().ok()?;
        if theirs == self.context.cu_ctx() {
            return None;
        }
        let _current = Current::set_raw(theirs).ok()?;
        // SAFETY: asks for the device of the current context, which is alive with its stream.
        unsafe { sys::cuCtxGetDevice(&mut device) }.result().ok()?;
        device.try_into().ok()
    }

    /// Whether what `stream`, one of this context, is given goes into a graph. The context must be current.
    pub(super) fn is_captured(&self, stream: CUstream) -> Result<bool, Error> {
        // SAFETY: a stream of this context, on which the caller is about to launch.
        let status = unsafe { stream::is_capturing(stream) }.map_err(|e| driver_error("cuStreamIsCapturing", e))?;
        Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Whether `context` is the one where the kernels are.
    pub(super) fn expect_context(&self, context: &Arc<CudaContext>) -> Result<(), Error> {
        let (expected, got) = (self.context.ordinal(), context.ordinal());
        if *context == self.context { Ok(()) } else { Err(Error::Context { expected, got }) }
    }

    /// Finds or compiles a module and loads it into its slot. Who needs the same module waits for it.
    fn load<'a>(&self, slot: &'a Slot) -> Result<&'a Loaded, Error> {
        let _alone = slot.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = slot.loaded.get() {
            return Ok(loaded);
        }
        let module = &slot.module;
        let (image, origin) = self.code.image(module, slot.ahead)?;
        let loaded = Loaded::new(module, &image, origin, self.tuning.arch.block_shared_bytes)?;
        Ok(slot.loaded.get_or_init(|| loaded))
    }

}

fn kernels(steps: &Steps) -> impl Iterator<Item = &Kernel> {
    steps.iter().filter_map(|step| if let Step::Kernel(kernel) = step { Some(kernel) } else { None })
}

/// The compute capability that what is compiled ahead is planned for.
const AHEAD: (u32, u32) = (8, 0);

/// Launches blocks of so many threads with so many bytes of dynamic shared memory each.
///
/// # Safety
/// `function` belongs to the current context, and `arguments` point to values of the types that it takes, in order; what they point to
/// is memory that the function may use so.
pub(super) unsafe fn launch(
    function: CUfunction,
    (blocks, threads, shared_bytes): (u32, u32, u32),
    arguments: &[*mut c_void],
    stream: CUstream,
) -> Result<(), DriverError> {
    let (arguments, extra) = (arguments.as_ptr().cast_mut(), std::ptr::null_mut());
    // SAFETY: as this function's own `# Safety` demands.
    unsafe { sys::cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared_bytes, stream, arguments, extra) }
        .result()
}

/// Two transfers a clock over the whole bus.
fn memory_bytes_per_us(clock_khz: u32, bus_bits: u32) -> u32 {
    (2 * u64::from(clock_khz) * u64::from(bus_bits) / 8 / 1000).try_into().unwrap_or(u32::MAX)
}

/// A kernel argument as the driver takes it.
pub(super) fn arg<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}
