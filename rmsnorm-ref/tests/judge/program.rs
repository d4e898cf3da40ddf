//! The program: exit statuses, and what it prints and writes.

use crate::kernel::{Fault, Problem, Style, file, run, write};
use rmsnorm_ref::Format;
use std::path::Path;
use std::process::{Command, Output};

fn judge(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rmsnorm-judge")).current_dir(dir).args(arguments).output().unwrap()
}

/// Files of a right kernel, of one with x_hat from another eps, and of none.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let p = Problem::new(40, 70, Format::Bf16, 3);
    for (name, fault) in [("right", Fault::None), ("wrong", Fault::EpsIs(0.1))] {
        write(&dir.path().join(format!("{name}<b>.safetensors")), &file(&p, &run(&p, &Style::PLAIN, fault)), None);
    }
    std::fs::write(dir.path().join("none.safetensors"), "none").unwrap();
    dir
}

#[test]
fn exit_statuses() {
    let dir = files();
    let (right, wrong) = ("right<b>.safetensors", "wrong<b>.safetensors");
    for (arguments, status) in [
        (&[right, "--eps", "1e-3"][..], 0),
        (&[right, right, "--eps", "1e-3"], 0),
        (&[wrong, "--eps", "1e-3"], 1),
        (&[right, wrong, "--eps", "1e-3"], 1),
        (&["none.safetensors", "--eps", "1e-3"], 2),
        (&["nowhere", "--eps", "1e-3"], 2),
        (&[right, "none.safetensors", "--eps", "1e-3"], 2),
        (&[right], 2),
        (&[right, "--eps", "1e-3", "--name", "nonsense"], 2),
        (&[right, "--eps", "1e-3", "--nonsense"], 2),
        (&["."], 2),
    ] {
        let output = judge(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
        // Whoever is refused is told why, in one line.
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.starts_with("error: "), status == 2, "{arguments:?}: {said}");
    }
}

/// JSON is what `--json` prints, whatever becomes of the file.
#[test]
fn json_of_each_verdict() {
    let dir = files();
    for (name, verdict) in [("right<b>", "right"), ("wrong<b>", "outside"), ("none", "unreadable")] {
        let output = judge(dir.path(), &[&format!("{name}.safetensors"), "--eps", "1e-3", "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["verdict"], verdict);
    }
}

/// The page stands alone, begins with the verdict and the mistakes, and has a map and a histogram of each output.
#[test]
fn the_page() {
    let dir = files();
    for (name, verdict) in [("right", "right"), ("wrong", "OUTSIDE")] {
        judge(dir.path(), &[&format!("{name}<b>.safetensors"), "--eps", "1e-3", "--html", "page.html"]);
        let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
        let at = |part: &str| page.find(part).unwrap_or_else(|| panic!("{part} is not in {page}"));
        assert!(at(&format!("{verdict}</h1>")) < at("<h3>"));
        assert!(page.contains(&format!("{name}&lt;b&gt;.safetensors")) && !page.contains("<b>.safetensors"));
        if name == "wrong" {
            assert!(at("Looks like: another eps: ") < at("<h3>"), "{page}");
        }
        let count = |part: &str| page.matches(part).count();
        // rstd, y, dx, dw, db.
        assert_eq!((count("<h3>"), count("<svg")), (5, 10));
        for foreign in ["http", "src=", "href", "url(", "<script", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }
}
