//! The buffers of a [`Case`]: every operand lies inside a larger buffer, with redzones before and after it and in the gaps
//! between its rows. Calls get the whole buffer, so the redzones travel to a device and back.

use crate::buffer::{Buffer, Fill};
use crate::case::{Case, Name};
use crate::elements::{Difference, Elements};
use crate::values::{Source, mix, power_of_two};
use rmsnorm_cuda::{
    Backward, BiasGradient, Error, Executor, Forward, Residual, Slice, SliceMut, WeightGradient, scratch_len,
};

/// The operands of a case's two calls.
pub struct Operands {
    case: Case,
    /// Whether each row of a group has a weight of its own.
    per_head: bool,
    buffers: [Option<Buffer>; Name::ALL.len()],
}

impl Operands {
    /// Makes the inputs; everything else is filled with `fill`.
    pub fn new(case: &Case, fill: Fill) -> Operands {
        Operands::mapped(case, fill, (case.rows, false), |_, row| row, Doubling::default())
    }

    /// As [`new`](Self::new), but each row of a group has a weight of its own, and a bias, and gradients of them.
    pub(crate) fn per_head(case: &Case, fill: Fill) -> Operands {
        Operands::mapped(case, fill, (case.rows, true), |_, row| row, Doubling::default())
    }

    /// As [`new`](Self::new), but there are `rows` rows, and row `i` holds what row `source(i)` of the case holds. (Under a
    /// row stride of 0 every row is the case's first.)
    pub(crate) fn with_rows(case: &Case, fill: Fill, rows: usize, source: impl Fn(usize) -> usize + Sync) -> Operands {
        Operands::mapped(case, fill, (rows, false), |_, row| source(row), Doubling::default())
    }

    /// As [`new`](Self::new), but every row of `operand` is a copy of its first.
    pub(crate) fn with_copies(case: &Case, fill: Fill, operand: Name) -> Operands {
        let source = |name: Name, row| if name == operand { 0 } else { row };
        Operands::mapped(case, fill, (case.rows, false), source, Doubling::default())
    }

    /// As [`new`](Self::new), with `x` multiplied by 2^`x`, `dy` by 2^`dy`, and eps by 4^`x`.
    pub(crate) fn doubled(case: &Case, fill: Fill, doubling: Doubling) -> Operands {
        Operands::mapped(case, fill, (case.rows, false), |_, row| row, doubling)
    }

    fn mapped(
        case: &Case,
        fill: Fill,
        (rows, per_head): (usize, bool),
        source: impl Fn(Name, usize) -> usize + Sync,
        doubling: Doubling,
    ) -> Operands {
        let mut built = case.of_rows(rows);
        built.eps = (f64::from(case.eps) * 4.0_f64.powi(doubling.x)) as f32;
        let heads = if per_head { built.inner } else { 1 };
        let buffer = |name: Name| {
            if !case.has(name) {
                return None;
            }
            let shape = match name {
                Name::Rstd => (1, rows),
                Name::Weight | Name::Bias | Name::Dw | Name::Db => (heads, case.hidden),
                Name::Scratch | Name::DbScratch => {
                    let of_head = scratch_len(rows / heads, case.hidden).expect("the width of a case is legal");
                    (1, heads * of_head)
                }
                _ => (rows, case.hidden),
            };
            let mut buffer = Buffer::new(name, case.type_of(name), shape, &built, fill);
            let values = match name {
                Name::X => case.x,
                Name::Dy => case.dy,
                Name::Weight => case.w,
                Name::Bias => case.b,
                Name::Dz => case.dz?,
                Name::Residual => case.residual?,
                _ => return Some(buffer),
            };
            // Another seed for each operand. eps is that of the case: it decides values.
            let seed = mix(case.seed.wrapping_mul(8).wrapping_add(name as u64));
            let is_row = matches!(name, Name::Weight | Name::Bias);
            let data = Source { values, seed, rows: if is_row { heads } else { case.rows }, eps: case.eps };
            let factor = match name {
                Name::X => doubling.x,
                Name::Dy => doubling.dy,
                _ => 0,
            };
            let row = |i| match is_row {
                true => i,
                false if case.broadcasts(name) => 0,
                false => source(name, i),
            };
            buffer.write(&data, row, power_of_two(factor));
            Some(buffer)
        };
        let buffers = Name::ALL.map(buffer);
        Operands { case: built, per_head, buffers }
    }

