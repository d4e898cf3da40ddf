//! RMSNorm for [candle](candle_core), forward and backward, by the fused kernels of [rmsnorm_cuda]: gradients flow, views are taken as they are,
//! and every output bit is a function of the operands alone, the same on the CPU and on any CUDA GPU.
//!
//! The names are those of `candle_nn`, so what changes is one import:
//!
//! | `candle_nn` | here |
//! | --- | --- |
//! | `candle_nn::{RmsNorm, rms_norm}`: a module, and one from a `VarBuilder` | [`RmsNorm`], [`rms_norm`](rms_norm()) |
//! | `candle_nn::ops::rms_norm`: a function of tensors | [`ops::rms_norm`] |
//! | | [`ops::rms_norm_with`]: without a weight, or with one that is zero-centred |
//!
//! ```
//! use candle_core::{Device, Module, Tensor, Var};
//! use rmsnorm_candle::RmsNorm;
//!
//! let weight = Var::new(&[1.0_f32, 2.0, 3.0, 4.0], &Device::Cpu)?;
//! let norm = RmsNorm::new(weight.as_tensor().clone(), 0.0);
//! let x = Var::new(&[[2.0_f32, -2.0, 2.0, -2.0]], &Device::Cpu)?;
//! let y = norm.forward(&x)?;
//! assert_eq!(y.to_vec2::<f32>()?, [[1.0, -2.0, 3.0, -4.0]]);
//! let gradients = y.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&weight).expect("trained").to_vec1::<f32>()?, [1.0, -1.0, 1.0, -1.0]);
//! assert!(gradients.get(&x).is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! **Operands.** `x` has any rank and is f32, f16 or bf16; so is the weight, whichever x is. Rows that lie at one stride or at two, as those of a slice of
//! a packed buffer or of heads in front of tokens do, are read where they are; other views are copied first. `y` and the gradient of `x` have the type of `x` and
//! no gaps, the gradient of the weight has the weight's type and is summed in f32. All is rounded once. A second derivative is an error.
//!
//! **GPUs.** The feature `cuda` passes on to candle's, which takes nvcc to build. At run time our kernels take the driver and what
//! [`rmsnorm_cuda::cuda`](https://docs.rs/rmsnorm-cuda) looks for. The first call of a kind compiles; [`prepare`] does so ahead, for one that is to be captured
//! in a graph. Work goes to the device's stream, in the order of candle's own kernels there: with `Device::new_cuda` that stream is another one in each
//! thread, so whoever hands tensors to other threads has to wait for them, or take `Device::new_cuda_with_stream`.
#![deny(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod cpu;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod cuda;
mod module;
pub mod ops;
mod rows;

pub use module::{RmsNorm, rms_norm};
pub use ops::{Options, prepare};
pub use rmsnorm_cuda::{self, Rounding, WeightOffset};
