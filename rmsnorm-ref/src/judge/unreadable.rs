//! Why a file cannot be judged, said to the one who wrote it.

use thiserror::Error;

/// Why a file cannot be judged.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// It cannot be read at all.
    #[error("{path}: {error}")]
    File {
        /// As it was given.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// It is no safetensors file, or a damaged one.
    #[error("{path} ({bytes} bytes) is not a readable safetensors file: {why}")]
    NotSafetensors {
        /// As it was given.
        path: String,
        /// Its length.
        bytes: usize,
        /// What is wrong.
        why: String,
    },
    /// None of the names means anything here.
    #[error(
        "{path}: no tensor has a name that is known (x, weight, bias, residual, z, dy, dz, eps; y, rstd, dx, dw, db); it holds {has}. \
         Map names with --name x=NAME --name y=NAME"
    )]
    NothingKnown {
        /// As it was given.
        path: String,
        /// The tensors.
        has: String,
    },
    /// A name that was to be mapped is not there.
    #[error("--name: no tensor is called {name}; the file holds {has}")]
    NoSuchName {
        /// The name.
        name: String,
        /// The tensors.
        has: String,
    },
    /// A name that is mapped to something unknown.
    #[error(
        "--name {got}: expected OURS=THEIRS with OURS one of x, weight, bias, residual, z, dy, dz, eps, y, rstd, dx, dw, db"
    )]
    Mapping {
        /// What was given.
        got: String,
    },
    /// Two tensors mean the same.
    #[error("two tensors mean {name}: {first} and {second}")]
    Twice {
        /// What they mean.
        name: &'static str,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// There is no input.
    #[error("{}there is no x, the input; the file holds {has}. Map its name with --name x=NAME", of(case))]
    NoX {
        /// The prefix.
        case: String,
        /// The tensors.
        has: String,
    },
    /// There is no output.
    #[error(
        "{}there is no output to judge (y, rstd, dx, dw, db, z); the file holds {has}. If one is called otherwise:{guess}",
        of(case)
    )]
    NothingToJudge {
        /// The prefix.
        case: String,
        /// The tensors.
        has: String,
        /// Options that might help.
        guess: String,
    },
    /// An output cannot be judged without an input.
    #[error("{output} is judged from {input}, and there is no {input} in the file")]
    Missing {
        /// What is there.
        output: &'static str,
        /// What is not.
        input: &'static str,
    },
    /// A type that is not judged.
    #[error("{name} is {got}; expected F32, F16, BF16 or F64")]
    ElementType {
        /// The tensor.
        name: String,
        /// Its type.
        got: String,
    },
    /// Shapes do not fit.
    #[error("{name} has shape {got:?}; expected {expected}{hint}")]
    Shape {
        /// The tensor.
        name: &'static str,
        /// What would fit.
        expected: String,
        /// What there is.
        got: Vec<usize>,
        /// What may have happened.
        hint: String,
    },
    /// An input in f64 that f32 does not hold.
    #[error(
        "{name}[{at}] is {got:e}, which is not a number of f32: a kernel in f32 would have rounded it. Save the inputs as the kernel read them"
    )]
    NotF32 {
        /// The tensor.
        name: &'static str,
        /// The element, counted over the whole tensor.
        at: usize,
        /// Its value.
        got: f64,
    },
    /// An eps that no kernel has.
    #[error("eps is {got:e}; expected a finite number of 0 or more")]
    Eps {
        /// The value.
        got: f64,
    },
    /// Metadata that cannot be understood.
    #[error("metadata {key} is `{got}`; expected {expected}")]
    Metadata {
        /// The key.
        key: &'static str,
        /// Its text.
        got: String,
        /// What is understood.
        expected: &'static str,
    },
    /// Nothing says which eps was used.
    #[error(
        "{}eps is not given: pass --eps E, or store it as a tensor `eps` or in the metadata. {}",
        of(case),
        suggestion(fits)
    )]
    NoEps {
        /// The prefix.
        case: String,
        /// Those with which everything is within the bound.
        fits: Vec<f64>,
    },
    /// Two files that cannot be compared.
    #[error("{first} and {second} have no output in common that has the same shape: {why}")]
    NothingInCommon {
        /// The first file.
        first: String,
        /// The second.
        second: String,
        /// What differs.
        why: String,
    },
    /// A folder without a list of cases.
    #[error("{path}: {why}; expected what `cargo xtask cases --out DIR` writes")]
    Manifest {
        /// The manifest.
        path: String,
        /// What is wrong.
        why: String,
    },
}

fn of(case: &str) -> String {
    if case.is_empty() { String::new() } else { format!("{case}: ") }
}

fn suggestion(fits: &[f64]) -> String {
    match fits {
        [] => "None of the usual ones (0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-3, …) makes every output fit.".into(),
        [one] => format!("What is in the file fits eps = {one:e}."),
        several => {
            let list: Vec<String> = several.iter().map(|eps| format!("{eps:e}")).collect();
            format!("What is in the file fits eps = {} alike.", list.join(", "))
        }
    }
}
