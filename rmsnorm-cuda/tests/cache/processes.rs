//! Several processes on one folder, and processes of another environment, user or disk: each is [`one_process`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rmsnorm_cuda::cuda::Cache;
use tempfile::TempDir;

use super::{CAPABILITY, MODULE, compiled, files, fresh, give_away, machine, nvrtc_is_there, only_file, set_mode};

/// In a process of its own, with a cache from its environment: compiles, and prints what came of it.
#[test]
fn one_process() {
    let Some(what) = std::env::var_os(CHILD) else { return };
    let cache = Cache::from_environment();
    println!("FOLDER {}", cache.folder().map_or("none".into(), |folder| folder.display().to_string()));
    if what != "folder" {
        let cubin = cache.cubin(&MODULE, CAPABILITY).expect("compiled");
        println!("CUBIN {}", what == "once" || cubin == compiled());
    }
    println!("WARNING {}", cache.warning().map_or("none".into(), ToString::to_string));
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
    command.args(["--exact", "processes::one_process", "--nocapture", "--test-threads=1"]);
    command
}

#[test]
fn many_processes_begin_at_once() {
    if !nvrtc_is_there() {
        return;
    }
    let (_place, folder) = fresh("many");
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

/// An NVRTC that logs its compilations. None, aloud, without a C compiler.
struct StandIn {
    _place: TempDir,
    library: PathBuf,
    log: PathBuf,
}

impl StandIn {
    fn new() -> Option<Self> {
        let place = tempfile::tempdir().expect("a folder");
        let (library, log) = (place.path().join("libnvrtc.so"), place.path().join("log"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand_in_driver.c");
        let compiler = Command::new("cc").args(["-shared", "-fPIC", source, "-o"]).arg(&library).status();
        let Ok(status) = compiler else {
            machine::skip("CC", "no C compiler `cc` for the stand-in");
            return None;
        };
        assert!(status.success(), "the stand-in does not compile");
        Some(StandIn { _place: place, library, log })
    }

    /// A process that compiles, for so long, unless it finds the module in `folder`.
    fn start(&self, folder: &Path, compile_ms: u32) -> Child {
        let mut command = this_test();
        command.env(CHILD, "once").env("RMSNORM_CACHE", folder).env("RMSNORM_NVRTC", &self.library);
        command.env("STAND_IN_LOG", &self.log).env("STAND_IN_COMPILE_MS", compile_ms.to_string());
        start(command)
    }

    fn compilations(&self) -> usize {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.starts_with("nvrtcCompileProgram")).count()
    }
}

#[test]
fn many_processes_compile_once() {
    let Some(nvrtc) = StandIn::new() else { return };
    let (_place, folder) = fresh("once");
    let children: Vec<Child> = (0..8).map(|_| nvrtc.start(&folder, 500)).collect();
    for child in children {
        let report = report(child);
        assert_eq!(["CUBIN", "WARNING"].map(report), ["true", "none"]);
    }
    assert_eq!(nvrtc.compilations(), 1);
    assert!(only_file(&folder).extension().is_some_and(|ending| ending == "cubin"));
}

/// The lock goes with the process that had it; the file that it was on goes with the next.
#[test]
fn a_process_that_is_killed_holds_nobody_up() {
    let Some(nvrtc) = StandIn::new() else { return };
    let (_place, folder) = fresh("killed");
    let mut killed = nvrtc.start(&folder, 120_000);
    let begun = Instant::now();
    while nvrtc.compilations() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(100), "it does not compile");
        std::thread::sleep(Duration::from_millis(20));
    }
    killed.kill().and_then(|()| killed.wait().map(drop)).expect("killed");
    assert!(only_file(&folder).extension().is_some_and(|ending| ending == "lock"));
    assert_eq!(report(nvrtc.start(&folder, 0))("WARNING"), "none");
    assert_eq!(nvrtc.compilations(), 2);
    assert!(only_file(&folder).extension().is_some_and(|ending| ending == "cubin"));
}

