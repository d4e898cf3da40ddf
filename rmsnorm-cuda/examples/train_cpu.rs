//! Trains the weight of one layer on the CPU. Runs anywhere, and needs no feature of this crate.
use rmsnorm_cuda::{Error, Layer, WeightOffset};

fn main() -> Result<(), Error> {
    let (rows, hidden) = (64, 256);
    let mut layer = Layer::new(hidden, 1e-6, WeightOffset::Zero)?;
    // A target that some weight reaches, and a weight of ones to begin with.
    let x: Vec<f32> = (0..rows * hidden).map(|i| (i as f32).sin()).collect();
    let wanted: Vec<f32> = (0..hidden).map(|i| (i as f32).cos()).collect();
    let mut weight = vec![1.0_f32; hidden];
    let [mut target, mut y, mut dx] = [(); 3].map(|()| vec![0.0_f32; rows * hidden]);
    let (mut rstd, mut dw) = (vec![0.0_f32; rows], vec![0.0_f32; hidden]);
    layer.forward(&x[..], Some((&wanted[..]).into()), &mut target[..], None)?;

    let mut losses = Vec::new();
    for step in 0..10 {
        layer.forward(&x[..], Some((&weight[..]).into()), &mut y[..], Some((&mut rstd[..]).into()))?;
        let dy: Vec<f32> = y.iter().zip(&target).map(|(y, t)| y - t).collect(); // The gradient of half the squared distance.
        layer.backward(
            &x[..],
            Some((&weight[..]).into()),
            &rstd[..],
            &dy[..],
            &mut dx[..],
            Some((&mut dw[..]).into()),
        )?;
        weight.iter_mut().zip(&dw).for_each(|(w, dw)| *w -= 0.01 * dw);
        losses.push(dy.iter().map(|d| d * d).sum::<f32>());
        println!("step {step}: loss {:.3e}", losses[step]);
    }
    assert!(losses[9] < losses[0] / 100.0, "it learns");
    Ok(())
}
