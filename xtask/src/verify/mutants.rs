//! `cargo xtask verify --mutants`: every defect of `rmsnorm_fuzz::mutants` is built into a copy of `rmsnorm-cuda`, and must be caught
//! by the property that is named for it, alone. Then every property is tried on every defect.
//!
//! One program holds all copies; each defect is judged in a process of its own. The program can be carried to a machine with a
//! GPU and without cargo: it stays in `target/mutants/judge` with the digest of the sources that it was built from.

use super::display::{Progress, wrapped};
use super::report::Build;
use crate::children::output;
use crate::copies::{self, Copies, cargo, root};
use crate::record::{write, write_json};
use anyhow::{Context, Result, bail};
use rmsnorm_fuzz::mutants::{Judged, MUTANTS, Mutant, On, Verdict, judges};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
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
        if device == "cuda" { "on the GPU" } else { "in the emulator" }
    )?;
    out.flush()?;
    let program = build()?;
    writeln!(out, "built in {:.0} s", began.elapsed().as_secs_f64())?;
    out.flush()?;

    let properties: Vec<&str> = judges().map(|property| property.name).collect();
    let results = Mutex::new(Matrix::default());
    let all = properties.join(",");
    // What is as it should be: the same cases, the same properties. Then each mutant with its named property alone, then with
    // all others.
    let mut tasks = Vec::new();
    for on in [On::Cpu, On::Kernels] {
        let cases: BTreeMap<String, &str> =
            chosen.iter().filter(|m| m.on == on).map(|m| ((m.case)().to_string(), m.name)).collect();
        let cases: Vec<&str> = cases.into_values().collect();
        // Several processes: one would take as long as all others together.
        for some in cases.chunks(cases.len().div_ceil(4).max(1)) {
            tasks.push(Task { name: CLEAN, on, cases: some.join(","), properties: all.clone() });
        }
    }
    for mutant in &chosen {
        let others: Vec<&str> = properties.iter().copied().filter(|p| *p != mutant.property).collect();
        for properties in [mutant.property.to_string(), others.join(",")] {
            tasks.push(Task { name: mutant.name, on: mutant.on, cases: mutant.name.into(), properties });
        }
    }
    let (next, progress) = (AtomicUsize::new(0), Progress::new("judged", tasks.len()));
    let workers = if device == "cuda" { 4 } else { std::thread::available_parallelism().map_or(1, |n| n.get()) };
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = task.run(&program, device);
                    results.lock().unwrap_or_else(PoisonError::into_inner).add(task.name, found);
                    progress.tick();
                }
            });
        }
    });
    drop(progress);
    let matrix = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Of a race it is luck whether a GPU loses it; the emulator sees to it that some thread does.
    let demanded: Vec<&Mutant> = chosen.iter().copied().filter(|m| !on_gpu || !RACES.contains(&m.name)).collect();
    // What no defect is named for is not judged: without the CPU executor's, that is refusal.
    let named: Vec<&str> =
        properties.iter().copied().filter(|property| demanded.iter().any(|m| m.property == *property)).collect();
    let mut complaints = verdict(&demanded, &named, &matrix, None);
    let toothless = named
        .iter()
        .filter(|property| verdict(&demanded, &named, &matrix, Some(property)).len() <= complaints.len())
        .map(|property| format!("without {property} nothing more would fail"));
    complaints.extend(toothless.collect::<Vec<_>>());
    let passed = complaints.is_empty();
    let printed = print(&chosen, &properties, &matrix, out)
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
        let features = if kernels { ", features = [\"emulator\"]" } else { "" };
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

/// What came of one property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
enum Found {
    Passed,
    Caught(String),
    /// The case says nothing about the property.
    Silent(String),
    /// The mutant did not build, launch or end.
    Broken(String),
}

impl Found {
    fn new(result: Verdict, why: String) -> Found {
        let unusable = ["could not compile", "is not usable", "stuck at a barrier", "the patch does not apply"];
        match result {
            Verdict::Passed => Found::Passed,
            Verdict::Silent => Found::Silent(why),
            Verdict::Caught if unusable.iter().any(|text| why.contains(text)) => Found::Broken(why),
            Verdict::Caught => Found::Caught(why),
        }
    }
}

