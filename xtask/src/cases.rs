//! `cargo xtask cases`: the hard inputs as files, so that anybody's kernel can be run over them and judged.

use anyhow::Context;
use rmsnorm_cuda::{Dtype, Rows, Slice, Vector, WeightOffset};
use rmsnorm_fuzz::{Case, Fill, Operands, Values, hard_cases, random_case};
use rmsnorm_ref::judge::{Entry, Manifest};
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// A folder for the files, made if it is not there.
    #[arg(long)]
    out: PathBuf,
    /// Leave out the large cases and most of the random ones.
    #[arg(long)]
    quick: bool,
    /// Of the random cases.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Inputs in the making.
struct Inputs {
    entry: Entry,
    tensors: Vec<(&'static str, safetensors::Dtype, Vec<usize>, Vec<u8>)>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let Options { out, quick, seed } = options;
    std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
    let command = format!("cargo xtask cases{} --seed {seed}", if *quick { " --quick" } else { "" });
    let mut manifest = Manifest { command, cases: Vec::new() };
    let mut write = |inputs: Inputs| -> anyhow::Result<()> {
        store(out, &inputs)?;
        manifest.cases.push(inputs.entry);
        Ok(())
    };
    for hard in hard_cases().iter().filter(|hard| !quick || !hard.is_large()) {
        write(of_case(&hard.name, hard.class, hard.reason, &hard.case))?;
    }
    let (count, budget) = if *quick { (40, 1 << 15) } else { (200, 1 << 18) };
    for seed in *seed..*seed + count {
        let case = random_case(seed, budget);
        write(of_case(&format!("random_{seed}"), 'R', &case.to_string(), &case))?;
    }
    let widths: &[(usize, usize)] = if *quick { &[(1037, 8)] } else { &[(1037, 8), (16_389, 256)] };
    for &(length, multiple) in widths {
        for dtype in Dtype::ALL {
            write(dominant_in_rows(length, multiple, dtype))?;
        }
        write(dominant_in_columns(length, multiple))?;
    }
    let path = out.join("manifest.json");
    std::fs::write(&path, serde_json::to_string_pretty(&manifest)?).with_context(|| path.display().to_string())?;
    crate::record::tell(format_args!("{} cases in {}", manifest.cases.len(), out.display()));
    Ok(ExitCode::SUCCESS)
}

fn store(out: &Path, inputs: &Inputs) -> anyhow::Result<()> {
    let Inputs { entry, tensors } = inputs;
    let path = out.join(format!("{}.safetensors", entry.name));
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor has the bytes of its shape"))
    });
    let text = [("offset", entry.offset.to_string()), ("reason", entry.reason.clone()), ("class", entry.class.clone())];
    let metadata: HashMap<String, String> = text.into_iter().map(|(key, value)| (key.into(), value)).collect();
    safetensors::serialize_to_file(views, Some(metadata), &path).with_context(|| path.display().to_string())
}

/// The inputs of a case, without the gaps that its operands have in memory.
fn of_case(name: &str, class: char, reason: &str, case: &Case) -> Inputs {
    // Values do not depend on where rows lie.
    let mut operands = Operands::new(&case.of_one_level(), Fill::Nan);
    let Case { rows, hidden, eps, .. } = *case;
    let call = operands.backward_call();
    let mut tensors = vec![
        ("x", safetensors_dtype(case.dtype), vec![rows, hidden], bytes_of_rows(&call.x, rows, hidden)),
        ("dy", safetensors_dtype(case.dtype), vec![rows, hidden], bytes_of_rows(&call.dy, rows, hidden)),
        ("eps", safetensors::Dtype::F32, vec![], eps.to_le_bytes().to_vec()),
    ];
    if let (Some(weight), Some(dtype)) = (&call.weight, case.weight_dtype()) {
        tensors.push(("weight", safetensors_dtype(dtype), vec![hidden], bytes_of_vector(weight, hidden)));
    }
    let offset = if case.weight_offset == WeightOffset::One { 1.0 } else { 0.0 };
    Inputs { entry: entry(name, class, reason, case, offset), tensors }
}

fn entry(name: &str, class: char, reason: &str, case: &Case, offset: f64) -> Entry {
    let Case { rows, hidden, eps, dtype, .. } = *case;
    let (name, class, reason) = (name.to_owned(), class.to_string(), reason.to_owned());
    Entry { name, class, reason, dtype: dtype.to_string(), rows, hidden, eps: f64::from(eps), offset }
}

fn safetensors_dtype(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
    }
}

fn bytes_of_rows(rows: &Rows<Slice<'_>>, count: usize, hidden: usize) -> Vec<u8> {
    (0..count).flat_map(|row| bytes(&rows.data, rows.offset + row * rows.row_stride, hidden)).collect()
}

fn bytes_of_vector(vector: &Vector<Slice<'_>>, hidden: usize) -> Vec<u8> {
    bytes(&vector.data, vector.offset, hidden)
}

