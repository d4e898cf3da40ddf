//! The GPU as a device of the bench. [`Meter`] does all that touches it.

use super::cells::{Cell, Direction};
use super::check;
use super::report::{Ceiling, Differ, Gpu, HostTime, Timing};
use super::run::Device;
use anyhow::Result;
use rmsnorm_cuda::cuda::checks::meter::{self, Meter, Tensors};
use rmsnorm_cuda::plan;
use std::sync::Arc;

/// The first GPU.
pub(super) struct OnGpu {
    meter: Arc<Meter>,
    replays: usize,
}

impl OnGpu {
    /// Compiles all that `cells` need.
    pub(super) fn new(cells: &[Cell], replays: usize) -> Result<OnGpu> {
        let meter = Meter::new(0)?;
        let tuning = meter.kernels().tuning();
        meter.prepare(&cells.iter().map(|cell| (metered(cell), tuning)).collect::<Vec<_>>())?;
        Ok(OnGpu { meter, replays })
    }

    /// What is known of the GPU.
    pub(super) fn describe(&self) -> Result<Gpu> {
        let (nvrtc, _) = crate::record::compiler(self.meter.kernels().tuning().arch.compute_capability);
        Ok(Gpu {
            name: self.meter.kernels().gpu_name().into(),
            driver: crate::record::driver_version().unwrap_or_else(|| "unknown".into()),
            nvrtc,
            l2_bytes: self.meter.l2_bytes()?,
            theoretical_bytes_per_second: self.meter.theoretical_bytes_per_second()?,
            bare_launch: timing(self.meter.bare_launch(self.replays)?),
            host: Some(self.meter.host_times()?.map(|time| HostTime {
                bare_us: time.bare_us,
                raw_us: time.raw_us,
                typed_us: time.typed_us,
            })),
        })
    }
}

impl Device for OnGpu {
    type Tensors = (Cell, Tensors);
    const SHARES_CEILINGS: bool = true;

    fn plan(&self, cell: Cell) -> String {
        let (calls, tuning) = (metered(&cell).calls(), self.meter.kernels().tuning());
        let (forward, backward) = (plan::forward(&calls, &tuning), plan::backward(&calls, &tuning));
        let plan::RowOrder { chains, dot_chains } = plan::row_order(cell.hidden);
        format!("forward C{chains} {forward}; backward C{dot_chains} {backward}")
    }

    fn tensors(&self, cell: Cell) -> Result<Self::Tensors> {
        Ok((cell, self.meter.tensors(metered(&cell))?))
    }

    fn sets(&self, (_, tensors): &Self::Tensors) -> usize {
        tensors.sets()
    }

    fn ceiling(&self, (_, tensors): &Self::Tensors, direction: Direction) -> Result<Ceiling> {
        let (best, how) = match direction {
            Direction::Forward => tensors.ceiling_forward(self.replays)?,
            Direction::Backward => tensors.ceiling_backward(self.replays)?,
        };
        Ok(Ceiling { timing: timing(best), how })
    }

    fn call(&self, (_, tensors): &Self::Tensors, direction: Direction) -> Result<Timing> {
        let tuning = self.meter.kernels().tuning();
        Ok(timing(match direction {
            Direction::Forward => tensors.forward(&tuning, self.replays)?,
            Direction::Backward => tensors.backward(&tuning, self.replays)?,
        }))
    }

    fn differ(&self, (cell, tensors): &Self::Tensors) -> Result<Option<Differ>> {
        Ok(Some(check::differ(&tensors.download()?, &metered(cell))?))
    }
}

pub(super) fn metered(&Cell { dtype, rows, hidden, residual, stream, bias, moved, heads }: &Cell) -> meter::Cell {
    meter::Cell { dtype, rows, hidden, residual, stream, bias, moved, heads }
}

fn timing(meter::Timing { us_median, us_p10, us_p90, replays }: meter::Timing) -> Timing {
    Timing { us_median, us_p10, us_p90, replays }
}
