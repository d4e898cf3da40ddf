//! What a call computes, and whether it can be carried out.
//!
//! This is the only place that judges user input. Both executors call [`Forward::check`] or [`Backward::check`] first, and
//! nothing is launched or written before it has passed. All sizes, offsets and strides are in elements unless a name ends in
//! `_bytes`.

mod heads;
mod options;

#[cfg(feature = "cuda")]
pub(crate) use self::heads::rows_of_head;
pub use self::options::{Rounding, WeightOffset};
use crate::order::{HIDDEN_MAX, column_order};
use crate::view::{self, Role, Rows, Shape, Table, TableLine, Types, Vector};
use crate::{Dtype, Error, Operand};

/// RMSNorm of every row: `rstd = 1/sqrt(mean(x²) + eps)`, `y = x·rstd·(weight + weight_offset) + bias`; with a [`Residual`] of
/// `z = x + residual` in place of `x`. [`Rounding`] says how often y is rounded.
///
/// ```
/// use rmsnorm_cuda::{Cpu, Executor, Forward, Slice, SliceMut};
///
/// let (x, weight, bias) = ([2.0_f32, -2.0], [3.0_f32, 1.0], [0.25_f32, 0.5]);
/// let mut y = [0.0_f32; 2];
/// Cpu.forward(Forward {
///     weight: Some(Slice::F32(&weight).into()),
///     bias: Some(Slice::F32(&bias).into()),
///     ..Forward::new((1, 2), 0.0, Slice::F32(&x), SliceMut::F32(&mut y))
/// })?;
/// assert_eq!(y, [3.25, -0.5]);
/// # Ok::<(), rmsnorm_cuda::Error>(())
/// ```
///
/// Rows may have two levels, such as the queries in a buffer of tokens with queries, keys and values of several heads:
///
/// ```
/// use rmsnorm_cuda::{Cpu, Executor, Forward, Rows, Slice, SliceMut};
///
/// let (tokens, heads, dim) = (2, 2, 2);
/// let qkv = [1.0_f32, 1.0, 3.0, -3.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 2.0, 2.0, 0.5, 0.5, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0];
/// let q = Rows { data: Slice::F32(&qkv), offset: 0, row_stride: dim, outer_stride: Some(3 * heads * dim) };
/// let mut y = [0.0_f32; 8];
/// let y_rows = Rows::contiguous(SliceMut::F32(&mut y), dim);
/// Cpu.forward(Forward { inner: heads, ..Forward::with_rows((tokens * heads, dim), 0.0, q, y_rows) })?;
/// assert_eq!(y, [1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0]);
/// # Ok::<(), rmsnorm_cuda::Error>(())
/// ```
///
/// Every operand has an element type of its own, but rstd and scratch, which are f32. What is read is widened, which is exact, and what is written is rounded
/// once from f32:
///
/// ```
/// use rmsnorm_cuda::{Cpu, Executor, Forward, Slice, SliceMut, bf16};
///
/// let (x, weight) = ([3.0, 1.0].map(bf16::from_f32), [0.1_f32, 1.0]);
/// let (mut y, mut narrow) = ([0.0_f32; 2], [bf16::ZERO; 2]);
/// for y in [SliceMut::F32(&mut y), SliceMut::Bf16(&mut narrow)] {
///     Cpu.forward(Forward { weight: Some(Slice::F32(&weight).into()), ..Forward::new((1, 2), 0.0, Slice::Bf16(&x), y) })?;
/// }
/// assert_eq!((y, narrow), ([0.13416408, 0.4472136], y.map(bf16::from_f32)));
/// # Ok::<(), rmsnorm_cuda::Error>(())
/// ```
///
/// `In` and `Out` are what an executor reads and writes: [`Slice`](crate::Slice) and [`SliceMut`](crate::SliceMut) on the
/// host. An output may lie where an input does only if its field says so, and then with exactly its rows: in safe Rust by an [`Input`](crate::Input).
#[derive(Debug)]
pub struct Forward<In, Out> {
    /// Number of rows, M; 0 is allowed and writes nothing.
    pub rows: usize,
    /// Rows of a group, where rows have two levels ([`Rows`]): a divisor of M. 1: they have one.
    pub inner: usize,
    /// Whether each row of a group has a weight and a bias of its own, as heads have: both are then inner×N, and row r has those of number
    /// r mod `inner`. Such a call *is* one call for each head, on its M/inner rows alone, in one launch.
    pub per_head: bool,
    /// Length of a row, N: 1 to [`HIDDEN_MAX`].
    pub hidden: usize,
    /// Added to the mean square; finite and not negative.
    pub eps: f32,
    /// Added to the weight; ignored without one.
    pub weight_offset: WeightOffset,
    /// Whether x_hat is rounded before the weight multiplies it.
    pub rounding: Rounding,
    /// M×N.
    pub x: Rows<In>,
    /// What is added to `x`, and where the sum is stored. Absent: nothing is.
    pub residual: Option<Residual<In, Out>>,
    /// N, or inner×N [per head](Self::per_head). Absent: a weight of one.
    pub weight: Option<Vector<In>>,
    /// As long as a weight is, added to the product with the weight before y is rounded. Absent: nothing is.
    pub bias: Option<Vector<In>>,
    /// M×N. It may have exactly the rows of `x`.
    pub y: Rows<Out>,
    /// M, f32: what [`Backward`] needs. Absent: not stored.
    pub rstd: Option<Vector<Out>>,
}

