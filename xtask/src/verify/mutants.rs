//! `cargo xtask verify --mutants`: every defect of `rmsnorm_fuzz::mutants` is built into a copy of `rmsnorm-cuda`, and must be caught
//! by the property that is named for it, alone; accuracy is tried on it too, and with `--full` every property.
//!
//! One program holds all copies; each defect is judged in a process of its own. Defects in nothing but kernel sources share a copy, whose
//! process is told which texts to take. The program can be carried to a machine with a
//! GPU and without cargo: it stays in `target/mutants/judge` with the digest of the sources that it was built from.

mod matrix;

use super::display::Progress;
use crate::children::output;
use crate::copies::{Copies, root};
use crate::record::{write, write_json};
use anyhow::{Context, Result, bail};
use matrix::{ACCURACY, CLEAN, Found, Matrix, Report};
use rmsnorm_fuzz::mutants::{Judged, MUTANTS, Mutant, On, Patch, judges, mutant};
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
pub(super) fn run(
    kernels_only: bool,
    on_gpu: bool,
    full: bool,
    report: Option<&Path>,
    out: &mut dyn Write,
) -> Result<ExitCode> {
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
    let matrix = judged(&tasks(&chosen, &properties, full), &program, device);
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

/// Each mutant, with its named property first; and what is as it should be, with the same cases and properties.
fn tasks(chosen: &[&'static Mutant], properties: &[&'static str], full: bool) -> Vec<Task> {
    let (mut judged, mut clean) = (Vec::new(), BTreeMap::new());
    for mutant in chosen {
        let mut of_it: Vec<&str> = mutant.demanded().collect();
        let others = properties.iter().copied().filter(|property| full || *property == ACCURACY);
        of_it.extend(others.filter(|property| !mutant.demanded().any(|demanded| demanded == *property)));
        let case = (mutant.case)().to_string();
        clean.extend(of_it.iter().map(|p| ((mutant.on == On::Cpu, case.clone(), *p), (mutant.name, *p))));
        let pairs = of_it.into_iter().map(|property| (mutant.name, property)).collect();
        judged.push(Task { name: mutant.name, on: mutant.on, pairs });
    }
    let mut tasks = Vec::new();
    for on in [On::Cpu, On::Kernels] {
        let pairs = clean.iter().filter(|((is_cpu, ..), _)| *is_cpu == (on == On::Cpu));
        let pairs: Vec<_> = pairs.map(|(_, pair)| *pair).collect();
        // Several processes: one would take as long as many others together.
        let some = pairs.chunks(pairs.len().div_ceil(4).max(1));
        tasks.extend(some.map(|some| Task { name: CLEAN, on, pairs: some.to_vec() }));
    }
    // The long ones are first.
    tasks.extend(judged);
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
    let copies = workspace()?;
    copies.build("a program with every defect", "judge", &program)?;
    write(&stamp, sources)?;
    Ok(program)
}

/// The copies, and the programs around them: `judge`, and `study`, which [`study`](super::study) builds.
pub(super) fn workspace() -> Result<Copies> {
    let mut copies = Copies::new("all");
    let issue = mutant("idle_slots_781").context("the mutant of the issue")?;
    // Half of the defect alone is harmless: blocks without rows write their zeros.
    let repaired = Mutant { name: "repaired_781", patches: &issue.patches[..1], ..*issue };
    let told = Mutant { name: CLEAN, patches: &TOLD, ..*issue };
    let of_rust = || MUTANTS.iter().filter(|m| !m.is_of_kernel_sources());
    for mutant in of_rust().chain([&told, &repaired]) {
        let also: &[Patch] = if mutant.on == On::Cpu { &SCALAR } else { &[] };
        let patched = Mutant { patches: [mutant.patches, also].concat().leak(), ..*mutant };
        copies.add(&mutant.crate_name(), Some(&patched), 0)?;
    }
    let judged: Vec<&Mutant> = of_rust().collect();
    copies.add_package("judge", &manifest("judge", &judged), &[("main.rs", program(&judged, "judge_main(build)"))])?;
    let studied = [issue, &repaired];
    copies.add_package(
        "study",
        &manifest("study", &studied),
        &[("main.rs", program(&studied, "rmsnorm_fuzz::issue_781::study_main(build)"))],
    )?;
    copies.finish()?;
    Ok(copies)
}

/// Of a program around some copies and [`TOLD`].
fn manifest(name: &str, mutants: &[&Mutant]) -> String {
    let mut manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         rmsnorm-fuzz = {{ path = {:?}, default-features = false }}\n\
         mutant_{CLEAN} = {{ path = \"../mutant_{CLEAN}\", default-features = false, features = [\"checks\"] }}\n",
        root().join("rmsnorm-fuzz")
    );
    for mutant in mutants {
        let (name, features) =
            (mutant.crate_name(), if mutant.on == On::Cpu { "" } else { ", features = [\"checks\"]" });
        manifest += &format!("{name} = {{ path = \"../{name}\", default-features = false{features} }}\n");
    }
    manifest
}

/// Its source, which ends with `main`.
fn program(mutants: &[&Mutant], main: &str) -> String {
    let arms: String = mutants
        .iter()
        .map(|mutant| {
            let (name, of) = (mutant.name, mutant.crate_name());
            match mutant.on {
                On::Kernels => format!("        \"{name}\" => rmsnorm_fuzz::subject!({of}, on, device),\n"),
                On::Cpu => format!("        \"{name}\" => Ok(Subject::of(rmsnorm_fuzz::subject!(cpu {of}))),\n"),
            }
        })
        .collect();
    format!(
        "use mutant_{CLEAN}::cuda::module::{{SOURCES, TEXTS}};\nuse rmsnorm_fuzz::Subject;\n\
         use rmsnorm_fuzz::mutants::{{Device, On, judge_main, mutant}};\n\n\
         fn build(name: &str, on: On, device: Device) -> Result<Subject, String> {{\n    match name {{\n{arms}        \
         \"{CLEAN}\" if on == On::Cpu => Ok(Subject::of(rmsnorm_fuzz::mutants::rmsnorm_cuda::Cpu)),\n        \
         _ => {{\n            if name != \"{CLEAN}\" {{\n                \
         let mutant = mutant(name).filter(|mutant| mutant.is_of_kernel_sources());\n                \
         let texts = mutant.ok_or(format!(\"{{name}} is not built in\"))?.patched_kernels(&SOURCES)?;\n                \
         TEXTS.set(texts).map_err(|_| \"one defect a process\")?;\n            }}\n            \
         rmsnorm_fuzz::subject!(mutant_{CLEAN}, on, device)\n        }}\n    }}\n}}\n\n\
         fn main() -> Result<(), String> {{\n    {main}\n}}\n"
    )
}

/// A copy of the CPU executor for one instruction set, which every machine has: a defect is in all of them, and each takes as long to compile.
const SCALAR: [Patch; 1] =
    [Patch { file: "cpu.rs", from: "pulp::Arch::new().dispatch(job)", to: "pulp::Scalar.vectorize(job)" }];

/// A copy that takes other texts of its kernel sources where it is told to.
const TOLD: [Patch; 2] = [
    Patch {
        file: "cuda/module.rs",
        from: "        format!(\"{instructions}\\n{ARITH}\\n{constants}{kernels}\")\n",
        to: "        let source = format!(\"{instructions}\\n{ARITH}\\n{constants}{kernels}\");\n        \
             TEXTS.get().into_iter().flatten().fold(source, |source, (name, text)| {\n            \
             let (_, original) = SOURCES.iter().find(|(source, _)| source == name).expect(\"a kernel source\");\n            \
             source.replace(original, text)\n        })\n",
    },
    Patch {
        file: "cuda/module.rs",
        from: "/// The kernel sources of this crate,",
        to: "/// Instead of those of these names.\n\
             pub static TEXTS: std::sync::OnceLock<Vec<(&'static str, String)>> = std::sync::OnceLock::new();\n\n\
             /// The kernel sources of this crate,",
    },
];

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
    /// The mutant that the case is for, and the property.
    pairs: Vec<(&'static str, &'static str)>,
}

impl Task {
    /// (case, property) and what came of it.
    fn run(&self, program: &Path, device: &str) -> BTreeMap<(String, String), Found> {
        let pairs: Vec<String> = self.pairs.iter().map(|(case, property)| format!("{case}={property}")).collect();
        let on = if self.on == On::Cpu { "cpu" } else { "kernels" };
        let mut command = Command::new(program);
        command.args([self.name, on, device, &pairs.join(",")]).env("RAYON_NUM_THREADS", "1");
        // A mutant's compiled kernels are its own.
        command.env("RMSNORM_CACHE", "off");
        let broken = |why: String| {
            let keys = self.pairs.iter().map(|(case, property)| (case.to_string(), property.to_string()));
            keys.map(|key| (key, Found::Broken(why.clone()))).collect()
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As rmsnorm-fuzz asks of each defect.
    #[test]
    fn what_copies_are_patched_with_applies() {
        let sources = root().join("rmsnorm-cuda/src");
        for patches in [SCALAR.to_vec(), TOLD.to_vec()] {
            let copy = Mutant { patches: patches.leak(), ..MUTANTS[0] };
            assert!(copy.patched(&sources).is_ok(), "{:?}", copy.patched(&sources).err());
        }
    }
}
