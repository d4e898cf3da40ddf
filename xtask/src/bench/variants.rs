//! `cargo xtask bench variants`: the ways to run a cell's kernels that change no bit, timed beside what the plan chooses. The tables of
//! plan.rs are chosen by it.

use super::cells::Cell;
use super::gpu::metered;
use anyhow::{Result, ensure};
use rayon::prelude::*;
use rmsnorm_cuda::cuda::Speed;
use rmsnorm_cuda::cuda::measure::Meter;
use rmsnorm_cuda::plan::{Launch, Variant, variants};
use rmsnorm_cuda::{Cpu, Executor};
use std::collections::BTreeMap;
use std::io::Write;

/// Times them all, and prints the fastest `best` of each direction and the plan's own.
pub(super) fn run(cells: &[Cell], replays: usize, best: usize, out: &mut impl Write) -> Result<()> {
    let meter = Meter::new(0)?;
    let planned = meter.kernels().speed();
    writeln!(
        out,
        "{}, {}; fractions of the fastest copy, of the fastest two reads and one write",
        meter.kernels().gpu_name(),
        Cpu.name()
    )?;
    for cell in cells {
        let classes = variants(cell.hidden, cell.dtype);
        let of_class = |class| Speed { variant: Variant { class: Some(class), ..planned.variant }, ..planned };
        let speeds: Vec<Speed> = classes.iter().map(|class| of_class(*class)).collect();
        // A variant that does not compile for this GPU is left out, and said to be.
        let (compiled, refused): (Vec<Speed>, Vec<Speed>) =
            speeds.into_par_iter().partition(|speed| meter.prepare(&[(metered(cell), *speed)]).is_ok());
        let tensors = meter.tensors(metered(cell))?;
        let copy = meter.ceiling_forward(&tensors, replays)?.0.us_median;
        let add = meter.ceiling_backward(&tensors, replays)?.0.us_median;
        let launches = |speed: &Speed| speed.plan(cell.rows, cell.hidden, cell.dtype);
        let (mut forward, mut backward) = (BTreeMap::new(), BTreeMap::new());
        for speed in &compiled {
            let us = meter.forward(&tensors, speed, replays)?.us_median;
            forward.insert(launches(speed).forward.to_string(), us);
            for stages in STAGES {
                for rate_percent in RATES {
                    let variant = Variant { stages: Some(stages), rate_percent: Some(rate_percent), ..speed.variant };
                    let speed = Speed { variant, ..*speed };
                    let Launch { stages: fits, .. } = launches(&speed).backward;
                    // The pace is that of a ring: without one, one rate stands for all.
                    if fits != stages || (stages == 0 && rate_percent != RATES[0]) {
                        continue;
                    }
                    let us = meter.backward(&tensors, &speed, replays)?.us_median;
                    backward.insert(format!("{} at {rate_percent} %", launches(&speed).backward), us);
                }
            }
        }
        let own = [meter.forward(&tensors, &planned, replays)?, meter.backward(&tensors, &planned, replays)?];
        ensure!(!forward.is_empty(), "{cell}: no variant compiles for this GPU");
        writeln!(out, "\n{cell}: {} classes, {} of them refused", classes.len(), refused.len())?;
        let plan = launches(&planned);
        for (which, launch, ceiling, own, all) in [
            ("forward", plan.forward, copy, own[0].us_median, forward),
            ("backward", plan.backward, add, own[1].us_median, backward),
        ] {
            writeln!(out, "  {which:8} {:.3} {own:7.1} µs  planned: {launch}", ceiling / own)?;
            let mut all: Vec<(String, f64)> = all.into_iter().collect();
            all.sort_by(|a, b| a.1.total_cmp(&b.1));
            for (launch, us) in all.iter().take(best) {
                writeln!(out, "  {which:8} {:.3} {us:7.1} µs  {launch}", ceiling / us)?;
            }
        }
    }
    Ok(())
}

const STAGES: [u32; 6] = [0, 2, 3, 4, 5, 6];
const RATES: [u32; 5] = [0, 88, 89, 90, 91];
