//! What a run of `bench` leaves behind, and what follows from it. Only what was measured is stored; everything else here is
//! computed from that, so that a committed report can be read again.

use super::cells::{Cell, Direction, is_large, required_cpu, required_cuda, target};
use crate::record;
pub(super) use crate::record::Build;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A run of `cargo xtask bench`, as `--report FILE.json` writes it. A field keeps its meaning as long as `schema` stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Version of this format: 1.
    pub schema: u32,
    /// Whether a required cell is missing: such a report is no evidence.
    pub partial: bool,
    /// Why nothing here counts; empty in a valid report.
    pub invalid: Vec<String>,
    /// The arguments of the command.
    pub command: Vec<String>,
    /// When it began, in seconds since 1970.
    pub started_unix_s: u64,
    /// How long it took.
    pub elapsed_s: f64,
    /// Which binary it was.
    pub build: Build,
    /// What it ran on.
    pub machine: Machine,
    /// How often every cell was measured. The worse of the passes counts.
    pub passes: usize,
    /// The formulas of the bytes that must move.
    pub bytes: String,
    /// One entry for each cell.
    pub cells: Vec<Measured>,
    /// Other libraries on the same machine, as the file of `--peers` says.
    pub peers: Option<Peers>,
}

/// The machine. `gpu` is absent in a report of the CPU executor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    /// The CPU executor, with the instruction set it uses and the number of threads.
    pub cpu: String,
    /// The GPU and its libraries.
    pub gpu: Option<Gpu>,
}

/// A GPU and what drives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Gpu {
    /// As the driver calls it.
    pub name: String,
    /// Version of the driver, where the system tells it.
    pub driver: String,
    /// Version of NVRTC.
    pub nvrtc: String,
    /// Size of the L2 cache.
    pub l2_bytes: usize,
    /// Two transfers a clock over the whole bus, as the driver states clock and width.
    pub theoretical_bytes_per_second: f64,
    /// A launch that does nothing, as one of many in a graph.
    pub bare_launch: Timing,
    /// What a forward and a backward call cost the host. None: an older report.
    #[serde(default)]
    pub host: Option<[HostTime; 2]>,
}

/// Microseconds that a prepared call of 64 × 4096 elements of bf16 takes the thread that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HostTime {
    /// Nothing but `cuLaunchKernel`, for each kernel of the call.
    pub bare_us: f64,
    /// By the raw layer.
    pub raw_us: f64,
    /// By the typed layer, without cudarc's event tracking.
    pub typed_us: f64,
}

/// Times of one call in microseconds, over all replays; each replay's time is the mean over its buffer sets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Timing {
    pub us_median: f64,
    /// A tenth of the replays were faster.
    pub us_p10: f64,
    /// A tenth of the replays were slower.
    pub us_p90: f64,
    pub replays: usize,
}

impl Timing {
    /// Of at least one time in microseconds.
    pub(super) fn of(mut us: Vec<f64>) -> Timing {
        us.sort_by(f64::total_cmp);
        let at = |q: f64| us[((us.len() - 1) as f64 * q).round() as usize];
        Timing { us_median: at(0.5), us_p10: at(0.1), us_p90: at(0.9), replays: us.len() }
    }
}

/// A cell's times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    pub cell: Cell,
    /// What the public call chose.
    pub plan: String,
    /// Buffer sets that each replay goes through.
    pub sets: usize,
    pub passes: Vec<Pass>,
    /// Why a pass is missing.
    pub failures: Vec<String>,
}

/// One measurement of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Pass {
    /// Its number, from 1.
    pub pass: usize,
    pub forward: Timed,
    pub backward: Timed,
    /// Whether the timed launches wrote the CPU's bits; absent where the CPU itself was timed.
    pub differ: Option<Differ>,
}

impl Pass {
    pub(super) fn of(&self, direction: Direction) -> &Timed {
        match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        }
    }
}

/// A call and its ceiling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Timed {
    pub call: Timing,
    pub ceiling: Ceiling,
}

impl Timed {
    /// Of the ceiling.
    pub(super) fn fraction(&self) -> f64 {
        self.ceiling.timing.us_median / self.call.us_median
    }
}

/// The fastest of several ways to move the same bytes, of the same pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ceiling {
    pub timing: Timing,
    /// Which way it was.
    pub how: String,
}

