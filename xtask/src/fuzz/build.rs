//! How a fuzzer is built: with AddressSanitizer through cargo-fuzz where there is a nightly toolchain; on stable by giving the
//! compiler the flags for coverage that cargo-fuzz gives it, without AddressSanitizer.

use crate::copies::{Copies, cargo, root, run_quietly};
use anyhow::{Context, Result, bail};
use object::read::archive::ArchiveFile;
use object::{Object, ObjectSection};
use rmsnorm_fuzz::mutants::Mutant;
use rmsnorm_fuzz::targets::Target;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A target, built.
pub(super) struct Fuzzer {
    pub(super) target: &'static Target,
    /// The program.
    pub(super) program: PathBuf,
    /// Where it leaves what it finds.
    pub(super) folder: PathBuf,
    /// Edges of the executors that are instrumented.
    pub(super) edges: u64,
    /// How it was built.
    pub(super) how: String,
    /// Whether a defect was built into it.
    pub(super) is_mutant: bool,
}

impl Fuzzer {
    /// Builds `target`, with the defect of `mutant` in the executor if there is one.
    pub(super) fn build(target: &'static Target, mutant: Option<&Mutant>) -> Result<Fuzzer> {
        let tool = Tool::find()?;
        println!("{}: {}", target.name, tool.describe());
        let (package, executors) = match mutant {
            None => (root().join("rmsnorm-fuzz"), "rmsnorm_cuda".to_string()),
            Some(mutant) => (patched_package(target, mutant)?, mutant.crate_name()),
        };
        let built = root().join("target/fuzz").join(tool.name());
        match &tool {
            Tool::Nightly { cargo_fuzz } => {
                let mut command = Command::new(cargo_fuzz);
                command.args(["fuzz", "build", target.name, "--features", "libfuzzer", "--no-default-features"]);
                command.arg("--fuzz-dir").arg(&package).arg("--target-dir").arg(&built).current_dir(&package);
                command.env("RUSTUP_TOOLCHAIN", "nightly").env_remove("CARGO_TARGET_DIR");
                run_quietly(&mut command)?;
            }
            Tool::Stable { .. } => {
                let mut command = cargo();
                command.args(["build", "--release", "--features", "libfuzzer", "--no-default-features"]);
                command.args(["--bin", target.name, "--target", TRIPLE, "--target-dir"]).arg(&built);
                command.env("RUSTFLAGS", COVERAGE).current_dir(&package);
                run_quietly(&mut command)?;
            }
        }
        let release = built.join(TRIPLE).join("release");
        let edges = edges(&release.join("deps"), &executors)?;
        if edges == 0 {
            bail!("no edge of {executors} is instrumented: the fuzzer would be blind");
        }
        let folder = root().join("target/fuzz/found").join(mutant.map_or("clean", |m| m.name)).join(target.name);
        fs::create_dir_all(&folder)?;
        let program = release.join(target.name);
        if mutant.is_none() {
            return Ok(Fuzzer { target, program, folder, edges, how: tool.describe(), is_mutant: false });
        }
        // The next mutant's program has the same name.
        let kept = folder.join("fuzzer");
        fs::copy(&program, &kept).with_context(|| program.display().to_string())?;
        Ok(Fuzzer { target, program: kept, folder, edges, how: tool.describe(), is_mutant: true })
    }
}

enum Tool {
    Nightly { cargo_fuzz: PathBuf },
    Stable { why: String },
}

impl Tool {
    /// Looks for what there is, and installs cargo-fuzz where only that is missing.
    fn find() -> Result<Tool> {
        let runs = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        if !runs(Command::new("rustup").args(["run", "nightly", "rustc", "--version"])) {
            return Ok(Tool::Stable { why: "there is no nightly toolchain".into() });
        }
        let tools = root().join("target/tools");
        let own = tools.join("bin/cargo-fuzz");
        for found in [PathBuf::from("cargo-fuzz"), own.clone()] {
            if runs(Command::new(&found).args(["fuzz", "--version"])) {
                return Ok(Tool::Nightly { cargo_fuzz: found });
            }
        }
        println!("installing cargo-fuzz in target/tools");
        let installed = run_quietly(
            cargo().args(["install", "cargo-fuzz", "--locked", "--root"]).arg(&tools).env_remove("CARGO_TARGET_DIR"),
        );
        Ok(match installed {
            Ok(()) => Tool::Nightly { cargo_fuzz: own },
            Err(error) => {
                let last = error.to_string().lines().last().unwrap_or_default().to_string();
                Tool::Stable { why: format!("cargo-fuzz could not be installed ({last})") }
            }
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Tool::Nightly { .. } => "nightly",
            Tool::Stable { .. } => "stable",
        }
    }

    fn describe(&self) -> String {
        match self {
            Tool::Nightly { .. } => "libFuzzer with AddressSanitizer, through cargo-fuzz on nightly".into(),
            Tool::Stable { why } => format!("libFuzzer on stable, without AddressSanitizer, for {why}"),
        }
    }
}

/// A package like rmsnorm-fuzz whose only target runs the patched executor.
fn patched_package(target: &Target, mutant: &Mutant) -> Result<PathBuf> {
    let crate_name = mutant.crate_name();
    let mut copies = Copies::new(&format!("fuzz_{}", mutant.name));
    copies.add(&crate_name, Some(mutant), true)?;
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
         rmsnorm_fuzz::targets::libfuzzer(\"{name}\", &rmsnorm_fuzz::subject!(cpu {crate_name}), bytes)\n}});\n"
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
