//! Embeds the commit that a binary was built from: `RMSNORM_COMMIT`, and in `RMSNORM_DIRTY` whether the working tree differed
//! from it. Without git or a repository both are "unknown".

use std::path::Path;
use std::process::Command;

fn main() {
    let commit = git(&["rev-parse", "HEAD"]);
    let status = git(&["--no-optional-locks", "status", "--porcelain"]);
    let dirty = status.map_or("unknown", |changed| if changed.is_empty() { "no" } else { "yes" });
    println!("cargo::rustc-env=RMSNORM_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo::rustc-env=RMSNORM_DIRTY={dirty}");
    // What changes the commit, and what is compiled in: an edit makes the tree dirty without touching .git.
    let head = ["HEAD", "index", "logs/HEAD"].map(|file| git(&["rev-parse", "--git-path", file]).unwrap_or_default());
    let sources = ["..", "../rmsnorm-cuda", "../rmsnorm-fuzz", "../rmsnorm-ref", "."]
        .map(|folder| [format!("{folder}/src"), format!("{folder}/Cargo.toml"), format!("{folder}/build.rs")]);
    for path in head.iter().chain(sources.as_flattened()).filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
}
