//! On a GPU: the CPU's bits, of every kind of call and layout, on both kinds of stream. Without one it says SKIPPED, and with RMSNORM_REQUIRE_GPU=1 it fails.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device, Result, Tensor, Var};
use rmsnorm_candle::WeightOffset;
use rmsnorm_candle::ops::{Options, prepare, rms_norm_with};

mod common;
use common::{FLOATS, PLAIN, bits, numbers};

fn device(make: fn(usize) -> Result<Device>) -> Option<Device> {
    let made = std::panic::catch_unwind(|| make(0));
    match made.unwrap_or_else(|_| Err(candle_core::Error::msg("cudarc has panicked"))) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("RMSNORM_REQUIRE_GPU").is_none(), "RMSNORM_REQUIRE_GPU is set, but: {error}");
            std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED: {error}\n")).ok();
            None
        }
    }
}

/// What a view is made of, and how.
type View = (&'static str, &'static [usize], fn(&Tensor) -> Result<Tensor>);
const VIEWS: [View; 5] = [
    ("whole", &[37, 512], |t| Ok(t.clone())),
    ("columns of a packed buffer", &[3, 5, 192], |t| t.narrow(2, 65, 64)),
    ("heads first", &[5, 4, 128], |t| t.transpose(0, 1)),
    ("one row, seen often", &[1, 1000], |t| t.expand((300, 1000))),
    ("wide", &[3, 20000], |t| Ok(t.clone())),
];

/// y and the gradients of the buffer and the weight.
fn run_on(
    device: &Device,
    view: fn(&Tensor) -> Result<Tensor>,
    (packed, weight): (&Tensor, Option<&Tensor>),
    options: Options,
    dy: Option<&Tensor>,
) -> Result<Vec<Vec<u32>>> {
    let packed = Var::from_tensor(&packed.to_device(device)?)?;
    let weight = weight.map(|w| w.to_device(device).and_then(|w| Var::from_tensor(&w))).transpose()?;
    let y = rms_norm_with(&view(&packed)?, weight.as_ref().map(Var::as_tensor), options)?;
    let loss = match dy {
        Some(dy) => (&y * &dy.to_device(device)?)?.sum_all()?,
        None => y.sum_all()?,
    };
    let gradients = loss.backward()?;
    let of = |var: &Var| bits(&gradients.get(var).expect("a gradient").to_device(&Device::Cpu).expect("a copy"));
    let mut all = vec![bits(&y.to_device(&Device::Cpu)?), of(&packed)];
    all.extend(weight.iter().map(of));
    Ok(all)
}

#[test]
fn the_bits_of_the_cpu() -> Result<()> {
    for make in [Device::new_cuda as fn(usize) -> _, Device::new_cuda_with_stream] {
        let Some(gpu) = device(make) else { return Ok(()) };
        for (name, shape, view) in VIEWS {
            for dtype in FLOATS {
                let packed = numbers(1, shape, dtype);
                let x = view(&packed)?;
                let (dims, hidden) = (x.dims(), x.dim(candle_core::D::Minus1)?);
                let dy = numbers(2, dims, dtype);
                for weight in [None, Some(dtype), Some(DType::F32)] {
                    let weight = weight.map(|dtype| numbers(3, &[hidden], dtype));
                    for (options, dy) in
                        [(PLAIN, Some(&dy)), (Options { weight_offset: WeightOffset::One, ..PLAIN }, None)]
                    {
                        // Where rows are seen often, candle adds their gradients up, in an order of its own on each device.
                        let on = |device| run_on(device, view, (&packed, weight.as_ref()), options, dy);
                        let (cpu, gpu) = (on(&Device::Cpu)?, on(&gpu)?);
                        for (i, output) in ["y", "dx", "dw"].into_iter().enumerate().take(cpu.len()) {
                            if !(name.starts_with("one row") && output == "dx") {
                                assert!(
                                    cpu[i] == gpu[i],
                                    "{output} of {name} {dtype:?}, weight {weight:?}, {options:?}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_prepared_call_is_the_same_call() -> Result<()> {
    let Some(gpu) = device(Device::new_cuda_with_stream) else { return Ok(()) };
    prepare(&gpu, (6, 768), DType::BF16, Some(DType::F32), PLAIN)?;
    let (x, weight) = (numbers(1, &[6, 768], DType::BF16), numbers(2, &[768], DType::F32));
    let on = |device| run_on(device, |t| Ok(t.clone()), (&x, Some(&weight)), PLAIN, None);
    assert!(on(&gpu)? == on(&Device::Cpu)?);
    Ok(())
}