    /// Whether each row of a group has a weight of its own.
    pub(crate) fn is_per_head(&self) -> bool {
        self.per_head
    }

    /// The case, with the number of rows and the eps that the operands really have.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// Forward and backward, every output as the case asks for it. Backward gets the `rstd` that `executor` itself computed; if
    /// the case does not ask for `rstd`, a second forward call without it makes `y`.
    pub fn run(&mut self, executor: &dyn Executor) -> Result<Outputs, Error> {
        self.forward(executor)?;
        self.backward(executor)?;
        Ok(self.outputs())
    }

    /// Fills outputs and scratch anew with what they held before any call. (Not what lies around them.)
    pub fn refill_outputs(&mut self) {
        for name in Name::ALL.into_iter().filter(|name| !name.is_input()) {
            self.buffers[name as usize].iter_mut().for_each(Buffer::refill);
        }
    }

    /// The forward half of [`run`](Self::run).
    pub fn forward(&mut self, executor: &dyn Executor) -> Result<(), Error> {
        executor.forward(self.forward_call(true))?;
        if !self.case.rstd {
            self.buffer_mut(Name::Y).refill();
            self.buffers[Name::Z as usize].iter_mut().for_each(Buffer::refill);
            executor.forward(self.forward_call(false))?;
        }
        Ok(())
    }

    /// The backward half of [`run`](Self::run).
    pub fn backward(&mut self, executor: &dyn Executor) -> Result<(), Error> {
        executor.backward(self.backward_call())
    }

    /// The forward call.
    pub fn forward_call(&mut self, with_rstd: bool) -> Forward<Slice<'_>, SliceMut<'_>> {
        let Case { rows, inner, hidden, eps, weight_offset, rounding, .. } = self.case;
        let [x, weight, y, rstd, _, _, _, _, _, residual, z, bias, ..] = &mut self.buffers;
        let residual = residual.as_ref().zip(z.as_mut());
        Forward {
            inner,
            per_head: self.per_head,
            weight_offset,
            rounding,
            residual: residual.map(|(residual, z)| Residual { residual: residual.rows(), z: z.rows_mut() }),
            weight: weight.as_ref().map(Buffer::vector),
            bias: bias.as_ref().map(Buffer::vector),
            rstd: rstd.as_mut().filter(|_| with_rstd).map(Buffer::vector_mut),
            ..Forward::with_rows(
                (rows, hidden),
                eps,
                x.as_ref().expect("always there").rows(),
                y.as_mut().expect("always there").rows_mut(),
            )
        }
    }

    /// The backward call; the forward call has stored `rstd`, and `z`, which is then the row that was normalised.
    pub fn backward_call(&mut self) -> Backward<Slice<'_>, SliceMut<'_>> {
        let Case { rows, inner, hidden, weight_offset, rounding, .. } = self.case;
        let [x, weight, _, rstd, dy, dx, dw, scratch, dz, _, z, _, db, db_scratch] = &mut self.buffers;
        let (dw, db) = (dw.as_mut().zip(scratch.as_mut()), db.as_mut().zip(db_scratch.as_mut()));
        Backward {
            inner,
            per_head: self.per_head,
            weight_offset,
            rounding,
            weight: weight.as_ref().map(Buffer::vector),
            dz: dz.as_ref().map(Buffer::rows),
            dw: dw.map(|(dw, scratch)| WeightGradient { dw: dw.vector_mut(), scratch: scratch.vector_mut() }),
            db: db.map(|(db, scratch)| BiasGradient { db: db.vector_mut(), scratch: scratch.vector_mut() }),
            ..Backward::with_rows(
                (rows, hidden),
                z.as_ref().or(x.as_ref()).expect("always there").rows(),
                rstd.as_ref().expect("always there").vector(),
                dy.as_ref().expect("always there").rows(),
                dx.as_mut().expect("always there").rows_mut(),
            )
        }
    }

