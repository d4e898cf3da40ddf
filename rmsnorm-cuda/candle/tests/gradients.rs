//! Every kind of call against the f64 reference and against the CPU executor, and what candle's layouts and graphs ask for.

use candle_core::{DType, Device, IndexOp, Module, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use rmsnorm_candle::ops::{Options, rms_norm, rms_norm_with};
use rmsnorm_candle::rmsnorm_cuda::{Layer, bf16};
use rmsnorm_candle::{RmsNorm, Rounding, WeightOffset};

mod common;
use common::{FLOATS, PLAIN, assert_within_bound, bits, numbers, run};

#[test]
fn every_kind_is_within_the_bound_of_the_reference() -> Result<()> {
    let shapes: [&[usize]; 5] = [&[7], &[5, 33], &[2, 3, 256], &[1, 2, 2, 1025], &[700, 16]];
    for dtype in FLOATS {
        for (i, shape) in shapes.into_iter().enumerate() {
            let (x, dy) = (numbers(i as u64, shape, dtype), numbers(99, shape, dtype));
            let hidden = shape[shape.len() - 1];
            for weight in [None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)] {
                let weight = weight.map(|dtype| numbers(50, &[hidden], dtype));
                for (weight_offset, rounding) in [
                    (WeightOffset::Zero, Rounding::Once),
                    (WeightOffset::One, Rounding::Once),
                    (WeightOffset::Zero, Rounding::Twice),
                ] {
                    let options = Options { weight_offset, rounding, ..PLAIN };
                    let outputs = run(&x, weight.as_ref(), options, &dy)?;
                    assert_eq!((outputs.y.dims(), outputs.dx.dims()), (shape, shape));
                    assert_eq!((outputs.y.dtype(), outputs.dx.dtype()), (dtype, dtype));
                    let types = [&outputs.dw, &weight].map(|t| t.as_ref().map(|t| (t.dtype(), t.dims().to_vec())));
                    assert_eq!(types[0], types[1]);
                    assert_within_bound(&x, weight.as_ref(), options, &dy, &outputs);
                }
            }
        }
    }
    Ok(())
}

/// What candle makes of a stored x_hat and a weight, which is what such models were trained with.
#[test]
fn rounding_twice_is_candles_own_product() -> Result<()> {
    for dtype in FLOATS {
        let (x, weight) = (numbers(1, &[40, 257], dtype), numbers(2, &[257], dtype));
        let own = rms_norm_with(&x, None, PLAIN)?.broadcast_mul(&weight)?;
        let module = RmsNorm::new(weight, f64::from(PLAIN.eps));
        assert_eq!(bits(&module.clone().with_rounding(Rounding::Twice).forward(&x)?), bits(&own));
        assert_eq!(bits(&module.forward(&x)?) == bits(&own), dtype == DType::F32);
    }
    Ok(())
}

/// Which are those of any GPU.
#[test]
fn the_bits_are_those_of_the_executor() -> Result<()> {
    let (rows, hidden) = (150, 96);
    let [x, dy] = [1, 2].map(|seed| numbers(seed, &[rows, hidden], DType::BF16));
    let weight = numbers(3, &[hidden], DType::F32);
    let options = Options { eps: 1e-5, weight_offset: WeightOffset::One, rounding: Rounding::Twice };
    let outputs = run(&x, Some(&weight), options, &dy)?;

    let host = |t: &Tensor| t.flatten_all()?.to_vec1::<bf16>();
    let (x, dy, weight) = (host(&x)?, host(&dy)?, weight.to_vec1::<f32>()?);
    let (mut y, mut dx) = (vec![bf16::ZERO; rows * hidden], vec![bf16::ZERO; rows * hidden]);
    let (mut rstd, mut dw) = (vec![0.0_f32; rows], vec![0.0_f32; hidden]);
    let layer = Layer::new(hidden, options.eps, options.weight_offset).map_err(candle_core::Error::wrap)?;
    let mut layer = layer.with_rounding(options.rounding);
    let w = Some(weight.as_slice().into());
    layer.forward(&x[..], w, &mut y[..], Some((&mut rstd[..]).into())).map_err(candle_core::Error::wrap)?;
    layer
        .backward(&x[..], w, &rstd[..], &dy[..], &mut dx[..], Some((&mut dw[..]).into()))
        .map_err(candle_core::Error::wrap)?;
    assert_eq!((host(&outputs.y)?, host(&outputs.dx)?), (y, dx));
    assert_eq!(outputs.dw.expect("the gradient of the weight").to_vec1::<f32>()?, dw);
    Ok(())
}

