//! What was found in one output.

use super::tensor::Stored;

/// What is asked of one element.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Demand {
    Nan,
    NotFinite,
    Infinite,
    Near { exact: f64, error: f64, may_overflow: bool },
}

/// How elements of an output are compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) stored: Stored,
    /// The conversion cuts off instead of rounding.
    pub(crate) truncates: bool,
}

/// One element worth showing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) computed: f64,
    pub(crate) exact: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) ratio: f64,
    pub(crate) ulp: f64,
}

/// What was found in one output, or in some rows of it. Findings of other rows merge.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) elements: u64,
    pub(crate) outside: u64,
    /// Elements that depend on rows whose squares leave the range of f32, and how many of them are outside.
    pub(crate) beyond: u64,
    pub(crate) beyond_outside: u64,
    pub(crate) unbounded: u64,
    pub(crate) may_overflow: u64,
    pub(crate) single: u64,
    pub(crate) nan: u64,
    pub(crate) infinite: u64,
    /// Zeros outside the bound, and NaN and infinities there.
    pub(crate) zero: u64,
    pub(crate) not_finite: u64,
    pub(crate) alarms: u64,
    pub(crate) first_alarm: Option<Place>,
    pub(crate) worst: Option<Place>,
    /// error/bound in sixteenths; the last bin is what is outside.
    pub(crate) histogram: [u64; 17],
    signed: f64,
    signed_count: u64,
    /// Of conversions whose operand is known to an eighth of a rounding: sums of the error in units of half an ulp.
    bias: f64,
    bias_count: u64,
    /// The first row that `row_outside` counts.
    first_row: usize,
    pub(crate) row_outside: Vec<u32>,
    pub(crate) column_outside: Vec<u32>,
    pub(crate) map: Map,
}

impl Findings {
    /// For rows `rows` of an output of `all` rows × `columns`.
    pub(crate) fn new(rows: std::ops::Range<usize>, all: usize, columns: usize) -> Self {
        Self {
            first_row: rows.start,
            row_outside: vec![0; rows.len()],
            column_outside: vec![0; columns],
            map: Map::new(all, columns),
            ..Self::default()
        }
    }

    /// Signed error towards larger magnitudes, in ULP, on average.
    pub(crate) fn mean_signed(&self) -> Option<f64> {
        (self.signed_count > 0).then(|| self.signed / self.signed_count as f64)
    }

    /// The mean error of conversions in units of half an ulp, and the number of conversions: unbiased rounding has 0 but for
    /// some deviations of 1/√count. [§13.8]
    pub(crate) fn bias(&self) -> Option<(f64, u64)> {
        (self.bias_count > 0).then(|| (self.bias / self.bias_count as f64, self.bias_count))
    }

    /// Enters one element. `alarm` is the error that random rounding does not reach.
    pub(crate) fn element(
        &mut self,
        (row, column): (usize, usize),
        computed: f64,
        demand: Demand,
        manner: Manner,
        (beyond, alarm): (bool, f64),
    ) {
        self.elements += 1;
        self.beyond += u64::from(beyond);
        self.nan += u64::from(computed.is_nan());
        self.infinite += u64::from(computed.is_infinite());
        let Demand::Near { exact, error, may_overflow } = demand else {
            return self.special((row, column), computed, demand, beyond);
        };
        let bounded = error < f64::INFINITY;
        self.may_overflow += u64::from(may_overflow);
        self.unbounded += u64::from(!bounded);
        if !bounded || may_overflow && !computed.is_finite() {
            return;
        }
        let stored = manner.stored;
        let to_stored = |value| if manner.truncates { stored.truncate(value) } else { stored.round(value) };
        let distance = match stored {
            Stored::F64 => (computed - exact).abs(),
            Stored::In(format) => format.distance_before_rounding(computed, exact),
        };
        let (least, most) = (to_stored(exact - error), to_stored(exact + error));
        let inside = least <= computed && computed <= most;
        self.single += u64::from(least == most);
        let ratio = match distance {
            0.0 if inside => 0.0,
            _ if computed.is_nan() => f64::INFINITY,
            _ => distance / error,
        };
        let ulp = stored.ulp(exact);
        let off = (computed - exact) / ulp;
        if off.is_finite() {
            let towards = if exact < 0.0 { -off } else { off };
            self.signed += towards;
            self.signed_count += 1;
            if stored.narrow().is_some() && exact != 0.0 && error < 0.0625 * ulp {
                self.bias += (2.0 * towards).clamp(-2.0, 2.0);
                self.bias_count += 1;
            }
        }
        let place = || Place { row, column, computed, exact, least, most, ratio, ulp: off.abs() };
        if !inside {
            self.zero += u64::from(computed == 0.0);
            self.wrong(Place { ratio: ratio.max(1.0), ..place() }, beyond);
            return;
        }
        self.histogram[((ratio * 16.0) as usize).min(15)] += 1;
        self.map.raise(row, column, ratio.min(1.0));
        if self.worst.as_ref().is_none_or(|worst| ratio > worst.ratio) {
            self.worst = Some(place());
        }
        if alarm < error && distance > alarm {
            self.alarms += 1;
            self.first_alarm.get_or_insert_with(place);
        }
    }

