//! Copies of `rmsnorm-cuda`, each with the patches of one mutant, in a workspace of their own below `target`. What judges them is
//! the original.

use crate::children::{NO_LIMIT, output};
use crate::record::tell;
use anyhow::{Context, Result, bail};
use rmsnorm_fuzz::mutants::Mutant;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace of copies.
pub(crate) struct Copies {
    folder: PathBuf,
    members: Vec<String>,
    /// How far each copy is optimised.
    levels: Vec<(String, u8)>,
    /// Programs, stripped: small enough to be carried to another machine.
    programs: Vec<String>,
}

impl Copies {
    /// The workspace `target/mutants/NAME`, nothing in it yet.
    pub(crate) fn new(name: &str) -> Copies {
        Copies {
            folder: root().join("target/mutants").join(name),
            members: Vec::new(),
            levels: Vec::new(),
            programs: Vec::new(),
        }
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds a copy of `rmsnorm-cuda` with the patches of `mutant`, or one without patches, as the crate `name`,
    /// optimised to this level: what judges a few cases takes longer to optimise than to run.
    pub(crate) fn add(&mut self, name: &str, mutant: Option<&Mutant>, level: u8) -> Result<()> {
        let sources = root().join("rmsnorm-cuda/src");
        let patched = match mutant {
            Some(mutant) => mutant
                .patched(&sources)
                .map_err(|error| anyhow::anyhow!("the patch of {} does not apply: {error}", mutant.name))?,
            None => Vec::new(),
        };
        let copy = self.folder.join(name);
        let mut wanted = Vec::new();
        for file in files(&sources)? {
            let below = file.strip_prefix(&sources)?;
            let text = match patched.iter().find(|(path, _)| Path::new(path) == below) {
                Some((_, text)) => text.clone().into_bytes(),
                None => fs::read(&file)?,
            };
            write(&copy.join("src").join(below), &text)?;
            wanted.push(copy.join("src").join(below));
        }
        for stale in files(&copy.join("src"))?.into_iter().filter(|file| !wanted.contains(file)) {
            fs::remove_file(stale)?;
        }
        // Only the library is copied: no tests, no examples.
        let manifest = fs::read_to_string(root().join("rmsnorm-cuda/Cargo.toml"))?;
        let mut kept = true;
        let lines = manifest.lines().filter(|line| {
            if line.starts_with('[') {
                kept = !line.starts_with("[[") && *line != "[dev-dependencies]";
            }
            kept
        });
        let manifest = lines.collect::<Vec<_>>().join("\n") + "\n";
        write(
            &copy.join("Cargo.toml"),
            manifest.replace("name = \"rmsnorm-cuda\"", &format!("name = \"{name}\"")).as_bytes(),
        )?;
        self.members.push(name.into());
        self.levels.push((name.into(), level));
        Ok(())
    }

    /// Adds a package of its own: its manifest, and its files below `src`.
    pub(crate) fn add_package(&mut self, name: &str, manifest: &str, files: &[(&str, String)]) -> Result<()> {
        let package = self.folder.join(name);
        write(&package.join("Cargo.toml"), manifest.as_bytes())?;
        for (file, text) in files {
            write(&package.join("src").join(file), text.as_bytes())?;
        }
        self.members.push(name.into());
        self.programs.push(name.into());
        Ok(())
    }

    /// Writes what makes it a workspace. The versions of dependencies are those of this one, and so are their profiles: what the workspace
    /// has built of them is not built again.
    pub(crate) fn finish(&self) -> Result<()> {
        let root = root();
        let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
        let mut text = String::new();
        for line in manifest.lines() {
            if line.starts_with("members = ") {
                text += &format!("members = {:?}\n", self.members);
            } else {
                text += &line.replace("path = \"", &format!("path = \"{}/", root.display()));
                text += "\n";
            }
        }
        for (copy, level) in &self.levels {
            text += &format!("\n[profile.release.package.{copy}]\nopt-level = {level}\ndebug = false\n");
        }
        for program in &self.programs {
            text += &format!("\n[profile.release.package.{program}]\nstrip = true\n");
        }
        write(&self.folder.join("Cargo.toml"), text.as_bytes())?;
        let lock = fs::read(root.join("Cargo.lock"))?;
        if write(&self.folder.join("Cargo.lock.original"), &lock)? {
            fs::write(self.folder.join("Cargo.lock"), lock)?;
        }
        Ok(())
    }

    /// Builds this package of the workspace, a program, and keeps it as `kept`.
    pub(crate) fn build(&self, what: &str, package: &str, kept: &Path) -> Result<()> {
        let target = root().join("target");
        let mut command = cargo();
        command.args(["build", "--release", "--package", package, "--target-dir"]).arg(&target);
        build(what, command.current_dir(&self.folder))?;
        fs::copy(target.join("release").join(package), kept).with_context(|| kept.display().to_string())?;
        Ok(())
    }
}

/// The workspace that this program was built from; the current folder where that is not on this machine.
pub(crate) fn root() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent().filter(|root| root.join("Cargo.toml").is_file());
    built_in.unwrap_or(Path::new(".")).to_path_buf()
}

/// A path as it is called within the workspace.
pub(crate) fn below_root(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Cargo, free of what the cargo that runs this program has set.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_MANIFEST")
            || text == "RUSTUP_TOOLCHAIN"
            || text == "CARGO"
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Builds with `command`; what it prints is shown if it fails.
pub(crate) fn build(what: &str, command: &mut Command) -> Result<()> {
    tell(format_args!("  building {what}: a minute or two, if little of it was built before"));
    let said = output(command, NO_LIMIT).with_context(|| format!("{command:?}"))?;
    if !said.succeeded() {
        bail!("{command:?}\n{}{}", said.stdout, said.stderr);
    }
    Ok(())
}

/// Writes a file unless it is there with this text, so that cargo builds only what changed. Whether it was written.
fn write(path: &Path, text: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    let folder = path.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder).and_then(|()| fs::write(path, text)).with_context(|| path.display().to_string())?;
    Ok(true)
}

/// Every file below `folder`.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}