fn bytes(data: &Slice<'_>, from: usize, count: usize) -> Vec<u8> {
    match data {
        Slice::F32(data) => data[from..from + count].iter().flat_map(|v| v.to_le_bytes()).collect(),
        Slice::F16(data) => data[from..from + count].iter().flat_map(|v| v.to_le_bytes()).collect(),
        Slice::Bf16(data) => data[from..from + count].iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The first and the last places, and those around every multiple of `multiple`.
fn places(length: usize, multiple: usize) -> Vec<usize> {
    let around = (multiple..length).step_by(multiple).flat_map(|at| [at - 1, at, at + 1]);
    let mut places: Vec<usize> =
        [0, 1, length - 2, length - 1].into_iter().chain(around).filter(|at| *at < length).collect();
    places.sort_unstable();
    places.dedup();
    places
}

const DOMINANT: &str = "one element dominates each row, at the first and last places and around every multiple of a vector, a warp or a block: \
     leaving it out of the sum shows at any length";
const DOMINANT_DOWN: &str = "one row dominates each column of dw: leaving that row out shows at any number of rows";

fn dominant_in_rows(hidden: usize, multiple: usize, dtype: Dtype) -> Inputs {
    let places = places(hidden, multiple);
    let case = Case { x: Values::Scaled(1.0 / 64.0), seed: 1, ..Case::new(places.len(), hidden, dtype) };
    let name = format!("dominant_row_{hidden}_{dtype}");
    let mut inputs = of_case(&name, 'F', DOMINANT, &case);
    for (row, column) in places.into_iter().enumerate() {
        set(&mut inputs.tensors[0].3, dtype, row * hidden + column);
    }
    inputs
}

fn dominant_in_columns(rows: usize, multiple: usize) -> Inputs {
    let places = places(rows, multiple);
    let case = Case { dy: Values::Scaled(1.0 / 64.0), seed: 2, ..Case::new(rows, places.len(), Dtype::F32) };
    let mut inputs = of_case(&format!("dominant_column_{rows}"), 'B', DOMINANT_DOWN, &case);
    let hidden = places.len();
    for (column, row) in places.into_iter().enumerate() {
        // x must be no 0 where dy is large.
        set(&mut inputs.tensors[0].3, Dtype::F32, row * hidden + column);
        set(&mut inputs.tensors[1].3, Dtype::F32, row * hidden + column);
    }
    inputs
}

/// Writes 16.
fn set(bytes: &mut [u8], dtype: Dtype, at: usize) {
    let sixteen: &[u8] = match dtype {
        Dtype::F32 => &16f32.to_le_bytes(),
        Dtype::F16 => &[0x00, 0x4c],
        Dtype::Bf16 => &[0x80, 0x41],
    };
    bytes[at * sixteen.len()..(at + 1) * sixteen.len()].copy_from_slice(sixteen);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_places_dominates_once() {
        assert_eq!(places(20, 8), [0, 1, 7, 8, 9, 15, 16, 17, 18, 19]);
        let inputs = dominant_in_rows(20, 8, Dtype::Bf16);
        let (_, _, shape, bytes) = &inputs.tensors[0];
        assert_eq!(shape, &[10, 20]);
        let sixteen = |i: usize| bytes[2 * i..2 * i + 2] == [0x80, 0x41];
        let found: Vec<usize> = (0..200).filter(|i| sixteen(*i)).map(|i| i % 20).collect();
        assert_eq!(found, places(20, 8));
    }

    #[test]
    fn what_is_written_is_read_back_and_judged() {
        let dir = tempfile::tempdir().unwrap();
        let hard = rmsnorm_fuzz::hard_case("gaps").unwrap();
        let inputs = of_case(&hard.name, hard.class, hard.reason, &hard.case);
        store(dir.path(), &inputs).unwrap();
        let manifest = Manifest { command: String::new(), cases: vec![inputs.entry.clone()] };
        std::fs::write(dir.path().join("manifest.json"), serde_json::to_string(&manifest).unwrap()).unwrap();
        let options = rmsnorm_ref::judge::Options::default();
        let none = rmsnorm_ref::judge::judge_folder(dir.path(), dir.path(), &options).unwrap_err();
        assert!(none.to_string().contains("none of its cases has outputs"), "{none}");
        let mut operands = Operands::new(&hard.case, Fill::Nan);
        let outputs = operands.run(&rmsnorm_cuda::Cpu).unwrap();
        let y = bytes(&outputs.y.slice(), 0, outputs.y.len());
        let view = TensorView::new(safetensors_dtype(hard.case.dtype), vec![11, 64], &y).unwrap();
        safetensors::serialize_to_file([("y", view)], None, &dir.path().join("gaps.out.safetensors")).unwrap();
        let report = rmsnorm_ref::judge::judge_folder(dir.path(), dir.path(), &options).unwrap();
        assert_eq!(report.exit_status(), 0, "{report}");
        assert_eq!(report.table()["E"]["y"].elements, 11 * 64);
    }
}
