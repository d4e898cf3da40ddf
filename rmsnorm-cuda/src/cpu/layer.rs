use crate::{
    Backward, Cpu, Error, Executor, Forward, Operand, Rounding, Slice, SliceMut, WeightGradient, WeightOffset,
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
        Cpu.forward(Forward {
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            weight: weight.map(Into::into),
            rstd: rstd.map(Into::into),
            ..Forward::new(self.shape(&x), self.eps, x, y.into())
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
        let (rows, hidden) = self.shape(&x);
        let needed = if dw.is_some() { scratch_len(rows, hidden)? } else { 0 };
        if self.scratch.len() < needed {
            self.scratch.resize(needed, 0.0);
        }
        let scratch = SliceMut::F32(&mut self.scratch);
        Cpu.backward(Backward {
            weight_offset: self.weight_offset,
            rounding: self.rounding,
            weight: weight.map(Into::into),
            dw: dw.map(|dw| WeightGradient { dw: dw.into(), scratch: scratch.into() }),
            ..Backward::new((rows, hidden), x, rstd.into(), dy.into(), dx.into())
        })
    }

    fn shape(&self, x: &Slice<'_>) -> (usize, usize) {
        (x.elements().div_ceil(self.hidden), self.hidden)
    }
}
