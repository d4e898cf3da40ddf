//! `cargo xtask bench`: times the public calls, and in the same run the ceilings that they are compared with.

use anyhow::{Context, Result, bail};
use rmsnorm_cuda::cuda::measure::{Cell, Meter};
use rmsnorm_cuda::plan::plan;
use rmsnorm_cuda::{Cpu, Dtype};

/// What to time.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Cells as TYPE:ROWSxHIDDEN, separated by commas: bf16:32768x4096,f32:8192x8192.
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// Replays of each graph.
    #[arg(long, default_value_t = 30)]
    replays: usize,
}

/// Runs the bench.
pub(crate) fn run(options: &Options) -> Result<()> {
    let meter = Meter::new(0)?;
    let theoretical = meter.theoretical_bytes_per_second()?;
    println!(
        "{} · theoretical {:.2} TB/s · L2 {} MB · bare launch {:.2} µs",
        meter.kernels().gpu_name(),
        theoretical / 1e12,
        meter.l2_bytes()? >> 20,
        meter.bare_launch(options.replays)?.us_median
    );
    for cell in &options.cells {
        let cell = parse_cell(cell)?;
        let tensors = meter.tensors(cell)?;
        let (copy, copy_how) = meter.ceiling_forward(&tensors, options.replays)?;
        let (add, add_how) = meter.ceiling_backward(&tensors, options.replays)?;
        let forward = meter.forward(&tensors, options.replays)?;
        let backward = meter.backward(&tensors, options.replays)?;
        let bytes = (cell.rows * cell.hidden * cell.dtype.bytes()) as f64;
        let share = |us: f64, tensors: f64| tensors * bytes / (us * 1e-6) / theoretical;
        let differ = meter.download(&tensors)?.mismatches(&Cpu)?;
        let plan = plan(cell.rows, cell.hidden, cell.dtype, &meter.kernels().speed().arch);
        println!(
            "{:>4} {:>8}×{:<7} forward {:>8.1} µs {:.3} of {copy_how} ({:.2}) | backward {:>8.1} µs {:.3} of {add_how} ({:.2}) | {plan} | differ {differ:?}",
            cell.dtype.to_string(),
            cell.rows,
            cell.hidden,
            forward.us_median,
            copy.us_median / forward.us_median,
            share(copy.us_median, 2.0),
            backward.us_median,
            add.us_median / backward.us_median,
            share(add.us_median, 3.0),
        );
    }
    Ok(())
}

fn parse_cell(text: &str) -> Result<Cell> {
    let (dtype, shape) = text.split_once(':').context("a cell is TYPE:ROWSxHIDDEN")?;
    let (rows, hidden) = shape.split_once('x').context("a cell is TYPE:ROWSxHIDDEN")?;
    let Some(dtype) = Dtype::ALL.into_iter().find(|d| d.to_string() == dtype) else {
        bail!("unknown element type {dtype}, expected f32, f16 or bf16");
    };
    Ok(Cell { dtype, rows: rows.parse()?, hidden: hidden.parse()? })
}
