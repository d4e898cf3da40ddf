//! What `cargo publish` would send: everything that the crate needs, and enough to build it where nothing else of this
//! repository is. Needs `tar`, and of the registry only what building this workspace needed.
#![cfg(unix)]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    // What this workspace sets for itself is not what others have.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG") || text.starts_with("CARGO_MANIFEST") || text == "CUDARC_CUDA_VERSION" {
            cargo.env_remove(&name);
        }
    }
    cargo
}

fn output_of(command: &mut Command) -> String {
    let output = command.output().expect("the command starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every file below `folder`, as paths from the package's root.
fn files_below(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of the crate") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("a file of the crate");
            files.push(path.to_str().expect("a plain name").to_string());
        }
    }
    files
}

#[test]
fn the_package_is_complete_and_builds_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
    let package = |options: &[&str]| {
        let mut command = cargo();
        command.args(["package", "--offline", "--allow-dirty", "--package", "rmsnorm-cuda", "--target-dir"]);
        output_of(command.arg(&target).args(options).current_dir(root))
    };
    let listed = package(&["--list"]);
    let listed: Vec<&str> = listed.lines().collect();
    let mut expected = ["Cargo.toml", "README.md", "LICENSE-APACHE", "LICENSE-MIT"].map(String::from).to_vec();
    expected.extend(files_below(&root.join("src")));
    assert!(expected.iter().filter(|file| file.ends_with(".cu") || file.ends_with(".cuh")).count() >= 6);
    for file in &expected {
        assert!(listed.contains(&file.as_str()), "no {file} in {listed:?}");
    }

    package(&["--no-verify"]);
    let name = concat!("rmsnorm-cuda-", env!("CARGO_PKG_VERSION"));
    // Outside the workspace, or cargo would take it for a member; always the same folder, so that builds are reused.
    let mut hash = DefaultHasher::new();
    target.hash(&mut hash);
    let alone: PathBuf = std::env::temp_dir().join(format!("{name}-{:016x}", hash.finish()));
    std::fs::remove_dir_all(&alone).ok();
    std::fs::create_dir_all(&alone).expect("a folder");
    let archive = target.join("package").join(format!("{name}.crate"));
    // With the time of now: the archive's times are always the same, and cargo would see no change.
    output_of(Command::new("tar").arg("-xmzf").arg(archive).arg("-C").arg(&alone));
    for file in &expected {
        assert!(alone.join(name).join(file).is_file(), "no {file} in the package");
    }
    // Where nothing else of the repository is, links lead into the package or to the web.
    let readme = std::fs::read_to_string(alone.join(name).join("README.md")).expect("the package's README");
    for link in readme.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(link.starts_with("https://") || alone.join(name).join(link).exists(), "{link} leads nowhere");
    }
    assert!(!readme.contains("cargo xtask") && !readme.contains("--workspace"), "the package has no such command");
    for options in [&["--all-targets"][..], &["--no-default-features"]] {
        let mut command = cargo();
        command.args(["check", "--offline", "--quiet", "--target-dir"]).arg(target.join("alone"));
        output_of(command.args(options).current_dir(alone.join(name)));
    }
    std::fs::remove_dir_all(&alone).ok();
}
