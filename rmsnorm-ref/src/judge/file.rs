//! From a safetensors file to cases: which tensors there are, what they are called, and whether they fit together.

use super::tensor::{Stored, Tensor};
use super::{Options, Unreadable};
use crate::Format;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;

/// What tensors are called, in the order of their descriptions in docs/judge.md.
pub(crate) const NAMES: [&str; 13] =
    ["x", "weight", "bias", "residual", "z", "dy", "dz", "eps", "y", "rstd", "dx", "dw", "db"];
/// Those that a kernel computes. (`z` is one where there is a residual.)
pub(crate) const OUTPUTS: [&str; 6] = ["z", "rstd", "y", "dx", "dw", "db"];

/// A file in memory.
pub(crate) struct File {
    pub(crate) path: String,
    bytes: Vec<u8>,
}

impl File {
    pub(crate) fn read(path: &Path) -> Result<File, Unreadable> {
        let shown = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| Unreadable::File { path: shown.clone(), error })?;
        Ok(File { path: shown, bytes })
    }

    fn malformed(&self, why: String) -> Unreadable {
        Unreadable::NotSafetensors { path: self.path.clone(), bytes: self.bytes.len(), why }
    }

    /// Every tensor by its name in the file, and the metadata.
    pub(crate) fn tensors(&self) -> Result<(Tensors<'_>, BTreeMap<String, String>), Unreadable> {
        let explain = |error: SafeTensorError| self.malformed(explained(&error));
        let (_, header): (usize, Metadata) = SafeTensors::read_metadata(&self.bytes).map_err(explain)?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(&self.bytes).map_err(explain)?.iter() {
            let tensor = Entry { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data() };
            tensors.insert(name.to_owned(), tensor);
        }
        Ok((tensors, metadata))
    }
}

pub(crate) type Tensors<'a> = BTreeMap<String, Entry<'a>>;

/// A tensor of any type.
#[derive(Clone, Debug)]
pub(crate) struct Entry<'a> {
    dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    bytes: &'a [u8],
}

/// What the library says, with what it mostly comes from.
fn explained(error: &SafeTensorError) -> String {
    use SafeTensorError::*;
    let hint = match error {
        HeaderTooSmall => "a safetensors file begins with 8 bytes that give the length of its header",
        HeaderTooLarge => "its first 8 bytes are no length of a header: another kind of file, as torch.save writes it?",
        InvalidHeaderLength => {
            "the header is longer than the file: cut short, or another kind of file, as torch.save writes it"
        }
        InvalidHeader(_) | InvalidHeaderDeserialization(_) | JsonError(_) => "the header is no JSON of tensors",
        MetadataIncompleteBuffer => "the tensors do not cover the data: cut short, or something was appended",
        TensorInvalidInfo | InvalidTensorView(..) => {
            "a shape, a type and the bytes set aside for them do not fit together"
        }
        InvalidOffset(_) => "tensors overlap or leave gaps",
        _ => "the header and the data do not fit together",
    };
    format!("{error} ({hint})")
}

/// One problem: inputs, and what somebody's kernel made of them.
pub(crate) struct Case<'a> {
    /// The prefix of its tensors; empty where a file holds one case.
    pub(crate) name: String,
    pub(crate) rows: usize,
    pub(crate) hidden: usize,
    pub(crate) tensors: BTreeMap<&'static str, Tensor<'a>>,
    pub(crate) weight: Option<Vec<f64>>,
    pub(crate) bias: Option<Vec<f64>>,
    /// None: nobody said, and nothing can be judged but with the eps that fits.
    pub(crate) eps: Option<f64>,
    /// With what the metadata say.
    pub(crate) options: Options,
    /// Tensors of the case that have no meaning here.
    pub(crate) ignored: Vec<String>,
}

impl<'a> Case<'a> {
    pub(crate) fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.tensors.get(name)
    }

    pub(crate) fn x(&self) -> &Tensor<'a> {
        &self.tensors["x"]
    }
}