/// The gradients of [`Forward`]: with `x_hat = x·rstd` and `wdy = dy·(weight + weight_offset)`,
/// `dx = rstd·(wdy − x_hat·mean(wdy·x_hat)) + dz`, `dw = Σ_rows dy·x_hat`, this x_hat being [rounded](Rounding) if forward rounds it, and
/// `db = Σ_rows dy`.
#[derive(Debug)]
pub struct Backward<In, Out> {
    /// Number of rows, M; with 0 rows `dw` and `db` are +0.0.
    pub rows: usize,
    /// As in the forward call; the order of rows, and with it `dw`, is that of their numbers, wherever they lie.
    pub inner: usize,
    /// As in the forward call: `dw` and `db` are then inner×N, and each head's is that of a call on its rows alone.
    pub per_head: bool,
    /// Length of a row, N: 1 to [`HIDDEN_MAX`].
    pub hidden: usize,
    /// As in the forward call.
    pub weight_offset: WeightOffset,
    /// As in the forward call.
    pub rounding: Rounding,
    /// M×N: what the forward call normalised, its `x` or the `z` that it stored.
    pub x: Rows<In>,
    /// As in the forward call.
    pub weight: Option<Vector<In>>,
    /// M, f32, as the forward call stored it.
    pub rstd: Vector<In>,
    /// M×N: the gradient of `y`.
    pub dy: Rows<In>,
    /// M×N: a gradient that arrives at `x` by another way, as past the norm of a residual block. Added before dx is rounded. Absent: none.
    pub dz: Option<Rows<In>>,
    /// M×N: the gradient of `x`. It may have exactly the rows of `dy`, `dz` or `x`.
    pub dx: Rows<Out>,
    /// The gradient of the weight. Absent: not computed (a frozen weight).
    pub dw: Option<WeightGradient<Out>>,
    /// The gradient of the bias. Absent: not computed.
    pub db: Option<BiasGradient<Out>>,
}

/// What is added to x before it is normalised, and where the sum goes.
///
/// The sum is rounded once to the type of `z`, and the *stored* sum is normalised: so the call gives the bits of an addition and a
/// call without a residual, and a backward call that is given `z` for its `x` differentiates what forward computed. A gradient that
/// arrives at z by another way is its `dz`; its dx is the gradient of x and of the residual.
///
/// ```
/// use rmsnorm_cuda::{Cpu, Executor, Forward, Residual, Rows, Slice, SliceMut};
///
/// let (x, residual) = ([1.5_f32, -1.5], [0.5_f32, -0.5]);
/// let (mut z, mut y) = ([0.0_f32; 2], [0.0_f32; 2]);
/// let residual = Rows::contiguous(Slice::F32(&residual), 2);
/// Cpu.forward(Forward {
///     residual: Some(Residual { residual, z: Rows::contiguous(SliceMut::F32(&mut z), 2) }),
///     ..Forward::new((1, 2), 0.0, Slice::F32(&x), SliceMut::F32(&mut y))
/// })?;
/// assert_eq!((z, y), ([2.0, -2.0], [1.0, -1.0]));
/// # Ok::<(), rmsnorm_cuda::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Residual<In, Out> {
    /// M×N.
    pub residual: Rows<In>,
    /// M×N. It may have exactly the rows of the residual or of `x`.
    pub z: Rows<Out>,
}

