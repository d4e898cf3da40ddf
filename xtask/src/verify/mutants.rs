//! `cargo xtask verify --mutants`: every defect of `rmsnorm_fuzz::mutants` is built into a copy of `rmsnorm-cuda`, and must be caught
//! by the property that is named for it, alone. Then every property is tried on every defect.
//!
//! One program holds all copies; each defect is judged in a process of its own. The program can be carried to a machine with a
//! GPU and without cargo: it stays in `target/mutants/judge` with the digest of the sources that it was built from.

mod matrix;

use super::display::Progress;
use crate::children::output;
use crate::copies::{self, Copies, cargo, root};
use crate::record::{write, write_json};
use anyhow::{Context, Result, bail};
use matrix::{CLEAN, Found, Matrix, Report};
use rmsnorm_fuzz::mutants::{Judged, MUTANTS, Mutant, On, judges};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Runs the command. Defects of the CPU executor are judged on the CPU, unless `kernels_only`; those of the kernels on the GPU or in
/// the emulator.
pub(super) fn run(kernels_only: bool, on_gpu: bool, report: Option<&Path>, out: &mut dyn Write) -> Result<ExitCode> {
    let began = Instant::now();
    let device = if on_gpu { "cuda" } else { "cpu" };
    let chosen: Vec<&Mutant> = MUTANTS.iter().filter(|m| !kernels_only || m.on == On::Kernels).collect();
    writeln!(
        out,
        "{} mutants, {} of them in the reduction over the rows; kernels run {}",
        chosen.len(),
        chosen.iter().filter(|m| m.column).count(),
        if on_gpu { "on the GPU" } else { "in the emulator" }
    )?;
    out.flush()?;
    let program = build()?;
    writeln!(out, "built in {:.0} s", began.elapsed().as_secs_f64())?;
    out.flush()?;

    let properties: Vec<&str> = judges().map(|property| property.name).collect();
    let matrix = judged(&tasks(&chosen, &properties), &program, device);
    // Of a race it is luck whether a GPU loses it; the emulator sees to it that some thread does.
    let demanded: Vec<&Mutant> = chosen.iter().copied().filter(|m| !on_gpu || !RACES.contains(&m.name)).collect();
    let complaints = matrix.complaints(&demanded, &properties);
    let passed = complaints.is_empty();
    let printed = matrix
        .print(&chosen, &properties, out)
        .and_then(|()| Ok(complaints.iter().try_for_each(|complaint| writeln!(out, "FAILED: {complaint}"))?));
    if let Some(path) = report {
        write_json(path, &Report::new(&chosen, &matrix, device, began, passed, complaints))?;
        writeln!(out, "report: {}", path.display())?;
    }
    printed?;
    for race in chosen.iter().filter(|m| !demanded.iter().any(|d| d.name == m.name)) {
        let won = if matrix.caught(race.name, race.property) { "this GPU lost" } else { "this GPU won" };
        writeln!(out, "{}: a race, which {won}; the emulator must catch it (--device cpu)", race.name)?;
    }
    let caught = demanded.iter().filter(|m| matrix.caught(m.name, m.property)).count();
    writeln!(
        out,
        "{}: {caught} of {} mutants caught by the property named for them, in {:.0} s",
        if passed { "passed" } else { "failed" },
        demanded.len(),
        began.elapsed().as_secs_f64()
    )?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is as it should be: the same cases, the same properties. Then each mutant with its named property alone, then with all
/// others.
fn tasks(chosen: &[&'static Mutant], properties: &[&str]) -> Vec<Task> {
    let mut tasks = Vec::new();
    for on in [On::Cpu, On::Kernels] {
        let cases: BTreeMap<String, &str> =
            chosen.iter().filter(|m| m.on == on).map(|m| ((m.case)().to_string(), m.name)).collect();
        let cases: Vec<&str> = cases.into_values().collect();
        // Several processes: one would take as long as all others together.
        for some in cases.chunks(cases.len().div_ceil(4).max(1)) {
            tasks.push(Task { name: CLEAN, on, cases: some.join(","), properties: properties.join(",") });
        }
    }
    for mutant in chosen {
        let others: Vec<&str> = properties.iter().copied().filter(|p| *p != mutant.property).collect();
        for properties in [mutant.property.to_string(), others.join(",")] {
            tasks.push(Task { name: mutant.name, on: mutant.on, cases: mutant.name.into(), properties });
        }
    }
    tasks
}

/// What came of the tasks, several of them at a time.
fn judged(tasks: &[Task], program: &Path, device: &str) -> Matrix {
    let results = Mutex::new(Matrix::default());
    let (next, progress) = (AtomicUsize::new(0), Progress::new("judged", tasks.len()));
    let workers = if device == "cuda" { 4 } else { std::thread::available_parallelism().map_or(1, |n| n.get()) };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = task.run(program, device);
                    results.lock().unwrap_or_else(PoisonError::into_inner).add(task.name, found);
                    progress.tick();
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Builds the program that holds every copy, or takes the one that was carried here.
fn build() -> Result<PathBuf> {
    let program = root().join("target/mutants/judge");
    let stamp = root().join("target/mutants/judge.sha256");
    let sources = digest_of_sources()?;
    if Command::new("cargo").arg("--version").output().is_err() {
        if fs::read_to_string(&stamp).is_ok_and(|there| there == sources) {
            return Ok(program);
        }
        bail!(
            "without cargo it takes target/mutants/judge and judge.sha256, built from these sources by this command elsewhere"
        );
    }
    let mut copies = Copies::new("all");
    let mut dependencies = String::new();
    let mut arms = String::new();
    let subjects = std::iter::once((CLEAN, None)).chain(MUTANTS.iter().map(|m| (m.name, Some(m))));
    for (name, mutant) in subjects {
        let crate_name = mutant.map_or("mutant_clean".into(), Mutant::crate_name);
        let kernels = mutant.is_none_or(|m| m.on == On::Kernels);
        copies.add(&crate_name, mutant, !kernels || mutant.is_none())?;
        let features = if kernels { ", features = [\"checks\"]" } else { "" };
        dependencies +=
            &format!("{crate_name} = {{ path = \"../{crate_name}\", default-features = false{features} }}\n");
        arms += &match kernels {
            true => format!("        \"{name}\" => rmsnorm_fuzz::subject!({crate_name}, on, device),\n"),
            false => format!("        \"{name}\" => Ok(Subject::of(rmsnorm_fuzz::subject!(cpu {crate_name}))),\n"),
        };
    }
    let manifest = format!(
        "[package]\nname = \"judge\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         rmsnorm-fuzz = {{ path = {:?}, default-features = false }}\n{dependencies}",
        root().join("rmsnorm-fuzz")
    );
    let main = format!(
        "use rmsnorm_fuzz::Subject;\nuse rmsnorm_fuzz::mutants::{{Device, On, judge_main}};\n\n\
         fn build(name: &str, on: On, device: Device) -> Result<Subject, String> {{\n    match name {{\n{arms}        \
         _ => Err(format!(\"{{name}} is not built in\")),\n    }}\n}}\n\n\
         fn main() -> Result<(), String> {{\n    judge_main(build)\n}}\n"
    );
    copies.add_package("judge", &manifest, &[("main.rs", main)])?;
    copies.finish()?;
    let target = root().join("target/mutants/build");
    let mut command = cargo();
    command.args(["build", "--release", "--package", "judge", "--target-dir"]).arg(&target);
    // Warnings about patched code are of no use.
    let command = command.env("RUSTFLAGS", "--cap-lints=allow").current_dir(copies.folder());
    copies::build("a program with every defect", command)?;
    fs::copy(target.join("release/judge"), &program).context("target/mutants/judge")?;
    write(&stamp, sources)?;
    Ok(program)
}

/// SHA-256 of everything that decides a mutant.
fn digest_of_sources() -> Result<String> {
    let mut digest = Sha256::new();
    for folder in ["rmsnorm-cuda/src", "rmsnorm-fuzz/src", "rmsnorm-ref/src"] {
        for file in crate::copies::files(&root().join(folder))? {
            let text = fs::read(&file)?;
            digest.update(file.strip_prefix(root())?.display().to_string());
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// One process: some properties of one subject.
struct Task {
    name: &'static str,
    on: On,
    cases: String,
    properties: String,
}

impl Task {
    /// (case, property) and what came of it.
    fn run(&self, program: &Path, device: &str) -> BTreeMap<(String, String), Found> {
        let wanted = || {
            self.cases.split(',').flat_map(|c| self.properties.split(',').map(move |p| (c.to_string(), p.to_string())))
        };
        let on = if self.on == On::Cpu { "cpu" } else { "kernels" };
        let mut command = Command::new(program);
        command.args([self.name, on, device, &self.cases, &self.properties]).env("RAYON_NUM_THREADS", "1");
        // A mutant's compiled kernels are its own.
        command.env("RMSNORM_CACHE", "off");
        let broken = |why: String| wanted().map(|key| (key, Found::Broken(why.clone()))).collect();
        let said = match output(&mut command, TIME_LIMIT) {
            Ok(said) => said,
            Err(error) => return broken(error.to_string()),
        };
        let why = match said.status {
            Some(status) if status.success() => "said nothing".into(),
            Some(status) => format!("{status}: {}", said.stderr.lines().last().unwrap_or_default()),
            None => format!("did not end in {} s", TIME_LIMIT.as_secs()),
        };
        let mut found: BTreeMap<_, _> = broken(why);
        for line in said.stdout.lines() {
            if let Ok(Judged { case, property, result, why }) = serde_json::from_str(line) {
                found.insert((case, property), Found::new(result, why));
            }
        }
        found
    }
}

/// Defects that another order of threads hides.
const RACES: [&str; 1] = ["barrier_forgotten"];
/// A mutant that does not end is no mutant.
const TIME_LIMIT: Duration = Duration::from_secs(400);
