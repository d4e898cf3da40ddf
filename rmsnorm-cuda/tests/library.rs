//! Which NVRTC is taken of several, and what is said of those that are not.
//!
//! Needs a C compiler, no GPU: `stand_in_driver.c` takes the place of every NVRTC. Each search is made in a process of its own,
//! whose first place to look for libraries is a folder of its own. Without `cc` the tests say so and pass.
#![cfg(all(feature = "cuda", target_os = "linux", target_pointer_width = "64"))]

mod machine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rmsnorm_cuda::cuda::library::{driver, nvrtc};
use tempfile::TempDir;

/// The value of this variable is the architecture that a process searches for.
const CHILD: &str = "RMSNORM_LIBRARY_TEST";

/// In a process of its own: searches, and prints what was found. With a driver, if one's version is chosen.
#[test]
fn one_process() {
    let Ok(number) = std::env::var(CHILD) else { return };
    let number: u32 = number.parse().expect("an architecture");
    if std::env::var_os("STAND_IN_VERSION").is_some() {
        driver().expect("a stand-in");
    }
    match nvrtc((number / 10, number % 10)) {
        Ok(nvrtc) => println!("FOUND {}.{} {}", nvrtc.version.0, nvrtc.version.1, nvrtc.path),
        Err(error) => println!("FOUND {error}"),
    }
}

/// What a process finds that is started in `folder`, whose `loader` is the loader's own path.
fn search(folder: &Path, number: u32, variables: &[(&str, &str)]) -> String {
    let mut process = Command::new(std::env::current_exe().expect("this test's path"));
    process.args(["--exact", "one_process", "--nocapture", "--test-threads=1"]).current_dir(folder);
    for name in ["RMSNORM_NVRTC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        process.env_remove(name);
    }
    process.env(CHILD, number.to_string()).env("LD_LIBRARY_PATH", folder.join("loader")).env("PATH", "/nowhere");
    let output = process.envs(variables.iter().copied()).output().expect("a process");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let found = text.lines().find_map(|line| line.split_once("FOUND ")).map(|(_, found)| found.to_string());
    let found = found.unwrap_or_else(|| panic!("{text}"));
    println!("sm_{number} {variables:?}: {found}");
    found
}

/// Makes a library that says it is NVRTC of this version and knows these architectures. None, aloud, without a C compiler.
fn make(path: &Path, version: u32, architectures: &str) -> Option<()> {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand_in_driver.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(path).arg(source);
    compiler.arg(format!("-DNVRTC_VERSION={version}")).arg(format!("-DNVRTC_ARCHS={architectures}"));
    let Ok(status) = compiler.status() else {
        machine::skip("CC", "no C compiler `cc` for the stand-in");
        return None;
    };
    assert!(status.success(), "the stand-in does not compile");
    Some(())
}

/// A folder whose `loader` has an NVRTC 12.4 under every name, so that a machine's own stays out of it.
fn folder() -> Option<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_path_buf();
    make(&path.join("loader/libnvrtc.so.13"), 12040, "80, 90")?;
    for name in ["libnvrtc.so.12", "libnvrtc.so", "libcuda.so"] {
        std::os::unix::fs::symlink("libnvrtc.so.13", path.join("loader").join(name)).expect("a link");
    }
    Some((folder, path))
}