/// Elements whose bits are not those of the CPU executor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Differ {
    /// Elements that were compared: one buffer set, whole tensors.
    pub elements: u64,
    pub y: u64,
    pub rstd: u64,
    pub dx: u64,
    pub dw: u64,
}

/// What `peers.py` writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Peers {
    /// Version of this format: 1.
    pub schema: u32,
    /// As the driver calls the GPU.
    pub gpu: String,
    /// When it began, in seconds since 1970.
    pub started_unix_s: u64,
    /// How long it took.
    pub elapsed_s: f64,
    /// Of everything that was measured or could decide a time.
    pub versions: BTreeMap<String, String>,
    /// How it was measured, and how results were checked.
    pub method: String,
    pub measured: Vec<PeerTime>,
    pub left_out: Vec<LeftOut>,
}

/// One call of another library.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PeerTime {
    pub library: String,
    pub cell: Cell,
    pub direction: Direction,
    #[serde(flatten)]
    pub timing: Timing,
    /// Error of each output against f64, as the norm of the difference over the norm.
    pub errors: BTreeMap<String, f64>,
    /// Whether an error is larger than the check allows: the time of such a call counts for nothing.
    pub wrong: bool,
}

/// Something that was not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LeftOut {
    pub library: String,
    /// Absent: nothing of this library.
    pub cell: Option<Cell>,
    pub why: String,
}

/// What a cell's numbers come to in one direction.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line<'a> {
    pub measured: &'a Measured,
    pub direction: Direction,
    /// The pass with the smallest fraction.
    pub worst: &'a Timed,
    pub fraction: f64,
    pub target: Option<f64>,
    /// Slowest median over fastest median of the passes, less one.
    pub apart: f64,
    /// Other libraries with right results, the fastest first.
    pub peers: Vec<&'a PeerTime>,
}

impl Line<'_> {
    pub(super) fn cell(&self) -> Cell {
        self.measured.cell
    }

    /// None: no target.
    pub(super) fn met(&self) -> Option<bool> {
        self.target.map(|target| self.fraction >= target)
    }

    /// The slowest median of the passes.
    pub(super) fn us(&self) -> f64 {
        self.measured.passes.iter().map(|pass| pass.of(self.direction).call.us_median).fold(0.0, f64::max)
    }

    /// Libraries that were more than 2 % faster.
    pub(super) fn faster(&self) -> Vec<&PeerTime> {
        self.peers.iter().copied().filter(|peer| self.us() > PEER_MARGIN * peer.timing.us_median).collect()
    }

    /// Whether the passes contradict each other. Small tensors are not asked.
    pub(super) fn unsettled(&self) -> bool {
        self.cell().tensor_bytes() >= 100_000_000 && self.apart > APART_MAX
    }

    /// The ceiling's share of the theoretical rate, with the same formula of bytes.
    pub(super) fn share(&self, gpu: &Gpu) -> f64 {
        share(self.cell(), self.direction, self.worst, gpu)
    }
}

