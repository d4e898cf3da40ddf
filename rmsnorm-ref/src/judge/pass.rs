//! One walk over a case: every output that it holds, compared with what a [`Model`] says and the bound allows.

use super::any_order::{Arithmetic, Column, Element, Gradient, Scale, with_dz};
use super::file::Case;
use super::findings::{Demand, Findings, Manner};
use super::model::{Backward, Model, RowStatistic, Statistic};
use super::progress::Progress;
use super::tensor::Stored;
use crate::Rounded;
use crate::bound::{SLACK, gamma};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

pub(crate) type Outputs = BTreeMap<&'static str, Findings>;

/// Which part of a case a walk judges.
pub(crate) struct Scope<'a> {
    /// The rows to judge; None for all.
    pub(crate) rows: Option<&'a [usize]>,
    /// Whether dw and db are judged: this takes all rows.
    pub(crate) columns: bool,
    pub(crate) progress: &'a Progress,
}

/// Rows up to this long have their columns summed in the same walk.
const SHORT: usize = 1 << 16;
/// Columns of longer rows that are summed at a time.
const BLOCK: usize = 1 << 14;

pub(crate) struct Pass<'a> {
    pub(crate) case: &'a Case<'a>,
    pub(crate) model: Model,
    pub(crate) bound: Arithmetic,
    pub(crate) alarm: Arithmetic,
    scales: Option<Vec<f64>>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(case: &'a Case<'a>, model: Model) -> Self {
        let (row, column) = case.options.heights(case.rows, case.hidden);
        let bound = Arithmetic { row, column, lambda: None, unrounded: model.unrounded, twice: model.twice };
        let alarm = Arithmetic { lambda: Some(LAMBDA), ..bound };
        let scales = case.weight.as_ref().filter(|_| model.weighted);
        let scales = scales.map(|weight| weight.iter().map(|w| w + model.offset).collect());
        Self { case, model, bound, alarm, scales }
    }

    /// Every output within the scope.
    pub(crate) fn run(&self, scope: &Scope<'_>) -> Outputs {
        let Case { rows, hidden, .. } = *self.case;
        let columns = scope.columns && (self.has("dw") || self.has("db"));
        let mut outputs = self.empty(0..rows);
        let mut sums = vec![Column::default(); if columns && hidden <= SHORT { hidden } else { 0 }];
        let mut few = false;
        if let Some(chosen) = scope.rows {
            let mut scratch = Scratch::new(hidden);
            for &row in chosen {
                self.row(row, &mut scratch, &mut outputs, None);
            }
        } else {
            let span = (rows.div_ceil(8 * rayon::current_num_threads())).clamp(1, (1 << 22) / hidden.min(1 << 22));
            let spans: Vec<Range<usize>> = (0..rows).step_by(span).map(|at| at..rows.min(at + span)).collect();
            let walked = spans.into_par_iter().map(|span| {
                let mut outputs = self.empty(span.clone());
                let mut scratch = Scratch::new(hidden);
                let mut sums = vec![Column::default(); sums.len()];
                let (mut few, short) = (false, !sums.is_empty());
                for row in span.clone() {
                    few |= self.row(row, &mut scratch, &mut outputs, short.then_some(&mut sums[..]));
                }
                scope.progress.add(span.len() * hidden);
                (outputs, sums, few)
            });
            let parts: Vec<_> = walked.collect();
            for (part, column_sums, few_of_span) in parts {
                for (name, findings) in part {
                    outputs.get_mut(name).expect("the same outputs").merge(findings);
                }
                sums.iter_mut().zip(&column_sums).for_each(|(mine, theirs)| mine.merge(theirs));
                few |= few_of_span;
            }
        }
        if columns {
            if hidden > SHORT {
                sums = self.long_columns(scope.progress);
            }
            self.columns(&sums, few, &mut outputs);
        }
        outputs
    }

    fn has(&self, name: &str) -> bool {
        self.case.tensor(name).is_some()
    }

    fn empty(&self, rows: Range<usize>) -> Outputs {
        let Case { rows: all, hidden, .. } = *self.case;
        let mut outputs = Outputs::new();
        for name in super::file::OUTPUTS.into_iter().filter(|name| self.has(name)) {
            outputs.insert(
                name,
                match name {
                    "rstd" => Findings::new(rows.clone(), all, 1),
                    "dw" | "db" => Findings::new(0..1, 1, hidden),
                    _ => Findings::new(rows.clone(), all, hidden),
                },
            );
        }
        outputs
    }

    /// What is normalised in a row: the stored sum where there is one.
    pub(crate) fn load(&self, row: usize, out: &mut [f64]) {
        let case = self.case;
        let at = row * case.hidden;
        match (case.tensor("residual"), case.tensor("z")) {
            (None, None) => case.x().read(at, out),
            (_, Some(z)) if !self.model.unrounded => z.read(at, out),
            (Some(residual), _) => {
                case.x().read(at, out);
                let stored = case.tensor("z").map_or(case.x().stored, |z| z.stored);
                let mut added = vec![0.0; case.hidden];
                residual.read(at, &mut added);
                for (x, residual) in out.iter_mut().zip(added) {
                    *x += residual;
                    if !self.model.unrounded {
                        *x = stored.round(f64::from(*x as f32));
                    }
                }
            }
            (None, Some(_)) => case.x().read(at, out),
        }
    }

    fn relative(&self) -> f64 {
        if self.model.offset == 0.0 || self.scales.is_none() { 0.0 } else { crate::Format::F32.unit_roundoff() }
    }

    fn rho(&self, statistic: &RowStatistic) -> (f64, f64, bool) {
        let (rho, beyond) = self.bound.rho(statistic.v, self.case.hidden);
        let alarmed = self.alarm.rho(statistic.v, self.case.hidden).0;
        (rho + statistic.spread, alarmed + statistic.spread, beyond)
    }

    /// Judges one row and adds it to the columns. Whether it has few magnitudes, so that the alarm's model is false.
    fn row(&self, row: usize, s: &mut Scratch, outputs: &mut Outputs, sums: Option<&mut [Column]>) -> bool {
        let (case, hidden) = (self.case, self.case.hidden);
        self.load(row, &mut s.z);
        let at = row * hidden;
        if let Some(z) = case.tensor("z") {
            self.judge_z(row, z.stored, s, outputs);
        }
        let statistic = self.model.statistic.of(&s.z);
        let RowStatistic { mean, rstd, v, level, .. } = statistic;
        let (rho, alarmed, beyond) = self.rho(&statistic);
        // How far x_hat may be shifted by the error of a mean that is subtracted.
        let shift = self.shift(level, rstd);
        let few = few_magnitudes(&s.z);
        let alarm = |error: f64| if few { f64::INFINITY } else { error };
        for (x_hat, z) in s.x_hat.iter_mut().zip(&s.z) {
            *x_hat = (z - mean) * rstd;
        }
        if let Some(tensor) = case.tensor("rstd") {
            let demand = match v {
                v if v.is_nan() => Demand::Nan,
                0.0 => Demand::Infinite,
                _ => Demand::Near { exact: rstd, error: rho * rstd * SLACK, may_overflow: false },
            };
            let findings = outputs.get_mut("rstd").expect("an output");
            let computed = tensor.get(row);
            findings.element(
                (row, 0),
                computed,
                demand,
                self.manner(tensor.stored),
                (beyond, alarm(alarmed * rstd * SLACK)),
            );
        }
        if let Some(tensor) = case.tensor("y") {
            tensor.read(at, &mut s.computed);
            let findings = outputs.get_mut("y").expect("an output");
            let manner = self.manner(tensor.stored);
            for column in 0..hidden {
                let element = self.element(column, s.z[column] - mean, s.x_hat[column], rstd, rho);
                let computed = s.computed[column];
                let (mut demand, error) = self.demand_y(&element, computed, alarmed, tensor.stored);
                if let Demand::Near { error, .. } = &mut demand {
                    *error += shift * element.scale.map_or(1.0, |s| s.weight.abs());
                }
                findings.element((row, column), computed, demand, manner, (beyond, alarm(error)));
            }
        }
        if let Some(dy) = case.tensor("dy") {
            dy.read(at, &mut s.dy);
            if let Some(tensor) = case.tensor("dx") {
                tensor.read(at, &mut s.computed);
                if let Some(dz) = case.tensor("dz") {
                    dz.read(at, &mut s.dz);
                }
                self.row_dx(
                    row,
                    s,
                    (rstd, rho, alarmed, few),
                    (tensor.stored, beyond, shift),
                    outputs.get_mut("dx").expect("an output"),
                );
            }
            if let Some(sums) = sums {
                self.add_columns(&s.x_hat, &s.dy, (rho, alarmed, shift, beyond), sums);
            }
        }
        few
    }

    fn shift(&self, level: f64, rstd: f64) -> f64 {
        if level == 0.0 { 0.0 } else { 2.0 * gamma(self.bound.row + 4) * level * rstd }
    }

    fn manner(&self, stored: Stored) -> Manner {
        Manner { stored, truncates: self.model.truncates && stored != Stored::F64 }
    }

    fn element(&self, column: usize, z: f64, x_hat: f64, rstd: f64, rho: f64) -> Element {
        let relative = self.relative();
        let scale = self.scales.as_ref().map(|w| Scale { weight: w[column], relative });
        let bias = self.case.bias.as_ref().map(|bias| bias[column]);
        Element { z, x_hat, rstd, rho, scale, bias }
    }

    /// z is what x + residual rounds to, or x itself: equality.
    fn judge_z(&self, row: usize, stored: Stored, s: &mut Scratch, outputs: &mut Outputs) {
        let case = self.case;
        let at = row * case.hidden;
        case.x().read(at, &mut s.computed);
        if let Some(residual) = case.tensor("residual") {
            residual.read(at, &mut s.dz);
            s.computed
                .iter_mut()
                .zip(&s.dz)
                .for_each(|(x, residual)| *x = stored.round(f64::from((*x + residual) as f32)));
        }
        let z = case.tensor("z").expect("it is judged");
        let findings = outputs.get_mut("z").expect("an output");
        z.read(at, &mut s.dz);
        for (column, (&computed, &exact)) in s.dz.iter().zip(&s.computed).enumerate() {
            let demand =
                if exact.is_nan() { Demand::Nan } else { Demand::Near { exact, error: 0.0, may_overflow: false } };
            findings.element((row, column), computed, demand, self.manner(stored), (false, f64::INFINITY));
        }
    }

    fn demand_y(&self, at: &Element, computed: f64, alarmed: f64, stored: Stored) -> (Demand, f64) {
        if at.x_hat.is_nan() || at.bias.is_some_and(f64::is_nan) {
            return (Demand::Nan, f64::INFINITY);
        }
        let finite = |value: Option<f64>| value.is_none_or(f64::is_finite);
        if !finite(at.scale.map(|s| s.weight)) || !finite(at.bias) {
            return (Demand::NotFinite, f64::INFINITY);
        }
        if let Some(format) = self.model.twice {
            return (self.demand_rounded(at, computed, stored, format), f64::INFINITY);
        }
        let exact = at.x_hat * at.scale.map_or(1.0, |s| s.weight) + at.bias.unwrap_or(0.0);
        if at.x_hat.is_infinite() {
            // Squares vanished and eps is 0.
            let demand =
                if exact.is_nan() { Demand::Nan } else { Demand::Near { exact, error: 0.0, may_overflow: false } };
            return (demand, f64::INFINITY);
        }
        let (error, may_overflow) = self.bound.y(at, stored);
        let (alarm, _) = self.alarm.y(&Element { rho: alarmed, ..*at }, stored);
        (Demand::Near { exact, error, may_overflow }, alarm)
    }

    /// y of a rounded x_hat.
    fn demand_rounded(&self, at: &Element, computed: f64, stored: Stored, format: crate::Format) -> Demand {
        let rounded = Rounded::new(at.x_hat, self.bound.x_hat(at.x_hat, at.rho) * SLACK, format);
        let of = |h| self.bound.y_of_rounded(h, at.scale, at.bias, stored);
        let (exact, error) = rounded.explaining(computed, of, |value| stored.round(value));
        Demand::Near { exact, error, may_overflow: false }
    }

    fn row_dx(
        &self,
        row: usize,
        s: &Scratch,
        (rstd, rho, alarmed, few): (f64, f64, f64, bool),
        (stored, beyond, shift): (Stored, bool, f64),
        findings: &mut Findings,
    ) {
        let hidden = self.case.hidden;
        let power = if self.model.backward == Backward::WeightTwice { 2 } else { 1 };
        let weight = |column: usize| self.scales.as_ref().map_or(1.0, |w| w[column].powi(power));
        let wdy = |column: usize| s.dy[column] * weight(column);
        // LayerNorm's gradient has the mean of wdy taken out as well.
        let (mut taken, mut magnitude) = (0.0, 0.0);
        if matches!(self.model.statistic, Statistic::Centred { .. }) {
            taken = (0..hidden).map(wdy).sum::<f64>() / hidden as f64;
            magnitude = (0..hidden).map(|column| wdy(column).abs()).sum::<f64>() / hidden as f64;
        }
        let mean_error = 4.0 * (gamma(self.bound.row + 4) + shift) * magnitude;
        let row_of = || (0..hidden).map(|column| (s.z[column], s.x_hat[column], wdy(column)));
        let mut bound = Gradient::new(&self.bound, (rstd, rho), self.relative(), row_of());
        let mut alarm = Gradient::new(&self.alarm, (rstd, alarmed), self.relative(), row_of());
        if self.model.backward == Backward::NoCorrection {
            (bound.c, alarm.c) = (0.0, 0.0);
        }
        let mut special = None;
        for column in 0..hidden {
            if s.x_hat[column].is_nan() {
                special = Some(Demand::Nan);
                break;
            }
            if !s.dy[column].is_finite() || !weight(column).is_finite() || rstd.is_infinite() {
                special = Some(Demand::NotFinite);
            }
        }
        let has_dz = self.case.tensor("dz").is_some();
        for column in 0..hidden {
            let dz = has_dz.then(|| s.dz[column]);
            let (x_hat, wdy) = (s.x_hat[column], wdy(column));
            let exact = (wdy - taken - x_hat * bound.c) * rstd;
            let (error, may_overflow) = bound.dx(x_hat, wdy);
            let error = error + rstd * mean_error * (1.0 + x_hat.abs());
            let (exact, error) = with_dz(exact, error, dz);
            let demand = match (special, dz) {
                (Some(special), _) => special,
                (None, Some(dz)) if !dz.is_finite() => Demand::NotFinite,
                _ => Demand::Near { exact, error, may_overflow },
            };
            let random = if few { f64::INFINITY } else { alarm.dx(x_hat, wdy).0 * SLACK };
            let beyond = beyond || bound.beyond;
            findings.element((row, column), s.computed[column], demand, self.manner(stored), (beyond, random));
        }
    }

    fn add_columns(
        &self,
        x_hat: &[f64],
        dy: &[f64],
        (rho, alarmed, shift, beyond): (f64, f64, f64, bool),
        sums: &mut [Column],
    ) {
        for ((sums, &x), &dy) in sums.iter_mut().zip(x_hat).zip(dy) {
            let error = self.bound.x_hat(x, rho);
            let random = self.alarm.x_hat(x, alarmed);
            let Some(format) = self.model.twice else {
                sums.add(x, (error + shift, random), dy, beyond);
                continue;
            };
            let [rounded, random] = [error, random].map(|error| Rounded::new(x, error * SLACK, format));
            sums.add(rounded.nearest, (rounded.spread(), random.spread()), dy, beyond);
        }
    }

    /// The columns of rows too long to be summed by every thread: a block of columns at a time.
    fn long_columns(&self, progress: &Progress) -> Vec<Column> {
        let Case { rows, hidden, .. } = *self.case;
        let statistic = |row: usize| {
            let mut z = vec![0.0; hidden];
            self.load(row, &mut z);
            let statistic = self.model.statistic.of(&z);
            let (rho, alarmed, beyond) = self.rho(&statistic);
            let shift = self.shift(statistic.level, statistic.rstd);
            (statistic.mean, statistic.rstd, (rho, alarmed, shift, beyond))
        };
        let statistics: Vec<_> = (0..rows).into_par_iter().map(statistic).collect();
        let mut sums = vec![Column::default(); hidden];
        let dy = self.case.tensor("dy").expect("dw takes dy");
        sums.par_chunks_mut(BLOCK).enumerate().for_each(|(block, sums)| {
            let (first, width) = (block * BLOCK, sums.len());
            let (mut z, mut x_hat, mut dys) = (vec![0.0; hidden], vec![0.0; width], vec![0.0; width]);
            for (row, (mean, rstd, rho)) in statistics.iter().enumerate() {
                if self.case.tensors.contains_key("residual") {
                    self.load(row, &mut z);
                    x_hat.copy_from_slice(&z[first..first + width]);
                } else {
                    let tensor = self.case.tensor("z").unwrap_or(self.case.x());
                    tensor.read(row * hidden + first, &mut x_hat);
                }
                x_hat.iter_mut().for_each(|x| *x = (*x - mean) * rstd);
                dy.read(row * hidden + first, &mut dys);
                self.add_columns(&x_hat, &dys, *rho, sums);
            }
            progress.add(0);
        });
        sums
    }

    fn columns(&self, sums: &[Column], few: bool, outputs: &mut Outputs) {
        for name in ["dw", "db"] {
            let Some(tensor) = self.case.tensor(name) else { continue };
            let findings = outputs.get_mut(name).expect("an output");
            let computed = tensor.values();
            for (column, (sums, &computed)) in sums.iter().zip(&computed).enumerate() {
                let ((error, may_overflow), (random, _), exact, beyond, nan) = match name {
                    "dw" => {
                        (sums.dw_error(&self.bound), sums.dw_error(&self.alarm), sums.dw, sums.beyond, sums.x_hat_nan)
                    }
                    _ => (sums.db_error(&self.bound), sums.db_error(&self.alarm), sums.db, false, false),
                };
                let demand = if nan {
                    Demand::Nan
                } else if sums.dy_not_finite || name == "dw" && sums.x_hat_infinite {
                    Demand::NotFinite
                } else {
                    Demand::Near { exact, error, may_overflow }
                };
                let random = if few { f64::INFINITY } else { random };
                findings.element((0, column), computed, demand, self.manner(tensor.stored), (beyond, random));
            }
        }
    }
}

/// Buffers of a row.
struct Scratch {
    z: Vec<f64>,
    x_hat: Vec<f64>,
    dy: Vec<f64>,
    dz: Vec<f64>,
    computed: Vec<f64>,
}

impl Scratch {
    fn new(hidden: usize) -> Self {
        let [z, x_hat, dy, dz, computed] = std::array::from_fn(|_| vec![0.0; hidden]);
        Self { z, x_hat, dy, dz, computed }
    }
}

/// Whether a row has fewer than 32 distinct magnitudes: roundings are no random numbers then.
fn few_magnitudes(z: &[f64]) -> bool {
    let mut seen: Vec<f64> = Vec::with_capacity(32);
    for z in z {
        let z = z.abs();
        if !seen.contains(&z) {
            if seen.len() == 31 {
                return false;
            }
            seen.push(z);
        }
    }
    true
}

/// λ of the alarm: 2exp(−λ²/2) is 2.5·10^-14.
const LAMBDA: f64 = 8.0;
