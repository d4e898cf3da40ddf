//! Applies [`bound`] to blocks of rows and judges what an executor returned.
//!
//! Rows are independent, so a caller may check blocks of rows in parallel and merge the tallies; column outputs need a
//! [`Columns`] accumulator, which merges too. Computed values come widened to f64, which is exact for every [`Format`].

use ndarray::{ArrayView1, ArrayView2};

use crate::bound::{self, Allowed, BackwardRow, ColumnSums, Depth, Scale, interval};
use crate::tally::{Failure, Tally};
use crate::{Format, backward, forward};

/// What all rows of one problem share.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// One value per column, widened.
    pub weight: Option<ArrayView1<'a, f64>>,
    /// Added to every weight: 1 for zero-centred weights, else 0.
    pub weight_offset: f64,
    /// One value per column, widened: what is added to y.
    pub bias: Option<ArrayView1<'a, f64>>,
    /// The format, if any, that x_hat is rounded to before the weight, or dy in the sum over the rows, multiplies it.
    pub rounded: Option<Format>,
    /// Added to the mean square, inside the root.
    pub eps: f64,
    /// Depths of the three sums.
    pub depth: Depth,
}

/// What [`check_forward`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ForwardTallies {
    /// Of rstd, one element per row; empty if rstd was not given.
    pub rstd: Tally,
    /// Of y.
    pub y: Tally,
}

impl ForwardTallies {
    /// Both passed.
    pub fn passed(&self) -> bool {
        self.rstd.passed() && self.y.passed()
    }

    /// Adds another block's findings to these.
    pub fn merge(&mut self, other: &ForwardTallies) {
        self.rstd.merge(&other.rstd);
        self.y.merge(&other.y);
    }
}

/// Checks rstd (f32, if given) and y (in `format`) of a block of rows whose first is row `first_row` of the problem.
///
/// # Panics
/// If shapes differ or hidden is 0.
pub fn check_forward(
    setting: &Setting,
    format: Format,
    first_row: usize,
    x: ArrayView2<f64>,
    rstd: Option<&[f32]>,
    y: ArrayView2<f64>,
) -> ForwardTallies {
    assert_eq!(x.dim(), y.dim(), "x and y differ in shape");
    let exact = forward(x, setting.weight, setting.weight_offset, setting.eps);
    let mut tallies = ForwardTallies::default();
    if let Some(rstd) = rstd {
        assert_eq!(rstd.len(), x.nrows(), "rstd must have one value per row");
        for (row, &computed) in rstd.iter().enumerate() {
            let allowed = bound::rstd(setting.v(x.row(row)), setting.depth.forward);
            judge(&mut tallies.rstd, (first_row + row, 0), allowed, f64::from(computed), Format::F32);
        }
    }
    for row in 0..x.nrows() {
        let rho = setting.rho(x.row(row));
        for column in 0..x.ncols() {
            let (x_hat, scale, computed) = (exact.x_hat[[row, column]], setting.scale(column), y[[row, column]]);
            let bias = setting.bias.map(|bias| bias[column]);
            let allowed = match setting.rounded {
                None => bound::y(x_hat, rho, scale, bias, format),
                Some(narrow) => bound::y_rounded_twice(x_hat, rho, scale, bias, narrow, format, computed),
            };
            judge(&mut tallies.y, (first_row + row, column), allowed, computed, format);
        }
    }
    tallies
}

/// Checks dx (in `format`) of a block of rows whose first is row `first_row` of the problem, `dz`, if there is one, being added to it.
/// The bound presumes that rstd came from this arithmetic's own forward.
///
/// # Panics
/// If shapes differ or hidden is 0.
pub fn check_backward_rows(
    setting: &Setting,
    format: Format,
    first_row: usize,
    x: ArrayView2<f64>,
    dy: ArrayView2<f64>,
    dz: Option<ArrayView2<f64>>,
    dx: ArrayView2<f64>,
) -> Tally {
    assert_eq!(x.dim(), dx.dim(), "x and dx differ in shape");
    assert!(dz.is_none_or(|dz| x.dim() == dz.dim()), "x and dz differ in shape");
    let normalised = forward(x, setting.weight, setting.weight_offset, setting.eps);
    let exact = backward(x, dy, setting.weight, setting.weight_offset, setting.eps);
    let mut tally = Tally::default();
    for row in 0..x.nrows() {
        let element = |column: usize| (normalised.x_hat[[row, column]], dy[[row, column]], setting.scale(column));
        let rho = setting.rho(x.row(row));
        let elements = (0..x.ncols()).map(element);
        let bounds = BackwardRow::new(normalised.rstd[row], rho, setting.depth.backward, elements);
        for column in 0..x.ncols() {
            let (x_hat, dy, scale) = element(column);
            let dz = dz.map(|dz| dz[[row, column]]);
            let allowed = bounds.dx(exact.dx[[row, column]], x_hat, dy, scale, dz, format);
            judge(&mut tally, (first_row + row, column), allowed, dx[[row, column]], format);
        }
    }
    tally
}

/// Exact column sums with what their bounds need, gathered over blocks of rows.
#[derive(Clone, Debug)]
pub struct Columns {
    sums: Vec<ColumnSums>,
}

