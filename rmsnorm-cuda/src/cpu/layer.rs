use crate::{
    Backward, Cpu, Error, Executor, Forward, Input, Operand, Rounding, Slice, SliceMut, WeightGradient, WeightOffset,
    scratch_len,
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
    scratch: Vec<f32>,
}

impl Layer {
    /// Rows of `hidden` elements. `eps` is judged by each call.
    pub fn new(hidden: usize, eps: f32, weight_offset: WeightOffset) -> Result<Self, Error> {
        scratch_len(0, hidden)?;
        Ok(Layer { hidden, eps, weight_offset, rounding: Rounding::Once, scratch: Vec::new() })
    }

    /// The same, with y rounded this often.
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        Layer { rounding, ..self }
    }

    /// Writes y and, if asked, rstd, of as many rows as x has.
    pub fn forward<'a>(
        &self,
        x: impl Into<Slice<'a>>,
        weight: Option<Slice<'a>>,
        y: impl Into<SliceMut<'a>>,
        rstd: Option<SliceMut<'a>>,
    ) -> Result<(), Error> {
        let x = x.into();
        let call = Forward::new(self.shape(&x), self.eps, Input::Memory(x), y.into());
        self.forward_as(call, weight, rstd)
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
        self.forward_as(Forward::in_place(self.shape(&x), self.eps, x), weight, rstd)
    }

    fn forward_as<'a>(
        &self,
        call: Forward<Input<Slice<'a>>, SliceMut<'a>>,
        weight: Option<Slice<'a>>,
        rstd: Option<SliceMut<'a>>,
    ) -> Result<(), Error> {
        Cpu.forward_in_place(Forward {
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            weight: weight.map(|weight| Input::Memory(weight).into()),
            rstd: rstd.map(Into::into),
            ..call
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
        let x = x.into();
        let shape = self.shape(&x);
        let [x, rstd, dy] = [x, rstd.into(), dy.into()].map(Input::Memory);
        let call = Backward::new(shape, x, rstd, dy, dx.into());
        self.backward_as(call, weight, dw)
    }

    /// The same in place: dx takes the place of dy.
    pub fn backward_in_place<'a>(
        &'a mut self,
        x: impl Into<Slice<'a>>,
        weight: Option<Slice<'a>>,
        rstd: impl Into<Slice<'a>>,
        dy: impl Into<SliceMut<'a>>,
        dw: Option<SliceMut<'a>>,
    ) -> Result<(), Error> {
        let x = x.into();
        self.backward_as(Backward::in_place(self.shape(&x), x, rstd.into(), dy.into()), weight, dw)
    }

    fn backward_as<'a>(
        &'a mut self,
        call: Backward<Input<Slice<'a>>, SliceMut<'a>>,
        weight: Option<Slice<'a>>,
        dw: Option<SliceMut<'a>>,
    ) -> Result<(), Error> {
        let needed = if dw.is_some() { scratch_len(call.rows, call.hidden)? } else { 0 };
        if self.scratch.len() < needed {
            self.scratch.resize(needed, 0.0);
        }
        let scratch = SliceMut::F32(&mut self.scratch);
        Cpu.backward_in_place(Backward {
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            weight: weight.map(|weight| Input::Memory(weight).into()),
            dw: dw.map(|dw| WeightGradient { dw: dw.into(), scratch: scratch.into() }),
            ..call
        })
    }

    fn shape(&self, data: &impl Operand) -> (usize, usize) {
        (data.elements().div_ceil(self.hidden), self.hidden)
    }
}
