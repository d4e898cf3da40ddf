//! Carries out calls on device memory.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUdeviceptr, CUstream};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;

use super::compile::{Module, compile};
use super::{driver_error, library};
use crate::plan::{Arch, Class, Launch, plan};
use crate::{Backward, Dtype, Error, Forward, Operand, Rows, Vector, WeightOffset};

/// A range of device memory as an operand.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    /// Element type.
    pub dtype: Dtype,
    /// Address of the first element.
    pub address: CUdeviceptr,
    /// Number of elements.
    pub elements: usize,
}

impl Operand for DeviceMemory {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn elements(&self) -> usize {
        self.elements
    }
    fn address(&self) -> u64 {
        self.address
    }
}

impl Rows<DeviceMemory> {
    fn pointer(&self) -> CUdeviceptr {
        self.data.address + (self.offset * self.data.dtype.bytes()) as u64
    }

    fn is_aligned(&self) -> bool {
        self.pointer().is_multiple_of(16) && (self.row_stride * self.data.dtype.bytes()).is_multiple_of(16)
    }
}

impl Vector<DeviceMemory> {
    fn pointer(&self) -> CUdeviceptr {
        self.data.address + (self.offset * self.data.dtype.bytes()) as u64
    }

    fn is_aligned(&self) -> bool {
        self.pointer().is_multiple_of(16)
    }
}

/// What decides only speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// The GPU to plan for.
    pub arch: Arch,
    /// Blocks of each kernel over rows, instead of the plan's number.
    pub blocks: Option<u32>,
}

/// The kernels of this crate on one GPU, compiled as they are first needed.
pub struct Kernels {
    context: Arc<CudaContext>,
    gpu_name: String,
    speed: Speed,
    modules: Mutex<HashMap<Module, Arc<OnceLock<Result<Arc<CudaModule>, Error>>>>>,
}