/// Where the gradient of the weight goes, and the memory it is computed in.
#[derive(Debug)]
pub struct WeightGradient<Out> {
    /// N, or inner×N [per head](Backward::per_head).
    pub dw: Vector<Out>,
    /// f32, at least [`scratch_len`] elements; per head `inner` times those of M/inner rows. Its content before the call is irrelevant, and
    /// after the call unspecified. A launch that needs none, of few rows, does not touch it.
    pub scratch: Vector<Out>,
}

/// Where the gradient of the bias goes, and the memory it is computed in. It asks for `dy` alone, so it is there whether or not `dw` is.
///
/// ```
/// use rmsnorm_cuda::{Backward, BiasGradient, Cpu, Executor, Slice, SliceMut, scratch_len};
///
/// let (x, rstd, dy) = ([2.0_f32, -2.0, 2.0, 2.0], [0.5_f32, 0.5], [1.0_f32, 2.0, 0.5, 0.25]);
/// let (mut dx, mut db, mut scratch) = ([0.0_f32; 4], [0.0_f32; 2], vec![0.0_f32; scratch_len(2, 2)?]);
/// Cpu.backward(Backward {
///     db: Some(BiasGradient { db: SliceMut::F32(&mut db).into(), scratch: SliceMut::F32(&mut scratch).into() }),
///     ..Backward::new((2, 2), Slice::F32(&x), Slice::F32(&rstd), Slice::F32(&dy), SliceMut::F32(&mut dx))
/// })?;
/// assert_eq!(db, [1.5, 2.25]);
/// # Ok::<(), rmsnorm_cuda::Error>(())
/// ```
#[derive(Debug)]
pub struct BiasGradient<Out> {
    /// As long as a dw is.
    pub db: Vector<Out>,
    /// As that of [`WeightGradient`], beside it, `db_scratch` in errors.
    pub scratch: Vector<Out>,
}

/// Elements of f32 scratch that a backward call needs for `dw`, and as many for `db`: one partial row for each row group.
pub fn scratch_len(rows: usize, hidden: usize) -> Result<usize, Error> {
    check_hidden(hidden)?;
    // At most 15 groups of 2^24 columns, below 2^28: no overflow.
    Ok(column_order(rows, hidden).groups * hidden)
}

impl<In: Operand, Out: Operand> Forward<In, Out> {
    /// The operands that are there: what is checked of each, and where it lies.
    #[doc(hidden)]
    pub fn operands(&self) -> Table {
        use Role::{Read, Written};
        let shape = self.shape();
        let mut table = Table::new();
        table.push(TableLine::rows("x", Read, &self.x, shape));
        if let Some(Residual { residual, z }) = &self.residual {
            table.push(TableLine::rows("residual", Read, residual, shape));
            table.push(TableLine::rows("z", Written, z, shape).in_place_of(&["x", "residual"]));
        }
        let per_column = (self.heads(), self.hidden);
        table.extend(self.weight.iter().map(|w| weight_line("weight", w, per_column)));
        table.extend(self.bias.iter().map(|b| weight_line("bias", b, per_column)));
        table.push(TableLine::rows("y", Written, &self.y, shape).in_place_of(&["x"]));
        let rstd = |r| TableLine::vector("rstd", Written, Types::One(Dtype::F32), r, (1, self.rows), false);
        table.extend(self.rstd.iter().map(rstd));
        table
    }

    /// Its rows.
    #[doc(hidden)]
    pub fn shape(&self) -> Shape {
        Shape { rows: self.rows, inner: self.inner.max(1), hidden: self.hidden }
    }

    /// The element type of what is normalised: of z with a residual, else of x.
    pub(crate) fn normalised(&self) -> Dtype {
        self.residual.as_ref().map_or(self.x.data.dtype(), |sum| sum.z.data.dtype())
    }

