//! What a call computes, and whether it can be carried out.
//!
//! This is the only place that judges user input. Both executors call [`Forward::check`] or [`Backward::check`] first, and
//! nothing is launched or written before it has passed. All sizes, offsets and strides are in elements unless a name ends in
//! `_bytes`.

use crate::order::{HIDDEN_MAX, column_order};
use crate::view::{Role, Rows, Vector, check_overlap, rows_extent, vector_extent};
use crate::{Dtype, Error, Operand};

/// What is added to the weight before it multiplies: nothing, or one ("zero-centred" weights).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightOffset {
    /// The weight as it is. No addition takes place, so a weight of −0.0 keeps its sign.
    #[default]
    Zero,
    /// `weight + 1`, rounded once to f32.
    One,
}

/// RMSNorm of every row: `rstd = 1/sqrt(mean(x²) + eps)`, `y = x·rstd·(weight + weight_offset)`.
///
/// `In` and `Out` are what an executor reads and writes: [`Slice`](crate::Slice) and [`SliceMut`](crate::SliceMut) on the
/// host.
#[derive(Debug)]
pub struct Forward<In, Out> {
    /// Number of rows, M; 0 is allowed and writes nothing.
    pub rows: usize,
    /// Length of a row, N: 1 to [`HIDDEN_MAX`].
    pub hidden: usize,
    /// Added to the mean square; finite and not negative.
    pub eps: f32,
    /// Added to the weight; ignored without one.
    pub weight_offset: WeightOffset,
    /// M×N, any element type.
    pub x: Rows<In>,
    /// N, of the type of `x` or f32. Absent: a weight of one.
    pub weight: Option<Vector<In>>,
    /// M×N, of the type of `x`.
    pub y: Rows<Out>,
    /// M, f32: what [`Backward`] needs. Absent: not stored.
    pub rstd: Option<Vector<Out>>,
}

/// The gradients of [`Forward`]: with `x_hat = x·rstd` and `wdy = dy·(weight + weight_offset)`,
/// `dx = rstd·(wdy − x_hat·mean(wdy·x_hat))` and `dw = Σ_rows dy·x_hat`.
#[derive(Debug)]
pub struct Backward<In, Out> {
    /// Number of rows, M; with 0 rows `dw` is +0.0.
    pub rows: usize,
    /// Length of a row, N: 1 to [`HIDDEN_MAX`].
    pub hidden: usize,
    /// As in the forward call.
    pub weight_offset: WeightOffset,
    /// M×N, as in the forward call.
    pub x: Rows<In>,
    /// N, as in the forward call.
    pub weight: Option<Vector<In>>,
    /// M, f32, as the forward call stored it.
    pub rstd: Vector<In>,
    /// M×N, of the type of `x`: the gradient of `y`.
    pub dy: Rows<In>,
    /// M×N, of the type of `x`: the gradient of `x`.
    pub dx: Rows<Out>,
    /// The gradient of the weight. Absent: not computed (a frozen weight).
    pub dw: Option<WeightGradient<Out>>,
}

/// Where the gradient of the weight goes, and the memory it is computed in.
#[derive(Debug)]
pub struct WeightGradient<Out> {
    /// N, f32 or of the type of the weight.
    pub dw: Vector<Out>,
    /// f32, at least [`scratch_len`] elements. Its content before the call is irrelevant, and after the call unspecified.
    pub scratch: Vector<Out>,
}

/// Elements of f32 scratch that a backward call with `dw` needs: one partial row for each row group.
pub fn scratch_len(rows: usize, hidden: usize) -> Result<usize, Error> {
    check_hidden(hidden)?;
    // At most 15 groups of 2^24 columns, below 2^28: no overflow.
    Ok(column_order(rows, hidden).groups * hidden)
}

impl<In: Operand, Out: Operand> Forward<In, Out> {
    /// Whether this call can be carried out. Reads no data and writes nothing.
    pub fn check(&self) -> Result<(), Error> {
        check_hidden(self.hidden)?;
        // Bits, since a thread that flushes takes a negative subnormal for zero.
        let bits = self.eps.to_bits();
        if bits > f32::MAX.to_bits() && bits != (-0.0_f32).to_bits() {
            return Err(Error::Eps { got: self.eps });
        }
        let dtype = self.x.data.dtype();
        let mut operands = Vec::with_capacity(4);
        operands.push(rows_extent("x", &self.x, Role::Read, self.rows, self.hidden)?);
        if let Some(weight) = &self.weight {
            check_type_or_f32("weight", &weight.data, dtype)?;
            operands.push(vector_extent("weight", weight, Role::Read, self.hidden)?);
        }
        check_type("y", &self.y.data, dtype)?;
        operands.push(rows_extent("y", &self.y, Role::Written, self.rows, self.hidden)?);
        if let Some(rstd) = &self.rstd {
            check_type("rstd", &rstd.data, Dtype::F32)?;
            operands.push(vector_extent("rstd", rstd, Role::Written, self.rows)?);
        }
        check_overlap(&operands)
    }
}

