//! What a call computes with a weight.

/// What is added to the weight before it multiplies: nothing, or one ("zero-centred" weights).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightOffset {
    /// The weight as it is. No addition takes place, so a weight of −0.0 keeps its sign.
    #[default]
    Zero,
    /// `weight + 1`, rounded once to f32.
    One,
}

/// Whether x_hat is rounded before the weight multiplies it.
///
/// Between the two a quarter of the outputs in bf16 differ by one unit in the last place, so a model is run as it was trained. Without a weight
/// or a bias y has the same bits either way, and where x is f32 so has everything.
///
/// ```
/// use rmsnorm_cuda::{Layer, Rounding, WeightOffset, bf16};
///
/// let [x, weight] = [[3.0, 1.0], [1.125, 1.0]].map(|row| row.map(bf16::from_f32));
/// let y = |rounding| {
///     let mut y = [bf16::ZERO; 2];
///     let layer = Layer::new(2, 0.0, WeightOffset::Zero)?.with_rounding(rounding);
///     layer.forward(&x[..], Some((&weight[..]).into()), &mut y[..], None)?;
///     Ok::<_, rmsnorm_cuda::Error>(y.map(f32::from))
/// };
/// // x_hat is 1.3416…, in bf16 1.34375.
/// assert_eq!(y(Rounding::Once)?, [1.5078125, 0.447265625]);
/// assert_eq!(y(Rounding::Twice)?, [1.515625, 0.447265625]);
/// # Ok::<(), rmsnorm_cuda::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// No: y is rounded once, from `x_hat·weight` in f32.
    #[default]
    Once,
    /// To the type of what is normalised, `x` or with a residual `z`, as code does that casts `x_hat` back before it multiplies (Llama's in Python frameworks). dw sums `dy` times
    /// what the weight multiplied, the rounded x_hat, also where there is no weight; `dx` is that of an x_hat that is not rounded, as frameworks
    /// have it when they differentiate through a cast.
    Twice,
}
