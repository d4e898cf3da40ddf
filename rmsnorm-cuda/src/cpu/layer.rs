use crate::{
    Backward, BiasGradient, Cpu, Error, Executor, Forward, Input, Operand, Rounding, Slice, SliceMut, WeightGradient,
    WeightOffset, scratch_len,
};

/// RMSNorm of rows without gaps in host memory, with the scratch that the weight's gradient needs: the short form of [`Cpu`]'s calls, as
/// `cuda::Layer` is on a GPU.
///
/// ```
/// use rmsnorm_cuda::{Layer, WeightOffset};
///
/// let mut layer = Layer::new(4, 0.0, WeightOffset::Zero)?;
/// let (x, dy) = ([2.0_f32, -2.0, 2.0, -2.0], [1.0_f32, 0.0, 0.0, 0.0]);
/// let (mut y, mut dx, mut rstd, mut dw) = ([0.0_f32; 4], [0.0_f32; 4], [0.0_f32; 1], [0.0_f32; 4]);
/// layer.forward(&x[..], None, &mut y[..], Some((&mut rstd[..]).into()))?;
/// layer.backward(&x[..], None, &rstd[..], &dy[..], &mut dx[..], Some((&mut dw[..]).into()))?;
/// assert_eq!((y, rstd), ([1.0, -1.0, 1.0, -1.0], [0.5]));
/// assert_eq!((dx, dw), ([0.375, 0.125, -0.125, 0.125], [1.0, 0.0, 0.0, 0.0]));
/// # Ok::<(), rmsnorm_cuda::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Layer {
    hidden: usize,
    eps: f32,
    weight_offset: WeightOffset,
    rounding: Rounding,
    heads: usize,
    scratch: Vec<f32>,
}

impl Layer {
    /// Rows of `hidden` elements. `eps` is judged by each call.
    pub fn new(hidden: usize, eps: f32, weight_offset: WeightOffset) -> Result<Self, Error> {
        scratch_len(0, hidden)?;
        Ok(Layer { hidden, eps, weight_offset, rounding: Rounding::Once, heads: 1, scratch: Vec::new() })
    }

