//! What `cargo publish` would send: everything that the crate needs. That it is enough to build where nothing else of this repository is
//! takes minutes, and is `.ci/package`'s to show.

use std::path::Path;
use std::process::Command;

/// Every file below `folder`, as paths from the package's root.
fn files_below(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of the crate") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("a file of the crate");
            files.push(path.to_str().expect("a plain name").replace('\\', "/"));
        }
    }
    files
}

#[test]
fn the_package_is_complete() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(env!("CARGO"))
        .args(["package", "--offline", "--allow-dirty", "--list", "--package", env!("CARGO_PKG_NAME")])
        .current_dir(root)
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8_lossy(&output.stdout).replace('\\', "/");
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
    assert!(!readme.contains("cargo xtask") && !readme.contains("--workspace"), "the package has no such command");
}
