//! The calls that a call of heads with a weight each consists of.

use super::{Backward, BiasGradient, Forward, Residual, WeightGradient};
use crate::order::column_order;
use crate::{Rows, Vector};

/// A view of the rows of one head: of one level, for what is behind a row is that head's next.
pub(crate) fn rows_of_head<D>(
    Rows { offset, row_stride, outer_stride, data }: Rows<D>,
    inner: usize,
    head: usize,
) -> Rows<D> {
    // Of an operand that is checked neither is too far where there is a row; of other numbers it is irrelevant.
    let stride = outer_stride.unwrap_or_else(|| inner.saturating_mul(row_stride));
    Rows::strided(data, offset.saturating_add(head.saturating_mul(row_stride)), stride)
}

/// One head's of what is there once a head.
fn of_head<D>(Vector { data, offset }: Vector<D>, len: usize, head: usize) -> Vector<D> {
    Vector { data, offset: offset + head * len }
}

impl<In: Copy, Out> Forward<In, Out> {
    /// Of a checked call [per head](Self::per_head) that of one head, which stores its rstd at `rstd`. `lend` lends the memory of an output.
    #[doc(hidden)]
    pub fn of_head<'a, O>(
        &'a mut self,
        head: usize,
        rstd: Option<Vector<O>>,
        lend: impl Fn(&'a mut Out) -> O,
    ) -> Forward<In, O> {
        let (inner, hidden) = (self.inner, self.hidden);
        let rows = |rows: Rows<In>| rows_of_head(rows, inner, head);
        let vector = |vector: Vector<In>| of_head(vector, hidden, head);
        let written = |Rows { data, offset, row_stride, outer_stride }: &'a mut Rows<Out>| {
            let (offset, row_stride, outer_stride) = (*offset, *row_stride, *outer_stride);
            rows_of_head(Rows { data: lend(data), offset, row_stride, outer_stride }, inner, head)
        };
        Forward {
            rows: self.rows / inner,
            inner: 1,
            per_head: false,
            hidden,
            eps: self.eps,
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            x: rows(self.x),
            residual: self
                .residual
                .as_mut()
                .map(|Residual { residual, z }| Residual { residual: rows(*residual), z: written(z) }),
            weight: self.weight.map(vector),
            bias: self.bias.map(vector),
            y: written(&mut self.y),
            rstd,
        }
    }
}

impl<In: Copy, Out> Backward<In, Out> {
    /// As that of a forward call; its rstd is read from `rstd`.
    #[doc(hidden)]
    pub fn of_head<'a, O>(
        &'a mut self,
        head: usize,
        rstd: Vector<In>,
        lend: impl Fn(&'a mut Out) -> O,
    ) -> Backward<In, O> {
        let (inner, hidden) = (self.inner, self.hidden);
        let partials = column_order(self.rows / inner, hidden).groups * hidden;
        let rows = |rows: Rows<In>| rows_of_head(rows, inner, head);
        let lent = |Vector { data, offset }: &'a mut Vector<Out>, len| {
            of_head(Vector { data: lend(data), offset: *offset }, len, head)
        };
        let Rows { data, offset, row_stride, outer_stride } = &mut self.dx;
        let dx = Rows { data: lend(data), offset: *offset, row_stride: *row_stride, outer_stride: *outer_stride };
        Backward {
            rows: self.rows / inner,
            inner: 1,
            per_head: false,
            hidden,
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            x: rows(self.x),
            weight: self.weight.map(|w| of_head(w, hidden, head)),
            rstd,
            dy: rows(self.dy),
            dz: self.dz.map(rows),
            dx: rows_of_head(dx, inner, head),
            dw: self.dw.as_mut().map(|WeightGradient { dw, scratch }| WeightGradient {
                dw: lent(dw, hidden),
                scratch: lent(scratch, partials),
            }),
            db: self.db.as_mut().map(|BiasGradient { db, scratch }| BiasGradient {
                db: lent(db, hidden),
                scratch: lent(scratch, partials),
            }),
        }
    }
}
