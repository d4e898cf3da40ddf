//! A kind of call as a call: what [`Kernels::prepare`](super::Kernels::prepare) compiles for.

use super::DeviceMemory;
use crate::plan::Calls;
use crate::{Backward, BiasGradient, Dtype, Error, Forward, Residual, Rows, Vector, WeightGradient, scratch_len};

impl Calls {
    /// Such a call over memory that need not be there.
    #[doc(hidden)]
    pub fn forward(&self) -> Result<Forward<DeviceMemory, DeviceMemory>, Error> {
        let memory = &mut self.memory();
        let x = self.matrix(self.residual.map_or(self.dtype, |[x, _]| x), memory)?;
        let y = self.output(self.y, x, memory)?;
        let residual = match self.residual {
            Some([_, residual]) => {
                let residual = self.matrix(residual, memory)?;
                Some(Residual { residual, z: self.output(self.dtype, residual, memory)? })
            }
            None => None,
        };
        Ok(Forward {
            residual,
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            weight: self.weight.map(|dtype| self.vector(dtype, memory)).transpose()?,
            bias: self.bias.map(|dtype| self.vector(dtype, memory)).transpose()?,
            inner: self.inner(),
            per_head: self.per_head(),
            ..Forward::with_rows((self.rows(), self.hidden), 0.0, x, y)
        })
    }

    /// The same.
    #[doc(hidden)]
    pub fn backward(&self) -> Result<Backward<DeviceMemory, DeviceMemory>, Error> {
        let memory = &mut self.memory();
        let (x, dy) = (self.matrix(self.dtype, memory)?, self.matrix(self.dy, memory)?);
        let dx = self.output(self.dx, dy, memory)?;
        let rstd = memory(Dtype::F32, self.rows())?;
        let needed = self.heads.saturating_mul(scratch_len(self.rows() / self.heads, self.hidden)?);
        let mut gradient = |dw| {
            let dw = self.vector(dw, memory)?;
            Ok(WeightGradient { dw, scratch: memory(Dtype::F32, needed)?.into() })
        };
        let dw = self.dw.map(&mut gradient).transpose()?;
        let db = self.db.map(gradient).transpose()?;
        let db = db.map(|WeightGradient { dw: db, scratch }| BiasGradient { db, scratch });
        Ok(Backward {
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            weight: self.weight.map(|dtype| self.vector(dtype, memory)).transpose()?,
            dw,
            dz: self.dz.map(|dz| self.matrix(dz, memory)).transpose()?,
            db,
            inner: self.inner(),
            per_head: self.per_head(),
            ..Backward::with_rows((self.rows(), self.hidden), x, rstd.into(), dy, dx)
        })
    }

    /// Whether there are two levels that show: the rows of a head have one.
    fn of_levels(&self) -> bool {
        self.two_levels && !self.per_head()
    }

    /// Rows of a group: of two levels two, or the heads.
    fn inner(&self) -> usize {
        if self.of_levels() { 2 } else { self.heads }
    }

    /// As many rows, or the next number that two levels can have.
    fn rows(&self) -> usize {
        let even = |rows: usize| rows.saturating_add(rows % 2);
        if self.of_levels() { even(self.rows.max(4)) } else { self.rows.saturating_mul(self.heads) }
    }

    /// Operands of such a call, one behind the other, where no memory need be.
    fn memory(&self) -> impl FnMut(Dtype, usize) -> Result<DeviceMemory, Error> + use<> {
        let (rows, row_stride) = (self.rows, self.hidden);
        let mut end = 512_u64;
        move |dtype, elements| {
            let address = end;
            let bytes = elements.checked_mul(dtype.bytes()).and_then(|bytes| bytes.checked_next_multiple_of(512));
            let next = bytes.and_then(|bytes| end.checked_add(bytes as u64));
            end = next.ok_or(Error::AddressRange { operand: "a call to prepare", rows, row_stride, offset: 0 })?;
            Ok(DeviceMemory { dtype, address, elements })
        }
    }

    fn matrix(&self, dtype: Dtype, memory: &mut Memory) -> Result<Rows<DeviceMemory>, Error> {
        // One element too many in front is what keeps every row from beginning on 16 bytes.
        let offset = usize::from(!self.aligned);
        // Of two levels as if each group had a row more, which nobody touches.
        let per_group = if self.of_levels() { 3 } else { self.heads };
        let elements =
            (self.rows() / self.inner()).checked_mul(per_group).and_then(|rows| rows.checked_mul(self.hidden));
        let data = memory(dtype, elements.and_then(|n| n.checked_add(offset)).unwrap_or(usize::MAX))?;
        let outer_stride = self.of_levels().then_some(self.hidden.saturating_mul(per_group));
        Ok(Rows { outer_stride, ..Rows::strided(data, offset, self.hidden) })
    }

    /// An output that may have the rows of `input`, if it is of that type.
    fn output(
        &self,
        dtype: Dtype,
        input: Rows<DeviceMemory>,
        memory: &mut Memory,
    ) -> Result<Rows<DeviceMemory>, Error> {
        if self.in_place && dtype == input.data.dtype { Ok(input) } else { self.matrix(dtype, memory) }
    }

    fn vector(&self, dtype: Dtype, memory: &mut Memory) -> Result<Vector<DeviceMemory>, Error> {
        Ok(memory(dtype, self.heads.saturating_mul(self.hidden))?.into())
    }
}

type Memory<'a> = dyn FnMut(Dtype, usize) -> Result<DeviceMemory, Error> + 'a;
