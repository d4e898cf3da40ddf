//! `peers.py` beside a stand-in for PyTorch with which nothing can be measured.

use serde_json::Value;
use std::io::Write;
use std::process::Command;

const TORCH: &str = "
import types
float32 = float16 = bfloat16 = types.SimpleNamespace(itemsize=4)
__version__ = '0'
version = types.SimpleNamespace(cuda='0')
cuda = types.SimpleNamespace(
    get_device_properties=lambda _: types.SimpleNamespace(name='stand-in', L2_cache_size=1),
    Stream=lambda: None, set_stream=lambda _: None, empty_cache=lambda: None)
def manual_seed(_):
    import os, time
    time.sleep(float(os.environ.get('SLOW', 0)))
    if 'END' in os.environ: os._exit(9)
    raise RuntimeError('no randomness here')
";

#[test]
fn what_is_not_measured_is_in_the_file_however_the_run_ends() {
    if Command::new("python3").arg("--version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: there is no python3, peers.py was not tried");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let site = folder.path().join("site");
    for (file, text) in [
        // PYTHONPATH has the folder of the .pth file, not that of the package.
        ("site/elsewhere.pth", "../elsewhere\n"),
        ("elsewhere/torch/__init__.py", TORCH),
        ("elsewhere/torch/_dynamo.py", ""),
        ("elsewhere/torch/_functorch/config.py", ""),
        ("elsewhere/torch/nn/functional.py", ""),
    ] {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let run = |variable: &str, value: &str, seconds: &str| -> (Option<i32>, Vec<(String, String)>) {
        let out = folder.path().join("peers.json");
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers.py")).env("PYTHONPATH", &site);
        command.args(["--libraries", "torch", "--cells", "f32:4x4,f32:8x8", "--seconds", seconds, "--out"]).arg(&out);
        let output = command.env(variable, value).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
        let text = std::fs::read_to_string(&out).unwrap_or_else(|_| panic!("{output:?}"));
        let report: Value = serde_json::from_str(&text).unwrap();
        std::fs::remove_file(out).unwrap();
        let left_out = report["left_out"].as_array().unwrap().iter().filter(|left| left["library"] == "torch");
        let text = |value: &Value| value.as_str().unwrap().to_string();
        (output.status.code(), left_out.map(|left| (text(&left["cell"]), text(&left["why"]))).collect())
    };
    let expected =
        |whys: [&str; 2]| ["f32:8x8", "f32:4x4"].map(String::from).into_iter().zip(whys.map(String::from)).collect();
    assert_eq!(run("UNUSED", "", "60"), (Some(0), expected(["RuntimeError: no randomness here"; 2])));
    assert_eq!(run("SLOW", "600", "2"), (Some(0), expected(["more than 2 s", "the time limit of 2 s"])));
    assert_eq!(run("END", "", "60"), (Some(9), expected(["the run ended before it"; 2])));
}