impl<In, Out> Forward<In, Out> {
    /// The same call on other operands: `read` and `write` say what stands for each that is read or written.
    pub fn try_map<I, O, E>(
        self,
        mut read: impl FnMut(In) -> Result<I, E>,
        mut write: impl FnMut(Out) -> Result<O, E>,
    ) -> Result<Forward<I, O>, E> {
        Ok(Forward {
            rows: self.rows,
            hidden: self.hidden,
            eps: self.eps,
            weight_offset: self.weight_offset,
            x: self.x.try_map(&mut read)?,
            weight: self.weight.map(|w| w.try_map(&mut read)).transpose()?,
            y: self.y.try_map(&mut write)?,
            rstd: self.rstd.map(|r| r.try_map(&mut write)).transpose()?,
        })
    }
}

impl<In: Operand, Out: Operand> Backward<In, Out> {
    /// Whether this call can be carried out. Reads no data and writes nothing.
    pub fn check(&self) -> Result<(), Error> {
        check_hidden(self.hidden)?;
        let dtype = self.x.data.dtype();
        let mut operands = Vec::with_capacity(7);
        operands.push(rows_extent("x", &self.x, Role::Read, self.rows, self.hidden)?);
        if let Some(weight) = &self.weight {
            check_type_or_f32("weight", &weight.data, dtype)?;
            operands.push(vector_extent("weight", weight, Role::Read, self.hidden)?);
        }
        check_type("rstd", &self.rstd.data, Dtype::F32)?;
        operands.push(vector_extent("rstd", &self.rstd, Role::Read, self.rows)?);
        check_type("dy", &self.dy.data, dtype)?;
        operands.push(rows_extent("dy", &self.dy, Role::Read, self.rows, self.hidden)?);
        check_type("dx", &self.dx.data, dtype)?;
        operands.push(rows_extent("dx", &self.dx, Role::Written, self.rows, self.hidden)?);
        if let Some(WeightGradient { dw, scratch }) = &self.dw {
            let weight = self.weight.as_ref().map_or(Dtype::F32, |w| w.data.dtype());
            check_type_or_f32("dw", &dw.data, weight)?;
            operands.push(vector_extent("dw", dw, Role::Written, self.hidden)?);
            check_type("scratch", &scratch.data, Dtype::F32)?;
            let needed = scratch_len(self.rows, self.hidden)?;
            operands.push(vector_extent("scratch", scratch, Role::Written, needed)?);
        }
        check_overlap(&operands)
    }
}

impl<In, Out> Backward<In, Out> {
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
            hidden: self.hidden,
            weight_offset: self.weight_offset,
            x: self.x.try_map(&mut read)?,
            weight: self.weight.map(|w| w.try_map(&mut read)).transpose()?,
            rstd: self.rstd.try_map(&mut read)?,
            dy: self.dy.try_map(&mut read)?,
            dx: self.dx.try_map(&mut write)?,
            dw: self.dw.map(|g| gradient(g, &mut write)).transpose()?,
        })
    }
}

fn check_hidden(hidden: usize) -> Result<(), Error> {
    if hidden == 0 || hidden > HIDDEN_MAX { Err(Error::Hidden { got: hidden }) } else { Ok(()) }
}

fn check_type(operand: &'static str, data: &impl Operand, expected: Dtype) -> Result<(), Error> {
    let got = data.dtype();
    if got == expected { Ok(()) } else { Err(Error::ElementType { operand, expected: expected.to_string(), got }) }
}

fn check_type_or_f32(operand: &'static str, data: &impl Operand, dtype: Dtype) -> Result<(), Error> {
    let got = data.dtype();
    if got == dtype || got == Dtype::F32 {
        return Ok(());
    }
    let expected = if dtype == Dtype::F32 { "f32".into() } else { format!("{dtype} or f32") };
    Err(Error::ElementType { operand, expected, got })
}