    /// An element of which no number is asked.
    fn special(&mut self, (row, column): (usize, usize), computed: f64, demand: Demand, beyond: bool) {
        let (right, exact) = match demand {
            Demand::Nan => (computed.is_nan(), f64::NAN),
            Demand::Infinite => (computed == f64::INFINITY, f64::INFINITY),
            _ => (!computed.is_finite(), f64::NAN),
        };
        if !right {
            let (least, most) = (exact, exact);
            let (ratio, ulp) = (f64::INFINITY, f64::INFINITY);
            self.wrong(Place { row, column, computed, exact, least, most, ratio, ulp }, beyond);
        }
    }

    fn wrong(&mut self, place: Place, beyond: bool) {
        self.outside += 1;
        self.not_finite += u64::from(!place.computed.is_finite());
        self.beyond_outside += u64::from(beyond);
        self.histogram[16] += 1;
        self.row_outside[place.row - self.first_row] += 1;
        self.column_outside[place.column] += 1;
        self.map.raise(place.row, place.column, place.ratio.max(1.0 + f64::EPSILON));
        // The first of the worst; a place beyond the range does not hide one within it.
        let worse = |worst: &Place| place.ratio > worst.ratio;
        if self.worst.as_ref().is_none_or(worse) {
            self.worst = Some(place);
        }
    }

    pub(crate) fn merge(&mut self, other: Findings) {
        for (mine, theirs) in [
            (&mut self.elements, other.elements),
            (&mut self.outside, other.outside),
            (&mut self.beyond, other.beyond),
            (&mut self.beyond_outside, other.beyond_outside),
            (&mut self.unbounded, other.unbounded),
            (&mut self.may_overflow, other.may_overflow),
            (&mut self.single, other.single),
            (&mut self.nan, other.nan),
            (&mut self.infinite, other.infinite),
            (&mut self.zero, other.zero),
            (&mut self.not_finite, other.not_finite),
            (&mut self.alarms, other.alarms),
            (&mut self.signed_count, other.signed_count),
            (&mut self.bias_count, other.bias_count),
        ] {
            *mine += theirs;
        }
        self.signed += other.signed;
        self.bias += other.bias;
        for (mine, theirs) in self.histogram.iter_mut().zip(other.histogram) {
            *mine += theirs;
        }
        for (i, count) in other.row_outside.iter().enumerate() {
            self.row_outside[other.first_row - self.first_row + i] += count;
        }
        for (mine, theirs) in self.column_outside.iter_mut().zip(&other.column_outside) {
            *mine += theirs;
        }
        self.map.merge(&other.map);
        let before = |a: &Place, b: &Place| (a.row, a.column) < (b.row, b.column);
        if let Some(place) = other.worst
            && self.worst.as_ref().is_none_or(|w| place.ratio > w.ratio || place.ratio == w.ratio && before(&place, w))
        {
            self.worst = Some(place);
        }
        if let Some(place) = other.first_alarm
            && self.first_alarm.as_ref().is_none_or(|first| before(&place, first))
        {
            self.first_alarm = Some(place);
        }
    }
}

/// The largest error/bound of each cell of a coarse grid over an output.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    pub(crate) down: usize,
    pub(crate) across: usize,
    rows: usize,
    columns: usize,
    pub(crate) cells: Vec<f32>,
}

const MAP_ROWS: usize = 32;
const MAP_COLUMNS: usize = 96;

impl Map {
    fn new(rows: usize, columns: usize) -> Self {
        let (down, across) = (rows.min(MAP_ROWS), columns.min(MAP_COLUMNS));
        Self { down, across, rows, columns, cells: vec![0.0; down * across] }
    }

    fn raise(&mut self, row: usize, column: usize, ratio: f64) {
        let cell = row * self.down / self.rows * self.across + column * self.across / self.columns;
        let cell = &mut self.cells[cell];
        *cell = cell.max(ratio as f32);
    }

    fn merge(&mut self, other: &Map) {
        for (mine, theirs) in self.cells.iter_mut().zip(&other.cells) {
            *mine = mine.max(*theirs);
        }
    }
}
