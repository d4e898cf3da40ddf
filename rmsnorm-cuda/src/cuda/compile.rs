//! The kernels of this crate as NVRTC compiles them.

use std::ffi::{CString, c_char, c_int};

use super::library::{Nvrtc, Program, nvrtc};
use crate::plan::{Class, RING_STAGES_MAX};
use crate::{Dtype, Error};

/// What one module is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// `forward`, `backward` and, for streamed rows, `columns`.
    Rows {
        /// How lanes share a row.
        class: Class,
        /// Element type of x, y, dy and dx.
        dtype: Dtype,
        /// Element type of the weight, if there is one.
        weight: Option<Dtype>,
        /// Whether one is added to the weight.
        zero_centred: bool,
        /// Whether every row of every operand begins on 16 bytes and is a multiple of a pack long.
        aligned: bool,
        /// Whether backward fetches rows ahead into shared memory; needs `aligned` and compute capability 9.0.
        ring: bool,
        /// Whether `hidden` is all that the class holds, and so a constant.
        exact: bool,
    },
    /// `fold_partials`.
    Fold {
        /// Element type of dw.
        dw: Dtype,
    },
}

impl std::fmt::Display for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Module::Rows { class, dtype, weight, zero_centred, aligned, ring, exact } => {
                write!(f, "{class} {dtype} weight={}", weight.map_or("none".into(), |w| w.to_string()))?;
                f.write_str(if *zero_centred { "+1" } else { "" })?;
                f.write_str(if *aligned { " aligned" } else { " unaligned" })?;
                f.write_str(if *ring { " ring" } else { "" })?;
                f.write_str(if *exact { " exact" } else { "" })
            }
            Module::Fold { dw } => write!(f, "fold {dw}"),
        }
    }
}

impl Module {
    /// Names of the kernels in it.
    pub fn kernels(&self) -> &'static [&'static str] {
        match self {
            Module::Rows { class, .. } if class.packs == 0 => &["forward", "backward", "columns"],
            Module::Rows { .. } => &["forward", "backward"],
            Module::Fold { .. } => &["fold_partials"],
        }
    }

    /// The complete source: the constants of this module and the files of this crate.
    pub fn source(&self) -> String {
        self.source_with(PTX)
    }

    /// The same with another text in place of `ptx.cuh`.
    pub(super) fn source_with(&self, instructions: &str) -> String {
        let c = |dtype: Dtype| match dtype {
            Dtype::F32 => "float",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        };
        let Module::Rows { class, dtype, weight, zero_centred, aligned, ring, exact } = *self else {
            let Module::Fold { dw } = *self else { return String::new() };
            return format!("#define RING 0\n{instructions}\n{ARITH}\ntypedef {} DW;\n{FOLD}", c(dw));
        };
        let Class { lanes, teams, pack, packs, sets } = class;
        let (t, w, ring) = (c(dtype), c(weight.unwrap_or(dtype)), u32::from(ring));
        let has_weight = weight.is_some();
        // Two blocks of 512 threads where 64 registers are enough: where z and the weight of a row take half of them.
        let little = exact && packs <= 4 && weight.is_none_or(|w| w.bytes() <= dtype.bytes());
        let forward_blocks = if little { 1024 / class.threads() } else { 1 };
        format!(
            "#define RING {ring}\n#define PACKS {packs}\n{instructions}\n{ARITH}\ntypedef {t} T;\ntypedef {w} W;\n\
             constexpr bool HAS_WEIGHT = {has_weight}, ZERO_CENTRED = {zero_centred}, ALIGNED = {aligned}, EXACT = {exact};\n\
             constexpr u32 LANES = {lanes}, ROWS = {teams}, PACK = {pack}, SETS = {sets}, STAGES_MAX = {RING_STAGES_MAX}, \
             FORWARD_BLOCKS = {forward_blocks};\n{ROWS}\n{FORWARD}\n{BACKWARD}"
        )
    }
}

/// The kernel sources of this crate, in the order in which a module contains them.
pub const SOURCES: [(&str, &str); 6] = [
    ("ptx.cuh", PTX),
    ("arith.cuh", ARITH),
    ("rows.cuh", ROWS),
    ("forward.cu", FORWARD),
    ("backward.cu", BACKWARD),
    ("fold.cu", FOLD),
];

const PTX: &str = include_str!("../ptx.cuh");
const ARITH: &str = include_str!("../arith.cuh");
const ROWS: &str = include_str!("../rows.cuh");
const FORWARD: &str = include_str!("../forward.cu");
const BACKWARD: &str = include_str!("../backward.cu");
const FOLD: &str = include_str!("../fold.cu");

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

/// Compiles `source`; `name` is for errors.
pub fn compile_source(source: &str, name: &str, capability: (u32, u32)) -> Result<Compiled, Error> {
    let nvrtc = nvrtc(capability)?;
    let failed = |log: String| Error::Compile { kernel: name.to_string(), log };
    let text = CString::new(source).map_err(|e| failed(e.to_string()))?;
    let options = options(capability).map(|o| CString::new(o).unwrap_or_default());
    let options = options.each_ref().map(|o| o.as_ptr());
    // SAFETY: `text` and `options` outlive the calls; each buffer below has the size that NVRTC asked for.
    unsafe {
        let mut program: Program = std::ptr::null_mut();
        let code = (nvrtc.create)(&mut program, text.as_ptr(), std::ptr::null(), 0, std::ptr::null(), std::ptr::null());
        if code != 0 {
            return Err(failed(format!("nvrtcCreateProgram returned {code}")));
        }
        let mut guard = Guard { nvrtc, program };
        let code = (nvrtc.compile)(program, options.len() as c_int, options.as_ptr());
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

/// What NVRTC is told beside the source.
pub(super) fn options((major, minor): (u32, u32)) -> [String; 5] {
    [
        format!("--gpu-architecture=sm_{major}{minor}"),
        "--std=c++17".into(),
        "--fmad=false".into(),                        // Only what arith.cuh writes as fma is fused.
        "--device-as-default-execution-space".into(), // A generic lambda has no place for __device__.
        "--ptxas-options=-v".into(),
    ]
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
