//! Compiled kernels on disk: whatever is in the folder, and whoever else uses it, a module's machine code is what NVRTC makes
//! of it; a folder that cannot be used or trusted is not, and says so once.
//!
//! Needs NVRTC, no GPU. Without NVRTC the tests say so and pass, unless `RMSNORM_REQUIRE_NVRTC=1`. Those that count compilations
//! need a C compiler instead: `stand_in_driver.c` takes the place of NVRTC.
#![cfg(all(feature = "cuda", target_os = "linux"))]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rmsnorm_cuda::cuda::Cache;
use rmsnorm_cuda::cuda::compile::compile;
use rmsnorm_cuda::cuda::library::nvrtc;
use rmsnorm_cuda::cuda::module::Module;
use rmsnorm_cuda::{Dtype, Error};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

mod machine;
#[path = "cache/processes.rs"]
mod processes;

const MODULE: Module = Module::Fold { dw: Dtype::Bf16, per_head: false };
const CAPABILITY: (u32, u32) = (9, 0);

fn nvrtc_is_there() -> bool {
    let missing = nvrtc(CAPABILITY).err();
    missing.iter().for_each(|error| machine::skip("NVRTC", error));
    missing.is_none()
}

/// What NVRTC makes of the module, each time anew.
fn compiled() -> Vec<u8> {
    compile(&MODULE, CAPABILITY).expect("the module compiles").cubin
}

/// A folder of this name that is not there yet, and what keeps the place for it. Not below the checkout, which others may be
/// able to write to.
fn fresh(name: &str) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().expect("a folder");
    // Not closed to others, as by default: what is below is to be checked.
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let folder = fs::canonicalize(place.path()).expect("a path").join(name);
    (place, folder)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
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
    let (_place, folder) = fresh("name");
    Cache::at(&folder).cubin(&MODULE, CAPABILITY).expect("the module compiles");
    only_file(&folder).file_name().expect("a name").to_os_string()
}

