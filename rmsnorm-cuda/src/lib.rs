//! RMSNorm, forward and backward, whose every output bit is a function of the operands alone: not of the run, the GPU model,
//! the grid, the batch, alignment or strides, what the scratch held, nor of whether a GPU or the CPU computed it.
//!
//! ```
//! use rmsnorm_cuda::{Cpu, Executor, Forward, Rows, Slice, SliceMut, WeightOffset};
//!
//! let (rows, hidden) = (2, 4);
//! let x = [1.0_f32, -1.0, 1.0, -1.0, 2.0e30, 0.0, 0.0, 0.0]; // the squares of the second row overflow
//! let weight = [1.0_f32, 2.0, 3.0, 4.0];
//! let mut y = [f32::NAN; 8];
//! Cpu.forward(Forward {
//!     rows, hidden, eps: 0.0, weight_offset: WeightOffset::Zero,
//!     x: Rows::contiguous(Slice::F32(&x), hidden),
//!     weight: Some(Slice::F32(&weight).into()),
//!     y: Rows::contiguous(SliceMut::F32(&mut y), hidden),
//!     rstd: None,
//! })?;
//! assert_eq!(y, [1.0, -2.0, 3.0, -4.0, 2.0, 0.0, 0.0, 0.0]);
//! # Ok::<(), rmsnorm_cuda::Error>(())
//! ```
//!
//! Scratch, where a call needs some, is lent by the caller and may hold anything; [`scratch_len`] says how much. A call that
//! cannot be carried out returns a typed [`Error`] before anything is written, and so does a machine without a GPU or CUDA.
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
