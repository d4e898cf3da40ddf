//! `cargo xtask verify --case-study 781`: the kernels with the defect of the issue, the same with half of it repaired, and the real
//! ones, side by side.

use crate::children::{NO_LIMIT, output};
use crate::copies::{self, Copies, cargo, root};
use crate::record::tell;
use anyhow::{Context, Result, bail};
use rmsnorm_fuzz::issue_781::{Measured, study_781};
use rmsnorm_fuzz::mutants::{Mutant, mutant};
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
        let [broken, repaired, real] = [measured("broken")?, measured("repaired")?, measured("real")?];
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
    let broken = mutant("idle_slots_781").context("the mutant of the issue")?;
    // Half of the defect alone is harmless: blocks without rows write their zeros.
    let repaired = Mutant { patches: &broken.patches[..1], ..*broken };
    let mut copies = Copies::new("case_study");
    let (mut dependencies, mut arms) = (String::new(), String::new());
    for (name, mutant) in [("broken", Some(broken)), ("repaired", Some(&repaired)), ("real", None)] {
        copies.add(&format!("kernels_{name}"), mutant, false)?;
        dependencies += &format!(
            "kernels_{name} = {{ path = \"../kernels_{name}\", default-features = false, features = [\"checks\"] }}\n"
        );
        arms += &format!("        \"{name}\" => rmsnorm_fuzz::subject!(kernels_{name}, On::Kernels, device),\n");
    }
    let manifest = format!(
        "[package]\nname = \"study\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         rmsnorm-fuzz = {{ path = {:?}, default-features = false }}\n{dependencies}",
        root().join("rmsnorm-fuzz")
    );
    let main = format!(
        "use rmsnorm_fuzz::Subject;\nuse rmsnorm_fuzz::mutants::{{Device, On}};\n\n\
         fn build(name: &str, device: Device) -> Result<Subject, String> {{\n    match name {{\n{arms}        \
         _ => Err(format!(\"{{name}} is not built in\")),\n    }}\n}}\n\n\
         fn main() -> Result<(), String> {{\n    let mut arguments = std::env::args().skip(1);\n    \
         let cuda = arguments.next().is_some_and(|device| device == \"cuda\");\n    \
         let device = if cuda {{ Device::Cuda }} else {{ Device::Cpu }};\n    \
         let subject = build(&arguments.next().unwrap_or_default(), device)?;\n    \
         rmsnorm_fuzz::issue_781::print_measured(&subject)\n}}\n"
    );
    copies.add_package("study", &manifest, &[("main.rs", main)])?;
    copies.finish()?;
    let target = root().join("target/mutants/build");
    let mut command = cargo();
    command.args(["build", "--release", "--package", "study", "--target-dir"]).arg(&target);
    let command = command.env("RUSTFLAGS", "--cap-lints=allow").current_dir(copies.folder());
    copies::build("the three kinds of kernels", command)?;
    std::fs::copy(target.join("release/study"), &program).context("target/mutants/study")?;
    Ok(program)
}
