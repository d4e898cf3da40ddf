//! Runs the kernel sources of this crate on a CPU, so that a machine without a GPU can check them: their indexing, barriers and
//! order, bit for bit. What it cannot show is whether NVRTC compiles them to the same arithmetic; for that there is a GPU.
//!
//! `emulator.cc` says how. It needs a C++ compiler (`CXX`, else `c++`) for each module it meets, and x86-64 with Linux.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libloading::{Library, Symbol};

use crate::arith::environment;
use crate::cuda::DeviceMemory;
use crate::cuda::kernels::arg;
use crate::cuda::module::{Module, SOURCES};
use crate::cuda::steps::{self, Kernel, Step};
use crate::plan::Tuning;
use crate::{Backward, Error, Executor, Forward, Input, Operand, Slice, SliceMut, with_dtype};

/// An executor that launches the kernels as [`Cuda`](crate::cuda::Cuda) does, on a CPU.
pub struct Emulator {
    tuning: Tuning,
    seed: AtomicU64,
    patches: Vec<(String, String)>,
    portable: bool,
    modules: Mutex<HashMap<Module, Built>>,
}

const EMULATION: &str = include_str!("emulator.cc");

/// A module built, or being built; its launches take turns, for its shared memory is static.
type Built = Arc<OnceLock<Result<Mutex<Library>, Error>>>;

impl Emulator {
    /// An emulator that plans for `tuning` and draws the order of threads from `seed`.
    pub fn new(tuning: Tuning, seed: u64) -> Self {
        Emulator { tuning, seed: AtomicU64::new(seed), patches: Vec::new(), portable: false, modules: Mutex::default() }
    }

    /// The same with the modules that are compiled ahead, where `tuning` plans for a GPU of compute capability 8.0 without kernels for few rows.
    pub fn portable(self) -> Self {
        Emulator { portable: true, ..self }
    }

    /// The same with `from` replaced by `to` in the kernel sources, wherever it stands: a broken kernel that a check must catch.
    ///
    /// # Panics
    /// If that text stands in none of them: an error would look like a broken kernel that is caught.
    pub fn patched(mut self, from: &str, to: &str) -> Self {
        assert!(SOURCES.iter().any(|(_, text)| text.contains(from)), "the patch does not apply: {from}");
        self.patches.push((from.into(), to.into()));
        self
    }

    fn run(&self, steps: &[Step]) -> Result<(), Error> {
        for step in steps {
            match step {
                // SAFETY: the address of an output that `check` measured.
                Step::Clear { address, bytes } => unsafe { std::ptr::write_bytes(*address as *mut u8, 0, *bytes) },
                Step::Kernel(kernel) => self.launch(kernel)?,
            }
        }
        Ok(())
    }

    fn launch(&self, kernel: &Kernel) -> Result<(), Error> {
        let module = if self.portable { kernel.module.portable() } else { kernel.module };
        let slot = {
            let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
            modules.entry(module).or_default().clone()
        };
        let library = slot.get_or_init(|| self.build(&module).map(Mutex::new)).as_ref().map_err(Clone::clone)?;
        let library = library.lock().unwrap_or_else(PoisonError::into_inner);
        let cells = kernel.arguments.each_ref().map(arg);
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `build` made the entry with this signature; the cells are those of the kernel (steps.rs), over host memory
        // that `check` measured and the caller borrows.
        let code = unsafe {
            let entry: Symbol<'_, unsafe extern "C" fn(u32, u32, u32, *const *mut c_void, u64) -> c_int> =
                library.get(format!("run_{}", kernel.name).as_bytes()).map_err(|e| unusable(e.to_string()))?;
            entry(kernel.blocks, kernel.threads, kernel.shared_bytes, cells.as_ptr(), seed)
        };
        let codes = [
            "",
            "stuck at a barrier",
            "barrier misused",
            "shuffle misused",
            "bulk copy misaligned",
            "too large",
            "message to a block that has ended",
            "word misaligned",
        ];
        match codes.get(code as usize) {
            Some(&"") => Ok(()),
            Some(code) => {
                Err(Error::Driver { call: "emulated launch", code: format!("{code} in {} of {module}", kernel.name) })
            }
            None => Err(Error::Driver { call: "emulated launch", code: code.to_string() }),
        }
    }

