//! `cargo xtask ptx`: what the compiler makes of every kernel. Needs NVRTC, no GPU.

use crate::record::{can_write, tell, write};
use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use rayon::prelude::*;
use rmsnorm_cuda::WeightOffset;
use rmsnorm_cuda::cuda::library::{Nvrtc, nvrtc};
use rmsnorm_cuda::plan::{Arch, Calls};
use rmsnorm_fuzz::compiled::{EXCEPTIONS, Inspected, Unit, inspect, kinds, units};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What to compile, and what to leave behind.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Compute capability without the dot, 80, 90, 100 or 120; may be given several times. Without it 90, or with --check all.
    #[arg(long, value_name = "NN", allow_negative_numbers = true)]
    arch: Vec<u32>,
    /// Write PTX, cubin and the table to this folder.
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    out: Option<PathBuf>,
    /// Compile every module that any call can launch, and fail on any that rounds otherwise than to nearest, approximates, flushes,
    /// adds floats atomically, spills or has a stack. Takes about 45 minutes of one core.
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let chosen = chosen(options)?;
    writeln!(out, "{} modules", chosen.len())?;
    for (major, minor) in chosen.iter().map(|unit| unit.capability).collect::<BTreeSet<_>>() {
        let Nvrtc { version, path, .. } = nvrtc((major, minor))?;
        writeln!(out, "sm_{major}{minor}: NVRTC {}.{} ({path})", version.0, version.1)?;
    }
    if let Some(folder) = &options.out {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        can_write([&folder.join(TABLE)])?;
    }
    let done = AtomicUsize::new(0);
    let told = Mutex::new(std::time::Instant::now());
    let inspected: Vec<(&Unit, Inspected)> = chosen
        .par_iter()
        .map(|unit| {
            let inspected = inspect(unit)?;
            if let Some(folder) = &options.out {
                leave(folder, unit, &inspected)?;
            }
            let done = 1 + done.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut told) = told.try_lock()
                && told.elapsed().as_secs() >= 10
            {
                *told = std::time::Instant::now();
                tell(format_args!("  {done} of {}", chosen.len()));
            }
            Ok((unit, inspected))
        })
        .collect::<Result<_>>()?;
    let table = table(&inspected);
    match &options.out {
        Some(folder) => {
            let printed = writeln!(out, "{table}");
            write(&folder.join(TABLE), format!("{table}\n"))?;
            printed?;
            writeln!(out, "PTX, cubin and this table: {}", folder.display())?;
        }
        None => writeln!(out, "{} kernels", inspected.iter().map(|(_, i)| i.resources.len()).sum::<usize>())?,
    }
    for exception in EXCEPTIONS {
        let (kernel, bytes, reason) = (exception.kernel, exception.bytes_max, exception.reason);
        writeln!(out, "exception: {kernel} may spill {bytes} bytes: {reason}")?;
    }
    let mut passed = true;
    for (unit, complaint) in inspected.iter().flat_map(|(unit, i)| i.complaints.iter().map(move |c| (unit, c))) {
        passed = false;
        writeln!(out, "FAILED: {unit}: {complaint}")?;
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// With --check every kind of call; else weights of the rows' own type, nothing added.
fn chosen(options: &Options) -> Result<Vec<Unit>> {
    let of = |arch: &Arch| arch.compute_capability.0 * 10 + arch.compute_capability.1;
    let wanted = match &options.arch[..] {
        [] if options.check => Arch::ALL.iter().map(|(_, arch)| of(arch)).collect(),
        [] => vec![90],
        some => some.to_vec(),
    };
    let mut chosen = BTreeSet::new();
    for number in wanted {
        let Some((_, arch)) = Arch::ALL.iter().find(|(_, arch)| of(arch) == number) else {
            bail!("there is no plan for sm_{number}, expected 80, 90, 100 or 120");
        };
        let ordinary = |kind: &Calls| kind.weight == Some(kind.dtype) && kind.weight_offset == WeightOffset::Zero;
        for kind in kinds().iter().filter(|kind| options.check || ordinary(kind)) {
            chosen.extend(units(arch, kind)?);
        }
    }
    Ok(chosen.into_iter().collect())
}

fn leave(folder: &Path, unit: &Unit, inspected: &Inspected) -> Result<()> {
    let name: String = unit.to_string().replace('×', "x").replace([' ', '/', '='], "-");
    for (ending, bytes) in [("ptx", inspected.ptx.as_bytes()), ("cubin", &inspected.cubin)] {
        write(&folder.join(format!("{name}.{ending}")), bytes)?;
    }
    Ok(())
}

fn table(inspected: &[(&Unit, Inspected)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["module", "kernel", "registers", "spills B", "stack B", "static shared B", "dynamic shared B"]);
    for column in 2..=6 {
        table.column_mut(column).expect("a column of the header").set_cell_alignment(CellAlignment::Right);
    }
    for (unit, inspected) in inspected {
        for resources in &inspected.resources {
            let numbers = [
                resources.registers,
                resources.spill_bytes,
                resources.stack_bytes,
                resources.shared_bytes,
                unit.dynamic_bytes,
            ];
            let cells = [unit.to_string(), resources.kernel.clone()].into_iter();
            table.add_row(cells.chain(numbers.map(|number| number.to_string())));
        }
    }
    table.trim_fmt()
}

const TABLE: &str = "kernels.txt";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine;
    use rmsnorm_cuda::Dtype;

    fn options(arch: &[u32], check: bool) -> Options {
        Options { arch: arch.to_vec(), out: None, check }
    }

    #[test]
    fn check_takes_every_architecture_and_every_weight() {
        let (some, all) = (chosen(&options(&[90], false)).unwrap(), chosen(&options(&[], true)).unwrap());
        let capabilities: BTreeSet<_> = all.iter().map(|unit| unit.capability).collect();
        assert_eq!(capabilities.len(), Arch::ALL.len());
        assert!(some.iter().all(|unit| unit.capability == (9, 0) && all.contains(unit)));
        assert!(some.len() >= Dtype::ALL.len() * 20 && all.len() > 5 * some.len(), "{} {}", some.len(), all.len());
        assert!(chosen(&options(&[75], false)).is_err());
    }

    #[test]
    fn a_kernel_is_written_and_listed() {
        if let Err(error) = nvrtc((8, 0)) {
            return machine::skip("NVRTC", error);
        }
        let folder = machine::folder();
        let units = chosen(&options(&[80], false)).unwrap();
        let unit = &units[0];
        let inspected = inspect(unit).unwrap();
        leave(folder.path(), unit, &inspected).unwrap();
        let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), 2, "{files:?}");
        assert!(std::fs::read(&files[0]).unwrap().starts_with(b"\x7fELF"), "{files:?}");
        assert!(std::fs::read_to_string(&files[1]).unwrap().contains(".target sm_80"), "{files:?}");
        let table = table(&[(unit, inspected)]);
        let kernels = unit.module.kernels();
        assert!(kernels.iter().all(|kernel| table.contains(kernel)) && table.contains(&unit.to_string()), "{table}");
    }
}
