//! Where NVRTC is looked for.

use super::{Variables, absolute};
use std::fs;
use std::path::{Path, PathBuf};

/// Where a library is looked for.
pub(super) struct Places {
    /// Of the file, best first.
    pub(super) names: &'static [&'static str],
    /// How the name of the library of built-in functions begins, which lies beside it.
    pub(super) builtins: &'static str,
    /// Pairs of what it may lie below, and where there, in order. A root `$NAME` is the folder that the variable names, `$PATH` each
    /// of that list, `$PYTHON` the folder of the first python in it and the one above that; an empty root is the loader's
    /// own path. A `*` is any text in one name; of several names the highest version comes first.
    below: &'static [(&'static [&'static str], &'static [&'static str])],
}

pub(super) const PLACES: &Places = if cfg!(windows) { &WINDOWS } else { &UNIX };

const UNIX: Places = Places {
    names: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
    builtins: "libnvrtc-builtins.so",
    below: &[
        (&[""], &[""]),
        (&["$CUDA_HOME", "$CUDA_PATH", "/usr/local/cuda", "/usr/local/cuda-*"], &["lib64", "lib", "targets/*/lib"]),
        (
            &["$VIRTUAL_ENV", "$CONDA_PREFIX", "$PYTHON"],
            &[
                "lib",
                "targets/*/lib",
                "lib/python*/site-packages/nvidia/cu13/lib",
                "lib/python*/site-packages/nvidia/cuda_nvrtc/lib",
                "lib64/python*/site-packages/nvidia/cu13/lib",
                "lib64/python*/site-packages/nvidia/cuda_nvrtc/lib",
                "local/lib/python*/dist-packages/nvidia/cu13/lib",
                "local/lib/python*/dist-packages/nvidia/cuda_nvrtc/lib",
                "lib/python*/dist-packages/nvidia/cu13/lib",
                "lib/python*/dist-packages/nvidia/cuda_nvrtc/lib",
            ],
        ),
    ],
};

/// Not the loader's own path, which has the current folder in it.
const WINDOWS: Places = Places {
    names: &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"],
    builtins: "nvrtc-builtins64",
    below: &[
        (&["$PATH"], &[""]),
        (&["$CUDA_HOME", "$CUDA_PATH", "$ProgramFiles/NVIDIA GPU Computing Toolkit/CUDA/v*"], &["bin/x64", "bin"]),
        (
            &["$VIRTUAL_ENV", "$CONDA_PREFIX", "$PYTHON"],
            &[
                "Library/bin/x64",
                "Library/bin",
                "Lib/site-packages/nvidia/cu13/bin/x86_64",
                "Lib/site-packages/nvidia/cu13/bin",
                "Lib/site-packages/nvidia/cuda_nvrtc/bin",
            ],
        ),
    ],
};

impl Places {
    /// Every file that is there, and each name for the loader's own path. `system` is the root of the file system.
    pub(super) fn candidates(&self, variables: Variables, system: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for (roots, folders) in self.below {
            for root in roots.iter().flat_map(|root| expand_root(root, variables, system)) {
                for folder in folders.iter().flat_map(|folder| expand(root.clone(), folder)) {
                    let files = self.names.iter().map(|name| folder.join(name));
                    // A link that leads nowhere is worth an error of its own.
                    found.extend(files.filter(|path| path.is_relative() || fs::symlink_metadata(path).is_ok()));
                }
            }
        }
        found
    }

    /// In words.
    pub(super) fn description(&self, variables: Variables) -> String {
        let roots = self.below.iter().flat_map(|(roots, _)| *roots).filter(|root| !root.is_empty());
        let roots = roots.map(|root| match root.strip_prefix('$').filter(|name| !name.contains(['/', '\\'])) {
            None | Some("PATH") => (*root).to_string(),
            Some("PYTHON") => "the first python on PATH".into(),
            Some(name) => match absolute(name, variables) {
                Ok(Some(path)) => format!("{root} ({})", path.display()),
                Ok(None) => format!("{root} (not set)"),
                Err(path) => format!("{root} ({} is no absolute path)", path.display()),
            },
        });
        format!("looked where the loader looks, and below {}", roots.collect::<Vec<_>>().join(", "))
    }
}

fn expand_root(pattern: &str, variables: Variables, system: &Path) -> Vec<PathBuf> {
    let Some(variable) = pattern.strip_prefix('$') else {
        return match pattern.strip_prefix('/') {
            Some(below) => expand(system.into(), below),
            None => vec![PathBuf::new()],
        };
    };
    let (name, below) = variable.split_once('/').unwrap_or((variable, ""));
    let list = || variables("PATH").map(|list| std::env::split_paths(&list).collect::<Vec<_>>()).unwrap_or_default();
    let list = || list().into_iter().filter(|folder| folder.is_absolute());
    let roots = match name {
        "PATH" => list().collect(),
        "PYTHON" => {
            let has_python = |folder: &PathBuf| PYTHONS.iter().any(|python| folder.join(python).is_file());
            let folder = list().find(has_python);
            folder.iter().flat_map(|folder| folder.ancestors().take(2)).map(Path::to_path_buf).collect()
        }
        _ => absolute(name, variables).ok().flatten().into_iter().collect::<Vec<_>>(),
    };
    roots.into_iter().flat_map(|root| expand(root, below)).collect()
}

const PYTHONS: [&str; 3] = ["python3", "python", "python.exe"];

/// What `pattern` stands for below `root`.
fn expand(root: PathBuf, pattern: &str) -> Vec<PathBuf> {
    pattern.split('/').filter(|part| !part.is_empty()).fold(vec![root], |folders, part| match part.split_once('*') {
        None => folders.into_iter().map(|folder| folder.join(part)).collect(),
        Some((head, tail)) => folders.iter().flat_map(|folder| matching(folder, head, tail)).collect(),
    })
}

/// The entries of `folder` whose names begin and end so, by the numbers in their names, highest first.
fn matching(folder: &Path, head: &str, tail: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let matches = |name: &String| name.strip_prefix(head).is_some_and(|rest| rest.ends_with(tail));
    let mut names: Vec<String> = names.filter(matches).collect();
    let numbers = |name: &str| {
        let digits = name.split(|c: char| !c.is_ascii_digit());
        digits.filter_map(|number| number.parse().ok()).collect::<Vec<u64>>()
    };
    names.sort_by(|a, b| numbers(b).cmp(&numbers(a)).then_with(|| a.cmp(b)));
    names.into_iter().map(|name| folder.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates in a system where these files are and these variables are set, `/` standing for its root.
    fn candidates(places: &Places, files: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
        let system = tempfile::tempdir().expect("a folder");
        let real = |path: &str| system.path().join(path.trim_start_matches('/'));
        for file in files {
            fs::create_dir_all(real(file).parent().expect("a folder")).expect("a folder");
            fs::write(real(file), "").expect("a file");
        }
        let variables = |name: &str| {
            let (_, value) = variables.iter().find(|(variable, _)| *variable == name)?;
            let paths = value.split(':').map(|path| if path.starts_with('/') { real(path) } else { path.into() });
            std::env::join_paths(paths).ok()
        };
        let found = places.candidates(&variables, system.path());
        let shown = |path: &PathBuf| match path.strip_prefix(system.path()) {
            Ok(path) => format!("/{}", path.display()),
            Err(_) => path.display().to_string(),
        };
        found.iter().map(shown).collect()
    }

    /// Each file is the only one that is found beside the loader's own.
    #[test]
    fn layouts() {
        let unix = |file: &str, variables: &[(&str, &str)]| {
            let found = candidates(&UNIX, &[file, "/usr/bin/python3", "/p/bin/python"], variables);
            assert_eq!(found[..3], *UNIX.names, "the loader's own come first");
            assert_eq!(found[3..], [file], "{variables:?}");
        };
        for variable in ["CUDA_HOME", "CUDA_PATH"] {
            unix("/t/lib64/libnvrtc.so.12", &[(variable, "/t")]);
            unix("/t/lib/libnvrtc.so", &[(variable, "/t")]);
            unix("/t/targets/sbsa-linux/lib/libnvrtc.so.13", &[(variable, "/t")]);
        }
        unix("/usr/local/cuda/lib64/libnvrtc.so.13", &[]);
        unix("/usr/local/cuda/targets/x86_64-linux/lib/libnvrtc.so.13", &[]);
        unix("/usr/local/cuda-12.4/lib64/libnvrtc.so.12", &[]);
        unix("/c/lib/libnvrtc.so.12", &[("CONDA_PREFIX", "/c")]);
        unix("/c/targets/x86_64-linux/lib/libnvrtc.so.12", &[("CONDA_PREFIX", "/c")]);
        for variable in [("VIRTUAL_ENV", "/p"), ("CONDA_PREFIX", "/p"), ("PATH", "/none:/p/bin:/usr/bin")] {
            unix("/p/lib/python3.9/site-packages/nvidia/cu13/lib/libnvrtc.so.13", &[variable]);
            unix("/p/lib64/python3.13/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", &[variable]);
        }
        unix("/usr/lib/python3/dist-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", &[("PATH", "/usr/bin")]);
        unix("/usr/local/lib/python3.12/dist-packages/nvidia/cu13/lib/libnvrtc.so.13", &[("PATH", "/usr/bin:/p/bin")]);

        let windows = |file: &str, variables: &[(&str, &str)]| {
            assert_eq!(candidates(&WINDOWS, &[file, "/p/Scripts/python.exe"], variables), [file], "{variables:?}");
        };
        windows("/t/nvrtc64_120_0.dll", &[("PATH", "/none:/t")]);
        windows("/t/bin/nvrtc64_120_0.dll", &[("CUDA_PATH", "/t")]);
        windows("/t/bin/x64/nvrtc64_130_0.dll", &[("CUDA_HOME", "/t")]);
        let file = "/f/NVIDIA GPU Computing Toolkit/CUDA/v13.0/bin/x64/nvrtc64_130_0.dll";
        windows(file, &[("ProgramFiles", "/f")]);
        windows("/c/Library/bin/nvrtc64_120_0.dll", &[("CONDA_PREFIX", "/c")]);
        let file = "/p/Lib/site-packages/nvidia/cu13/bin/x86_64/nvrtc64_130_0.dll";
        windows(file, &[("VIRTUAL_ENV", "/p")]);
        windows(file, &[("PATH", "/p/Scripts")]);
    }

    #[test]
    fn the_order() {
        let files = [
            "/usr/local/cuda-9.2/lib64/libnvrtc.so",
            "/usr/local/cuda-12.10/lib64/libnvrtc.so.12",
            "/usr/local/cuda-12.9/lib64/libnvrtc.so.12",
            "/usr/local/cuda-12.9/lib64/libnvrtc.so",
            "/v/lib/python3.9/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "/v/lib/python3.10/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "/v/lib/python3.10/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "/h/lib/libnvrtc.so.12",
            "/h/lib64/libnvrtc.so.12",
        ];
        let found = candidates(&UNIX, &files, &[("VIRTUAL_ENV", "/v"), ("CUDA_HOME", "/h")]);
        assert_eq!(found[3..], [8, 7, 1, 2, 3, 0, 6, 4, 5].map(|i| files[i]));
    }

    #[test]
    fn what_is_not_absolute_is_not_looked_at() {
        for value in ["", ".", "here", "./there", "../c"] {
            let names = ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PATH", "ProgramFiles"];
            let variables = names.map(|name| (name, value));
            assert_eq!(candidates(&UNIX, &[], &variables), *UNIX.names, "{value:?}");
            assert_eq!(candidates(&WINDOWS, &[], &variables), [""; 0], "{value:?}");
        }
    }
}
