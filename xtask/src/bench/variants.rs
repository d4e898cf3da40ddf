//! `cargo xtask bench variants`: the ways to run a cell's kernels that change no bit, timed beside what the plan chooses. The tables of
//! plan.rs are chosen by it.

use super::cells::Cell;
use super::gpu::metered;
use anyhow::{Result, ensure};
use rayon::prelude::*;
use rmsnorm_cuda::cuda::checks::meter::Meter;
use rmsnorm_cuda::plan::{self, Source, Tuning, variants};
use rmsnorm_cuda::{Cpu, Executor};
use std::collections::BTreeMap;
use std::io::Write;

/// Times them all, and prints the fastest `best` of each direction and the plan's own.
pub(super) fn run(cells: &[Cell], replays: usize, best: usize, out: &mut impl Write) -> Result<()> {
    let meter = Meter::new(0)?;
    let planned = meter.kernels().tuning();
    writeln!(
        out,
        "{}, {}; fractions of the fastest copy, of the fastest two reads and one write",
        meter.kernels().gpu_name(),
        Cpu.name()
    )?;
    for cell in cells {
        let classes = variants(cell.hidden, cell.dtype);
        let of_class = |class| Tuning { forward: Some(class), backward: Some(class), ..planned };
        let tunings: Vec<Tuning> = classes.iter().map(|class| of_class(*class)).collect();
        // A variant that does not compile for this GPU is left out, and said to be.
        let (compiled, refused): (Vec<Tuning>, Vec<Tuning>) =
            tunings.into_par_iter().partition(|tuning| meter.prepare(&[(metered(cell), *tuning)]).is_ok());
        let tensors = meter.tensors(metered(cell))?;
        let copy = tensors.ceiling_forward(replays)?.0.us_median;
        let add = tensors.ceiling_backward(replays)?.0.us_median;
        let calls = metered(cell).calls();
        let (mut forward, mut backward) = (BTreeMap::new(), BTreeMap::new());
        for tuning in &compiled {
            let us = tensors.forward(tuning, replays)?.us_median;
            forward.insert(plan::forward(&calls, tuning).to_string(), us);
            for stages in STAGES {
                for rate_percent in RATES {
                    let tuning = Tuning { stages: Some(stages), rate_percent: Some(rate_percent), ..*tuning };
                    let plan = plan::backward(&calls, &tuning);
                    let (fits, paced) = match plan.source {
                        Source::Ring { stages, .. } => (stages, true),
                        Source::Cluster { stages, .. } => (stages, false),
                        _ => (0, false),
                    };
                    // Only a team's ring has a pace: for others, one rate stands for all.
                    if fits != stages || (!paced && rate_percent != RATES[0]) {
                        continue;
                    }
                    let us = tensors.backward(&tuning, replays)?.us_median;
                    backward.insert(format!("{plan} at {rate_percent} %"), us);
                }
            }
        }
        for shares in SHARES {
            let tuning = Tuning { shares: Some(shares), ..planned };
            let plan = plan::forward(&calls, &tuning);
            if plan.shares == Some(shares) {
                meter.prepare(&[(metered(cell), tuning)])?;
                forward.insert(plan.to_string(), tensors.forward(&tuning, replays)?.us_median);
            }
        }
        let own = [tensors.forward(&planned, replays)?, tensors.backward(&planned, replays)?];
        ensure!(!forward.is_empty(), "{cell}: no variant compiles for this GPU");
        writeln!(out, "\n{cell}: {} classes, {} of them refused", classes.len(), refused.len())?;
        for (which, launch, ceiling, own, all) in [
            ("forward", plan::forward(&calls, &planned).to_string(), copy, own[0].us_median, forward),
            ("backward", plan::backward(&calls, &planned).to_string(), add, own[1].us_median, backward),
        ] {
            writeln!(out, "  {which:8} {:.3} {own:8.2} µs  planned: {launch}", ceiling / own)?;
            let mut all: Vec<(String, f64)> = all.into_iter().collect();
            all.sort_by(|a, b| a.1.total_cmp(&b.1));
            for (launch, us) in all.iter().take(best) {
                writeln!(out, "  {which:8} {:.3} {us:8.2} µs  {launch}", ceiling / us)?;
            }
        }
    }
    Ok(())
}

/// Blocks that share a row: one, or 1, 2 or 4 for each of its 2 to 4 packs.
const SHARES: [u32; 8] = [1, 2, 3, 4, 6, 8, 12, 16];
const STAGES: [u32; 9] = [0, 2, 3, 4, 5, 6, 7, 9, 11];
const RATES: [u32; 5] = [0, 88, 89, 90, 91];
