//! `cargo xtask verify --case-study 781`: the kernels with the defect of the issue, the same with half of it repaired, and the real
//! ones, side by side.

use super::mutants::workspace;
use crate::children::{NO_LIMIT, output};
use crate::copies::root;
use crate::record::tell;
use anyhow::{Result, bail};
use rmsnorm_fuzz::issue_781::{Measured, study_781};
use std::io::Write;
use std::process::{Command, ExitCode};

/// Runs the study in the emulator, and on the GPU where that is to be used.
pub(super) fn run(issue: u32, has_gpu: impl FnOnce() -> Result<bool>, out: &mut dyn Write) -> Result<ExitCode> {
    if issue != 781 {
        bail!("there is a study of issue 781 only");
    }
    let gpu = has_gpu()?;
    writeln!(out, "issue {issue}: kernels with its defect, with half of it repaired, and as they are")?;
    let program = build()?;
    let mut passed = true;
    for device in ["cpu", "cuda"].into_iter().filter(|d| *d == "cpu" || gpu) {
        let emulated = if device == "cpu" { "in the emulator" } else { "on the GPU" };
        let measured = |name: &str| -> Result<Vec<Measured>> {
            tell(format_args!("  the {name} kernels {emulated}"));
            let said = output(Command::new(&program).args([device, name]).env("RMSNORM_CACHE", "off"), NO_LIMIT)?;
            if !said.succeeded() {
                bail!("{name} on {device}: {}", said.stderr);
            }
            Ok(serde_json::from_str(&said.stdout)?)
        };
        let [broken, repaired, real] = [measured("idle_slots_781")?, measured("repaired_781")?, measured("clean")?];
        writeln!(
            out,
            "\ndw[0] of one row of zeros, hidden 4, eps 1e-5, loss 0 − sum(y), {emulated}; it must be 0, or,\nof a perturbed input, one and the same number\n"
        )?;
        match study_781(&broken, &real) {
            Ok(table) => writeln!(out, "{table}")?,
            Err(what) => {
                passed = false;
                writeln!(out, "FAILED: {what}")?;
            }
        }
        match study_781(&repaired, &real) {
            Ok(_) => {
                passed = false;
                writeln!(out, "FAILED: the study does not notice that the defect was repaired")?;
            }
            Err(noticed) => writeln!(out, "half of the defect repaired: the study fails, as it must ({noticed})")?,
        }
    }
    writeln!(out, "{}", if passed { "passed" } else { "failed" })?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build() -> Result<std::path::PathBuf> {
    let program = root().join("target/mutants/study");
    if Command::new("cargo").arg("--version").output().is_err() {
        if program.is_file() {
            return Ok(program);
        }
        bail!("without cargo it takes target/mutants/study, built by this command elsewhere");
    }
    workspace()?.build("the three kinds of kernels", "study", &program)?;
    Ok(program)
}
