//! The module, as `candle_nn` has it.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::ops::{Options, rms_norm_with};
use crate::{Rounding, WeightOffset};

/// RMSNorm over the last dimension, with a weight that can be trained.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
    weight_offset: WeightOffset,
    rounding: Rounding,
}

impl RmsNorm {
    /// With a weight of one dimension, as long as a row.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        RmsNorm { weight, eps, weight_offset: WeightOffset::Zero, rounding: Rounding::Once }
    }

    /// The same, with another offset of the weight: [`WeightOffset::One`] for weights that are stored less one, as Gemma's are.
    pub fn with_weight_offset(self, weight_offset: WeightOffset) -> Self {
        RmsNorm { weight_offset, ..self }
    }

    /// The same, rounded this often: [`Rounding::Twice`] for models trained by Python code that casts before it multiplies, as Llama's does.
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        RmsNorm { rounding, ..self }
    }

    /// The weight as it is stored: without the offset.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to the mean square.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// The same as `forward`, which has gradients too: for code that was written for `candle_nn`, where it has not.
    pub fn forward_diff(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(x)
    }
}

impl Module for RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let RmsNorm { eps, weight_offset, rounding, .. } = *self;
        rms_norm_with(x, Some(&self.weight), Options { eps: eps as f32, weight_offset, rounding })
    }
}

impl From<candle_nn::RmsNorm> for RmsNorm {
    fn from(norm: candle_nn::RmsNorm) -> Self {
        RmsNorm::new(norm.weight().clone(), norm.eps())
    }
}

/// A module whose weight, `size` elements called `weight` (or `gamma`) and initially ones, `vb` has or makes.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    candle_nn::rms_norm(size, eps, vb).map(RmsNorm::from)
}
