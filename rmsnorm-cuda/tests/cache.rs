//! Compiled kernels on disk: whatever is in the folder, and whoever else uses it, a module's machine code is what NVRTC makes
//! of it; a folder that cannot be used or trusted is not, and says so once.
//!
//! Needs NVRTC, no GPU. Without NVRTC the tests say so and pass, unless `RMSNORM_REQUIRE_NVRTC=1`.
#![cfg(all(feature = "cuda", target_os = "linux"))]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rmsnorm_cuda::cuda::Cache;
use rmsnorm_cuda::cuda::compile::{Module, compile};
use rmsnorm_cuda::cuda::library::nvrtc;
use rmsnorm_cuda::{Dtype, Error};
use sha2::{Digest, Sha256};

mod machine;

const MODULE: Module = Module::Fold { dw: Dtype::Bf16 };
const CAPABILITY: (u32, u32) = (9, 0);

fn nvrtc_is_there() -> bool {
    let missing = nvrtc().err();
    missing.iter().for_each(|error| machine::skip("NVRTC", error));
    missing.is_none()
}

/// What NVRTC makes of the module, each time anew.
fn compiled() -> Vec<u8> {
    compile(&MODULE, CAPABILITY).expect("the module compiles").cubin
}

/// A folder of this name that is not there yet.
fn fresh(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache").join(name);
    fs::remove_dir_all(&folder).ok();
    folder
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn only_file(folder: &Path) -> PathBuf {
    let files = files(folder);
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

/// A file as the cache writes it under the name of `path`, with `content` for the machine code.
fn forge(path: &Path, content: &[u8]) {
    let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let key: Vec<u8> =
        (0..name.len()).step_by(2).map(|i| u8::from_str_radix(&name[i..i + 2], 16).expect("hex")).collect();
    let sum = Sha256::new().chain_update(&key).chain_update(content).finalize();
    fs::write(path, [sum.as_slice(), content].concat()).expect("a file in the folder");
}

/// The one file that the module has in a cache, by its name.
fn name_of_file() -> std::ffi::OsString {
    let folder = fresh(&format!("name-{}", std::process::id()));
    Cache::at(&folder).cubin(&MODULE, CAPABILITY).expect("the module compiles");
    let name = only_file(&folder).file_name().expect("a name").to_os_string();
    fs::remove_dir_all(&folder).ok();
    name
}

#[test]
fn what_was_stored_is_read() {
    if !nvrtc_is_there() {
        return;
    }
    let folder = fresh("stored/below");
    let cache = Cache::at(&folder);
    assert!(cache.cubin(&MODULE, CAPABILITY).expect("compiled") == compiled());
    assert_eq!(fs::metadata(&folder).expect("made").mode() & 0o777, 0o700);
    let path = only_file(&folder);
    let kept = fs::read(&path).expect("kept");
    assert!(kept.ends_with(&compiled()));
    // Only a reader can know this.
    forge(&path, b"another module");
    assert_eq!(cache.cubin(&MODULE, CAPABILITY), Ok(b"another module".to_vec()));
    assert_eq!(Cache::at(&folder).cubin(&MODULE, CAPABILITY), Ok(b"another module".to_vec()));
    // Another module, and the same for another architecture, are other files.
    Cache::at(&folder).cubin(&Module::Fold { dw: Dtype::F32 }, CAPABILITY).expect("compiled");
    assert_eq!(files(&folder).len(), 2);
    Cache::at(&folder).cubin(&MODULE, (8, 0)).expect("compiled");
    assert_eq!(files(&folder).len(), 3);
    assert_eq!(cache.warning(), None);
}

#[test]
fn a_broken_file_is_replaced() {
    if !nvrtc_is_there() {
        return;
    }
    let folder = fresh("broken");
    let other = Module::Fold { dw: Dtype::F16 };
    Cache::at(&folder).cubin(&other, CAPABILITY).expect("compiled");
    let file_of_other = only_file(&folder);
    let cubin = Cache::at(&folder).cubin(&MODULE, CAPABILITY).expect("compiled");
    assert!(cubin == compiled());
    let path = files(&folder).into_iter().find(|path| *path != file_of_other).expect("two files");
    let whole = fs::read(&path).expect("kept");

    let mut damaged: Vec<(String, Vec<u8>)> = vec![
        ("with a byte more".into(), [&whole[..], b"\0"].concat()),
        ("of another module".into(), fs::read(&file_of_other).expect("kept")),
    ];
    for bytes in [0, 1, 31, 32, 33, whole.len() / 2, whole.len() - 1] {
        damaged.push((format!("cut to {bytes} bytes"), whole[..bytes].to_vec()));
    }
    for byte in [0, 31, 32, 33, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[byte] ^= 0x10;
        damaged.push((format!("with byte {byte} flipped"), flipped));
    }
    for (what, content) in damaged {
        fs::write(&path, content).expect("a file in the folder");
        let cache = Cache::at(&folder);
        assert!(cache.cubin(&MODULE, CAPABILITY).expect("compiled again") == cubin, "{what}");
        assert_eq!(cache.warning(), None, "{what}");
        assert!(fs::read(&path).expect("kept again") == whole, "{what}");
    }
    assert_eq!(files(&folder).len(), 2, "something was left behind");
}

/// The module's code all the same, one warning about the folder, which stays what it was.
fn assert_unused(folder: &Path, reason: &str) {
    let before = files(folder);
    let cache = Cache::at(folder);
    assert_eq!(cache.warning(), None);
    for _ in 0..2 {
        assert!(cache.cubin(&MODULE, CAPABILITY).expect("compiled") == compiled());
    }
    let Some(warning @ Error::Cache { path, reason: got }) = cache.warning() else { panic!("no warning: {reason}") };
    println!("{warning}");
    assert!(path.starts_with(folder) && got.contains(reason), "{warning}");
    assert_eq!(files(folder), before);
}

#[test]
fn a_folder_of_others_is_not_used() {
    if !nvrtc_is_there() {
        return;
    }
    let name = name_of_file();
    let folder = fresh("open");
    fs::create_dir_all(&folder).expect("a folder");
    forge(&folder.join(&name), b"put there by someone");
    for mode in [0o777, 0o770, 0o702, 0o1777] {
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("a mode");
        assert_unused(&folder, "others can write to it");
    }
    // Reading is nobody's loss.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("a mode");
    assert_eq!(Cache::at(&folder).cubin(&MODULE, CAPABILITY), Ok(b"put there by someone".to_vec()));

    // Only the superuser can give a folder away; anybody else finds one that is not theirs.
    match std::os::unix::fs::chown(&folder, Some(12345), None) {
        Ok(()) => assert_unused(&folder, "it belongs to user 12345"),
        Err(_) => assert_unused(Path::new("/"), "it belongs to user 0"),
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_not_used() {
    if !nvrtc_is_there() {
        return;
    }
    // Belongs to this process, and nobody, not even the superuser, can make a file in it.
    let cache = Cache::at("/proc/self/fdinfo");
    for _ in 0..2 {
        assert!(cache.cubin(&MODULE, CAPABILITY).expect("compiled") == compiled());
    }
    println!("{}", cache.warning().expect("a warning"));
    // What is no folder.
    let folder = fresh("file");
    fs::create_dir_all(folder.parent().expect("a parent")).expect("a folder");
    fs::write(&folder, "a file").expect("a file");
    let cache = Cache::at(&folder);
    assert!(cache.cubin(&MODULE, CAPABILITY).expect("compiled") == compiled());
    println!("{}", cache.warning().expect("a warning"));
    fs::remove_file(&folder).ok();
}

#[test]
fn off_keeps_nothing() {
    if !nvrtc_is_there() {
        return;
    }
    let cache = Cache::off();
    assert!(cache.cubin(&MODULE, CAPABILITY).expect("compiled") == compiled());
    assert_eq!((cache.folder(), cache.warning(), cache.clear()), (None, None, Ok(0)));
}

#[test]
fn clear_deletes_what_a_cache_wrote() {
    if !nvrtc_is_there() {
        return;
    }
    let folder = fresh("clear");
    let cache = Cache::at(&folder);
    assert_eq!(cache.clear(), Ok(0), "there is no folder yet");
    cache.cubin(&MODULE, CAPABILITY).expect("compiled");
    cache.cubin(&MODULE, (8, 0)).expect("compiled");
    let keep = ["notes.txt", "short.cubin", "0123456789abcde.unfinished", ".unfinished"].map(|name| folder.join(name));
    for path in keep.iter().chain([&folder.join("0123456789abcdef.unfinished")]) {
        fs::write(path, "x").expect("a file");
    }
    assert_eq!(cache.clear(), Ok(3));
    let mut left = keep.to_vec();
    left.sort();
    assert_eq!(files(&folder), left);
    assert_eq!(cache.clear(), Ok(0));
}

/// In a process of its own, with a cache from its environment: compiles, and prints what came of it.
#[test]
fn one_process() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let cache = Cache::from_environment();
    println!("FOLDER {}", cache.folder().map_or("none".into(), |folder| folder.display().to_string()));
    if std::env::var_os(CHILD).is_some_and(|what| what == "cubin") {
        let cubin = cache.cubin(&MODULE, CAPABILITY).expect("compiled");
        println!("CUBIN {}", cubin == compiled());
        println!("WARNING {}", cache.warning().map_or("none".into(), ToString::to_string));
    }
}

/// Says that this process is one of those that [`one_process`] is for.
const CHILD: &str = "RMSNORM_CACHE_TEST";

/// What such a process printed after each of these words.
fn report(child: Child) -> impl Fn(&str) -> String {
    let output = child.wait_with_output().expect("the process ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    move |word| {
        let mut lines = text.lines().filter_map(|line| line.split_once(word)).map(|(_, rest)| rest.trim().to_string());
        lines.next().unwrap_or_else(|| panic!("no {word} in {text}"))
    }
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process")
}

fn this_test() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test's path"));
    command.args(["--exact", "one_process", "--nocapture", "--test-threads=1"]);
    command
}

#[test]
fn many_processes_begin_at_once() {
    if !nvrtc_is_there() {
        return;
    }
    let folder = fresh("many");
    let process = |_| {
        let mut command = this_test();
        command.env(CHILD, "cubin").env("RMSNORM_CACHE", &folder);
        start(command)
    };
    let children: Vec<Child> = (0..16).map(process).collect();
    for child in children {
        let report = report(child);
        assert_eq!(["FOLDER", "CUBIN", "WARNING"].map(report), [folder.to_str().expect("text"), "true", "none"]);
    }
    let path = only_file(&folder);
    assert!(fs::read(path).expect("kept").ends_with(&compiled()));
}

/// A disk on which there is no place for a whole file: the limit makes a write fail half way, as a full disk does.
#[test]
fn a_full_disk_keeps_nothing() {
    if !nvrtc_is_there() {
        return;
    }
    assert!(compiled().len() > 1024);
    let folder = fresh("full");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""]);
    command.arg(std::env::current_exe().expect("this test's path"));
    command.args(["--exact", "one_process", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, "cubin").env("RMSNORM_CACHE", &folder);
    let report = report(start(command));
    assert_eq!(report("CUBIN"), "true");
    let warning = report("WARNING");
    assert!(warning.contains("compiled kernels are not kept") && warning.contains("too large"), "{warning}");
    assert_eq!(files(&folder), Vec::<PathBuf>::new());
}

#[test]
fn the_environment_names_the_folder() {
    let folder = |variables: &[(&str, &str)]| {
        let mut command = this_test();
        for name in ["RMSNORM_CACHE", "XDG_CACHE_HOME", "HOME"] {
            command.env_remove(name);
        }
        command.env(CHILD, "folder").envs(variables.iter().copied());
        report(start(command))("FOLDER")
    };
    let home = ("HOME", "/home/someone");
    assert_eq!(folder(&[home]), "/home/someone/.cache/rmsnorm-cuda");
    assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "/var/x")]), "/var/x/rmsnorm-cuda");
    assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "")]), "/home/someone/.cache/rmsnorm-cuda");
    assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "relative")]), "/home/someone/.cache/rmsnorm-cuda");
    assert_eq!(folder(&[home, ("RMSNORM_CACHE", "/elsewhere")]), "/elsewhere");
    assert_eq!(folder(&[home, ("RMSNORM_CACHE", "off")]), "none");
    assert_eq!(folder(&[]), "none");
}