    fn build(&self, module: &Module) -> Result<Library, Error> {
        let entry = |name: &str| {
            format!(
                "extern \"C\" int run_{name}(u32 b, u32 t, u32 s, void** c, u64 seed) {{ return emulate([](void** c) {{ \
                 emulator::call({name}, c); }}, b, {}, t, s, c, seed); }}\n",
                module.cluster()
            )
        };
        let mut source = module.source_with(EMULATION);
        for (from, to) in &self.patches {
            let (emulation, kernels) = source.split_at(source.find(EMULATION).unwrap_or(0) + EMULATION.len());
            // Not every module has it.
            source = format!("{emulation}{}", kernels.replace(from, to));
        }
        let source = source + "\n" + &module.kernels().iter().map(|name| entry(name)).collect::<String>();
        // Each emulator has shared memory of its own, and so a library of its own, made from the same bytes.
        let code = compiled(module, source)?;
        let folder = folder()?;
        let library = folder.path().join("module.so");
        std::fs::write(&library, &*code).map_err(|e| unusable(format!("{}: {e}", library.display())))?;
        // SAFETY: just built from the sources of this crate; its initialisers are those of the C++ library.
        unsafe { Library::new(&library) }.map_err(|e| unusable(e.to_string()))
    }
}

/// What the compiler makes of `source`. A process asks it once for each text: patches leave most modules alone.
fn compiled(module: &Module, source: String) -> Result<Code, Error> {
    type Slot = Arc<OnceLock<Result<Code, Error>>>;
    static COMPILED: Mutex<Option<HashMap<String, Slot>>> = Mutex::new(None);
    let slot = {
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.get_or_insert_default().entry(source.clone()).or_default().clone()
    };
    slot.get_or_init(|| compile(module, &source)).clone()
}

/// A library's bytes.
type Code = Arc<[u8]>;

fn compile(module: &Module, source: &str) -> Result<Code, Error> {
    let folder = folder()?;
    let [text, library] = ["module.cc", "module.so"].map(|name| folder.path().join(name));
    std::fs::write(&text, source).map_err(|e| unusable(format!("{}: {e}", text.display())))?;
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let output = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O1",
            "-march=native",
            "-ffp-contract=off",
            "-fno-gnu-unique",
            "-fPIC",
            "-shared",
            "-w",
            "-o",
        ])
        .args([&library, &text])
        .output()
        .map_err(|e| unusable(format!("{}: {e}", compiler.display())))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Compile { kernel: module.to_string(), log });
    }
    Ok(std::fs::read(&library).map_err(|e| unusable(format!("{}: {e}", library.display())))?.into())
}

/// New, and nobody else's, or others could have code of theirs loaded. A library that is loaded needs its file no more.
fn folder() -> Result<tempfile::TempDir, Error> {
    let mut folder = tempfile::Builder::new();
    folder.prefix("rmsnorm-emulator-").permissions(Permissions::from_mode(0o700));
    folder.tempdir().map_err(|e| unusable(e.to_string()))
}

impl Executor for Emulator {
    fn name(&self) -> String {
        format!("emulator ({:?})", self.tuning.arch)
    }

    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.forward_in_place(call.with_inputs())
    }

    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        self.backward_in_place(call.with_inputs())
    }

    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        environment()?;
        let call = call.try_map(memory, |s| Ok(memory_mut(s)))?.placed()?;
        self.run(&steps::forward(&call, &self.tuning)?)
    }

    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        environment()?;
        let call = call.try_map(memory, |s| Ok(memory_mut(s)))?.placed()?;
        self.run(&steps::backward(&call, &self.tuning)?)
    }
}

fn memory(input: Input<Slice<'_>>) -> Result<Input<DeviceMemory>, Error> {
    Ok(match input {
        Input::Memory(data) => {
            let (dtype, address, elements) = (data.dtype(), data.address(), data.elements());
            Input::Memory(DeviceMemory { dtype, address, elements })
        }
        Input::Output(output) => Input::Output(output),
    })
}

fn memory_mut(data: SliceMut<'_>) -> DeviceMemory {
    let (dtype, elements) = (data.dtype(), data.elements());
    let address = with_dtype!(SliceMut(data) = data => data.as_mut_ptr() as u64);
    DeviceMemory { dtype, address, elements }
}

fn unusable(reason: String) -> Error {
    Error::Library { library: "the emulator", reason }
}
