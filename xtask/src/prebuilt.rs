//! `cargo xtask prebuilt`: the bundle of kernels compiled ahead. Needs NVRTC 12.0, no GPU.

use crate::record::{can_write, tell, write};
use anyhow::{Error, Result, bail, ensure};
use rayon::prelude::*;
use rmsnorm_cuda::cuda::compile::compile_ahead;
use rmsnorm_cuda::cuda::library::nvrtc;
use rmsnorm_cuda::cuda::module::Module;
use rmsnorm_cuda::cuda::prebuilt::{Bundle, pack};
use rmsnorm_fuzz::compiled::portable;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What to write where.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// The bundle.
    #[arg(long, value_name = "FILE", default_value = "rmsnorm-cuda/prebuilt/kernels.bundle")]
    out: PathBuf,
    /// Compile with the NVRTC that is found, whatever its version; drivers of older CUDA versions will refuse the kernels.
    #[arg(long)]
    any_nvrtc: bool,
    /// Only modules whose name contains TEXT, and the fold: to see what they take.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let compiler = nvrtc((8, 0))?;
    let (major, minor) = compiler.version;
    writeln!(out, "NVRTC {major}.{minor} ({})", compiler.path)?;
    if compiler.version != OLDEST && !options.any_nvrtc {
        bail!(
            "expected NVRTC 12.0, whose PTX every driver for CUDA 12.0 or newer takes (RMSNORM_NVRTC names it), got \
             {major}.{minor}; --any-nvrtc takes it"
        );
    }
    can_write([&options.out])?;
    let mut modules = portable()?;
    let is_fold = |module: &Module| matches!(module, Module::Fold { .. });
    modules.retain(|module| is_fold(module) || module.to_string().contains(&options.only));
    let (done, told) = (AtomicUsize::new(0), Mutex::new(Instant::now()));
    let compiled: Vec<(Module, String)> = modules
        .par_iter()
        .map(|module| {
            let ptx = compile_ahead(module)?;
            let done = 1 + done.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut told) = told.try_lock()
                && told.elapsed().as_secs() >= 10
            {
                *told = Instant::now();
                tell(format_args!("  {done} of {}", modules.len()));
            }
            Ok((*module, ptx))
        })
        .collect::<Result<_>>()?;
    let raw: usize = compiled.iter().map(|(_, ptx)| ptx.len()).sum();
    let bundle = pack(compiler.version, &compiled, |raw| zstd::bulk::compress(raw, LEVEL))?;
    // Read as the program that has it reads it.
    let read = Bundle::read(bundle.clone().leak()).map_err(Error::msg)?;
    for (module, ptx) in &compiled {
        let image = read.image(module).map_err(Error::msg)?;
        ensure!(image.strip_suffix(&[0]) == Some(ptx.as_bytes()), "{module} does not come back as it was packed");
    }
    write(&options.out, &bundle)?;
    writeln!(out, "{} modules, {raw} bytes of PTX, {} of {}", compiled.len(), bundle.len(), options.out.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Of zstd: of PTX it leaves 6 %, the fastest level 9 %.
const LEVEL: i32 = 19;

/// The oldest NVRTC that knows all that the kernels need, and so the one whose PTX most drivers take.
const OLDEST: (i32, i32) = (12, 0);
