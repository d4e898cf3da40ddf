//! Trains two layers with a norm between them: on the GPU if candle was built for one and there is one, else on the CPU. Then runs the norm of that net
//! on both and compares bits.
use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear};
use rmsnorm_candle::{RmsNorm, rms_norm};

/// y, and the gradients of `x` and the weight, of the norm on `device`, as they lie in memory.
fn norm_on(device: &Device, norm: &RmsNorm, x: &Tensor) -> Result<[Vec<f32>; 3]> {
    let [x, weight] = [x, norm.weight()].map(|t| t.to_device(device).and_then(|t| Var::from_tensor(&t)));
    let (x, weight) = (x?, weight?);
    let y = RmsNorm::new(weight.as_tensor().clone(), norm.eps()).forward(&x)?;
    let gradients = y.sqr()?.sum_all()?.backward()?;
    let host = |t: Option<&Tensor>| t.expect("a gradient").flatten_all()?.to_vec1::<f32>();
    Ok([y.flatten_all()?.to_vec1()?, host(gradients.get(&x))?, host(gradients.get(&weight))?])
}

fn main() -> Result<()> {
    let device = Device::cuda_if_available(0)?;
    let (examples, inputs, hidden) = (256, 8, 64);
    let data = (0..examples * inputs).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = Tensor::from_vec(data, (examples, inputs), &device)?;
    let wanted = x.sqr()?.mean_keepdim(1)?;

    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &device);
    let (first, norm, second) = (
        linear(inputs, hidden, vb.pp("first"))?,
        rms_norm(hidden, 1e-6, vb.pp("norm"))?,
        linear(hidden, 1, vb.pp("second"))?,
    );
    let mut optimizer = AdamW::new(vars.all_vars(), ParamsAdamW { lr: 0.01, ..Default::default() })?;
    let (mut begun, mut loss) = (0.0, 0.0);
    for step in 0..=200 {
        let y = second.forward(&norm.forward(&first.forward(&x)?)?.relu()?)?;
        let distance = (y - &wanted)?.sqr()?.mean_all()?;
        loss = distance.to_scalar::<f32>()?;
        if step % 50 == 0 {
            println!("step {step}: loss {loss:.3e}");
        }
        if step == 0 {
            begun = loss;
        }
        optimizer.backward_step(&distance)?;
    }
    let weight = norm.weight().to_vec1::<f32>()?;
    assert!(loss < begun / 10.0 && weight.iter().any(|w| *w != 1.0), "the net learns, its norm too");

    if device.is_cpu() {
        println!("no GPU to compare with");
        return Ok(());
    }
    let between = first.forward(&x)?.detach();
    let on = [&Device::Cpu, &device].map(|device| norm_on(device, &norm, &between));
    let [cpu, there] = on.map(|outputs| outputs.map(|o| o.map(|o| o.iter().map(|v| v.to_bits()).collect::<Vec<_>>())));
    assert!(cpu? == there?, "other bits than on the CPU");
    println!("y, dx and dw of the norm have the same bits on the CPU and on the GPU");
    Ok(())
}
