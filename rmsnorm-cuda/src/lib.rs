//! RMSNorm, forward and backward, whose every output bit is a function of the operands alone: not of the run, the GPU model,
//! the grid, the batch, alignment or strides, what the scratch held, nor of whether a GPU or the CPU computed it.
//!
//! ```
//! use rmsnorm_cuda::{Cpu, Executor, Forward, Slice, SliceMut};
//!
//! let (rows, hidden) = (2, 4);
//! let x = [1.0_f32, -1.0, 1.0, -1.0, 2.0e30, 0.0, 0.0, 0.0]; // the squares of the second row overflow
//! let weight = [1.0_f32, 2.0, 3.0, 4.0];
//! let mut y = [f32::NAN; 8];
//! Cpu.forward(Forward {
//!     weight: Some(Slice::F32(&weight).into()),
//!     ..Forward::new((rows, hidden), 0.0, Slice::F32(&x), SliceMut::F32(&mut y))
//! })?;
//! assert_eq!(y, [1.0, -2.0, 3.0, -4.0, 2.0, 0.0, 0.0, 0.0]);
//! # Ok::<(), rmsnorm_cuda::Error>(())
//! ```
//!
//! | you have | you call |
//! | --- | --- |
//! | rows without gaps in host memory | [`Layer`] |
//! | any operands in host memory | [`Cpu`], by [`Executor::forward`] and [`Executor::backward`] |
//! | rows without gaps in cudarc's slices, and a stream | `cuda::Layer` |
//! | any rows in cudarc's slices, and a stream | `cuda::Kernels::forward_on`, `backward_on` |
//! | device pointers and a raw stream: candle, burn, FFI | `cuda::Kernels::forward`, `backward`, which are unsafe |
//! | operands in host memory, and a GPU to compare with the CPU | `cuda::Cuda`, by [`Executor`] |
//!
//! All of them take the same description of a call, [`Forward`] or [`Backward`]. The gradients, wherever they are computed:
//!
//! ```
//! use rmsnorm_cuda::{Backward, Cpu, Executor, Slice, SliceMut, WeightGradient, scratch_len};
//!
//! let (rows, hidden) = (1, 4);
//! let x = [2.0_f32, -2.0, 2.0, -2.0];
//! let rstd = [0.5_f32]; // as the forward call stored it
//! let dy = [1.0_f32, 0.0, 0.0, 0.0];
//! let (mut dx, mut dw, mut scratch) = ([0.0_f32; 4], [0.0_f32; 4], vec![0.0_f32; scratch_len(rows, hidden)?]);
//! Cpu.backward(Backward {
//!     dw: Some(WeightGradient { dw: SliceMut::F32(&mut dw).into(), scratch: SliceMut::F32(&mut scratch).into() }),
//!     ..Backward::new((rows, hidden), Slice::F32(&x), Slice::F32(&rstd), Slice::F32(&dy), SliceMut::F32(&mut dx))
//! })?;
//! assert_eq!(dx, [0.375, 0.125, -0.125, 0.125]);
//! assert_eq!(dw, [1.0, 0.0, 0.0, 0.0]);
//! # Ok::<(), rmsnorm_cuda::Error>(())
//! ```
//!
//! Scratch, where a call needs some, is lent by the caller and may hold anything; [`scratch_len`] says how much. A call that
//! cannot be carried out returns a typed [`Error`] before anything is written, and so does a machine without a GPU or CUDA.
//!
//! # Features
//!
//! | feature | default | what it brings |
//! | --- | --- | --- |
//! | `cuda` | yes | the module [`cuda`]: GPUs. Needs neither a GPU nor CUDA to build: the driver and NVRTC are looked for at run time |
//! | `prebuilt` | no | kernels compiled ahead, for machines with a driver and no NVRTC: PTX for every GPU of compute capability 8.0 or newer. A kernel is looked for on disk, compiled if NVRTC is there, and only then taken from these, which are slower: they take any layout of rows |
//! | `checks` | no | what this project's own checks look into; no part of the API |
//!
//! # Versions
//!
//! Semantic versioning, and beside it [`BITS_VERSION`]: the same number means the same bits for the same operands, whatever the version; another
//! number is a breaking change, and so is another minor version of `cudarc`, whose types are in signatures. Which launch a call becomes, and so its
//! speed, what it compiles, and the scratch that it asks for by [`scratch_len`], may change in any release; `#[doc(hidden)]` items too.
//! The oldest Rust is 1.89; a later one is asked for in a minor version only.
//!
//! The sources in this order: `call.rs` (what a call is), [`order`] and [`arith`] (the specification: all bits), `plan.rs` (which launch: all
//! speed), `kernels/levels.cuh`, `rows.cuh`, `pack.cuh`, `reduce.cuh`, `forward.cu`, `forward_few.cu`, `arriving.cuh`, `forward_staged.cu`, `source.cuh`, `backward.cu`, `backward_apart.cu`, `backward_few.cu` and `bias.cu` (how rows move through it), `cpu.rs`, [`cuda`].

#![deny(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod arith;
mod call;
mod cpu;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod cuda;
mod dtype;
mod error;
#[doc(hidden)]
pub mod input;
pub mod order;
#[doc(hidden)]
pub mod plan;
mod process;
#[doc(hidden)]
pub mod view;

pub use call::{Backward, BiasGradient, Forward, Residual, Rounding, WeightGradient, WeightOffset, scratch_len};
pub use cpu::{Cpu, Layer};
#[cfg(feature = "cuda")]
pub use cudarc;
pub use dtype::{Dtype, Operand, Slice, SliceMut};
pub use error::{Error, FloatingPoint};
pub use half::{bf16, f16};
#[doc(inline)]
pub use input::{Input, Output};
pub use order::{BITS_VERSION, HIDDEN_MAX};
#[doc(inline)]
pub use view::{Rows, Vector};

/// Carries out a call on host memory. This is how checks see an executor; a GPU's users have their data there already and use
/// the layers of `cuda`.
pub trait Executor: Sync {
    /// What runs here, for reports.
    fn name(&self) -> String;
    /// Writes `y` and, if asked, `rstd`.
    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error>;
    /// Writes `dx` and, if asked, `dw` and `db`.
    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error>;

    /// The same of a forward call whose inputs may lie in its outputs. An executor that does not say otherwise refuses those that do.
    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.forward(call.try_map(own_memory, Ok)?)
    }

    /// The same of a backward call.
    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        self.backward(call.try_map(own_memory, Ok)?)
    }
}

fn own_memory<D>(input: Input<D>) -> Result<D, Error> {
    match input {
        Input::Memory(data) => Ok(data),
        Input::Output(output) => Err(Error::Overlap { output: output.name(), other: "an input", in_place: false }),
    }
}
