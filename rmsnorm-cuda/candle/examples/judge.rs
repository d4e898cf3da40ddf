//! A RMSNorm of candle's, or ours, over the files that `cargo xtask cases --out CASES` writes, for `cargo xtask judge OUT --cases CASES`:
//! `judge fused|slow|ours CASES OUT`. The fused one has no gradients.
use candle_core::{Device, Result, Tensor, Var, safetensors};
use std::collections::HashMap;
use std::error::Error;

fn run(kernel: &str, given: &HashMap<String, Tensor>, eps: f64) -> Result<HashMap<String, Tensor>> {
    let x = Var::from_tensor(&given["x"])?;
    let weight = match given.get("weight") {
        Some(weight) => Var::from_tensor(weight)?,
        None => Var::ones(x.dim(1)?, x.dtype(), &Device::Cpu)?,
    };
    let y = match kernel {
        "fused" => return Ok([("y".into(), candle_nn::ops::rms_norm(&x, &weight, eps as f32)?)].into()),
        "slow" => candle_nn::ops::rms_norm_slow(&x, &weight, eps as f32)?,
        "ours" => rmsnorm_candle::ops::rms_norm(&x, &weight, eps as f32)?,
        other => candle_core::bail!("no kernel is called {other}: fused, slow or ours"),
    };
    let gradients = (&y * &given["dy"])?.sum_all()?.backward()?;
    let mut out = HashMap::from([("y".into(), y)]);
    for (name, of) in [("dx", &x), ("dw", &weight)] {
        out.extend(gradients.get(of).map(|gradient| (name.into(), gradient.clone())));
    }
    // Nobody was given a weight.
    if !given.contains_key("weight") {
        out.remove("dw");
    }
    Ok(out)
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, cases, out] = &arguments[..] else { return Err("usage: judge fused|slow|ours CASES OUT".into()) };
    std::fs::create_dir_all(out)?;
    let manifest = std::fs::read_to_string(format!("{cases}/manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    for case in manifest["cases"].as_array().ok_or("the manifest has no list of cases")? {
        let name = case["name"].as_str().ok_or("a case has no name")?;
        if case["offset"] != 0.0 {
            println!("{name}: candle has no zero-centred weights");
            continue;
        }
        let given = safetensors::load(format!("{cases}/{name}.safetensors"), &Device::Cpu)?;
        match run(kernel, &given, case["eps"].as_f64().ok_or("a case has no eps")?) {
            Ok(got) => safetensors::save(&got, format!("{out}/{name}.out.safetensors"))?,
            Err(error) => println!("{name}: {}", error.to_string().lines().next().unwrap_or_default()),
        }
    }
    Ok(())
}
