//! NVRTC's side of a module: source in, machine code out.

use std::ffi::{CString, c_char, c_int};

use super::library::{Nvrtc, Program, nvrtc};
use super::module::Module;
use crate::Error;

/// What NVRTC made of a module.
pub struct Compiled {
    /// Machine code, ready to load.
    pub cubin: Vec<u8>,
    /// The same before it was assembled.
    pub ptx: String,
    /// What the compiler said: registers, spills, stack.
    pub log: String,
}

/// Compiles `module` for compute capability `major.minor`.
pub fn compile(module: &Module, (major, minor): (u32, u32)) -> Result<Compiled, Error> {
    compile_source(&module.source(), &module.to_string(), (major, minor))
}

/// The PTX of `module` for compute capability 8.0 and every later one.
pub fn compile_ahead(module: &Module) -> Result<String, Error> {
    let compiled = compile_with(&module.source(), &module.to_string(), nvrtc((8, 0))?, "compute_80".into())?;
    Ok(compiled.ptx)
}

/// Compiles `source`; `name` is for errors.
pub fn compile_source(source: &str, name: &str, capability: (u32, u32)) -> Result<Compiled, Error> {
    compile_with(source, name, nvrtc(capability)?, real(capability))
}

fn compile_with(source: &str, name: &str, nvrtc: &'static Nvrtc, architecture: String) -> Result<Compiled, Error> {
    let failed = |log: String| Error::Compile { kernel: name.to_string(), log };
    let text = CString::new(source).map_err(|e| failed(e.to_string()))?;
    let options = options(architecture, nvrtc.version).into_iter().map(|o| CString::new(o).unwrap_or_default());
    let options: Vec<CString> = options.collect();
    let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    // SAFETY: `text` and `options` outlive the calls; each buffer below has the size that NVRTC asked for.
    unsafe {
        let mut program: Program = std::ptr::null_mut();
        let code = (nvrtc.create)(&mut program, text.as_ptr(), std::ptr::null(), 0, std::ptr::null(), std::ptr::null());
        if code != 0 {
            return Err(failed(format!("nvrtcCreateProgram returned {code}")));
        }
        let mut guard = Guard { nvrtc, program };
        let code = (nvrtc.compile)(program, pointers.len() as c_int, pointers.as_ptr());
        let log = guard.read(nvrtc.log_size, nvrtc.log);
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_string();
        if code != 0 {
            let (major, minor) = nvrtc.version;
            return Err(failed(format!("error {code} of NVRTC {major}.{minor} ({}): {log}", nvrtc.path)));
        }
        let ptx = guard.read(nvrtc.ptx_size, nvrtc.ptx);
        let ptx = String::from_utf8_lossy(&ptx).trim_end_matches('\0').to_string();
        Ok(Compiled { cubin: guard.read(nvrtc.cubin_size, nvrtc.cubin), ptx, log })
    }
}

/// The architecture of machine code.
pub(super) fn real((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}")
}

/// What an NVRTC of this version is told beside the source.
pub(super) fn options(architecture: String, version: (i32, i32)) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".into(),
        "--fmad=false".into(),                        // Only what arith.cuh writes as fma is fused.
        "--device-as-default-execution-space".into(), // A generic lambda has no place for __device__.
        "--ptxas-options=-v".into(),
    ];
    // Leaves out declarations that no kernel here needs. Reading the source is all that compilations take turns at.
    if version >= (12, 4) {
        options.push("--minimal".into());
    }
    options
}

struct Guard {
    nvrtc: &'static Nvrtc,
    program: Program,
}

impl Guard {
    unsafe fn read(
        &mut self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        fill: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Vec<u8> {
        let mut bytes = 0;
        // SAFETY: the caller passes two functions of NVRTC that belong together; the program is alive until `drop`.
        unsafe {
            if size(self.program, &mut bytes) != 0 {
                return Vec::new();
            }
            let mut buffer = vec![0u8; bytes];
            if fill(self.program, buffer.as_mut_ptr().cast()) != 0 { Vec::new() } else { buffer }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: created by `nvrtcCreateProgram`, destroyed once.
        unsafe { (self.nvrtc.destroy)(&mut self.program) };
    }
}
