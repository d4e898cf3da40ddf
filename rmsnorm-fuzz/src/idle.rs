//! The test that the project began with: `idle_groups_781`, the seed of flash-attention issue #781.
//!
//! A row of zeros goes through a normalisation ten times, with loss 0 − sum(y), and the gradient of the weight must be 0. It
//! came out as −633, 1.1e20 or 4e-43, another value in each iteration: row groups without rows were summed although nobody
//! had written their partial rows. Zeros are not the trigger, they only make the right answer visible; the trigger is fewer
//! rows than groups.

use crate::elements::{Elements, put};
use crate::property::{Evidence, Finding, Outcome, Stop, judged};
use ndarray::{Array1, Array2};
use rmsnorm_cuda::plan::column_order;
use rmsnorm_cuda::{
    Backward, Dtype, Error, Executor, Forward, Rows, Slice, SliceMut, Vector, WeightGradient, WeightOffset, scratch_len,
};
use rmsnorm_ref::layer_norm_forward;

/// *dw of zero rows is +0.0 in every iteration, whatever the caller's scratch holds*: NaN, −316.2278 (which is −rstd), the
/// previous dx; one row, and one row fewer than there are groups; every type. The scratch is as large as the largest problem
/// needs, is never cleared, and all iterations share it.
pub fn idle_groups(executor: &dyn Executor) -> Outcome {
    judged("idle_groups_781", executor, "", || iterate(executor))
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
    let mut scratch = vec![stale; column_order(usize::MAX, HIDDEN).groups * HIDDEN];
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

fn iterate(executor: &dyn Executor) -> Finding {
    let mut evidence = Evidence::default();
    let groups = column_order(usize::MAX, HIDDEN).groups;
    for dtype in Dtype::ALL {
        for rows in [1, groups - 1] {
            for stale in ["NaN", "-rstd", "the previous dx"] {
                let mut step = Step::new(dtype, rows, groups);
                if stale == "the previous dx" {
                    step.run(executor)?;
                }
                for i in 0..step.scratch.len() {
                    step.scratch[i] = match stale {
                        "NaN" => f32::NAN,
                        "-rstd" => -316.2278,
                        _ => step.dx.get(i % (rows * HIDDEN)),
                    };
                }
                for iteration in 0..ITERATIONS {
                    (0..HIDDEN).for_each(|j| set(&mut step.dw, j, f32::NAN));
                    step.run(executor)?;
                    evidence.comparisons += 1;
                    for j in 0..HIDDEN {
                        evidence.elements += 1;
                        let dw = step.dw.get(j);
                        if dw.to_bits() != 0 {
                            return Err(Stop::Failed(format!(
                                "{rows} rows of {dtype}, scratch holding {stale}, iteration {iteration}: dw[{j}] is {dw:e}, \
                                 expected +0.0"
                            )));
                        }
                    }
                }
            }
        }
    }
    Ok(evidence)
}

/// One training step: forward, backward, and all that is kept between steps.
struct Step {
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
    fn new(dtype: Dtype, rows: usize, groups: usize) -> Step {
        let matrix = rows * HIDDEN;
        let mut step = Step {
            rows,
            x: Elements::zeros(dtype, matrix),
            weight: Elements::zeros(dtype, HIDDEN),
            y: Elements::zeros(dtype, matrix),
            rstd: Elements::zeros(Dtype::F32, rows),
            dy: Elements::zeros(dtype, matrix),
            dx: Elements::zeros(dtype, matrix),
            dw: Elements::zeros(dtype, HIDDEN),
            scratch: vec![0.0; scratch_len(groups, HIDDEN).expect("a legal width")],
        };
        (0..HIDDEN).for_each(|j| set(&mut step.weight, j, WEIGHT[j]));
        (0..matrix).for_each(|i| set(&mut step.dy, i, DY));
        step
    }

    fn run(&mut self, executor: &dyn Executor) -> Result<(), Error> {
        let (rows, hidden, weight_offset) = (self.rows, HIDDEN, WeightOffset::Zero);
        let weight: Option<Vector<Slice<'_>>> = Some(self.weight.slice().into());
        executor.forward(Forward {
            rows,
            hidden,
            eps: EPS,
            weight_offset,
            x: Rows::contiguous(self.x.slice(), hidden),
            weight,
            y: Rows::contiguous(self.y.slice_mut(), hidden),
            rstd: Some(self.rstd.slice_mut().into()),
        })?;
        let scratch: SliceMut<'_> = (&mut self.scratch[..]).into();
        executor.backward(Backward {
            rows,
            hidden,
            weight_offset,
            x: Rows::contiguous(self.x.slice(), hidden),
            weight,
            rstd: self.rstd.slice().into(),
            dy: Rows::contiguous(self.dy.slice(), hidden),
            dx: Rows::contiguous(self.dx.slice_mut(), hidden),
            dw: Some(WeightGradient { dw: self.dw.slice_mut().into(), scratch: scratch.into() }),
        })
    }
}

fn set(elements: &mut Elements, i: usize, value: f32) {
    put(&mut elements.slice_mut(), i, value);
}

/// Length of a row in the issue.
pub const HIDDEN: usize = 4;
const EPS: f32 = 1e-5;
const ITERATIONS: usize = 10;
/// The issue had ones, which hide where a weight is missing or applied twice.
const WEIGHT: [f32; HIDDEN] = [1.0, -0.5, 2.0, 0.25];
/// The gradient of 0 − sum(y).
const DY: f32 = -1.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norm_is_right_where_the_reduction_is() {
        for rows in [1, 5, column_order(usize::MAX, HIDDEN).groups - 1] {
            for dw in layer_norm_control(rows, -316.2278, false) {
                assert!(dw.iter().all(|dw| *dw == 0.0), "{rows} rows: {dw:?}");
            }
        }
    }

    #[test]
    fn layer_norm_does_not_help_a_wrong_reduction() {
        for dw in layer_norm_control(1, -316.2278, true) {
            assert!(dw.iter().all(|dw| *dw < -1000.0), "{dw:?}");
        }
        assert!(layer_norm_control(1, f32::NAN, true).iter().flatten().all(|dw| dw.is_nan()));
    }
}
