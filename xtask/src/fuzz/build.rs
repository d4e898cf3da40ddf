//! How a fuzzer is built: with AddressSanitizer through cargo-fuzz where there is a nightly toolchain; on stable by giving the
//! compiler the flags for coverage that cargo-fuzz gives it, without AddressSanitizer.

use crate::copies::{self, Copies, cargo, root};
use anyhow::{Context, Result, bail};
use object::read::archive::ArchiveFile;
use object::{Object, ObjectSection};
use rmsnorm_fuzz::mutants::Mutant;
use rmsnorm_fuzz::targets::Target;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A target, built.
pub(super) struct Fuzzer {
    pub(super) target: &'static Target,
    /// The program.
    pub(super) program: PathBuf,
    /// What every run on this target shares: what was reached and found.
    pub(super) folder: PathBuf,
    /// What only this run sees. Goes when it is dropped.
    pub(super) run: TempDir,
    /// Edges of the executors that are instrumented.
    pub(super) edges: u64,
    /// How it was built.
    pub(super) how: String,
    /// Whether a defect was built into it.
    pub(super) is_mutant: bool,
}

impl Fuzzer {
    /// Builds `target`, with the defect of `mutant` in the executor if there is one.
    pub(super) fn build(
        target: &'static Target,
        mutant: Option<&Mutant>,
        stable: bool,
        out: &mut dyn Write,
    ) -> Result<Fuzzer> {
        let tool = Tool::find(stable);
        writeln!(out, "{}: {}", target.name, tool.describe())?;
        out.flush()?;
        let (package, executors) = match mutant {
            None => (root().join("rmsnorm-fuzz"), "rmsnorm_cuda".to_string()),
            Some(mutant) => (patched_package(target, mutant)?, mutant.crate_name()),
        };
        let built = root().join("target/fuzz").join(tool.name());
        match &tool {
            Tool::Nightly => {
                let mut command = Command::new("cargo-fuzz");
                command.args(["fuzz", "build", target.name, "--features", "libfuzzer", "--no-default-features"]);
                command.arg("--fuzz-dir").arg(&package).arg("--target-dir").arg(&built).current_dir(&package);
                command.env("RUSTUP_TOOLCHAIN", "nightly").env_remove("CARGO_TARGET_DIR");
                copies::build("the fuzzer", &mut command)?;
            }
            Tool::Stable { .. } => {
                let mut command = cargo();
                command.args(["build", "--release", "--features", "libfuzzer", "--no-default-features"]);
                command.args(["--bin", target.name, "--target", TRIPLE, "--target-dir"]).arg(&built);
                command.env("RUSTFLAGS", COVERAGE).current_dir(&package);
                copies::build("the fuzzer", &mut command)?;
            }
        }
        let release = built.join(TRIPLE).join("release");
        let edges = edges(&release.join("deps"), &executors)?;
        if edges == 0 {
            bail!("no edge of {executors} is instrumented: the fuzzer would be blind");
        }
        let folder = root().join("target/fuzz/found").join(mutant.map_or("clean", |m| m.name)).join(target.name);
        fs::create_dir_all(&folder)?;
        let run = tempfile::Builder::new().prefix("run-").tempdir_in(&folder)?;
        // The next build of this target has the same name.
        let program = run.path().join("fuzzer");
        fs::copy(release.join(target.name), &program).with_context(|| release.display().to_string())?;
        Ok(Fuzzer { target, program, folder, run, edges, how: tool.describe(), is_mutant: mutant.is_some() })
    }

    /// Inputs that reach what no other reaches. A mutant must be found from nothing; else what earlier campaigns reached is where
    /// a new one begins.
    pub(super) fn corpus(&self) -> PathBuf {
        if self.is_mutant { self.run.path().join("corpus") } else { self.folder.join("corpus") }
    }
}

enum Tool {
    Nightly,
    Stable { why: &'static str },
}

impl Tool {
    /// Looks for what there is. Nothing is installed unasked.
    fn find(stable: bool) -> Tool {
        let runs = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let why = if stable {
            "as asked for"
        } else if !runs(Command::new("rustup").args(["run", "nightly", "rustc", "--version"])) {
            "there is no nightly toolchain (rustup toolchain install nightly)"
        } else if !runs(Command::new("cargo-fuzz").args(["fuzz", "--version"])) {
            "there is no cargo-fuzz (cargo install cargo-fuzz --locked)"
        } else {
            return Tool::Nightly;
        };
        Tool::Stable { why }
    }

    fn name(&self) -> &'static str {
        match self {
            Tool::Nightly => "nightly",
            Tool::Stable { .. } => "stable",
        }
    }

    fn describe(&self) -> String {
        match self {
            Tool::Nightly => "libFuzzer with AddressSanitizer, through cargo-fuzz on nightly".into(),
            Tool::Stable { why } => format!("libFuzzer on stable, without AddressSanitizer: {why}"),
        }
    }
}

/// A package like rmsnorm-fuzz whose only target runs the patched executor.
fn patched_package(target: &Target, mutant: &Mutant) -> Result<PathBuf> {
    let crate_name = mutant.crate_name();
    let mut copies = Copies::new(&format!("fuzz_{}", mutant.name));
    copies.add(&crate_name, Some(mutant), 3)?;
    let root = root();
    let name = target.name;
    let manifest = format!(
        "[package]\nname = \"fuzz_{crate_name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [package.metadata]\ncargo-fuzz = true\n\n[features]\nlibfuzzer = []\n\n[dependencies]\n\
         {crate_name} = {{ path = \"../{crate_name}\", default-features = false }}\n\
         rmsnorm-fuzz = {{ path = {:?}, default-features = false, features = [\"libfuzzer\"] }}\n\
         libfuzzer-sys = \"0.4.13\"\n\n\
         [[bin]]\nname = \"{name}\"\npath = \"src/{name}.rs\"\ntest = false\nbench = false\ndoc = false\n",
        root.join("rmsnorm-fuzz")
    );
    let body = format!(
        "#![no_main]\nuse libfuzzer_sys::{{Corpus, fuzz_target}};\nfuzz_target!(|bytes: &[u8]| -> Corpus {{\n    \
         rmsnorm_fuzz::targets::libfuzzer(\"{name}\", rmsnorm_fuzz::subject!(cpu {crate_name}), bytes)\n}});\n"
    );
    copies.add_package("fuzzer", &manifest, &[(&format!("{name}.rs"), body)])?;
    copies.finish()?;
    Ok(copies.folder().join("fuzzer"))
}

/// Instrumented edges of the newest build of a library: each has one counter of a byte.
fn edges(deps: &Path, library: &str) -> Result<u64> {
    let prefix = format!("lib{library}-");
    let rlibs = fs::read_dir(deps).with_context(|| deps.display().to_string())?.flatten().map(|entry| entry.path());
    let named = rlibs.filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&prefix) && name.ends_with(".rlib")
    });
    let newest = named.max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok());
    let data = fs::read(newest.with_context(|| format!("{}: no {prefix}*.rlib", deps.display()))?)?;
    let archive = ArchiveFile::parse(&*data)?;
    let mut edges = 0;
    for member in archive.members() {
        // The first member is the compiler's own.
        if let Ok(file) = object::File::parse(member?.data(&*data)?) {
            edges += file.sections().filter(|s| s.name() == Ok("__sancov_cntrs")).map(|s| s.size()).sum::<u64>();
        }
    }
    Ok(edges)
}

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What cargo-fuzz passes for coverage.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions";
