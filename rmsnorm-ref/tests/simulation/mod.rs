//! The arithmetic of `docs/numerics.md` §1 in plain f32 loops, at any number of chains, to attack the bound with; and broken
//! versions of it. It is private to these tests: nothing else may be compared with it.
#![allow(dead_code)]

use ndarray::{ArrayView1, ArrayView2};
use rmsnorm_ref::{Columns, Depth, Format, Setting, Tally, check_backward_rows, check_forward, depth};

/// How the simulation is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mutant {
    None,
    EpsRemoved,
    LastElementDropped,
    CNotDivided,
    WeightTwice,
    OffsetIgnored,
    NoScaledPath,
    EpsNotScaled,
    XHatOff,
    LastRowDropped,
    DzIgnored,
    BiasIgnored,
    BiasAddedToRounded,
    Truncates,
    RoundedOnce,
    DwOfUnrounded,
    DotOfRounded,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) hidden: usize,
    pub(crate) x: Vec<f32>,
    pub(crate) dy: Vec<f32>,
    pub(crate) dz: Option<Vec<f32>>,
    pub(crate) weight: Option<Vec<f32>>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) offset: f32,
    pub(crate) eps: f32,
    pub(crate) chains_forward: usize,
    pub(crate) chains_backward: usize,
    pub(crate) groups: usize,
    pub(crate) format: Format,
    /// Whether x_hat is rounded to `format` first.
    pub(crate) twice: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Computed {
    pub(crate) rstd: Vec<f32>,
    pub(crate) y: Vec<f64>,
    pub(crate) dx: Vec<f64>,
    pub(crate) dw: Vec<f64>,
    pub(crate) db: Vec<f64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) rstd: Tally,
    pub(crate) y: Tally,
    pub(crate) dx: Tally,
    pub(crate) dw: Tally,
    pub(crate) db: Tally,
}

impl Verdict {
    pub(crate) fn outputs(&self) -> [(&'static str, &Tally); 5] {
        [("rstd", &self.rstd), ("y", &self.y), ("dx", &self.dx), ("dw", &self.dw), ("db", &self.db)]
    }

    pub(crate) fn passed(&self) -> bool {
        self.outputs().iter().all(|(_, tally)| tally.passed())
    }
}

impl Case {
    pub(crate) fn rows(&self) -> usize {
        self.x.len() / self.hidden
    }

    pub(crate) fn depth(&self) -> Depth {
        Depth {
            forward: depth(self.hidden as u64, self.chains_forward as u64),
            backward: depth(self.hidden as u64, self.chains_backward as u64),
            column: depth(self.rows() as u64, self.groups as u64),
        }
    }

    pub(crate) fn check(&self, computed: &Computed) -> Verdict {
        self.check_at(self.depth(), computed)
    }

    pub(crate) fn check_at(&self, depth: Depth, computed: &Computed) -> Verdict {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let (x, dy) = (wide(&self.x), wide(&self.dy));
        let [dz, weight, bias] = [&self.dz, &self.weight, &self.bias].map(|values| values.as_deref().map(wide));
        let shape = (self.rows(), self.hidden);
        let matrix = |values| ArrayView2::from_shape(shape, values).unwrap();
        let setting = Setting {
            weight: weight.as_deref().map(ArrayView1::from),
            weight_offset: f64::from(self.offset),
            bias: bias.as_deref().map(ArrayView1::from),
            rounded: Some(self.format).filter(|format| self.twice && *format != Format::F32),
            eps: f64::from(self.eps),
            depth,
        };
        let forward = check_forward(&setting, self.format, 0, matrix(&x), Some(&computed.rstd), matrix(&computed.y));
        let dz = dz.as_deref().map(matrix);
        let dx = check_backward_rows(&setting, self.format, 0, matrix(&x), matrix(&dy), dz, matrix(&computed.dx));
        let mut columns = Columns::new(self.hidden);
        columns.add_rows(&setting, matrix(&x), matrix(&dy));
        let dw = columns.check_dw(setting.depth, self.format, &computed.dw);
        let db = columns.check_db(setting.depth, self.format, &computed.db);
        Verdict { rstd: forward.rstd, y: forward.y, dx, dw, db }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.check(&self.run(Mutant::None))
    }