impl Kernels {
    /// The kernels on `context`'s GPU. Compiles nothing yet, but fails where nothing could be compiled.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, Error> {
        library::nvrtc()?;
        let attribute = |a| context.attribute(a).map(|v| v as u32).map_err(|e| driver_error("cuDeviceGetAttribute", e));
        let arch = Arch {
            sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            threads_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
            block_shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
        };
        if arch.compute_capability < (8, 0) {
            return Err(Error::Architecture { got: arch.compute_capability });
        }
        let gpu_name = context.name().map_err(|e| driver_error("cuDeviceGetName", e))?;
        let speed = Speed { arch, blocks: None };
        Ok(Kernels { context: context.clone(), gpu_name, speed, modules: Mutex::default() })
    }

    /// The GPU's name.
    pub fn gpu_name(&self) -> &str {
        &self.gpu_name
    }

    /// What fits this GPU.
    pub fn speed(&self) -> Speed {
        self.speed
    }

    /// Launches a forward call on `stream`.
    ///
    /// # Safety
    /// Every operand is memory of this GPU that stays alive, and is not written by others, until the stream has passed.
    pub unsafe fn forward(
        &self,
        call: &Forward<DeviceMemory, DeviceMemory>,
        speed: &Speed,
        stream: CUstream,
    ) -> Result<(), Error> {
        call.check()?;
        if call.rows == 0 {
            return Ok(());
        }
        let dtype = call.x.data.dtype;
        let plan = plan(call.rows, call.hidden, dtype, &speed.arch);
        let aligned = call.hidden.is_multiple_of(plan.forward.class.pack as usize)
            && call.x.is_aligned()
            && call.y.is_aligned()
            && call.weight.is_none_or(|w| w.is_aligned());
        let launch = Launch { blocks: speed.blocks.unwrap_or(plan.forward.blocks), ..plan.forward };
        let module = rows_module(&launch, dtype, call.weight, call.weight_offset, aligned, call.hidden);
        let function = self.function(module, "forward")?;
        let (x, x_stride) = (call.x.pointer(), call.x.row_stride as u64);
        let (y, y_stride) = (call.y.pointer(), call.y.row_stride as u64);
        let weight = call.weight.map_or(0, |w| w.pointer());
        let rstd = call.rstd.map_or(0, |r| r.pointer());
        let (rows, hidden, chains) = (call.rows as u64, call.hidden as u32, plan.row.chains as u32);
        let arguments = [
            arg(&x), arg(&x_stride), arg(&weight), arg(&y), arg(&y_stride), arg(&rstd), arg(&rows), arg(&hidden), arg(&chains),
            arg(&call.eps), arg(&launch.stages),
        ];
        // SAFETY: the arguments are those of `forward` in forward.cu, in order and size. `check` measured every operand, and
        // y and rstd overlap nothing; the caller vouches for the memory.
        unsafe { self.launch(&function, launch.blocks, launch.class.threads(), ring_bytes(&launch, dtype, 1, call.hidden, aligned), &arguments, stream) }
    }

    /// Launches a backward call on `stream`.
    ///
    /// # Safety
    /// As for [`Kernels::forward`].
    pub unsafe fn backward(
        &self,
        call: &Backward<DeviceMemory, DeviceMemory>,
        speed: &Speed,
        stream: CUstream,
    ) -> Result<(), Error> {
        call.check()?;
        if call.rows == 0 {
            let Some(gradient) = &call.dw else { return Ok(()) };
            let bytes = call.hidden * gradient.dw.data.dtype.bytes();
            self.bind()?;
            // SAFETY: `check` measured dw. All zero bytes are +0.0 in every element type, and no scratch is read.
            return unsafe { sys::cuMemsetD8Async(gradient.dw.pointer(), 0, bytes, stream) }
                .result()
                .map_err(|e| driver_error("cuMemsetD8Async", e));
        }
        let dtype = call.x.data.dtype;
        let plan = plan(call.rows, call.hidden, dtype, &speed.arch);
        let aligned = call.hidden.is_multiple_of(plan.backward.class.pack as usize)
            && [&call.x, &call.dy, &call.dx].into_iter().all(Rows::is_aligned)
            && call.weight.is_none_or(|w| w.is_aligned())
            && call.dw.as_ref().is_none_or(|g| g.scratch.is_aligned());
        let launch = Launch { blocks: speed.blocks.unwrap_or(plan.backward.blocks), ..plan.backward };
        let module = rows_module(&launch, dtype, call.weight, call.weight_offset, aligned, call.hidden);
        let (x, x_stride) = (call.x.pointer(), call.x.row_stride as u64);
        let (dy, dy_stride) = (call.dy.pointer(), call.dy.row_stride as u64);
        let (dx, dx_stride) = (call.dx.pointer(), call.dx.row_stride as u64);
        let weight = call.weight.map_or(0, |w| w.pointer());
        let rstd = call.rstd.pointer();
        let partial = call.dw.as_ref().map_or(0, |g| g.scratch.pointer());
        let (rows, groups) = (call.rows as u64, plan.column.groups as u64);
        let (hidden, chains) = (call.hidden as u32, plan.row.chains as u32);
        let arguments = [
            arg(&x), arg(&x_stride), arg(&dy), arg(&dy_stride), arg(&weight), arg(&rstd), arg(&dx), arg(&dx_stride),
            arg(&partial), arg(&rows), arg(&groups), arg(&hidden), arg(&chains), arg(&launch.stages),
        ];
        let threads = launch.class.threads();
        let shared_bytes = ring_bytes(&launch, dtype, 2, call.hidden, aligned);
        let function = self.function(module, "backward")?;
        // SAFETY: the arguments are those of `backward` in backward.cu, in order and size. `check` measured every operand
        // (scratch for one partial row per group), and the outputs overlap nothing; the caller vouches for the memory.
        unsafe { self.launch(&function, launch.blocks, threads, shared_bytes, &arguments, stream)? };
        let Some(gradient) = &call.dw else { return Ok(()) };

        let nodes = plan.column.groups.div_ceil(launch.class.teams as usize) as u32;
        if launch.class.packs == 0 {
            let tiles = call.hidden.div_ceil((launch.class.pack * threads) as usize);
            let blocks = speed.blocks.unwrap_or((tiles * plan.column.groups) as u32);
            let function = self.function(module, "columns")?;
            // SAFETY: as above, for `columns` in backward.cu, which takes the same arguments but the last.
            unsafe { self.launch(&function, blocks, threads, 0, &arguments, stream)? };
        }
        // Every partial row below `nodes` was written in full by the launch before: each has a first group below `groups`.
        let fold = self.function(Module::Fold { dw: gradient.dw.data.dtype }, "fold_partials")?;
        let level = nodes.next_power_of_two().ilog2().saturating_sub(5);
        let dw = gradient.dw.pointer();
        let arguments = [arg(&partial), arg(&dw), arg(&nodes), arg(&level), arg(&hidden)];
        // SAFETY: the arguments are those of `fold_partials` in fold.cu, in order and size.
        unsafe { self.launch(&fold, hidden.div_ceil(32), 1024, 0, &arguments, stream) }
    }

    fn function(&self, module: Module, name: &'static str) -> Result<CudaFunction, Error> {
        let slot = {
            let mut modules = self.modules.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            modules.entry(module).or_default().clone()
        };
        // The map is free while a module compiles; who needs the same module waits for it.
        let loaded = slot.get_or_init(|| {
            let compiled = compile(&module, self.speed.arch.compute_capability)?;
            self.context.load_module(Ptx::from_binary(compiled.cubin)).map_err(|e| driver_error("cuModuleLoadData", e))
        });
        let loaded = loaded.as_ref().map_err(Clone::clone)?;
        loaded.load_function(name).map_err(|e| driver_error("cuModuleGetFunction", e))
    }

    fn bind(&self) -> Result<(), Error> {
        self.context.bind_to_thread().map_err(|e| driver_error("cuCtxSetCurrent", e))
    }

    /// # Safety
    /// `arguments` point to values of the types that `function` takes, in order.
    pub(super) unsafe fn launch(
        &self,
        function: &CudaFunction,
        blocks: u32,
        threads: u32,
        shared_bytes: u32,
        arguments: &[*mut c_void],
        stream: CUstream,
    ) -> Result<(), Error> {
        self.bind()?;
        if shared_bytes > 48 << 10 {
            function
                .set_attribute(
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared_bytes as i32,
                )
                .map_err(|e| driver_error("cuFuncSetAttribute", e))?;
        }
        // SAFETY: the caller's promise; the function belongs to this context.
        unsafe {
            sys::cuLaunchKernel(
                function.cu_function(),
                blocks,
                1,
                1,
                threads,
                1,
                1,
                shared_bytes,
                stream,
                arguments.as_ptr().cast_mut(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(|e| driver_error("cuLaunchKernel", e))
    }
}

fn rows_module(
    launch: &Launch,
    dtype: Dtype,
    weight: Option<Vector<DeviceMemory>>,
    weight_offset: WeightOffset,
    aligned: bool,
    hidden: usize,
) -> Module {
    let weight = weight.map(|w| w.data.dtype);
    let zero_centred = weight.is_some() && weight_offset == WeightOffset::One;
    let Class { lanes, pack, packs, .. } = launch.class;
    let exact = aligned && hidden == (lanes * pack * packs) as usize;
    Module::Rows { class: launch.class, dtype, weight, zero_centred, aligned, ring: aligned && launch.stages > 0, exact }
}

/// Shared memory for the rings of a block's teams, `tensors` rows a stage.
fn ring_bytes(launch: &Launch, dtype: Dtype, tensors: u32, hidden: usize, aligned: bool) -> u32 {
    if aligned { launch.class.teams * launch.stages * tensors * (hidden * dtype.bytes()) as u32 } else { 0 }
}

pub(super) fn arg<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}
