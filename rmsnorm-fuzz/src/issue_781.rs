//! Issue #781 of flash-attention: the test that the project began with, `idle_groups_781`, and the study of what was suggested
//! against the defect. docs/case-studies.md tells the story.
//!
//! A row of zeros goes through a normalisation ten times, with loss 0 − sum(y), and the gradient of the weight must be 0. It
//! came out as −633, 1.1e20 or 4e-43, another value in each iteration: row groups without rows were summed although nobody
//! had written their partial rows. Zeros are not the trigger, they only make the right answer visible; the trigger is fewer
//! rows than groups.

use crate::elements::{Elements, put};
use crate::finding::{Evidence, Finding, Stop};
use crate::mutants::{Device, On};
use crate::subject::Subject;
use ndarray::{Array1, Array2};
use rmsnorm_cuda::plan::column_order;
use rmsnorm_cuda::{
    Backward, Dtype, Error, Executor, Forward, Slice, SliceMut, Vector, WeightGradient, WeightOffset, scratch_len,
};
use rmsnorm_ref::layer_norm_forward;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// *dw of zero rows is +0.0 in every iteration, whatever the caller's scratch holds*: NaN, −316.2278 (which is −rstd), the
/// previous dx; one row, and one row fewer than there are groups; every type. (In the emulator, which would take a minute: one row
/// of f32.) The scratch is as large as the largest problem needs, is never cleared, and all iterations share it.
pub(crate) fn idle_groups(subject: &Subject) -> Finding {
    let mut evidence = Evidence::default();
    let (dtypes, rows) = if subject.is_emulated { (1, 1) } else { (Dtype::ALL.len(), 2) };
    for dtype in &Dtype::ALL[..dtypes] {
        for rows in &[1, groups() - 1][..rows] {
            for stale in ["NaN", "-rstd", "the previous dx"] {
                iterate(&*subject.executor, *dtype, *rows, stale, &mut evidence)?;
            }
        }
    }
    Ok(evidence)
}

fn iterate(
    executor: &dyn Executor,
    dtype: Dtype,
    rows: usize,
    stale: &str,
    evidence: &mut Evidence,
) -> Result<(), Stop> {
    let mut step = Step::new(dtype, rows);
    if stale == "the previous dx" {
        step.run(executor)?;
    }
    for i in 0..step.scratch.len() {
        step.scratch[i] = match stale {
            "NaN" => f32::NAN,
            "-rstd" => MINUS_RSTD,
            _ => step.dx.get(i % (rows * HIDDEN)),
        };
    }
    for iteration in 0..ITERATIONS {
        set(&mut step.dw, |_| f32::NAN);
        step.run(executor)?;
        if let Some(j) = (0..HIDDEN).find(|j| step.dw.get(*j).to_bits() != 0) {
            return Err(Stop::Failed(format!(
                "{rows} rows of {dtype}, scratch holding {stale}, iteration {iteration}: dw[{j}] is {:e}, expected +0.0",
                step.dw.get(j)
            )));
        }
        evidence.count(HIDDEN as u64);
    }
    Ok(())
}

/// The control: LayerNorm of the same rows in the textbook's f64, its weight gradient reduced in the same row groups through
/// the same kind of scratch. `sums_every_group` is the defect of the issue: all slots of the scratch are summed, also those
/// that no row group has written. Returns dw of each iteration.
///
/// It shows what the remedy "use LayerNorm" is worth: LayerNorm is right where the reduction is right, and wrong where it is
/// wrong.
pub fn layer_norm_control(rows: usize, stale: f32, sums_every_group: bool) -> Vec<[f32; HIDDEN]> {
    let x = Array2::<f64>::zeros((rows, HIDDEN));
    let weight = Array1::from_iter(WEIGHT.map(f64::from));
    let mut scratch = vec![stale; groups() * HIDDEN];
    let groups = column_order(rows, HIDDEN).groups;
    let iteration = |_| {
        let x_hat = layer_norm_forward(x.view(), Some(weight.view()), None, f64::from(EPS)).x_hat;
        for g in 0..groups {
            for j in 0..HIDDEN {
                scratch[g * HIDDEN + j] = (g..rows).step_by(groups).map(|i| DY * x_hat[[i, j]] as f32).sum();
            }
        }
        let summed = if sums_every_group { scratch.len() / HIDDEN } else { groups };
        std::array::from_fn(|j| (0..summed).map(|g| scratch[g * HIDDEN + j]).sum())
    };
    (0..ITERATIONS).map(iteration).collect()
}

/// What somebody suggested against the symptom: a change of one training step.
struct Remedy {
    name: &'static str,
    run: fn(&Subject, Step, f32) -> Result<Vec<f32>, Error>,
}

