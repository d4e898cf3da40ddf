//! RMSNorm, forward and backward, whose every output bit is a function of the operands alone: not of the run, the GPU model,
//! the grid, the batch, alignment or strides, what the scratch held, nor of whether a GPU or the CPU computed it.
//!
//! ```
//! use rmsnorm_cuda::{Cpu, Executor, Forward, Rows, WeightOffset};
//!
//! let (rows, hidden) = (2, 4);
//! let x = [1.0_f32, -1.0, 1.0, -1.0, 3.0e30, 0.0, 0.0, 0.0]; // the second row's squares overflow f32
//! let weight = [1.0_f32, 2.0, 3.0, 4.0];
//! let mut y = [0.0_f32; 8];
//! Cpu.forward(Forward {
//!     rows, hidden, eps: 0.0, weight_offset: WeightOffset::Zero,
//!     x: Rows::contiguous((&x[..]).into(), hidden),
//!     weight: Some(rmsnorm_cuda::Slice::from(&weight[..]).into()),
//!     y: Rows::contiguous((&mut y[..]).into(), hidden),
//!     rstd: None,
//! })?;
//! assert_eq!(y, [1.0, -2.0, 3.0, -4.0, 2.0, 0.0, 0.0, 0.0]);
//! # Ok::<(), rmsnorm_cuda::Error>(())
//! ```
//!
//! Read in this order: [`problem`] (what a call is), [`plan`] (which order, which launch), [`arith`] (the specification),
//! `forward.cu` and `backward.cu` (how rows move through it), [`cpu`], [`cuda`].

pub mod arith;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod plan;
pub mod problem;

pub use cpu::Cpu;
#[cfg(feature = "cuda")]
pub use cudarc;
pub use half::{bf16, f16};
pub use plan::{BITS_VERSION, scratch_len};
pub use problem::{
    Backward, Dtype, Error, Forward, HIDDEN_MAX, Operand, Rows, Slice, SliceMut, Vector, WeightGradient, WeightOffset,
};

/// Carries out a call on host memory. This is how checks see an executor; a GPU's users have their data there already and use
/// the layers of `cuda`.
pub trait Executor: Sync {
    /// What runs here, for reports.
    fn name(&self) -> String;
    /// Writes `y` and, if asked, `rstd`.
    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error>;
    /// Writes `dx` and, if asked, `dw`.
    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error>;
}