    /// The same, with y rounded this often.
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        Layer { rounding, ..self }
    }

    /// The same of so many heads, which take turns in the rows: of [.., heads, hidden]. Weight and bias and their gradients are [heads, hidden], and each head gets
    /// the bits of a layer of its own. (Group RMSNorm is this, with a group of a longer row for a head.)
    ///
    /// ```
    /// # use rmsnorm_cuda::{Layer, WeightOffset};
    /// let (x, weight) = ([3.0_f32, -3.0, 5.0, 5.0], [1.0_f32, 1.0, 2.0, 4.0]);
    /// let mut y = [0.0_f32; 4];
    /// let layer = Layer::new(2, 0.0, WeightOffset::Zero)?.with_heads(2);
    /// layer.forward(&x[..], Some((&weight[..]).into()), &mut y[..], None)?;
    /// assert_eq!(y, [1.0, -1.0, 2.0, 4.0]);
    /// # Ok::<(), rmsnorm_cuda::Error>(())
    /// ```
    pub fn with_heads(self, heads: usize) -> Self {
        Layer { heads, ..self }
    }

    /// Writes y and, if asked, rstd, of as many rows as x has.
    pub fn forward<'a>(
        &self,
        x: impl Into<Slice<'a>>,
        weight: Option<Slice<'a>>,
        y: impl Into<SliceMut<'a>>,
        rstd: Option<SliceMut<'a>>,
    ) -> Result<(), Error> {
        let (weight, rstd) = (weight.map(Into::into), rstd.map(Into::into));
        Cpu.forward(Forward { weight, rstd, ..self.forward_call(x, y) })
    }

    /// A call for as many rows as x has, with what this layer knows of it: for what [`forward`](Layer::forward) does not take. The rest by struct
    /// update.
    ///
    /// ```
    /// # use rmsnorm_cuda::{Cpu, Executor, Forward, Layer, Residual, Rows, Slice, SliceMut, WeightOffset};
    /// let layer = Layer::new(2, 0.0, WeightOffset::Zero)?;
    /// let (x, residual, bias) = ([1.5_f32, -1.5], [0.5_f32, -0.5], [0.25_f32, 0.0]);
    /// let (mut z, mut y) = ([0.0_f32; 2], [0.0_f32; 2]);
    /// let residual = Rows::contiguous(Slice::F32(&residual), 2);
    /// Cpu.forward(Forward {
    ///     residual: Some(Residual { residual, z: Rows::contiguous(SliceMut::F32(&mut z), 2) }),
    ///     bias: Some(Slice::F32(&bias).into()),
    ///     ..layer.forward_call(&x[..], &mut y[..])
    /// })?;
    /// assert_eq!((z, y), ([2.0, -2.0], [1.25, -1.0]));
    /// # Ok::<(), rmsnorm_cuda::Error>(())
    /// ```
    pub fn forward_call<'a>(
        &self,
        x: impl Into<Slice<'a>>,
        y: impl Into<SliceMut<'a>>,
    ) -> Forward<Slice<'a>, SliceMut<'a>> {
        let x = x.into();
        let call = Forward::new(self.shape(&x), self.eps, x, y.into());
        let (inner, per_head) = (self.heads, self.heads > 1);
        Forward { weight_offset: self.weight_offset, rounding: self.rounding, inner, per_head, ..call }
    }

    /// The same in place: y takes the place of x.
    ///
    /// ```
    /// # use rmsnorm_cuda::{Layer, WeightOffset};
    /// let mut x = [3.0_f32, -3.0];
    /// Layer::new(2, 0.0, WeightOffset::Zero)?.forward_in_place(&mut x[..], None, None)?;
    /// assert_eq!(x, [1.0, -1.0]);
    /// # Ok::<(), rmsnorm_cuda::Error>(())
    /// ```
    pub fn forward_in_place<'a>(
        &self,
        x: impl Into<SliceMut<'a>>,
        weight: Option<Slice<'a>>,
        rstd: Option<SliceMut<'a>>,
    ) -> Result<(), Error> {
        let x = x.into();
        Cpu.forward_in_place(Forward {
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            inner: self.heads,
            per_head: self.heads > 1,
            weight: weight.map(|weight| Input::Memory(weight).into()),
            rstd: rstd.map(Into::into),
            ..Forward::in_place(self.shape(&x), self.eps, x)
        })
    }

    /// Writes dx and, if asked, dw, from as many rows as x has and the rstd of their forward call. Scratch grows with the rows.
    pub fn backward<'a>(
        &'a mut self,
        x: impl Into<Slice<'a>>,
        weight: Option<Slice<'a>>,
        rstd: impl Into<Slice<'a>>,
        dy: impl Into<Slice<'a>>,
        dx: impl Into<SliceMut<'a>>,
        dw: Option<SliceMut<'a>>,
    ) -> Result<(), Error> {
        let weight = weight.map(Into::into);
        Cpu.backward(Backward { weight, ..self.backward_call(x, rstd, dy, dx, (dw, None))? })
    }

    /// A call for as many rows as x has, with what this layer knows of it and scratch for the gradients of the weight and of the bias, if they are asked
    /// for: for what [`backward`](Layer::backward) does not take. The rest by struct update.
    ///
    /// ```
    /// # use rmsnorm_cuda::{Backward, Cpu, Executor, Layer, Rows, Slice, SliceMut, WeightOffset};
    /// let mut layer = Layer::new(2, 0.0, WeightOffset::Zero)?;
    /// let (x, rstd, dy, dz) = ([2.0_f32, -2.0], [0.5_f32], [1.0_f32, 0.5], [8.0_f32, 8.0]);
    /// let (mut dx, mut dw, mut db) = ([0.0_f32; 2], [0.0_f32; 2], [0.0_f32; 2]);
    /// let gradients = (Some(SliceMut::F32(&mut dw)), Some(SliceMut::F32(&mut db)));
    /// Cpu.backward(Backward {
    ///     dz: Some(Rows::contiguous(Slice::F32(&dz), 2)),
    ///     ..layer.backward_call(&x[..], &rstd[..], &dy[..], &mut dx[..], gradients)?
    /// })?;
    /// assert_eq!((dx, dw, db), ([8.375, 8.375], [1.0, -0.5], [1.0, 0.5]));
    /// # Ok::<(), rmsnorm_cuda::Error>(())
    /// ```
    pub fn backward_call<'a>(
        &'a mut self,
        x: impl Into<Slice<'a>>,
        rstd: impl Into<Slice<'a>>,
        dy: impl Into<Slice<'a>>,
        dx: impl Into<SliceMut<'a>>,
        (dw, db): (Option<SliceMut<'a>>, Option<SliceMut<'a>>),
    ) -> Result<Backward<Slice<'a>, SliceMut<'a>>, Error> {
        let x = x.into();
        let call = Backward::new(self.shape(&x), x, rstd.into(), dy.into(), dx.into());
        let [of_dw, of_db] =
            scratch(&mut self.scratch, (call.rows, self.heads, call.hidden), [dw.is_some(), db.is_some()])?;
        Ok(Backward {
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            inner: self.heads,
            per_head: self.heads > 1,
            dw: dw.map(|dw| WeightGradient { dw: dw.into(), scratch: of_dw.into() }),
            db: db.map(|db| BiasGradient { db: db.into(), scratch: of_db.into() }),
            ..call
        })
    }

    /// The same as [`backward`](Layer::backward) in place: dx takes the place of dy.
    pub fn backward_in_place<'a>(
        &'a mut self,
        x: impl Into<Slice<'a>>,
        weight: Option<Slice<'a>>,
        rstd: impl Into<Slice<'a>>,
        dy: impl Into<SliceMut<'a>>,
        dw: Option<SliceMut<'a>>,
    ) -> Result<(), Error> {
        let x = x.into();
        let call = Backward::in_place(self.shape(&x), x, rstd.into(), dy.into());
        let [scratch, _] = scratch(&mut self.scratch, (call.rows, self.heads, call.hidden), [dw.is_some(), false])?;
        Cpu.backward_in_place(Backward {
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            inner: self.heads,
            per_head: self.heads > 1,
            weight: weight.map(|weight| Input::Memory(weight).into()),
            dw: dw.map(|dw| WeightGradient { dw: dw.into(), scratch: scratch.into() }),
            ..call
        })
    }

    fn shape(&self, data: &impl Operand) -> (usize, usize) {
        (data.elements().div_ceil(self.hidden), self.hidden)
    }
}

/// Scratch for each gradient that is asked for, of memory that grows as it is needed.
fn scratch(
    memory: &mut Vec<f32>,
    (rows, heads, hidden): (usize, usize, usize),
    asked: [bool; 2],
) -> Result<[SliceMut<'_>; 2], Error> {
    let mut lengths = [0; 2];
    for (length, _) in lengths.iter_mut().zip(asked).filter(|(_, asked)| *asked) {
        *length = scratch_len(rows / heads.max(1), hidden)?.saturating_mul(heads);
    }
    if memory.len() < lengths.iter().sum() {
        memory.resize(lengths.iter().sum(), 0.0);
    }
    let (first, second) = memory.split_at_mut(lengths[0]);
    Ok([first, second].map(SliceMut::F32))
}