/// The cases among tensors: a prefix that ends in `.` or `/` makes a case of its own.
pub(crate) fn cases<'a>(
    path: &str,
    tensors: &Tensors<'a>,
    metadata: &BTreeMap<String, String>,
    options: &Options,
) -> Result<Vec<Case<'a>>, Unreadable> {
    let mut found: BTreeMap<String, BTreeMap<&'static str, (&str, &Entry<'a>)>> = BTreeMap::new();
    let mut ignored: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, theirs) in &options.names {
        if !tensors.keys().any(|name| split(name).1 == theirs || name == theirs) {
            return Err(Unreadable::NoSuchName { name: theirs.clone(), has: listed(tensors) });
        }
    }
    for (full, entry) in tensors {
        let (prefix, last) = split(full);
        let mapped = options.names.iter().find(|(_, theirs)| theirs == last || theirs == full);
        let taken_over = options.names.iter().any(|(ours, _)| ours == last);
        let prefix = if mapped.is_some_and(|(_, theirs)| theirs == full) { "" } else { prefix };
        let meant = match mapped {
            Some((ours, _)) => NAMES.iter().find(|name| *name == ours).copied(),
            None if taken_over => None,
            None => NAMES.iter().find(|name| **name == last).copied(),
        };
        match meant {
            Some(name) => {
                let case = found.entry(prefix.to_owned()).or_default();
                if let Some((first, _)) = case.insert(name, (full, entry)) {
                    return Err(Unreadable::Twice { name, first: first.to_owned(), second: full.clone() });
                }
            }
            None => ignored.entry(prefix.to_owned()).or_default().push(full.clone()),
        }
    }
    found.retain(|prefix, case| case.contains_key("x") || prefix.is_empty() || case.len() > 1);
    if found.is_empty() {
        return Err(Unreadable::NothingKnown { path: path.to_owned(), has: listed(tensors) });
    }
    let all = listed(tensors);
    let mut cases = Vec::new();
    for (prefix, entries) in found {
        let ignored = ignored.remove(&prefix).unwrap_or_default();
        cases.push(case(&prefix, entries, ignored, metadata, options, &all)?);
    }
    Ok(cases)
}

fn split(name: &str) -> (&str, &str) {
    name.rfind(['.', '/']).map_or(("", name), |at| (&name[..at], &name[at + 1..]))
}

fn listed(tensors: &Tensors<'_>) -> String {
    if tensors.is_empty() {
        return "no tensor".into();
    }
    let one = |(name, entry): (&String, &Entry<'_>)| format!("{name} {:?} {:?}", entry.dtype, entry.shape);
    let mut list: Vec<String> = tensors.iter().take(24).map(one).collect();
    if tensors.len() > 24 {
        list.push(format!("and {} more", tensors.len() - 24));
    }
    list.join(", ")
}

fn case<'a>(
    prefix: &str,
    entries: BTreeMap<&'static str, (&str, &Entry<'a>)>,
    ignored: Vec<String>,
    metadata: &BTreeMap<String, String>,
    options: &Options,
    all: &str,
) -> Result<Case<'a>, Unreadable> {
    let mut tensors = BTreeMap::new();
    for (name, (full, entry)) in entries {
        let stored = match entry.dtype {
            Dtype::F32 => Stored::In(Format::F32),
            Dtype::F16 => Stored::In(Format::F16),
            Dtype::BF16 => Stored::In(Format::Bf16),
            Dtype::F64 => Stored::F64,
            got => return Err(Unreadable::ElementType { name: full.to_owned(), got: format!("{got:?}") }),
        };
        tensors.insert(name, Tensor { stored, shape: entry.shape.clone(), bytes: entry.bytes });
    }
    let case = prefix.to_owned();
    let Some(x) = tensors.get("x") else { return Err(Unreadable::NoX { case, has: all.to_owned() }) };
    let (rows, hidden) = shape_of(x)?;
    tensors.iter().try_for_each(|(name, tensor)| fits(name, tensor, &x.shape, (rows, hidden)))?;
    let vector = |name: &str| tensors.get(name).map(Tensor::values);
    let (weight, bias) = (vector("weight"), vector("bias"));
    let metadata = |key: &str| metadata.get(&format!("{prefix}.{key}")).or_else(|| metadata.get(key));
    let options = options.with_metadata(metadata)?;
    let eps = options.eps.or_else(|| tensors.get("eps").map(|eps| eps.get(0)));
    let eps = match eps {
        Some(eps) if !(eps >= 0.0 && eps.is_finite()) => return Err(Unreadable::Eps { got: eps }),
        eps => eps,
    };
    let case = Case { name: case, rows, hidden, tensors, weight, bias, eps, options, ignored };
    inputs_are_f32(&case)?;
    if !OUTPUTS.iter().any(|output| case.tensors.contains_key(output)) {
        return Err(Unreadable::NothingToJudge { case: case.name, has: all.to_owned(), guess: guess(&case.ignored) });
    }
    for (output, input) in [("dx", "dy"), ("dw", "dy"), ("db", "dy")] {
        if case.tensors.contains_key(output) && !case.tensors.contains_key(input) {
            return Err(Unreadable::Missing { output, input });
        }
    }
    Ok(case)
}