/// Views of a packed buffer, rows of two strides, a transposed matrix, one row seen often: the bits of the copy, and the gradient in its place.
#[test]
fn views_give_the_bits_of_their_copies() -> Result<()> {
    let packed = Var::from_tensor(&numbers(1, &[4, 3, 24], DType::F32))?;
    let views: [(&str, Tensor); 5] = [
        ("a slice of columns", packed.narrow(2, 5, 8)?),
        ("a slice of rows", packed.narrow(0, 1, 2)?),
        ("two strides", packed.transpose(0, 1)?),
        ("transposed", packed.transpose(1, 2)?),
        ("one row, seen often", packed.i((0, 0))?.unsqueeze(0)?.expand((6, 24))?),
    ];
    for (name, view) in views {
        let hidden = view.dim(candle_core::D::Minus1)?;
        let weight = Var::from_tensor(&numbers(2, &[hidden], DType::F32))?;
        let dy = numbers(3, view.dims(), DType::F32);
        // Turned, the gradient of y lies at two strides too.
        let of = |x: &Tensor, turned: bool| {
            let y = rms_norm(x, &weight, PLAIN.eps)?;
            let product = if turned { y.transpose(0, 1)? * dy.transpose(0, 1)?.contiguous()? } else { &y * &dy };
            let mut gradients = product?.sum_all()?.backward()?;
            let [packed, weight] = [&packed, &weight].map(|var| gradients.remove(var).expect("a gradient"));
            Ok::<_, candle_core::Error>([y, packed, weight].map(|t| bits(&t)))
        };
        let expected = of(&view.force_contiguous()?, false)?;
        assert_eq!(of(&view, false)?, expected, "{name}");
        if view.rank() == 3 {
            assert_eq!(of(&view, true)?, expected, "{name}, turned");
        }
    }
    Ok(())
}

#[test]
fn a_weight_may_be_a_view() -> Result<()> {
    let x = numbers(1, &[3, 8], DType::F16);
    let weights = numbers(2, &[8, 3], DType::F16);
    for weight in [weights.i((.., 1))?, numbers(3, &[20], DType::F16).narrow(0, 7, 8)?, weights.i((0, 0))?.expand(8)?] {
        let expected = rms_norm(&x, &weight.force_contiguous()?, PLAIN.eps)?;
        assert_eq!(bits(&rms_norm(&x, &weight, PLAIN.eps)?), bits(&expected));
    }
    Ok(())
}

/// `sum_all` gives back one number with strides of 0.
#[test]
fn a_sum_trains() -> Result<()> {
    for shape in [&[9][..], &[4, 9], &[2, 3, 9]] {
        let (x, weight) = (numbers(1, shape, DType::F32), numbers(2, &[9], DType::F32));
        let vars = [Var::from_tensor(&x)?, Var::from_tensor(&weight)?];
        let y = rms_norm(&vars[0], &vars[1], PLAIN.eps)?;
        let gradients = y.sum_all()?.backward()?;
        let [dx, dw] = vars.each_ref().map(|var| gradients.get(var).expect("a gradient").clone());
        let outputs = common::Outputs { y, dx, dw: Some(dw) };
        assert_within_bound(&x, Some(&weight), PLAIN, &x.ones_like()?, &outputs);
    }
    Ok(())
}

#[test]
fn what_is_frozen_has_no_gradient() -> Result<()> {
    let [x, weight] = [numbers(1, &[3, 8], DType::F32), numbers(2, &[8], DType::F32)];
    let vars = [Var::from_tensor(&x)?, Var::from_tensor(&weight)?];
    let gradients = rms_norm(&vars[0], &weight, PLAIN.eps)?.sum_all()?.backward()?;
    assert!(gradients.get(&vars[0]).is_some() && gradients.get(&weight).is_none());
    let gradients = rms_norm(&x, &vars[1], PLAIN.eps)?.sum_all()?.backward()?;
    assert!(gradients.get(&vars[1]).is_some() && gradients.get(&x).is_none());
    assert!(!rms_norm(&x, &weight, PLAIN.eps)?.track_op());
    Ok(())
}

