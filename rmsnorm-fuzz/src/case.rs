//! [`Case`]: one adversarial input as small plain data, and how it is drawn.

mod draw;

pub use draw::{boundaries, cases, random_case};

use crate::values::Values;
use rmsnorm_cuda::{Dtype, Rounding, WeightOffset};

/// Everything that decides one forward and one backward call. Buffers are made from it by
/// [`Operands`](crate::Operands).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// Number of rows, M.
    pub rows: usize,
    /// Rows of a group, a divisor of M. 1: there is one level.
    pub inner: usize,
    /// Length of a row, N.
    pub hidden: usize,
    /// Type of what is normalised, `x` or with a residual `z`; and of every matrix that has no other.
    pub dtype: Dtype,
    /// Whether there is a weight, and of which type.
    pub weight: WeightKind,
    /// Added to the weight.
    pub weight_offset: WeightOffset,
    /// Whether x_hat is rounded before the weight multiplies it.
    pub rounding: Rounding,
    /// Whether the gradient of the weight is asked for, and in which type.
    pub dw: DwKind,
    /// Whether the forward call is asked to store `rstd` (the backward call gets it in any case).
    pub rstd: bool,
    /// Added to the mean square.
    pub eps: f32,
    /// Elements of `x`.
    pub x: Values,
    /// Elements of `dy`.
    pub dy: Values,
    /// Elements of the weight.
    pub w: Values,
    /// Whether there is a bias, and of which type.
    pub bias: WeightKind,
    /// Elements of the bias.
    pub b: Values,
    /// Whether the gradient of the bias is asked for, be there one or not, and in which type.
    pub db: DwKind,
    /// Elements of the residual, if there is one. Backward then gets `z` for its `x`.
    pub residual: Option<Values>,
    /// Elements of `dz`, if it is given.
    pub dz: Option<Values>,
    /// Where each operand lies, indexed by [`Name`].
    pub places: [Place; Name::ALL.len()],
    /// How the groups of rows of each operand lie, likewise.
    pub groups: [Groups; Name::ALL.len()],
    /// Of each operand, likewise, its type where it is another than the fields above say. (That of what is normalised, of rstd and of scratch is not.)
    pub types: [Option<Dtype>; Name::ALL.len()],
    /// Decides every random element.
    pub seed: u64,
}

/// The weight of a case, or its bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightKind {
    /// None.
    Absent,
    /// Of the type of `x`.
    Same,
    /// f32.
    F32,
}

impl WeightKind {
    /// The type, `x` being that of x.
    fn of(self, x: Dtype) -> Option<Dtype> {
        match self {
            WeightKind::Absent => None,
            WeightKind::Same => Some(x),
            WeightKind::F32 => Some(Dtype::F32),
        }
    }
}

/// The weight's gradient of a case, or the bias's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DwKind {
    /// Not asked for.
    Absent,
    /// Of the type of the weight, f32 without one; the bias's of the type of `x`.
    Same,
    /// f32.
    F32,
}

/// The operands of a forward and a backward call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are those of the call's fields")]
pub enum Name {
    X,
    Weight,
    Y,
    Rstd,
    Dy,
    Dx,
    Dw,
    Scratch,
    Dz,
    Residual,
    Z,
    Bias,
    Db,
    DbScratch,
}

impl Name {
    /// Every operand, in the order of [`Case::places`].
    pub const ALL: [Name; 14] = [
        Name::X,
        Name::Weight,
        Name::Y,
        Name::Rstd,
        Name::Dy,
        Name::Dx,
        Name::Dw,
        Name::Scratch,
        Name::Dz,
        Name::Residual,
        Name::Z,
        Name::Bias,
        Name::Db,
        Name::DbScratch,
    ];

    /// Whether this operand is a matrix and so has a row stride.
    pub fn is_matrix(self) -> bool {
        !matches!(self, Name::Weight | Name::Bias | Name::Rstd | Name::Dw | Name::Scratch | Name::Db | Name::DbScratch)
    }

    /// Whether its elements are those of the case. (rstd is what forward made of them.)
    pub fn is_input(self) -> bool {
        matches!(self, Name::X | Name::Weight | Name::Bias | Name::Dy | Name::Dz | Name::Residual)
    }