    /// Weights, one behind the other.
    #[doc(hidden)]
    pub fn heads(&self) -> usize {
        if self.per_head { self.inner.max(1) } else { 1 }
    }

    /// Whether this call can be carried out. Reads no data and writes nothing.
    pub fn check(&self) -> Result<(), Error> {
        self.checked().map(drop)
    }

    /// The operands, if this call can be carried out.
    pub(crate) fn checked(&self) -> Result<Table, Error> {
        check_shape(self.rows, self.inner, self.hidden)?;
        // Bits, since a thread that flushes takes a negative subnormal for zero.
        let bits = self.eps.to_bits();
        if bits > f32::MAX.to_bits() && bits != (-0.0_f32).to_bits() {
            return Err(Error::Eps { got: self.eps });
        }
        view::check(self.operands())
    }
}

impl<In, Out> Forward<In, Out> {
    /// Rows of one level without gaps, y rounded once, and nothing that may be absent: no residual, no weight, no bias, no `rstd`. The rest by struct update:
    /// `Forward { weight: Some(w), ..Forward::new(…) }`.
    pub fn new((rows, hidden): (usize, usize), eps: f32, x: In, y: Out) -> Self {
        Forward::with_rows((rows, hidden), eps, Rows::contiguous(x, hidden), Rows::contiguous(y, hidden))
    }

    /// The same of any rows.
    pub fn with_rows((rows, hidden): (usize, usize), eps: f32, x: Rows<In>, y: Rows<Out>) -> Self {
        Forward {
            rows,
            inner: 1,
            per_head: false,
            hidden,
            eps,
            weight_offset: WeightOffset::Zero,
            rounding: Rounding::Once,
            x,
            residual: None,
            weight: None,
            bias: None,
            y,
            rstd: None,
        }
    }

    /// The same call on other operands: `read` and `write` say what stands for each that is read or written.
    pub fn try_map<I, O, E>(
        self,
        mut read: impl FnMut(In) -> Result<I, E>,
        mut write: impl FnMut(Out) -> Result<O, E>,
    ) -> Result<Forward<I, O>, E> {
        Ok(Forward {
            rows: self.rows,
            inner: self.inner,
            per_head: self.per_head,
            hidden: self.hidden,
            eps: self.eps,
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            x: self.x.try_map(&mut read)?,
            residual: match self.residual {
                Some(Residual { residual, z }) => {
                    Some(Residual { residual: residual.try_map(&mut read)?, z: z.try_map(&mut write)? })
                }
                None => None,
            },
            weight: self.weight.map(|w| w.try_map(&mut read)).transpose()?,
            bias: self.bias.map(|b| b.try_map(&mut read)).transpose()?,
            y: self.y.try_map(&mut write)?,
            rstd: self.rstd.map(|r| r.try_map(&mut write)).transpose()?,
        })
    }
}

impl<In: Operand, Out: Operand> Backward<In, Out> {
    /// The operands that are there: what is checked of each, and where it lies.
    #[doc(hidden)]
    pub fn operands(&self) -> Table {
        use Role::{Read, Scratch, Written};
        let (shape, f32) = (self.shape(), Types::One(Dtype::F32));
        let (heads, hidden) = (self.heads(), self.hidden);
        let partials = column_order(self.rows / heads, hidden).groups.saturating_mul(hidden);
        let mut table = Table::new();
        table.push(TableLine::rows("x", Read, &self.x, shape));
        table.extend(self.weight.iter().map(|w| weight_line("weight", w, (heads, hidden))));
        table.push(TableLine::vector("rstd", Read, f32, &self.rstd, (1, self.rows), false));
        table.push(TableLine::rows("dy", Read, &self.dy, shape));
        table.extend(self.dz.iter().map(|dz| TableLine::rows("dz", Read, dz, shape)));
        table.push(TableLine::rows("dx", Written, &self.dx, shape).in_place_of(&["x", "dy", "dz"]));
        if let Some(WeightGradient { dw, scratch }) = &self.dw {
            table.push(TableLine::vector("dw", Written, Types::Any, dw, (heads, hidden), false));
            table.push(TableLine::vector("scratch", Scratch, f32, scratch, (heads, partials), true));
        }
        if let Some(BiasGradient { db, scratch }) = &self.db {
            table.push(TableLine::vector("db", Written, Types::Any, db, (heads, hidden), false));
            table.push(TableLine::vector("db_scratch", Scratch, f32, scratch, (heads, partials), false));
        }
        table
    }

