//! RMSNorm as functions of tensors.

use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, D, DType, Device, Error, Layout, Result, Shape, Storage, Tensor,
    bail,
};
use rmsnorm_cuda::{Backward, Dtype, Forward, Rows, Vector, WeightGradient};

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::rows::Place;
use crate::{Rounding, WeightOffset, cpu};

/// What decides the result beside the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Added to the mean square; finite and not negative.
    pub eps: f32,
    /// Added to the weight; ignored without one.
    pub weight_offset: WeightOffset,
    /// Whether `x / sqrt(…)` is rounded to the type of `x` before the weight multiplies it, as it is where a model was trained by operations of
    /// tensors, each of which rounds.
    pub rounding: Rounding,
}

/// `x / sqrt(mean(x²) + eps) · weight` along the last dimension of `x`; the weight has one dimension, as long as that.
///
/// As `candle_nn::ops::rms_norm`, which has no gradients, asks for an `x` without gaps, and a weight of its type.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    rms_norm_with(x, Some(weight), Options { eps, weight_offset: WeightOffset::Zero, rounding: Rounding::Once })
}

/// The same without a weight, or with an offset: `x / sqrt(mean(x²) + eps) · (weight + weight_offset)`.
///
/// Fails if types or shapes do not fit, if `eps` is negative or not finite, if rows are empty or longer than
/// [`HIDDEN_MAX`](rmsnorm_cuda::HIDDEN_MAX), and with the errors of the device.
pub fn rms_norm_with(x: &Tensor, weight: Option<&Tensor>, options: Options) -> Result<Tensor> {
    let (x, at) = Place::in_tensor(x)?;
    let tracked = x.track_op() || weight.is_some_and(Tensor::track_op);
    let op = RmsNorm { options, at, tracked, rstd: OnceLock::new() };
    let Some(weight) = weight else { return x.apply_op1(op) };
    let (got, expected) = (weight.dims(), x.dim(D::Minus1)?);
    if got != [expected] {
        bail!("the weight of RMSNorm has shape {got:?}, expected [{expected}], the last dimension of {:?}", x.shape());
    }
    x.apply_op2(&weight.contiguous()?, op)
}

/// Compiles and loads what calls of a kind need on a GPU, so that the first of them is as fast as the others, and none compiles while a graph is
/// captured: `rows` rows of `hidden` elements of type `x`, and a weight, if any, of type `weight`; eps is not looked at. Of rows at two strides
/// the kernels are others, which their first call compiles. Does nothing on the CPU.
pub fn prepare(
    device: &Device,
    (rows, hidden): (usize, usize),
    x: DType,
    weight: Option<DType>,
    options: Options,
) -> Result<()> {
    let (x, weight) = (dtype(x)?, weight.map(dtype).transpose()?);
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::prepare(device, (rows, hidden), x, weight, options),
        _ => {
            let _ = (rows, hidden, x, weight, options);
            Ok(())
        }
    }
}

/// The name in candle's errors.
pub(crate) const NAME: &str = "rmsnorm-candle";

/// One call.
pub(crate) struct RmsNorm {
    options: Options,
    /// Where `x` lies.
    pub(crate) at: Place,
    /// Whether somebody wants gradients: only then is rstd stored.
    pub(crate) tracked: bool,
    /// As the forward call stored it.
    rstd: OnceLock<Tensor>,
}

/// An operand, and where it begins.
pub(crate) type At<'a, S> = (&'a S, &'a Layout);

impl RmsNorm {
    /// The call, on the operands of some device.
    pub(crate) fn forward<In, Out>(
        &self,
        x: In,
        weight: Option<Vector<In>>,
        y: Out,
        rstd: Option<Out>,
    ) -> Forward<In, Out> {
        let Place { rows, inner, hidden, .. } = self.at;
        let (x, y) = (self.at.rows_of(x), Rows::contiguous(y, hidden));
        let Options { eps, weight_offset, rounding } = self.options;
        let rstd = rstd.map(Vector::from);
        Forward { inner, weight_offset, rounding, weight, rstd, ..Forward::with_rows((rows, hidden), eps, x, y) }
    }

    /// The gradients of the call; `dw` and scratch, if wanted.
    pub(crate) fn backward<In, Out>(
        &self,
        (x, weight, rstd): (In, Option<Vector<In>>, In),
        (dy, dy_at): (In, Place),
        dx: Out,
        dw: Option<(Out, Out)>,
    ) -> Backward<In, Out> {
        let Place { rows, inner, hidden, .. } = self.at;
        // Of one level are rows in groups of any size.
        let inner = inner.max(dy_at.inner);
        let (x, dy, dx) = (self.at.rows_of(x), dy_at.rows_of(dy), Rows::contiguous(dx, hidden));
        let dw = dw.map(|(dw, scratch)| WeightGradient { dw: dw.into(), scratch: scratch.into() });
        let Options { weight_offset, rounding, .. } = self.options;
        Backward {
            inner,
            weight_offset,
            rounding,
            weight,
            dw,
            ..Backward::with_rows((rows, hidden), x, rstd.into(), dy, dx)
        }
    }