#[test]
fn what_was_stored_is_read() {
    if !nvrtc_is_there() {
        return;
    }
    let (_place, folder) = fresh("stored/below");
    let cache = Cache::at(&folder);
    assert!(cache.cubin(&MODULE, CAPABILITY).expect("compiled") == compiled());
    assert_eq!(fs::metadata(&folder).expect("made").mode() & 0o777, 0o700);
    let path = only_file(&folder);
    assert_eq!(fs::metadata(&path).expect("kept").mode() & 0o777, 0o600);
    let kept = fs::read(&path).expect("kept");
    assert!(kept.ends_with(&compiled()));
    // Only a reader can know this.
    forge(&path, b"another module");
    assert_eq!(cache.cubin(&MODULE, CAPABILITY), Ok(b"another module".to_vec()));
    assert_eq!(Cache::at(&folder).cubin(&MODULE, CAPABILITY), Ok(b"another module".to_vec()));
    // Another module, and the same for another architecture, are other files.
    Cache::at(&folder).cubin(&Module::Fold { dw: Dtype::F32, per_head: false }, CAPABILITY).expect("compiled");
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
    let (_place, folder) = fresh("broken");
    let other = Module::Fold { dw: Dtype::F16, per_head: false };
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

/// Gives it to another user, which only the superuser can; else says so.
fn give_away(path: &Path) -> bool {
    let given = chown(path, Some(STRANGER), None).is_ok();
    if !given {
        machine::skip("ROOT", "only the superuser can give files away: what belongs to others was not tried");
    }
    given
}

const STRANGER: u32 = 12345;

#[test]
fn a_folder_of_others_is_not_used() {
    if !nvrtc_is_there() {
        return;
    }
    let name = name_of_file();
    let (_place, folder) = fresh("open");
    fs::create_dir_all(&folder).expect("a folder");
    forge(&folder.join(&name), b"put there by someone");
    for mode in [0o777, 0o770, 0o702, 0o1777] {
        set_mode(&folder, mode);
        assert_unused(&folder, "others can write to it");
        // What would leave the forged file where it is, and trust it.
        let cache = Cache::at(&folder);
        cache.cubin(&MODULE, CAPABILITY).expect("compiled");
        let advice = cache.warning().expect("a warning").to_string();
        assert!(advice.contains("delete it with all that it contains") && !advice.contains("chmod"), "{advice}");
    }
    // Reading is nobody's loss: what this user wrote is used.
    set_mode(&folder, 0o755);
    assert_eq!(Cache::at(&folder).cubin(&MODULE, CAPABILITY), Ok(b"put there by someone".to_vec()));

    // Anybody but the superuser finds a folder that is not theirs.
    if give_away(&folder) {
        assert_unused(&folder, "it belongs to user 12345");
    } else {
        assert_unused(Path::new("/"), "it belongs to user 0");
    }
}

/// In a folder of one's own, from when others could write to it: compiled again and replaced.
#[test]
fn a_file_of_others_is_not_used() {
    if !nvrtc_is_there() {
        return;
    }
    let name = name_of_file();
    let (_place, folder) = fresh("files");
    fs::create_dir_all(&folder).expect("a folder");
    set_mode(&folder, 0o755);
    let (path, elsewhere) = (folder.join(&name), folder.with_file_name("elsewhere"));
    let expect_replaced = |what: &str| {
        let cache = Cache::at(&folder);
        assert!(cache.cubin(&MODULE, CAPABILITY).expect("compiled") == compiled(), "{what}");
        assert_eq!(cache.warning(), None, "{what}");
        let own = fs::symlink_metadata(&path).expect("kept");
        assert!(own.is_file() && own.mode() & 0o777 == 0o600, "{what}: {own:?}");
        assert!(fs::read(&path).expect("kept").ends_with(&compiled()), "{what}");
        assert_eq!(only_file(&folder), path);
        fs::remove_file(&path).expect("a file");
    };
    for mode in [0o666, 0o620, 0o602] {
        forge(&path, b"written by the group or by all");
        set_mode(&path, mode);
        expect_replaced("writable");
    }
    // The same name elsewhere, so that it is forged for the same key.
    fs::create_dir(&elsewhere).expect("a folder");
    let target = elsewhere.join(&name);
    forge(&target, b"linked to");
    symlink(&target, &path).expect("a link");
    expect_replaced("a link");
    assert!(fs::read(&target).expect("left alone").ends_with(b"linked to"));
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
    expect_replaced("a pipe");
    forge(&path, b"written by someone");
    if give_away(&path) {
        expect_replaced("of someone");
    }
}

#[test]
fn a_folder_that_others_can_replace_is_not_used() {
    if !nvrtc_is_there() {
        return;
    }
    let (_place, parent) = fresh("parent");
    fs::create_dir(&parent).expect("a folder");
    let folder = parent.join("below/cache");
    let warning = || {
        let cache = Cache::at(&folder);
        assert!(cache.cubin(&MODULE, CAPABILITY).expect("compiled") == compiled());
        cache.warning().map(ToString::to_string)
    };
    let replaceable = |reason: &str| {
        let warning = warning().expect("a warning");
        assert!(warning.contains("another can be put in its place") && warning.contains(reason), "{warning}");
    };
    for mode in [0o777, 0o775, 0o757] {
        set_mode(&parent, mode);
        replaceable(&format!("others can write to {} (mode {mode:o})", parent.display()));
        assert!(!parent.join("below").exists(), "something was made there");
    }
    // Sticky, and what is there is this user's.
    set_mode(&parent, 0o1777);
    assert_eq!(warning(), None);
    only_file(&folder);
    for mode in [0o777, 0o775] {
        set_mode(&parent, mode);
        replaceable(&parent.display().to_string());
    }
    // By way of a link as well.
    let link = parent.with_file_name("link");
    symlink(&parent, &link).expect("a link");
    let cache = Cache::at(link.join("below/cache"));
    cache.cubin(&MODULE, CAPABILITY).expect("compiled");
    assert!(cache.warning().is_some());
    // Nobody else gets there.
    set_mode(parent.parent().expect("a parent"), 0o700);
    assert_eq!(warning(), None);
    set_mode(parent.parent().expect("a parent"), 0o755);
    set_mode(&parent, 0o755);
    assert_eq!(warning(), None);
    if give_away(&parent) {
        replaceable(&format!("{} belongs to user 12345", parent.display()));
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
    let (_place, folder) = fresh("file");
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
    let (_place, folder) = fresh("clear");
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
