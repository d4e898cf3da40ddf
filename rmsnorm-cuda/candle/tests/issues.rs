//! Tests named after public issues of candle: each shows what `candle_nn` does and what this crate does instead.

use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
use rmsnorm_candle::ops::rms_norm;

mod common;
use common::{PLAIN, assert_within_bound, bits, judge, numbers, run, run_as};

/// 2168, "No backward pass for `RmsNorm` if tensor is contiguous".
#[test]
fn candle_2168_gradients_are_there() -> Result<()> {
    let (x, weight, dy) =
        (numbers(1, &[5, 64], DType::F32), numbers(2, &[64], DType::F32), numbers(3, &[5, 64], DType::F32));
    let vars = [Var::from_tensor(&x)?, Var::from_tensor(&weight)?];
    let gradients = candle_nn::ops::rms_norm(&vars[0], &vars[1], PLAIN.eps)?.sum_all()?.backward()?;
    assert!(vars.iter().all(|var| gradients.get(var).is_none()), "candle has gradients now");

    let outputs = run(&x, Some(&weight), PLAIN, &dy)?;
    assert_within_bound(&x, Some(&weight), PLAIN, &dy, &outputs);
    Ok(())
}

/// 3004, "qwen3 q,k tensors not contiguous after rms norm": a slice of a packed buffer is refused, so models reshape around the norm.
#[test]
fn candle_3004_a_view_of_a_packed_buffer_is_normalised_where_it_lies() -> Result<()> {
    let (tokens, heads, hidden) = (3, 2, 32);
    let packed = numbers(1, &[tokens, 3 * heads * hidden], DType::BF16);
    let weight = numbers(2, &[hidden], DType::BF16);
    let k = packed.narrow(1, heads * hidden, hidden)?;
    let refused = candle_nn::ops::rms_norm(&k, &weight, PLAIN.eps).expect_err("candle takes views now");
    assert!(refused.to_string().contains("contiguous"), "{refused}");

    let expected = rms_norm(&k.contiguous()?, &weight, PLAIN.eps)?;
    let y = rms_norm(&k, &weight, PLAIN.eps)?;
    assert_eq!(bits(&y), bits(&expected));
    // Heads in front of tokens, as attention wants them: whatever the view, the result has no gaps.
    let by_head = packed.reshape((tokens, 3 * heads, hidden))?.narrow(1, heads, heads)?.transpose(0, 1)?;
    let y = rms_norm(&by_head, &weight, PLAIN.eps)?;
    assert!(y.is_contiguous() && !by_head.is_contiguous());
    assert_eq!(bits(&y.i(0)?), bits(&expected));
    Ok(())
}

/// 3727, 16-bit sums on the CPU are 16 bits wide: candle's own norm rounds in between, and its gradient of a bf16 weight stops growing at 256.
#[test]
fn candle_3727_sixteen_bits_are_rounded_once() -> Result<()> {
    let (rows, hidden) = (1024, 8);
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::BF16, &Device::Cpu);
    let (x, weight, dy) = (ones(&[rows, hidden])?, ones(&[hidden])?, ones(&[rows, hidden])?);
    let slow = |x: &Tensor, w: Option<&Tensor>| candle_nn::ops::rms_norm_slow(x, w.expect("a weight"), 0.0);
    let theirs = run_as(slow, &x, Some(&weight), &dy)?.dw.expect("the gradient of the weight");
    assert_eq!(theirs.to_dtype(DType::F32)?.to_vec1::<f32>()?, [256.0; 8], "candle sums in f32 now");
    let ours = run(&x, Some(&weight), common::Options { eps: 0.0, ..PLAIN }, &dy)?.dw.expect("the same");
    assert_eq!(ours.to_dtype(DType::F32)?.to_vec1::<f32>()?, [1024.0; 8]);

    for dtype in [DType::BF16, DType::F16] {
        let (x, weight) = (numbers(1, &[64, 512], dtype), numbers(2, &[512], dtype));
        let dy = numbers(3, &[64, 512], dtype);
        let outputs = run(&x, Some(&weight), PLAIN, &dy)?;
        assert_within_bound(&x, Some(&weight), PLAIN, &dy, &outputs);
        let theirs = candle_nn::ops::rms_norm(&x, &weight, PLAIN.eps)?;
        let [y, ..] = judge(
            &x,
            Some(&weight),
            PLAIN,
            &dy,
            &common::Outputs { y: theirs, ..run(&x, Some(&weight), PLAIN, &dy)? },
        )?;
        assert!(!y.passed(), "candle's {dtype:?} is within the bound now");
        let f32_weight = weight.to_dtype(DType::F32)?;
        assert!(candle_nn::ops::rms_norm(&x, &f32_weight, PLAIN.eps).is_err(), "candle takes f32 weights now");
        assert_eq!(bits(&rms_norm(&x, &f32_weight, PLAIN.eps)?), bits(&outputs.y));
    }
    Ok(())
}

/// 3477, large activations come out as NaN (on Metal, mended there): on the CPU a row whose squares overflow comes out as zeros.
#[test]
fn candle_3477_large_activations() -> Result<()> {
    let x = Tensor::new(&[[2e30_f32, 0.0, 0.0, 0.0]], &Device::Cpu)?;
    let weight = Tensor::ones(4, DType::F32, &Device::Cpu)?;
    assert_eq!(candle_nn::ops::rms_norm(&x, &weight, 1e-6)?.to_vec2::<f32>()?, [[0.0; 4]], "candle scales rows now");
    assert_eq!(rms_norm(&x, &weight, 1e-6)?.to_vec2::<f32>()?, [[2.0, 0.0, 0.0, 0.0]]);
    Ok(())
}