    pub(crate) fn run(&self, mutant: Mutant) -> Computed {
        let (n, rows) = (self.hidden, self.rows());
        let eps = if mutant == Mutant::EpsRemoved { 0.0 } else { self.eps };
        let scales: Option<Vec<f32>> = self.weight.as_ref().map(|weight| {
            let add = self.offset != 0.0 && mutant != Mutant::OffsetIgnored;
            weight.iter().map(|&w| if add { w + self.offset } else { w }).collect()
        });
        let store = |value| {
            let whole = if mutant == Mutant::Truncates { f64::trunc } else { f64::round_ties_even };
            convert(value, self.format, whole)
        };
        let stored = |value: f32| convert(value, self.format, f64::round_ties_even) as f32;
        let weigh = |value: f32, j: usize| scales.as_ref().map_or(value, |w| value * w[j]);
        let mut out = Computed { rstd: vec![], y: vec![], dx: vec![], dw: vec![], db: vec![] };
        let mut x_hat = vec![0f32; rows * n];
        for row in 0..rows {
            let z = &self.x[row * n..][..n];
            let (rstd, pre, post) = statistic(z, eps, self.chains_forward, mutant);
            out.rstd.push(rstd);
            let normalised: Vec<f32> = z
                .iter()
                .map(|&z| (z * pre) * post * if mutant == Mutant::XHatOff { 1.0 + 1e-6 } else { 1.0 })
                .collect();
            let first: Vec<f32> = normalised.iter().map(|&x| if self.twice { stored(x) } else { x }).collect();
            x_hat[row * n..][..n].copy_from_slice(if mutant == Mutant::DwOfUnrounded { &normalised } else { &first });
            for (j, &h) in if mutant == Mutant::RoundedOnce { &normalised } else { &first }.iter().enumerate() {
                let y = match &self.bias {
                    Some(bias) if mutant == Mutant::BiasAddedToRounded => stored(weigh(h, j)) + bias[j],
                    Some(bias) if mutant != Mutant::BiasIgnored => {
                        h.mul_add(scales.as_ref().map_or(1.0, |w| w[j]), bias[j])
                    }
                    _ => weigh(h, j),
                };
                out.y.push(store(if mutant == Mutant::WeightTwice { weigh(y, j) } else { y }));
            }
            let wdy: Vec<f32> = (0..n).map(|j| weigh(self.dy[row * n + j], j)).collect();
            let in_dot = if mutant == Mutant::DotOfRounded { &first } else { &normalised };
            let dot = reduce(self.chains_backward, n, |j| (wdy[j], in_dot[j]));
            let c = if mutant == Mutant::CNotDivided { dot } else { dot / n as f32 };
            for j in 0..n {
                let t = (-normalised[j]).mul_add(c, wdy[j]);
                out.dx.push(store(match &self.dz {
                    Some(_) if mutant == Mutant::DzIgnored => (t * post) * pre,
                    None => (t * post) * pre,
                    Some(dz) if pre == 1.0 => t.mul_add(post, dz[row * n + j]),
                    Some(dz) => (t * post).mul_add(pre, dz[row * n + j]),
                }));
            }
        }
        let summed = if mutant == Mutant::LastRowDropped { rows.saturating_sub(1) } else { rows };
        for j in 0..n {
            let dy = |i: usize| self.dy[i * n + j];
            out.dw.push(store(reduce(self.groups, summed, |i| (dy(i), x_hat[i * n + j]))));
            out.db.push(store(reduce(self.groups, summed, |i| (dy(i), 1.0))));
        }
        out
    }
}

/// (rstd, pre, post): x_hat is `(z·pre)·post`.
fn statistic(z: &[f32], eps: f32, chains: usize, mutant: Mutant) -> (f32, f32, f32) {
    let n = z.len() as f32;
    let taken = if mutant == Mutant::LastElementDropped { z.len() - 1 } else { z.len() };
    let v = reduce(chains, taken, |j| (z[j], z[j])) / n + eps;
    let scale = match v {
        v if v == f32::INFINITY => 2f32.powi(-100),
        v if v < f32::MIN_POSITIVE => 2f32.powi(100),
        _ => 1.0,
    };
    if scale == 1.0 || mutant == Mutant::NoScaledPath {
        let rstd = 1.0 / v.sqrt();
        return (rstd, 1.0, rstd);
    }
    let eps = if mutant == Mutant::EpsNotScaled { eps } else { eps * scale * scale };
    let v = reduce(chains, taken, |j| (z[j] * scale, z[j] * scale)) / n + eps;
    let root = 1.0 / v.sqrt();
    let rstd = scale * root;
    if rstd == f32::INFINITY { (rstd, scale, root) } else { (rstd, 1.0, rstd) }
}

/// Chains, then the ascending tree, then + 0.0.
fn reduce(chains: usize, length: usize, term: impl Fn(usize) -> (f32, f32)) -> f32 {
    let mut p = vec![0f32; chains.max(1).next_power_of_two()];
    for i in 0..length {
        let (a, b) = term(i);
        p[i % chains] = a.mul_add(b, p[i % chains]);
    }
    let mut distance = 1;
    while distance < p.len() {
        for c in (0..p.len()).step_by(2 * distance) {
            p[c] += p[c + distance];
        }
        distance *= 2;
    }
    p[0] + 0.0
}

/// One conversion, widened again; `whole` makes the number of the last place's units an integer.
pub(crate) fn convert(value: f32, format: Format, whole: fn(f64) -> f64) -> f64 {
    let value = f64::from(value);
    if format == Format::F32 || value == 0.0 || !value.is_finite() {
        return value;
    }
    let (precision, least) = if format == Format::F16 { (11, -14) } else { (8, -126) };
    let exponent = (value.abs().log2().floor() as i32).max(least);
    let spacing = 2f64.powi(exponent - precision + 1);
    let rounded = whole(value / spacing) * spacing;
    if rounded.abs() >= format.overflow_threshold() { f64::INFINITY.copysign(value) } else { rounded }
}

/// A small generator (splitmix64), so that every run attacks with the same numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, limit).
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * 2f64.powi(-53)
    }

    /// ± (1…2) · 2^exponent, by rounding also beyond the range.
    pub(crate) fn at(&mut self, exponent: i32) -> f32 {
        let sign = if self.next() & 1 == 0 { 1.0 } else { -1.0 };
        (sign * (1.0 + self.unit()) * 2f64.powi(exponent)).clamp(-f64::from(f32::MAX), f64::from(f32::MAX)) as f32
    }
}