    fn cpu(&self, x: At<CpuStorage>, weight: Option<At<CpuStorage>>) -> Result<(CpuStorage, Shape)> {
        let (y, rstd) = cpu::forward(self, x.0, weight)?;
        self.keep(rstd.map(Storage::Cpu));
        Ok((y, x.1.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, x: At<CudaStorage>, weight: Option<At<CudaStorage>>) -> Result<(CudaStorage, Shape)> {
        let (y, rstd) = cuda::forward(self, x.0, weight)?;
        self.keep(rstd.map(Storage::Cuda));
        Ok((y, x.1.shape().clone()))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(&self, _: At<CudaStorage>, _: Option<At<CudaStorage>>) -> Result<(CudaStorage, Shape)> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    fn keep(&self, rstd: Option<Storage>) {
        if let Some(rstd) = rstd {
            self.rstd.get_or_init(|| Tensor::from_storage(rstd, self.at.rows, BackpropOp::none(), false));
        }
    }

    /// The gradients of `x` and the weight, each if it is wanted.
    fn gradients(&self, x: &Tensor, weight: Option<&Tensor>, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(rstd) = self.rstd.get() else {
            bail!("{NAME}: a graph without rstd, though something in it is tracked")
        };
        let (dy, dy_at) = Place::beside(self.at, dy)?;
        let wants_dw = weight.is_some_and(Tensor::track_op);
        let operands = [Some(x), weight, Some(rstd), Some(&dy)].map(|t| t.map(Tensor::storage_and_layout));
        let storages =
            operands.each_ref().map(|operand| operand.as_ref().map(|(storage, layout)| (&**storage, *layout)));
        let (dx, dw) = match storages {
            [Some((Storage::Cpu(x), _)), weight, Some((Storage::Cpu(rstd), _)), Some((Storage::Cpu(dy), _))] => {
                let weight = weight.and_then(|(w, l)| if let Storage::Cpu(w) = w { Some((w, l)) } else { None });
                let (dx, dw) = cpu::backward(self, (x, weight, rstd), (dy, dy_at), wants_dw)?;
                (Storage::Cpu(dx), dw.map(Storage::Cpu))
            }
            #[cfg(feature = "cuda")]
            [Some((Storage::Cuda(x), _)), weight, Some((Storage::Cuda(rstd), _)), Some((Storage::Cuda(dy), _))] => {
                let weight = weight.and_then(|(w, l)| if let Storage::Cuda(w) = w { Some((w, l)) } else { None });
                let (dx, dw) = cuda::backward(self, (x, weight, rstd), (dy, dy_at), wants_dw)?;
                (Storage::Cuda(dx), dw.map(Storage::Cuda))
            }
            _ => bail!("{NAME}: the gradient lies on another device than x"),
        };
        drop(operands);
        let of = if x.track_op() { x } else { weight.unwrap_or(x) };
        let tensor = |storage, like: &Tensor| of.apply_op1(Gradient(Mutex::new(Some(storage)), like.shape().clone()));
        let dx = x.track_op().then(|| tensor(dx, x)).transpose()?;
        let dw = dw.zip(weight).map(|(dw, weight)| tensor(dw, weight)).transpose()?;
        Ok((dx, dw))
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu((x, x_layout), None)
    }
    fn cuda_fwd(&self, x: &CudaStorage, x_layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda((x, x_layout), None)
    }
    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(x, None, dy)?.0)
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, weight: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu((x, xl), Some((weight, wl)))
    }
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        weight: &CudaStorage,
        wl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda((x, xl), Some((weight, wl)))
    }
    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, Some(weight), dy)
    }
}

/// A gradient that was computed, as something that depends on a tensor of the graph. What would differentiate it again gets candle's error instead of
/// nothing: `bwd` is the trait's own.
struct Gradient(Mutex<Option<Storage>>, Shape);

impl Gradient {
    fn take(&self) -> Option<Storage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl CustomOp1 for Gradient {
    fn name(&self) -> &'static str {
        "the gradient of rmsnorm-candle"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.take() {
            Some(Storage::Cpu(storage)) => Ok((storage, self.1.clone())),
            _ => bail!("{NAME}: a gradient is taken once, on the device of x"),
        }
    }
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.take() {
            Some(Storage::Cuda(storage)) => Ok((storage, self.1.clone())),
            _ => bail!("{NAME}: a gradient is taken once, on the device of x"),
        }
    }
}

/// The element type in the words of rmsnorm-cuda.
pub(crate) fn dtype(dtype: DType) -> Result<Dtype> {
    match dtype {
        DType::F32 => Ok(Dtype::F32),
        DType::F16 => Ok(Dtype::F16),
        DType::BF16 => Ok(Dtype::Bf16),
        other => Err(Error::UnsupportedDTypeForOp(other, NAME).bt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rstd_is_stored_for_gradients_only() -> Result<()> {
        let x = Tensor::new(&[[3.0_f32, 3.0], [0.5, 0.5]], &Device::Cpu)?;
        let (x, at) = Place::in_tensor(&x)?;
        for tracked in [false, true] {
            let options = Options { eps: 0.0, weight_offset: WeightOffset::Zero, rounding: Rounding::Once };
            let op = RmsNorm { options, at, tracked, rstd: OnceLock::new() };
            x.apply_op1_no_bwd(&op)?;
            let rstd = op.rstd.get().map(Tensor::to_vec1::<f32>).transpose()?;
            assert_eq!(rstd, tracked.then(|| vec![1.0 / 3.0, 2.0]));
        }
        Ok(())
    }
}