/// It would have to come from somewhere; candle drops what an operation does not have.
#[test]
fn a_second_derivative_is_refused() -> Result<()> {
    let vars = [Var::from_tensor(&numbers(1, &[3, 8], DType::F32))?, Var::from_tensor(&numbers(2, &[8], DType::F32))?];
    let gradients = rms_norm(&vars[0], &vars[1], PLAIN.eps)?.sqr()?.sum_all()?.backward()?;
    for var in &vars {
        let error = gradients.get(var).expect("a gradient").sqr()?.sum_all()?.backward().expect_err("no such function");
        assert!(error.to_string().contains("the gradient of rmsnorm-candle"), "{error}");
    }
    Ok(())
}

#[test]
fn the_module_is_made_as_candle_nn_makes_its_own() -> Result<()> {
    let x = numbers(1, &[2, 3, 16], DType::F32);
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let norm = rmsnorm_candle::rms_norm(16, 1e-5, vb.pp("norm"))?;
    assert_eq!((norm.eps(), norm.weight().to_vec1::<f32>()?), (1e-5, vec![1.0; 16]));
    assert_eq!(vars.data().lock().expect("no thread has panicked").keys().collect::<Vec<_>>(), ["norm.weight"]);
    let y = norm.forward(&x)?;
    assert!(y.sum_all()?.backward()?.get(norm.weight()).is_some(), "a weight of a VarMap is trained");

    let theirs = candle_nn::rms_norm(16, 1e-5, vb.pp("norm"))?;
    let converted = RmsNorm::from(theirs.clone());
    assert_eq!(bits(&converted.forward(&x)?), bits(&y));
    assert_eq!(bits(&converted.forward_diff(&x)?), bits(&y));
    let difference = (theirs.forward(&x)? - &y)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference < 1e-6, "{difference}: the same function");

    // Stored less one, and added again.
    let less_one = RmsNorm::new((norm.weight() - 1.0)?, 1e-5).with_weight_offset(WeightOffset::One);
    assert_eq!(bits(&less_one.forward(&x)?), bits(&y));
    Ok(())
}

#[test]
fn no_rows() -> Result<()> {
    let x = Var::zeros((0, 8), DType::F32, &Device::Cpu)?;
    let weight = Var::ones(8, DType::F32, &Device::Cpu)?;
    let y = rms_norm(&x, &weight, PLAIN.eps)?;
    assert_eq!(y.dims(), [0, 8]);
    let gradients = y.sum_all()?.backward()?;
    assert_eq!(gradients.get(&weight).expect("a gradient").to_vec1::<f32>()?, [0.0; 8]);
    Ok(())
}

#[test]
fn refusals_say_what_was_expected() -> Result<()> {
    let x = numbers(1, &[3, 8], DType::F32);
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu);
    let refused = |x: &Tensor, weight: &Tensor, eps| rms_norm(x, weight, eps).expect_err("a refusal").to_string();
    assert!(refused(&x, &zeros(&[4], DType::F32)?, 0.0).contains("shape [4], expected [8]"));
    assert!(refused(&x, &zeros(&[2, 8], DType::F32)?, 0.0).contains("shape [2, 8], expected [8]"));
    assert!(refused(&x, &zeros(&[8], DType::U32)?, 0.0).contains("U32"));
    assert!(refused(&x, &zeros(&[8], DType::F32)?, -1.0).contains("eps is -1"));
    assert!(refused(&zeros(&[3, 8], DType::F64)?, &zeros(&[8], DType::F64)?, 0.0).contains("F64"));
    assert!(refused(&zeros(&[3, 0], DType::F32)?, &zeros(&[0], DType::F32)?, 0.0).contains("hidden is 0"));
    let scalar = rms_norm_with(&zeros(&[], DType::F32)?, None, PLAIN).expect_err("a scalar has no rows").to_string();
    assert!(scalar.contains("last dimension"), "{scalar}");
    Ok(())
}