    /// Whether it came later: then it is drawn last, so that the bytes of an older case still give it.
    fn is_drawn_late(self) -> bool {
        matches!(self, Name::Dz | Name::Residual | Name::Z | Name::Bias | Name::Db | Name::DbScratch)
    }

    /// Whether this operand may have a row stride of 0.
    pub fn may_broadcast(self) -> bool {
        self.is_matrix() && self.is_input()
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// Where an operand lies in its buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Elements between an address that is a multiple of 256 bytes and the first element.
    pub offset: u8,
    /// What lies between its rows.
    pub gap: Gap,
}

/// The distance between rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gap {
    /// None: the rows follow each other.
    #[default]
    None,
    /// This many elements.
    Elements(u16),
    /// Row stride 0: one row, seen `rows` times. As `None` for operands that are written.
    Broadcast,
    /// With fewer than two rows, a stride that reaches far beyond the buffer and must be ignored; else as `None`.
    Irrelevant,
}

/// How groups of `inner` rows lie. The rows of a group have the distances of [`Gap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Groups {
    /// One behind the other: all rows are of one level.
    #[default]
    Even,
    /// With this many elements more between them. (Groups of one row have no other stride than this; the rows' is then one that must be ignored.)
    Apart(u16),
    /// Side by side: what is behind a row is the same row of the next group.
    Across,
}

impl Case {
    /// An ordinary case: normal values, a weight of the same type, `dw` asked for, everything aligned and contiguous.
    pub const fn new(rows: usize, hidden: usize, dtype: Dtype) -> Case {
        Case {
            rows,
            inner: 1,
            hidden,
            dtype,
            weight: WeightKind::Same,
            weight_offset: WeightOffset::Zero,
            rounding: Rounding::Once,
            dw: DwKind::Same,
            rstd: true,
            eps: 1e-5,
            x: Values::Normal,
            dy: Values::Normal,
            w: Values::Normal,
            bias: WeightKind::Absent,
            b: Values::Normal,
            db: DwKind::Absent,
            residual: None,
            dz: None,
            places: [Place { offset: 0, gap: Gap::None }; Name::ALL.len()],
            groups: [Groups::Even; Name::ALL.len()],
            types: [None; Name::ALL.len()],
            seed: 0,
        }
    }

    /// Elements of a matrix.
    pub fn elements(&self) -> usize {
        self.rows * self.hidden
    }

    /// Type of an operand, whether or not the calls of the case have it.
    pub fn type_of(&self, operand: Name) -> Dtype {
        let own = self.types[operand as usize];
        match operand {
            Name::Rstd | Name::Scratch | Name::DbScratch => Dtype::F32,
            Name::Z => self.dtype,
            Name::X if self.residual.is_none() => self.dtype,
            Name::Weight => own.or(self.weight.of(self.dtype)).unwrap_or(Dtype::F32),
            Name::Bias => own.or(self.bias.of(self.dtype)).unwrap_or(Dtype::F32),
            Name::Dw if self.dw == DwKind::Same => own.or(self.weight_dtype()).unwrap_or(Dtype::F32),
            Name::Db if self.db == DwKind::Same => own.unwrap_or(self.dtype),
            Name::Dw | Name::Db => own.unwrap_or(Dtype::F32),
            Name::X | Name::Residual | Name::Y | Name::Dy | Name::Dz | Name::Dx => own.unwrap_or(self.dtype),
        }
    }

    /// Type of the weight, if there is one.
    pub fn weight_dtype(&self) -> Option<Dtype> {
        self.has(Name::Weight).then(|| self.type_of(Name::Weight))
    }

    /// Type of the bias, if there is one.
    pub fn bias_dtype(&self) -> Option<Dtype> {
        self.has(Name::Bias).then(|| self.type_of(Name::Bias))
    }

    /// Type of the weight's gradient, if it is asked for.
    pub fn dw_dtype(&self) -> Option<Dtype> {
        self.has(Name::Dw).then(|| self.type_of(Name::Dw))
    }

    /// Type of the bias's gradient, if it is asked for.
    pub fn db_dtype(&self) -> Option<Dtype> {
        self.has(Name::Db).then(|| self.type_of(Name::Db))
    }