    /// Its rows.
    #[doc(hidden)]
    pub fn shape(&self) -> Shape {
        Shape { rows: self.rows, inner: self.inner.max(1), hidden: self.hidden }
    }

    /// Weights, one behind the other.
    #[doc(hidden)]
    pub fn heads(&self) -> usize {
        if self.per_head { self.inner.max(1) } else { 1 }
    }

    /// Whether this call can be carried out. Reads no data and writes nothing.
    pub fn check(&self) -> Result<(), Error> {
        self.checked().map(drop)
    }

    /// The operands, if this call can be carried out.
    pub(crate) fn checked(&self) -> Result<Table, Error> {
        check_shape(self.rows, self.inner, self.hidden)?;
        view::check(self.operands())
    }
}

impl<In, Out> Backward<In, Out> {
    /// Rows of one level without gaps, and nothing that may be absent: no weight, no `dz`, no `dw`, no `db`. The rest by struct update, as of [`Forward::new`].
    pub fn new((rows, hidden): (usize, usize), x: In, rstd: In, dy: In, dx: Out) -> Self {
        let [x, dy] = [x, dy].map(|data| Rows::contiguous(data, hidden));
        Backward::with_rows((rows, hidden), x, rstd.into(), dy, Rows::contiguous(dx, hidden))
    }

    /// The same of any rows.
    pub fn with_rows(
        (rows, hidden): (usize, usize),
        x: Rows<In>,
        rstd: Vector<In>,
        dy: Rows<In>,
        dx: Rows<Out>,
    ) -> Self {
        Backward {
            rows,
            inner: 1,
            per_head: false,
            hidden,
            weight_offset: WeightOffset::Zero,
            rounding: Rounding::Once,
            x,
            weight: None,
            rstd,
            dy,
            dz: None,
            dx,
            dw: None,
            db: None,
        }
    }

    /// The same call on other operands: `read` and `write` say what stands for each that is read or written.
    pub fn try_map<I, O, E>(
        self,
        mut read: impl FnMut(In) -> Result<I, E>,
        mut write: impl FnMut(Out) -> Result<O, E>,
    ) -> Result<Backward<I, O>, E> {
        let gradient = |g: WeightGradient<Out>, write: &mut dyn FnMut(Out) -> Result<O, E>| {
            Ok(WeightGradient { dw: g.dw.try_map(&mut *write)?, scratch: g.scratch.try_map(write)? })
        };
        Ok(Backward {
            rows: self.rows,
            inner: self.inner,
            per_head: self.per_head,
            hidden: self.hidden,
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            x: self.x.try_map(&mut read)?,
            weight: self.weight.map(|w| w.try_map(&mut read)).transpose()?,
            rstd: self.rstd.try_map(&mut read)?,
            dy: self.dy.try_map(&mut read)?,
            dz: self.dz.map(|dz| dz.try_map(&mut read)).transpose()?,
            dx: self.dx.try_map(&mut write)?,
            dw: self.dw.map(|g| gradient(g, &mut write)).transpose()?,
            db: match self.db {
                Some(BiasGradient { db, scratch }) => {
                    Some(BiasGradient { db: db.try_map(&mut write)?, scratch: scratch.try_map(&mut write)? })
                }
                None => None,
            },
        })
    }
}

fn check_hidden(hidden: usize) -> Result<(), Error> {
    if hidden == 0 || hidden > HIDDEN_MAX { Err(Error::Hidden { got: hidden }) } else { Ok(()) }
}

fn check_shape(rows: usize, inner: usize, hidden: usize) -> Result<(), Error> {
    check_hidden(hidden)?;
    // No number but 0 is a multiple of 0.
    if inner == 0 || !rows.is_multiple_of(inner) { Err(Error::Inner { got: inner, rows }) } else { Ok(()) }
}

/// Of what is one for each column, and read.
fn weight_line<D: Operand>(name: &'static str, vector: &Vector<D>, of: (usize, usize)) -> TableLine {
    TableLine::vector(name, Role::Read, Types::Any, vector, of, true)
}