/// Rows, leading dimensions taken together, and columns.
fn shape_of(x: &Tensor<'_>) -> Result<(usize, usize), Unreadable> {
    let refused = |expected: &str| Unreadable::Shape {
        name: "x",
        expected: expected.into(),
        got: x.shape.clone(),
        hint: String::new(),
    };
    match x.shape.last() {
        None => Err(refused("rows × columns")),
        Some(0) => Err(refused("rows of one element or more")),
        Some(&hidden) => Ok((x.len() / hidden, hidden)),
    }
}

/// Whether a tensor has the shape that its name asks for beside this x.
fn fits(
    name: &'static str,
    tensor: &Tensor<'_>,
    x: &[usize],
    (rows, hidden): (usize, usize),
) -> Result<(), Unreadable> {
    let fits = match name {
        "x" => true,
        "eps" => tensor.len() == 1,
        "weight" | "bias" | "dw" | "db" => tensor.len() == hidden && tensor.shape.last() == Some(&hidden),
        // With or without a last dimension of 1.
        "rstd" => tensor.len() == rows,
        _ => tensor.len() == rows * hidden && tensor.shape.last() == Some(&hidden),
    };
    if fits {
        return Ok(());
    }
    let expected = match name {
        "eps" => "one number".into(),
        "weight" | "bias" | "dw" | "db" => format!("[{hidden}], one value for each column of x {x:?}"),
        "rstd" => format!("one value for each of the {rows} rows of x {x:?}"),
        _ => format!("{x:?}, as x"),
    };
    let got = tensor.shape.clone();
    let hint = hint(name, &got, x, rows, hidden);
    Err(Unreadable::Shape { name, expected, got, hint })
}

/// What a wrong shape mostly comes from.
fn hint(name: &str, got: &[usize], x: &[usize], rows: usize, hidden: usize) -> String {
    let elements: usize = got.iter().product();
    if got.len() == 2 && got[0] == hidden && got[1] == rows && rows != hidden {
        format!("; {name} looks transposed: save {name}.T.contiguous()")
    } else if x.len() == 2 && matches!(name, "weight" | "bias" | "dw" | "db") && elements == rows {
        "; x looks transposed: the normalised dimension is the last one".into()
    } else if name == "rstd" && elements == rows * hidden {
        "; one value a row is meant, not one an element".into()
    } else if name != "rstd" && elements == rows * hidden && !matches!(name, "weight" | "bias" | "dw" | "db") {
        "; the elements are as many as those of x: reshape it".into()
    } else {
        String::new()
    }
}

fn guess(ignored: &[String]) -> String {
    let named = |words: &[&str]| ignored.iter().find(|name| words.contains(&split(name).1.to_lowercase().as_str()));
    let pairs = [
        ("y", named(&["out", "output", "o", "result", "y_hat", "h", "hidden_states"])),
        ("rstd", named(&["rrms", "inv_rms", "invrms", "rsigma", "inv_std", "invvar"])),
        ("dx", named(&["grad_x", "grad_input", "dinput", "x_grad"])),
        ("dw", named(&["grad_weight", "dweight", "grad_w", "dgamma", "w_grad"])),
    ];
    let known: Vec<String> =
        pairs.iter().filter_map(|(ours, theirs)| Some(format!(" --name {ours}={}", (*theirs)?))).collect();
    if known.is_empty() { " --name y=NAME".into() } else { known.concat() }
}

/// Inputs in f64 must be numbers of f32: the arithmetic that is judged would round them first.
fn inputs_are_f32(case: &Case<'_>) -> Result<(), Unreadable> {
    let is_input = |name: &str| !OUTPUTS.contains(&name) || name == "z" && !case.tensors.contains_key("residual");
    for (&name, tensor) in case.tensors.iter().filter(|(name, t)| t.stored == Stored::F64 && is_input(name)) {
        let mut row = vec![0.0; case.hidden];
        let width = if tensor.len() == 1 || tensor.len() % case.hidden != 0 { 1 } else { case.hidden };
        for first in (0..tensor.len()).step_by(width).filter(|_| name != "eps") {
            tensor.read(first, &mut row[..width]);
            if let Some(at) = row[..width].iter().position(|v| v.is_finite() && f64::from(*v as f32) != *v) {
                return Err(Unreadable::NotF32 { name, at: first + at, got: row[at] });
            }
        }
    }
    Ok(())
}