    /// Whether the calls of the case have `operand`.
    pub fn has(&self, operand: Name) -> bool {
        match operand {
            Name::Weight => self.weight != WeightKind::Absent,
            Name::Bias => self.bias != WeightKind::Absent,
            Name::Dw | Name::Scratch => self.dw != DwKind::Absent,
            Name::Db | Name::DbScratch => self.db != DwKind::Absent,
            Name::Dz => self.dz.is_some(),
            Name::Residual | Name::Z => self.residual.is_some(),
            _ => true,
        }
    }

    /// Where `operand` lies.
    pub fn place(&self, operand: Name) -> Place {
        self.places[operand as usize]
    }

    /// The same case with `operand` lying elsewhere.
    pub fn with_place(mut self, operand: Name, place: Place) -> Case {
        self.places[operand as usize] = place;
        self
    }

    /// The same case with rows of two levels in groups of `inner`, those of `operand` lying so.
    pub fn with_groups(mut self, inner: usize, operand: Name, groups: Groups) -> Case {
        self.inner = inner;
        self.groups[operand as usize] = groups;
        self
    }

    /// The same case with rows of one level.
    pub fn of_one_level(self) -> Case {
        Case { inner: 1, groups: [Groups::Even; Name::ALL.len()], ..self }
    }

    /// The same case without operands of types of their own.
    pub fn of_one_type(self) -> Case {
        Case { types: [None; Name::ALL.len()], ..self }
    }

    /// The same case with as many rows, of one level if they are no multiple of a group's.
    pub(crate) fn of_rows(self, rows: usize) -> Case {
        Case { rows, inner: if rows.is_multiple_of(self.inner) { self.inner } else { 1 }, ..self }
    }

    /// Whether every row of `operand` is one and the same.
    pub(crate) fn broadcasts(&self, operand: Name) -> bool {
        operand.may_broadcast() && self.place(operand).gap == Gap::Broadcast
    }
}

/// Replayable by eye: everything that differs from [`Case::new`].
impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{} {} eps={:e} x={} dy={}", self.rows, self.hidden, self.dtype, self.eps, self.x, self.dy)?;
        if self.inner != 1 {
            write!(f, " inner={}", self.inner)?;
        }
        match self.weight_dtype() {
            None => write!(f, " w=absent")?,
            Some(dtype) => write!(f, " w={}:{dtype}", self.w)?,
        }
        if self.weight_offset == WeightOffset::One {
            write!(f, "+1")?;
        }
        if let Some(dtype) = self.bias_dtype() {
            write!(f, " bias={}:{dtype}", self.b)?;
        }
        if self.rounding == Rounding::Twice {
            write!(f, " twice")?;
        }
        match self.dw_dtype() {
            None => write!(f, " dw=absent")?,
            Some(dtype) => write!(f, " dw={dtype}")?,
        }
        if let Some(dtype) = self.db_dtype() {
            write!(f, " db={dtype}")?;
        }
        if let Some(residual) = self.residual {
            write!(f, " residual={residual}")?;
        }
        if let Some(dz) = self.dz {
            write!(f, " dz={dz}")?;
        }
        if !self.rstd {
            write!(f, " rstd=absent")?;
        }
        let is_other =
            |operand: &Name| operand.is_matrix() && self.has(*operand) && self.type_of(*operand) != self.dtype;
        for operand in Name::ALL.into_iter().filter(is_other) {
            write!(f, " {operand}:{}", self.type_of(operand))?;
        }
        for operand in Name::ALL.into_iter().filter(|o| !o.is_drawn_late() || self.has(*o)) {
            let Place { offset, gap } = self.place(operand);
            match gap {
                Gap::None if offset == 0 => {}
                Gap::None => write!(f, " {operand}@{offset}")?,
                Gap::Elements(n) => write!(f, " {operand}@{offset}+{n}")?,
                Gap::Broadcast => write!(f, " {operand}@{offset}×0")?,
                Gap::Irrelevant => write!(f, " {operand}@{offset}×any")?,
            }
            match self.groups[operand as usize] {
                Groups::Even => {}
                Groups::Apart(n) => write!(f, " {operand}:groups+{n}")?,
                Groups::Across => write!(f, " {operand}:across")?,
            }
        }
        write!(f, " seed={}", self.seed)
    }
}