impl Columns {
    /// No rows yet.
    pub fn new(hidden: usize) -> Self {
        Self { sums: vec![ColumnSums::default(); hidden] }
    }

    /// Takes a block of rows.
    ///
    /// # Panics
    /// If shapes differ.
    pub fn add_rows(&mut self, setting: &Setting, x: ArrayView2<f64>, dy: ArrayView2<f64>) {
        assert_eq!(x.dim(), dy.dim(), "x and dy differ in shape");
        assert_eq!(x.ncols(), self.sums.len(), "hidden differs");
        let x_hat = forward(x, None, 0.0, setting.eps).x_hat;
        for row in 0..x.nrows() {
            let rho = setting.rho(x.row(row));
            for (column, sums) in self.sums.iter_mut().enumerate() {
                let (x_hat, dy) = (x_hat[[row, column]], dy[[row, column]]);
                match setting.rounded {
                    None => sums.add(x_hat, rho, dy),
                    Some(narrow) => sums.add_rounded(bound::rounded_x_hat(x_hat, rho, narrow), dy),
                }
            }
        }
    }

    /// Takes what another accumulator gathered from other rows.
    ///
    /// # Panics
    /// If hidden differs.
    pub fn merge(&mut self, other: &Columns) {
        assert_eq!(other.sums.len(), self.sums.len(), "hidden differs");
        for (mine, theirs) in self.sums.iter_mut().zip(&other.sums) {
            mine.merge(theirs);
        }
    }

    /// Checks dw (in `format`), `dw[column]` for each column. Columns are reported with row 0. What the bound allows, but rounding
    /// at random would not reach ([`ColumnSums::dw_alarm`]), raises an alarm.
    pub fn check_dw(&self, depth: Depth, format: Format, dw: &[f64]) -> Tally {
        let mut tally = self.check(format, dw, |sums| sums.dw(depth.column, format));
        for (column, (sums, &computed)) in self.sums.iter().zip(dw).enumerate() {
            let Allowed::Near { exact, .. } = sums.dw(depth.column, format) else { continue };
            let (least, most) = interval(exact, sums.dw_alarm(depth.column), format);
            if computed.is_finite() && (computed < least || most < computed) {
                let (interval, reason) = (Some((least, most)), "would be within this, if roundings were random");
                tally.count_alarm(Failure { row: 0, column, computed, exact, interval, reason });
            }
        }
        tally
    }

    /// Checks db as [`check_dw`](Columns::check_dw) does dw.
    pub fn check_db(&self, depth: Depth, format: Format, db: &[f64]) -> Tally {
        self.check(format, db, |sums| sums.db(depth.column, format))
    }

    fn check(&self, format: Format, computed: &[f64], allowed: impl Fn(&ColumnSums) -> Allowed) -> Tally {
        assert_eq!(computed.len(), self.sums.len(), "hidden differs");
        let mut tally = Tally::default();
        for (column, (sums, &computed)) in self.sums.iter().zip(computed).enumerate() {
            judge(&mut tally, (0, column), allowed(sums), computed, format);
        }
        tally
    }
}

impl Setting<'_> {
    /// The exact mean square plus eps.
    fn v(&self, row: ArrayView1<f64>) -> f64 {
        row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + self.eps
    }

    fn rho(&self, row: ArrayView1<f64>) -> f64 {
        bound::relative_rstd(self.v(row), self.depth.forward)
    }

    fn scale(&self, column: usize) -> Scale {
        let relative = if self.weight_offset == 0.0 { 0.0 } else { Format::F32.unit_roundoff() };
        match self.weight {
            Some(weight) => Scale { weight: weight[column] + self.weight_offset, relative, multiplies: true },
            None => Scale { weight: 1.0, relative: 0.0, multiplies: false },
        }
    }
}

/// Enters one element into the tally. Comparisons are written so that NaN fails them.
fn judge(tally: &mut Tally, at: (usize, usize), allowed: Allowed, computed: f64, format: Format) {
    tally.elements += 1;
    let (row, column) = at;
    let failure =
        |exact: f64, interval, reason: &'static str| Failure { row, column, computed, exact, interval, reason };
    match allowed {
        Allowed::Nan if !computed.is_nan() => tally.count_failure(failure(f64::NAN, None, "must be NaN")),
        Allowed::NotFinite if computed.is_finite() => {
            tally.count_failure(failure(f64::NAN, None, "must not be finite"));
        }
        Allowed::Infinite if computed != f64::INFINITY => {
            tally.count_failure(failure(f64::INFINITY, None, "must be +Inf"));
        }
        Allowed::Nan | Allowed::NotFinite | Allowed::Infinite => {}
        Allowed::Near { exact, error, may_overflow } => {
            let bounded = error < f64::INFINITY;
            tally.may_overflow += u64::from(may_overflow);
            tally.unbounded += u64::from(!bounded);
            if !bounded || may_overflow && !computed.is_finite() {
                return;
            }
            let (least, most) = interval(exact, error, format);
            if !(least <= computed && computed <= most) {
                tally.count_failure(failure(exact, Some((least, most)), "must be within the bound"));
            }
            if computed.is_finite() {
                tally.single += u64::from(least == most);
                let distance = format.distance_before_rounding(computed, exact);
                tally.count_ratio(if distance == 0.0 { 0.0 } else { distance / error }, at);
            }
        }
    }
}