#[test]
fn the_first_that_knows_the_gpu_and_fits_the_driver() {
    let Some((_folder, path)) = folder() else { return };
    let (toolkit, conda) = (path.join("toolkit/lib64/libnvrtc.so.12"), path.join("conda/lib/libnvrtc.so.13"));
    make(&toolkit, 12080, "80, 90, 100, 120");
    make(&conda, 13000, "80, 90, 100, 103, 120, 121");
    let (toolkit, conda) = (toolkit.to_str().expect("text"), conda.to_str().expect("text"));
    let home = path.join("toolkit");
    let home = ("CUDA_HOME", home.to_str().expect("text"));
    let prefix = path.join("conda");
    let prefix = ("CONDA_PREFIX", prefix.to_str().expect("text"));

    assert_eq!(search(&path, 90, &[home, prefix]), "12.4 libnvrtc.so.13");
    assert_eq!(search(&path, 120, &[home, prefix]), format!("12.8 {toolkit}"));
    assert_eq!(search(&path, 120, &[prefix]), format!("13.0 {conda}"));
    assert_eq!(search(&path, 121, &[home, prefix]), format!("13.0 {conda}"));
    let named = ("RMSNORM_NVRTC", conda);
    assert_eq!(search(&path, 90, &[named, home]), format!("13.0 {conda}"));

    let driver = ("STAND_IN_VERSION", "12040");
    assert_eq!(search(&path, 90, &[driver, home, prefix]), "12.4 libnvrtc.so.13");
    // The only one that may do; and not that, where another fits.
    assert_eq!(search(&path, 120, &[driver, home, prefix]), format!("12.8 {toolkit}"));
    let only = path.join("only");
    fs::create_dir_all(only.join("loader")).expect("a folder");
    for name in ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "libcuda.so"] {
        std::os::unix::fs::symlink(toolkit, only.join("loader").join(name)).expect("a link");
    }
    make(&path.join("fits/lib/libnvrtc.so"), 12030, "80, 90");
    let fits = path.join("fits");
    let fits = ("CUDA_PATH", fits.to_str().expect("text"));
    assert_eq!(search(&only, 90, &[driver]), "12.8 libnvrtc.so.13");
    assert_eq!(search(&only, 90, &[driver, fits]), format!("12.3 {}/lib/libnvrtc.so", fits.1));
    assert_eq!(search(&only, 90, &[("STAND_IN_VERSION", "12080"), fits]), "12.8 libnvrtc.so.13");

    let error = search(&path, 121, &[driver, home, prefix]);
    for part in [
        "compute capability 12.1 needs version 12.9 or newer, none newer than 12.x for a driver for CUDA 12.4",
        "libnvrtc.so.13: version 12.4 does not know sm_121",
        &format!("{toolkit}: version 12.8 does not know sm_121"),
        &format!("{conda}: version 13.0 is too new for a driver for CUDA 12.4"),
        &format!("$CUDA_HOME ({}), $CUDA_PATH (not set)", home.1),
        "RMSNORM_NVRTC=/path/to/libnvrtc.so.13",
    ] {
        assert!(error.contains(part), "no {part:?} in {error:?}");
    }
    let error = search(&path, 101, &[named]);
    assert!(error.contains("needs version 12.8 to 12.9; ") && error.contains("13.0 does not know sm_101"), "{error}");
    assert!(search(&path, 130, &[named]).contains("needs version newer than 13.0; "));
}

#[test]
fn the_reason_is_kept() {
    let Some((_folder, path)) = folder() else { return };
    let named = |name: &str| {
        let file = path.join(name);
        let text = file.to_str().expect("text");
        let error = search(&path, 90, &[("RMSNORM_NVRTC", text)]);
        let (_, reason) = error.split_once(&format!("{text}: ")).unwrap_or_else(|| panic!("{error}"));
        reason.split(';').next().unwrap_or_default().to_string()
    };
    assert!(named("absent").contains("No such file"));
    assert!(named("loader").contains("directory"));
    fs::write(path.join("text"), "a text that is long enough to be the head of a library, and is none\n")
        .expect("a file");
    assert!(named("text").contains("invalid ELF header"));
    let mut library = fs::read(path.join("loader/libnvrtc.so")).expect("a library");
    library[18..20].copy_from_slice(&[0xF7, 0xFF]);
    fs::write(path.join("foreign"), library).expect("a file");
    assert!(named("foreign").contains("a library for another machine"));
    make(&path.join("old"), 11080, "80, 90");
    assert_eq!(named("old"), "12 or 13 expected, found 11.8");

    let relative = search(&path, 90, &[("RMSNORM_NVRTC", "loader/libnvrtc.so")]);
    assert!(relative.contains("RMSNORM_NVRTC is loader/libnvrtc.so, expected an absolute path"), "{relative}");
}

/// What lies in the current folder is not loaded, whatever is set.
#[test]
fn nothing_comes_from_the_current_folder() {
    let Some((_folder, path)) = folder() else { return };
    for place in ["lib64", "lib/python3.11/site-packages/nvidia/cu13/lib", "bin"] {
        make(&path.join(place).join("libnvrtc.so.13"), 13000, "80, 90, 121");
    }
    fs::write(path.join("bin/python3"), "").expect("a file");
    for value in ["", ".", "./", "../"] {
        let names = ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PATH"];
        let mut variables = names.map(|name| (name, value)).to_vec();
        let error = search(&path, 121, &variables);
        assert!(error.contains("needs version") && !error.contains("13.0 "), "{error}");
        variables.push(("RMSNORM_NVRTC", ""));
        assert_eq!(search(&path, 90, &variables), "12.4 libnvrtc.so.13");
    }
}
