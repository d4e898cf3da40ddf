//! Operands, one run forward and backward, and what the f64 reference says of it.
#![allow(dead_code)] // Each test uses some of it.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use ndarray::{Array1, Array2};
pub(crate) use rmsnorm_candle::ops::Options;
use rmsnorm_candle::ops::rms_norm_with;
use rmsnorm_candle::rmsnorm_cuda::order::{column_order, row_order};
use rmsnorm_candle::{Rounding, WeightOffset};
use rmsnorm_ref::{Columns, Depth, Format, Setting, Tally, check_backward_rows, check_forward, depth};

pub(crate) const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
pub(crate) const PLAIN: Options = Options { eps: 1e-6, weight_offset: WeightOffset::Zero, rounding: Rounding::Once };

/// Numbers between −2 and 2 that follow no pattern: SplitMix64.
pub(crate) fn numbers(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 22) as f32 - 2.0
    };
    let data: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).and_then(|t| t.to_dtype(dtype)).expect("a tensor of numbers")
}

#[derive(Debug)]
pub(crate) struct Outputs {
    pub(crate) y: Tensor,
    pub(crate) dx: Tensor,
    pub(crate) dw: Option<Tensor>,
}

/// The norm and its gradients for the gradient `dy` of y, of whatever function has the first three parameters.
pub(crate) fn run_as(
    norm: impl Fn(&Tensor, Option<&Tensor>) -> Result<Tensor>,
    x: &Tensor,
    weight: Option<&Tensor>,
    dy: &Tensor,
) -> Result<Outputs> {
    let x = Var::from_tensor(x)?;
    let weight = weight.map(Var::from_tensor).transpose()?;
    let y = norm(&x, weight.as_ref().map(Var::as_tensor))?;
    let gradients = (&y * dy)?.sum_all()?.backward()?;
    let of = |var: &Var| gradients.get(var).cloned().ok_or_else(|| candle_core::Error::msg("a gradient is missing"));
    Ok(Outputs { dx: of(&x)?, dw: weight.as_ref().map(of).transpose()?, y })
}

/// The same of ours.
pub(crate) fn run(x: &Tensor, weight: Option<&Tensor>, options: Options, dy: &Tensor) -> Result<Outputs> {
    run_as(|x, weight| rms_norm_with(x, weight, options), x, weight, dy)
}

/// What the f64 reference says: of y, dx and dw. The sums are taken to be in the orders of rmsnorm-cuda.
pub(crate) fn judge(
    x: &Tensor,
    weight: Option<&Tensor>,
    options: Options,
    dy: &Tensor,
    outputs: &Outputs,
) -> Result<[Tally; 3]> {
    let format = |t: &Tensor| match t.dtype() {
        DType::F32 => Format::F32,
        DType::F16 => Format::F16,
        DType::BF16 => Format::Bf16,
        other => panic!("{other:?} is no type of RMSNorm"),
    };
    let hidden = x.dim(D::Minus1)?;
    let rows = x.elem_count() / hidden;
    let wide = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let matrix =
        |t: &Tensor| Ok::<_, candle_core::Error>(Array2::from_shape_vec((rows, hidden), wide(t)?).expect("M×N"));
    let wide_weight = weight.map(wide).transpose()?.map(Array1::from_vec);
    let row = depth(hidden as u64, row_order(hidden).chains as u64);
    let column = depth(rows as u64, column_order(rows, hidden).groups as u64);
    let setting = Setting {
        weight: wide_weight.as_ref().map(|w| w.view()),
        weight_offset: if options.weight_offset == WeightOffset::One { 1.0 } else { 0.0 },
        bias: None,
        rounded: (options.rounding == Rounding::Twice && x.dtype() != DType::F32).then(|| format(x)),
        eps: f64::from(options.eps),
        depth: Depth { forward: row, backward: row, column },
    };
    let (wide_x, wide_dy, y, dx) = (matrix(x)?, matrix(dy)?, matrix(&outputs.y)?, matrix(&outputs.dx)?);
    let forward = check_forward(&setting, format(&outputs.y), 0, wide_x.view(), None, y.view());
    let dx = check_backward_rows(&setting, format(&outputs.dx), 0, wide_x.view(), wide_dy.view(), None, dx.view());
    let mut dw = Tally::default();
    if let Some(computed) = &outputs.dw {
        let mut columns = Columns::new(hidden);
        columns.add_rows(&setting, wide_x.view(), wide_dy.view());
        dw = columns.check_dw(setting.depth, format(computed), &wide(computed)?);
    }
    Ok([forward.y, dx, dw])
}

/// Panics unless all of it is within the bound.
pub(crate) fn assert_within_bound(
    x: &Tensor,
    weight: Option<&Tensor>,
    options: Options,
    dy: &Tensor,
    outputs: &Outputs,
) {
    let tallies = judge(x, weight, options, dy, outputs).expect("the reference can be computed");
    for (name, tally) in ["y", "dx", "dw"].into_iter().zip(tallies) {
        assert!(tally.passed(), "{name} of {x:?} with {weight:?} and {options:?}: {tally}");
    }
}

/// The bits of every element; those of f32 for all types, which keep the others apart.
pub(crate) fn bits(t: &Tensor) -> Vec<u32> {
    let wide = t.to_dtype(DType::F32).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1::<f32>());
    wide.expect("a tensor of floats").into_iter().map(f32::to_bits).collect()
}