    /// A copy of every output, without gaps.
    pub fn outputs(&self) -> Outputs {
        let copy = |name| self.buffer(name).expect("always there").copy();
        Outputs {
            rows: self.case.rows,
            hidden: self.case.hidden,
            z: self.buffer(Name::Z).map(Buffer::copy),
            y: copy(Name::Y),
            rstd: copy(Name::Rstd),
            dx: copy(Name::Dx),
            dw: self.buffer(Name::Dw).map(Buffer::copy),
            db: self.buffer(Name::Db).map(Buffer::copy),
        }
    }

    /// The buffer of an operand, if the case has it.
    pub(crate) fn buffer(&self, name: Name) -> Option<&Buffer> {
        self.buffers[name as usize].as_ref()
    }

    pub(crate) fn buffer_mut(&mut self, name: Name) -> &mut Buffer {
        self.buffers[name as usize].as_mut().expect("an operand that the case has")
    }

    /// Lays the rows of an input where those of an output are.
    pub(crate) fn lay(&mut self, input: Name, output: Name) {
        let buffers = self.buffers.get_disjoint_mut([input as usize, output as usize]).expect("two operands");
        let [Some(from), Some(to)] = buffers else { panic!("operands that the case has") };
        to.take_rows(from);
    }

    /// Moves what lies in the outputs and in scratch of `other`, an earlier call of the same shape, into this one's.
    pub(crate) fn adopt_leftovers(&mut self, other: &Operands) {
        for name in Name::ALL.into_iter().filter(|name| !name.is_input()) {
            if let (Some(new), Some(old)) = (self.buffers[name as usize].as_mut(), other.buffer(name)) {
                new.overwrite(old);
            }
        }
    }

    /// The first place outside of every operand whose content changed.
    pub(crate) fn damaged_redzone(&self) -> Option<String> {
        self.buffers.iter().flatten().find_map(Buffer::damaged_redzone)
    }
}

/// Powers of two that operands are multiplied by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Doubling {
    pub(crate) x: i32,
    pub(crate) dy: i32,
}

/// Every output of a case, without gaps.
#[derive(Debug)]
pub struct Outputs {
    /// Number of rows.
    pub rows: usize,
    /// Length of a row.
    pub hidden: usize,
    /// M×N, with a residual.
    pub z: Option<Elements>,
    /// M×N.
    pub y: Elements,
    /// M, f32.
    pub rstd: Elements,
    /// M×N.
    pub dx: Elements,
    /// N.
    pub dw: Option<Elements>,
    /// N.
    pub db: Option<Elements>,
}

impl Outputs {
    /// Where `got` first differs from these outputs, NaNs being equal (§0).
    pub fn difference(&self, got: &Outputs) -> Option<String> {
        self.row_difference(got, |row| row).or_else(|| self.column_difference(got))
    }

    /// As [`difference`](Self::difference), of `y`, `rstd` and `dx`: row `i` of `got` against row `source(i)` of these.
    pub(crate) fn row_difference(&self, got: &Outputs, source: impl Fn(usize) -> usize + Sync) -> Option<String> {
        let [rstd, y, dx] =
            [(&self.rstd, &got.rstd, 1), (&self.y, &got.y, self.hidden), (&self.dx, &got.dx, self.hidden)]
                .map(|(want, got, width)| want.mapped_difference(got, width, &source));
        let z = self.z.as_ref().zip(got.z.as_ref());
        let z = z.and_then(|(want, got)| want.mapped_difference(got, self.hidden, &source));
        let name = |name: &str, d: Option<Difference>| d.map(|d| d.describe(name));
        name("z", z).or_else(|| name("rstd", rstd)).or_else(|| name("y", y)).or_else(|| name("dx", dx))
    }

    /// As [`difference`](Self::difference), of `dw` and `db`.
    pub(crate) fn column_difference(&self, got: &Outputs) -> Option<String> {
        let differs = |name, want: &Option<Elements>, got: &Option<Elements>| {
            let (want, got) = want.as_ref().zip(got.as_ref())?;
            Some(want.mapped_difference(got, self.hidden, |row| row)?.describe(name))
        };
        differs("dw", &self.dw, &got.dw).or_else(|| differs("db", &self.db, &got.db))
    }

    /// Number of elements of all outputs.
    pub fn elements(&self) -> u64 {
        let optional = [&self.z, &self.dw, &self.db].map(|output| output.as_ref().map_or(0, Elements::len));
        (self.y.len() + self.rstd.len() + self.dx.len() + optional.iter().sum::<usize>()) as u64
    }
}