/// What came of every property on every subject.
#[derive(Debug, Default)]
struct Matrix(BTreeMap<&'static str, BTreeMap<(String, String), Found>>);

impl Matrix {
    fn add(&mut self, name: &'static str, found: BTreeMap<(String, String), Found>) {
        self.0.entry(name).or_default().extend(found);
    }

    fn get(&self, name: &str, case: &str, property: &str) -> Option<&Found> {
        self.0.get(name)?.get(&(case.to_string(), property.to_string()))
    }

    fn caught(&self, name: &str, property: &str) -> bool {
        matches!(self.get(name, name, property), Some(Found::Caught(_)))
    }
}

/// What is wrong with the checks, if what `disabled` says is not heard.
fn verdict(chosen: &[&Mutant], properties: &[&str], matrix: &Matrix, disabled: Option<&str>) -> Vec<String> {
    let mut complaints = Vec::new();
    for ((case, property), found) in matrix.0.get(CLEAN).into_iter().flatten() {
        if let Found::Caught(why) | Found::Broken(why) = found {
            complaints.push(format!("{property} fails without any defect, on the case of {case}: {why}"));
        }
    }
    let caught = |name: &str, property: &str| disabled != Some(property) && matrix.caught(name, property);
    for mutant in chosen {
        if !caught(mutant.name, mutant.property) {
            let found = matrix.get(mutant.name, mutant.name, mutant.property);
            complaints.push(format!("{} is not caught by {}: {found:?}", mutant.name, mutant.property));
        }
        for ((_, property), found) in matrix.0.get(mutant.name).into_iter().flatten() {
            if let Found::Broken(why) = found {
                complaints.push(format!("{} is no mutant, at {property}: {why}", mutant.name));
            }
        }
    }
    // What is demanded of a property counts on all defects, those of the CPU executor too.
    for property in properties.iter().filter(|_| chosen.len() == MUTANTS.len()) {
        let catches: Vec<&Mutant> = chosen.iter().copied().filter(|m| caught(m.name, property)).collect();
        if catches.len() < 2 {
            complaints.push(format!("{property} catches {} mutants, expected 2", catches.len()));
        }
        if *property != ACCURACY && catches.iter().all(|m| matrix.caught(m.name, ACCURACY)) {
            complaints.push(format!("{property} catches no mutant that accuracy misses"));
        }
    }
    complaints
}

/// The matrix as a table.
fn print(chosen: &[&Mutant], properties: &[&str], matrix: &Matrix, out: &mut dyn Write) -> Result<()> {
    let width = chosen.iter().map(|m| m.name.len()).max().unwrap_or(0) + 2;
    for (i, property) in properties.iter().enumerate() {
        writeln!(out, "{:width$}{}{property}", "", "│ ".repeat(i))?;
    }
    for mutant in chosen {
        write!(out, "{:width$}", mutant.name)?;
        for property in properties {
            let mark = match matrix.get(mutant.name, mutant.name, property) {
                Some(Found::Caught(_)) if mutant.property == *property => "■ ",
                Some(Found::Caught(_)) => "□ ",
                Some(Found::Passed) => "· ",
                Some(Found::Silent(_)) => "  ",
                Some(Found::Broken(_)) | None => "! ",
            };
            write!(out, "{mark}")?;
        }
        writeln!(out, " {}", mutant.defect)?;
    }
    let count = |property: &str| chosen.iter().filter(|m| matrix.caught(m.name, property)).count();
    let counts: Vec<String> = properties.iter().map(|property| format!("{property} {}", count(property))).collect();
    writeln!(out, "{}", wrapped("caught  ", &counts.join(", ")))?;
    writeln!(out, "■ caught by the property named for it, alone   □ caught   · missed   blank: the case says nothing")?;
    writeln!(out, "12 (launch failures) takes a driver that fails on demand: rmsnorm-cuda/tests/driver.rs")?;
    Ok(())
}

/// A run of `cargo xtask verify --mutants`, as `--report` writes it.
#[derive(Serialize)]
struct Report {
    schema: u32,
    passed: bool,
    command: Vec<String>,
    build: Build,
    device: &'static str,
    elapsed_s: f64,
    mutants: Vec<OfMutant>,
    /// Properties that passed without any defect, with the number of cases.
    clean: BTreeMap<String, usize>,
    complaints: Vec<String>,
}

#[derive(Serialize)]
struct OfMutant {
    name: &'static str,
    defect: &'static str,
    on: &'static str,
    case: String,
    named_property: &'static str,
    /// What the named property said.
    message: String,
    caught_by: BTreeSet<String>,
    missed_by: BTreeSet<String>,
}

impl Report {
    fn new(
        chosen: &[&Mutant],
        matrix: &Matrix,
        device: &'static str,
        began: Instant,
        passed: bool,
        complaints: Vec<String>,
    ) -> Report {
        let mut clean: BTreeMap<String, usize> = BTreeMap::new();
        for ((_, property), found) in matrix.0.get(CLEAN).into_iter().flatten() {
            *clean.entry(property.clone()).or_default() += usize::from(*found == Found::Passed);
        }
        let judged = |mutant: &&Mutant| {
            let by = |wanted: fn(&Found) -> bool| {
                let found = matrix.0.get(mutant.name).into_iter().flatten();
                found.filter(|(_, found)| wanted(found)).map(|((_, property), _)| property.clone()).collect()
            };
            OfMutant {
                name: mutant.name,
                defect: mutant.defect,
                on: if mutant.on == On::Cpu { "cpu" } else { "kernels" },
                case: (mutant.case)().to_string(),
                named_property: mutant.property,
                message: format!("{:?}", matrix.get(mutant.name, mutant.name, mutant.property)),
                caught_by: by(|found| matches!(found, Found::Caught(_))),
                missed_by: by(|found| *found == Found::Passed),
            }
        };
        Report {
            schema: 1,
            passed,
            command: std::env::args().skip(1).collect(),
            build: Build::this(),
            device,
            elapsed_s: began.elapsed().as_secs_f64(),
            mutants: chosen.iter().map(judged).collect(),
            clean,
            complaints,
        }
    }
}

const CLEAN: &str = "clean";
const ACCURACY: &str = "accuracy";
/// Defects that another order of threads hides.
const RACES: [&str; 1] = ["barrier_forgotten"];
/// A mutant that does not end is no mutant.
const TIME_LIMIT: Duration = Duration::from_secs(400);

#[cfg(test)]
mod tests {
    use super::*;

    fn properties() -> Vec<&'static str> {
        judges().map(|property| property.name).collect()
    }

    /// Every mutant is caught by its named property, and those of accuracy by identity too.
    fn ideal() -> Matrix {
        let mut matrix = Matrix::default();
        for mutant in MUTANTS {
            let found = properties().into_iter().map(|property| {
                let found = if property == mutant.property { Found::Caught("!".into()) } else { Found::Passed };
                ((mutant.name.to_string(), property.to_string()), found)
            });
            matrix.add(mutant.name, found.collect());
        }
        for property in properties() {
            let some = MUTANTS.iter().filter(|m| m.property != ACCURACY).take(2);
            for mutant in some.filter(|_| property != ACCURACY) {
                let key = (mutant.name.to_string(), property.to_string());
                matrix.add(mutant.name, BTreeMap::from([(key, Found::Caught("!".into()))]));
            }
        }
        matrix
    }

    fn all() -> Vec<&'static Mutant> {
        MUTANTS.iter().collect()
    }

    #[test]
    fn a_property_that_is_disabled_is_missed() {
        let matrix = ideal();
        assert_eq!(verdict(&all(), &properties(), &matrix, None), Vec::<String>::new());
        for property in properties() {
            let complaints = verdict(&all(), &properties(), &matrix, Some(property));
            assert!(
                complaints.iter().any(|c| c.contains(&format!("not caught by {property}"))),
                "{property}: {complaints:?}"
            );
        }
    }

    /// Where only the kernels' defects are judged, each must be caught, and nothing is asked about properties that none is named for.
    #[test]
    fn some_of_the_defects_are_judged_alone() {
        let kernels: Vec<&Mutant> = MUTANTS.iter().filter(|m| m.on == On::Kernels).collect();
        assert_eq!(verdict(&kernels, &["identity", "two runs"], &ideal(), None), Vec::<String>::new());
        assert!(!verdict(&kernels, &["identity", "two runs"], &ideal(), Some("two runs")).is_empty());
        assert!(RACES.iter().all(|race| kernels.iter().any(|m| m.name == *race)));
    }

    #[test]
    fn what_does_not_build_or_fails_without_a_defect_is_no_success() {
        let mut matrix = ideal();
        let key = ("eps_ignored".to_string(), "identity".to_string());
        matrix.add(
            "eps_ignored",
            BTreeMap::from([(key.clone(), Found::new(Verdict::Caught, "NVRTC could not compile x".into()))]),
        );
        assert!(verdict(&all(), &properties(), &matrix, None)[0].contains("is no mutant"));
        let mut matrix = ideal();
        matrix.add(CLEAN, BTreeMap::from([(key, Found::Caught("!".into()))]));
        assert!(verdict(&all(), &properties(), &matrix, None)[0].contains("without any defect"));
    }
}