const REMEDIES: &[Remedy] = &[
    Remedy { name: "nothing", run: |subject, step, stale| step.dw(&*subject.executor, stale) },
    Remedy {
        name: "a larger epsilon",
        run: |subject, step, stale| Step { eps: 1e-2, ..step }.dw(&*subject.executor, stale),
    },
    Remedy {
        name: "gradient clipping",
        run: |subject, step, stale| {
            let dw = step.dw(&*subject.executor, stale)?;
            let norm = dw.iter().map(|v| v * v).sum::<f32>().sqrt();
            Ok(dw.into_iter().map(|v| if norm > 1.0 { v / norm } else { v }).collect())
        },
    },
    Remedy {
        name: "a perturbed input",
        run: |subject, mut step, stale| {
            set(&mut step.x, |i| 1e-3 * (i % 7) as f32 - 2e-3);
            step.dw(&*subject.executor, stale)
        },
    },
    Remedy {
        // One launch that never changes, and no other work beside it: what such a mode can order. It does not write memory.
        name: "a deterministic mode",
        run: |subject, step, stale| {
            step.dw(subject.launches.first().map_or(&*subject.executor, |launch| &*launch.executor), stale)
        },
    },
    Remedy {
        // A row less its mean, normalised, is LayerNorm's: its dw goes through the same reduction.
        name: "LayerNorm",
        run: |subject, mut step, stale| {
            let mean = (0..HIDDEN).map(|j| f64::from(step.x.get(j))).sum::<f64>() / HIDDEN as f64;
            let centred: Vec<f32> = (0..HIDDEN).map(|j| (f64::from(step.x.get(j)) - mean) as f32).collect();
            set(&mut step.x, |j| centred[j]);
            step.dw(&*subject.executor, stale)
        },
    },
];

/// dw with one remedy, over two contents of scratch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The remedy.
    pub remedy: String,
    /// dw where scratch held what was recycled, and where it held something else.
    pub dw: [Vec<f32>; 2],
}

/// What `subject` does with each remedy.
pub fn measure(subject: &Subject) -> Result<Vec<Measured>, String> {
    let measured = |Remedy { name, run }: &Remedy| {
        let dw = |stale| run(subject, Step::new(Dtype::F32, 1), stale).map_err(|e| format!("{name}: {e}"));
        Ok(Measured { remedy: name.to_string(), dw: [dw(MINUS_RSTD)?, dw(0.0625)?] })
    };
    REMEDIES.iter().map(measured).collect()
}

/// The program that `verify --case-study` builds around copies of the kernels: `study DEVICE KERNELS` prints what those [measure], as JSON.
pub fn study_main(build: impl FnOnce(&str, On, Device) -> Result<Subject, String>) -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, kernels] = &arguments[..] else { return Err("usage: study DEVICE KERNELS".into()) };
    let subject = build(kernels, On::Kernels, if device == "cuda" { Device::Cuda } else { Device::Cpu })?;
    println!("{}", serde_json::to_string(&measure(&subject)?).map_err(|error| error.to_string())?);
    Ok(())
}

/// What kernels with the defect and the real ones did, as a table; or what does not come out as told.
pub fn study_781(broken: &[Measured], real: &[Measured]) -> Result<String, String> {
    let mut table =
        format!("{:22}{:>22}{:>22}{:>22}\n", "remedy", "over recycled memory", "over other memory", "the real kernels");
    for (wrong, right) in broken.iter().zip(real) {
        let name = &wrong.remedy;
        if bits(&wrong.dw[0]) == bits(&wrong.dw[1]) {
            return Err(format!("{name}: dw is {:?} whatever scratch held: the defect is not there", wrong.dw[0]));
        }
        if bits(&right.dw[0]) != bits(&right.dw[1]) {
            return Err(format!("{name}: dw of the real kernels depends on scratch: {:?}", right.dw));
        }
        let _ = writeln!(table, "{name:22}{:>22e}{:>22e}{:>22e}", wrong.dw[0][0], wrong.dw[1][0], right.dw[0][0]);
    }
    Ok(table)
}

/// One training step: forward, backward, and all that is kept between steps.
struct Step {
    eps: f32,
    rows: usize,
    x: Elements,
    weight: Elements,
    y: Elements,
    rstd: Elements,
    dy: Elements,
    dx: Elements,
    dw: Elements,
    scratch: Vec<f32>,
}

impl Step {
    /// Of zeros, as in the issue.
    fn new(dtype: Dtype, rows: usize) -> Step {
        let matrix = rows * HIDDEN;
        let mut step = Step {
            eps: EPS,
            rows,
            x: Elements::zeros(dtype, matrix),
            weight: Elements::zeros(dtype, HIDDEN),
            y: Elements::zeros(dtype, matrix),
            rstd: Elements::zeros(Dtype::F32, rows),
            dy: Elements::zeros(dtype, matrix),
            dx: Elements::zeros(dtype, matrix),
            dw: Elements::zeros(dtype, HIDDEN),
            scratch: vec![0.0; scratch_len(groups(), HIDDEN).expect("a legal width")],
        };
        set(&mut step.weight, |j| WEIGHT[j]);
        set(&mut step.dy, |_| DY);
        step
    }