impl Report {
    /// One line for each cell and direction.
    pub(super) fn lines(&self) -> Vec<Line<'_>> {
        let both = |measured| Direction::BOTH.map(|direction| self.line(measured, direction));
        self.cells.iter().flat_map(both).flatten().collect()
    }

    fn line<'a>(&'a self, measured: &'a Measured, direction: Direction) -> Option<Line<'a>> {
        let timed = || measured.passes.iter().map(|pass| pass.of(direction));
        let worst = timed().min_by(|a, b| a.fraction().total_cmp(&b.fraction()))?;
        let us = || timed().map(|timed| timed.call.us_median);
        let apart = us().fold(0.0, f64::max) / us().fold(f64::INFINITY, f64::min) - 1.0;
        let all = self.peers.iter().flat_map(|peers| &peers.measured);
        let same = |peer: &&PeerTime| peer.cell == measured.cell && peer.direction == direction && !peer.wrong;
        let mut peers: Vec<_> = all.filter(same).collect();
        peers.sort_by(|a, b| a.timing.us_median.total_cmp(&b.timing.us_median));
        let target = self.machine.gpu.is_some().then(|| target(measured.cell, direction)).flatten();
        Some(Line { measured, direction, worst, fraction: worst.fraction(), target, apart, peers })
    }

    /// Required cells that are not here.
    pub(super) fn missing(&self) -> Vec<Cell> {
        let required = if self.machine.gpu.is_some() { required_cuda() } else { required_cpu() };
        let measured = |cell: &Cell| self.cells.iter().any(|m| m.cell == *cell && m.passes.len() >= self.passes.max(1));
        required.into_iter().filter(|cell| !measured(cell)).collect()
    }

    /// Sets what follows from the measurements.
    pub(super) fn judge(&mut self) {
        self.partial = !self.missing().is_empty();
        self.invalid = self.objections();
    }

    fn objections(&self) -> Vec<String> {
        let mut objections = Vec::new();
        for measured in &self.cells {
            let failed = measured.failures.iter().map(|failure| format!("{}: {failure}", measured.cell));
            objections.extend(failed);
            for pass in &measured.passes {
                let (cell, of) = (measured.cell, pass.pass);
                if let Some(Differ { y, rstd, dx, dw, .. }) = pass.differ.filter(|d| d.y + d.rstd + d.dx + d.dw > 0) {
                    objections.push(format!(
                        "{cell}, pass {of}: bits are not the CPU's: {y} of y, {rstd} of rstd, {dx} of dx, {dw} of dw"
                    ));
                }
                for direction in Direction::BOTH {
                    let timed = pass.of(direction);
                    let numbers = [timed.call.us_median, timed.ceiling.timing.us_median];
                    if !numbers.iter().all(|us| us.is_finite() && *us > 0.0) {
                        objections.push(format!("{cell} {direction}, pass {of}: a time is no time"));
                    }
                    let Some(gpu) = &self.machine.gpu else { continue };
                    let share = share(cell, direction, timed, gpu);
                    if is_large(cell) && gpu.name.contains(CEILING_GPU) && share < CEILING_SHARE_MIN {
                        objections.push(format!(
                            "{cell} {direction}, pass {of}: the ceiling is {share:.3} of the theoretical rate, less than {CEILING_SHARE_MIN}"
                        ));
                    }
                }
            }
        }
        match (&self.peers, &self.machine.gpu) {
            (Some(peers), Some(gpu)) if peers.gpu != gpu.name => {
                objections.push(format!("the other libraries ran on {}, not on {}", peers.gpu, gpu.name));
            }
            _ => {}
        }
        objections
    }

    /// Reads a report, and refuses one whose verdicts are not those of its measurements.
    pub(super) fn read(path: &Path) -> Result<Report> {
        let report: Report = record::read_json(path)?;
        ensure!(report.schema == SCHEMA, "{}: format {}, expected {SCHEMA}", path.display(), report.schema);
        let mut judged = report.clone();
        judged.judge();
        ensure!(judged == report, "{}: its verdicts do not follow from its measurements", path.display());
        Ok(report)
    }
}

impl Peers {
    /// Reads what several runs of `peers.py` wrote, as one.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Option<Peers>> {
        let mut all: Option<Peers> = None;
        for path in paths {
            let new: Peers = record::read_json(path)?;
            ensure!(new.schema == SCHEMA, "{}: format {}, expected {SCHEMA}", path.display(), new.schema);
            let Some(all) = &mut all else {
                all = Some(new);
                continue;
            };
            ensure!(all.gpu == new.gpu, "{} was measured on {}, not on {}", path.display(), new.gpu, all.gpu);
            for (name, version) in new.versions {
                let known = all.versions.entry(name.clone()).or_insert_with(|| version.clone());
                ensure!(*known == version, "{}: {name} {version}, but {known} in another file", path.display());
            }
            all.elapsed_s += new.elapsed_s;
            all.measured.extend(new.measured);
            all.left_out.extend(new.left_out);
        }
        Ok(all)
    }
}

fn share(cell: Cell, direction: Direction, timed: &Timed, gpu: &Gpu) -> f64 {
    direction.bytes(cell) as f64 / (timed.ceiling.timing.us_median * 1e-6) / gpu.theoretical_bytes_per_second
}

pub(super) const SCHEMA: u32 = 1;
pub(super) const BYTES: &str = "forward 2·rows·hidden·size (x read, y written), backward 3·rows·hidden·size (x and dy read, dx \
                                written); weight, rstd, dw and scratch are not counted";
/// A GPU whose memory is known to give this share of its theoretical rate: less, and something else is wrong.
pub(super) const CEILING_GPU: &str = "H200";
pub(super) const CEILING_SHARE_MIN: f64 = 0.85;
pub(super) const APART_MAX: f64 = 0.02;
pub(super) const PEER_MARGIN: f64 = 1.02;