/// One that has the lock and never does anything: the others compile after a while.
#[test]
fn a_lock_that_is_never_released_ends_in_a_compilation() {
    let Some(nvrtc) = StandIn::new() else { return };
    let (_place, folder) = fresh("held");
    assert_eq!(report(nvrtc.start(&folder, 0))("WARNING"), "none");
    let cubin = only_file(&folder);
    let lock = fs::File::create(cubin.with_extension("lock")).expect("a file");
    lock.lock().expect("a lock");
    fs::remove_file(&cubin).expect("a file");
    let begun = Instant::now();
    assert_eq!(report(nvrtc.start(&folder, 0))("WARNING"), "none");
    assert!(begun.elapsed() > Duration::from_secs(5), "the lock was not heeded");
    assert_eq!(nvrtc.compilations(), 2);
    assert!(cubin.exists());
}

/// A disk on which there is no place for a whole file: the limit makes a write fail half way, as a full disk does.
#[test]
fn a_full_disk_keeps_nothing() {
    if !nvrtc_is_there() {
        return;
    }
    assert!(compiled().len() > 1024);
    let (_place, folder) = fresh("full");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""]);
    command.arg(std::env::current_exe().expect("this test's path"));
    command.args(["--exact", "processes::one_process", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, "cubin").env("RMSNORM_CACHE", &folder);
    let report = report(start(command));
    assert_eq!(report("CUBIN"), "true");
    let warning = report("WARNING");
    assert!(warning.contains("compiled kernels are not kept") && warning.contains("too large"), "{warning}");
    assert_eq!(files(&folder), Vec::<PathBuf>::new());
}

/// What a process with these variables, and no others of these names, takes for its cache: the folder, and the warning.
fn from_environment(command: Command, variables: &[(&str, &str)]) -> [String; 2] {
    let mut command = command;
    for name in ["RMSNORM_CACHE", "XDG_CACHE_HOME", "HOME"] {
        command.env_remove(name);
    }
    command.env(CHILD, "folder").envs(variables.iter().copied());
    ["FOLDER", "WARNING"].map(report(start(command)))
}

#[test]
fn the_environment_names_the_folder() {
    let folder = |variables: &[(&str, &str)]| {
        let [folder, warning] = from_environment(this_test(), variables);
        assert_eq!(warning, "none");
        folder
    };
    let home = ("HOME", "/home/someone");
    assert_eq!(folder(&[home]), "/home/someone/.cache/rmsnorm-cuda");
    assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "/var/x")]), "/var/x/rmsnorm-cuda");
    assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "")]), "/home/someone/.cache/rmsnorm-cuda");
    assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "relative")]), "/home/someone/.cache/rmsnorm-cuda");
    assert_eq!(folder(&[home, ("RMSNORM_CACHE", "/elsewhere")]), "/elsewhere");
    assert_eq!(folder(&[home, ("RMSNORM_CACHE", "")]), "/home/someone/.cache/rmsnorm-cuda");
    assert_eq!(folder(&[home, ("RMSNORM_CACHE", "off")]), "none");
    // No folder, although none was not asked for.
    let unnamed = |variables: &[(&str, &str)], expected: &str| {
        let [folder, warning] = from_environment(this_test(), variables);
        assert!(folder == "none" && warning.contains(expected), "{folder} {warning}");
    };
    let nothing = "neither RMSNORM_CACHE nor XDG_CACHE_HOME nor HOME is an absolute path";
    unnamed(&[], nothing);
    unnamed(&[("HOME", ""), ("XDG_CACHE_HOME", "relative")], nothing);
    for value in ["OFF", "0", "./cache", "cache/below"] {
        unnamed(
            &[home, ("RMSNORM_CACHE", value)],
            &format!("{value}: RMSNORM_CACHE is expected to be an absolute path or `off`"),
        );
    }
}

/// A program that runs as another user than the one who chose its environment.
#[test]
fn a_privileged_program_does_not_heed_the_environment() {
    let (_place, program) = fresh("program");
    fs::copy(std::env::current_exe().expect("this test's path"), &program).expect("a copy");
    if !give_away(&program) {
        return;
    }
    set_mode(&program, 0o4755);
    let mut command = Command::new(&program);
    command.args(["--exact", "processes::one_process", "--nocapture", "--test-threads=1"]);
    let [folder, warning] = from_environment(command, &[("HOME", "/home/someone"), ("RMSNORM_CACHE", "/elsewhere")]);
    assert!(folder == "none" && warning.contains("the environment of a privileged program is not heeded"), "{warning}");
}