    fn run(&mut self, executor: &dyn Executor) -> Result<(), Error> {
        let (rows, hidden, weight_offset) = (self.rows, HIDDEN, WeightOffset::Zero);
        let weight: Option<Vector<Slice<'_>>> = Some(self.weight.slice().into());
        executor.forward(Forward {
            weight_offset,
            weight,
            rstd: Some(self.rstd.slice_mut().into()),
            ..Forward::new((rows, hidden), self.eps, self.x.slice(), self.y.slice_mut())
        })?;
        let scratch: SliceMut<'_> = (&mut self.scratch[..]).into();
        executor.backward(Backward {
            weight_offset,
            weight,
            dw: Some(WeightGradient { dw: self.dw.slice_mut().into(), scratch: scratch.into() }),
            ..Backward::new((rows, hidden), self.x.slice(), self.rstd.slice(), self.dy.slice(), self.dx.slice_mut())
        })
    }

    /// dw, with `stale` in every slot of scratch.
    fn dw(mut self, executor: &dyn Executor, stale: f32) -> Result<Vec<f32>, Error> {
        self.scratch.fill(stale);
        self.run(executor)?;
        Ok((0..HIDDEN).map(|j| self.dw.get(j)).collect())
    }
}

fn set(elements: &mut Elements, value: impl Fn(usize) -> f32) {
    (0..elements.len()).for_each(|i| put(&mut elements.slice_mut(), i, value(i)));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Row groups of as many rows as anybody may have.
fn groups() -> usize {
    column_order(usize::MAX, HIDDEN).groups
}

/// Length of a row in the issue.
pub const HIDDEN: usize = 4;
const EPS: f32 = 1e-5;
const ITERATIONS: usize = 10;
/// The issue had ones, which hide where a weight is missing or applied twice.
const WEIGHT: [f32; HIDDEN] = [1.0, -0.5, 2.0, 0.25];
/// The gradient of 0 − sum(y).
const DY: f32 = -1.0;
/// What scratch held in the issue: −1/√EPS.
const MINUS_RSTD: f32 = -316.2278;

#[cfg(test)]
mod tests {
    use super::*;
    use rmsnorm_cuda::Cpu;

    #[test]
    fn layer_norm_is_right_where_the_reduction_is() {
        for rows in [1, 5, groups() - 1] {
            for dw in layer_norm_control(rows, MINUS_RSTD, false) {
                assert!(dw.iter().all(|dw| *dw == 0.0), "{rows} rows: {dw:?}");
            }
        }
    }

    #[test]
    fn layer_norm_does_not_help_a_wrong_reduction() {
        for dw in layer_norm_control(1, MINUS_RSTD, true) {
            assert!(dw.iter().all(|dw| *dw < -1000.0), "{dw:?}");
        }
        assert!(layer_norm_control(1, f32::NAN, true).iter().flatten().all(|dw| dw.is_nan()));
    }

    /// The defect in small: a slot that nobody wrote is summed.
    struct SumsStale;

    impl Executor for SumsStale {
        fn name(&self) -> String {
            "sums stale memory".into()
        }
        fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            Cpu.forward(call)
        }
        fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            let Some(WeightGradient { dw: mut out, scratch }) = call.dw else { return Cpu.backward(call) };
            let (SliceMut::F32(out_data), SliceMut::F32(data)) = (&mut out.data, scratch.data) else { panic!("f32") };
            let stale = data[data.len() - 1];
            let dw = WeightGradient { dw: SliceMut::F32(out_data).into(), scratch: SliceMut::F32(data).into() };
            Cpu.backward(Backward { dw: Some(dw), ..call })?;
            out_data.iter_mut().for_each(|v| *v += stale);
            Ok(())
        }
    }

    fn measured(executor: impl Executor + 'static) -> Vec<Measured> {
        let measured = measure(&Subject::of(executor)).unwrap();
        let text = serde_json::to_string(&measured).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Measured>>(&text).unwrap(), measured);
        measured
    }

    #[test]
    fn the_defect_is_told_and_no_remedy_helps() {
        let table = study_781(&measured(SumsStale), &measured(Cpu)).unwrap();
        assert_eq!(table.lines().count(), 1 + REMEDIES.len());
    }

    #[test]
    fn a_row_of_zeros_shows_it() {
        for is_emulated in [false, true] {
            let subject = |executor| Subject { is_emulated, ..executor };
            assert!(idle_groups(&subject(Subject::of(SumsStale))).is_err());
            let found = idle_groups(&subject(Subject::of(Cpu))).unwrap();
            assert_eq!(found.comparisons, if is_emulated { 3 * 10 } else { 3 * 2 * 3 * 10 });
        }
    }

    #[test]
    fn without_the_defect_the_study_fails() {
        let repaired = study_781(&measured(Cpu), &measured(Cpu)).unwrap_err();
        assert!(repaired.contains("the defect is not there"), "{repaired}");
        let real = study_781(&measured(SumsStale), &measured(SumsStale)).unwrap_err();
        assert!(real.contains("depends on scratch"), "{real}");
    }
}
