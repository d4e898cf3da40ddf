//! What `cargo publish` would send: everything that the crate needs, and enough to build it where nothing else of this
//! repository is. Needs `tar`, and of the registry only what building this workspace needed.
#![cfg(unix)]

use std::path::Path;
use std::process::Command;

mod machine;

const NAME: &str = env!("CARGO_PKG_NAME");
/// The package of kernels compiled ahead, on which it can depend.
const AHEAD: &str = "rmsnorm-cuda-prebuilt";

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
    if !machine::has("TAR", "tar") {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
    let package = |options: &[&str]| {
        let mut command = cargo();
        command.args(["package", "--offline", "--allow-dirty", "--package", NAME, "--target-dir"]);
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
    let readme = std::fs::read_to_string(root.join("README.md")).expect("the README of the package");
    for target in readme.split("](").skip(1).filter_map(|after| after.split(')').next()) {
        assert!(target.starts_with("https://") || listed.contains(&target), "README.md leads to {target}");
    }

    package(&["--no-verify", "--package", AHEAD]);
    // Outside the workspace, or cargo would take it for a member.
    let folder = machine::folder();
    let [alone, ahead] = [NAME, AHEAD].map(|package| {
        let name = format!("{package}-{}", env!("CARGO_PKG_VERSION"));
        let archive = target.join("package").join(format!("{name}.crate"));
        output_of(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(folder.path()));
        folder.path().join(name)
    });
    // What no registry has yet.
    let ahead = format!("patch.crates-io.{AHEAD}.path='{}'", ahead.display());
    for file in &expected {
        assert!(alone.join(file).is_file(), "no {file} in the package");
    }
    assert!(!readme.contains("cargo xtask") && !readme.contains("--workspace"), "the package has no such command");
    // What dependencies became is kept for the next time; the package itself, which lies elsewhere each time, is not.
    for arguments in
        [&["check", "--all-targets"][..], &["check", "--no-default-features"], &["clean", "--package", NAME]]
    {
        let mut command = cargo();
        command
            .args(arguments)
            .args(["--config", &ahead, "--offline", "--quiet", "--target-dir"])
            .arg(target.join("alone"));
        output_of(command.current_dir(&alone));
    }
}
