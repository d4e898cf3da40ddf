//! Calls in place: inputs that lie in outputs.
//!
//! In safe Rust nobody can lend memory to be read and written at once. So the memory is lent as the output, and the input says which output's it is.

use std::convert::Infallible;

use crate::call::{Backward, Forward, Residual};
use crate::{Dtype, Error, Operand, Rows};

/// What a call in place reads: memory of its own, or that of an output, whose rows hold it before the call.
///
/// `x` may lie in y or in z, a residual in z; `x`, `dy` and `dz` in dx. An input then has its output's offset and row stride, and each bit is that of the
/// call with memory of its own for both.
///
/// ```
/// use rmsnorm_cuda::{Cpu, Executor, Forward, SliceMut};
///
/// let mut x = [3.0_f32, -3.0];
/// Cpu.forward_in_place(Forward::in_place((1, 2), 0.0, SliceMut::F32(&mut x)))?;
/// assert_eq!(x, [1.0, -1.0]);
/// # Ok::<(), rmsnorm_cuda::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<D> {
    /// Memory of its own.
    Memory(D),
    /// That of an output.
    Output(Output),
}

/// An output that inputs may lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// y of a forward call.
    Y,
    /// z of a forward call with a residual.
    Z,
    /// dx of a backward call.
    Dx,
}

impl Output {
    /// The name of the field.
    pub const fn name(self) -> &'static str {
        match self {
            Output::Y => "y",
            Output::Z => "z",
            Output::Dx => "dx",
        }
    }
}

impl<D> From<D> for Input<D> {
    fn from(data: D) -> Self {
        Input::Memory(data)
    }
}

impl<D> Rows<D> {
    /// These rows, an output, as an input that lies in them.
    pub fn as_input<I>(&self, output: Output) -> Rows<Input<I>> {
        let Rows { offset, row_stride, outer_stride, .. } = *self;
        Rows { data: Input::Output(output), offset, row_stride, outer_stride }
    }
}

impl<I, O> Forward<Input<I>, O> {
    /// As [`Forward::new`], with x in y: `y` holds x before the call.
    pub fn in_place((rows, hidden): (usize, usize), eps: f32, y: O) -> Self {
        let y = Rows::contiguous(y, hidden);
        Forward::with_rows((rows, hidden), eps, y.as_input(Output::Y), y)
    }
}

impl<I, O> Backward<Input<I>, O> {
    /// As [`Backward::new`], with dy in dx: `dx` holds dy before the call.
    pub fn in_place((rows, hidden): (usize, usize), x: I, rstd: I, dx: O) -> Self {
        let (x, dx) = (Rows::contiguous(Input::Memory(x), hidden), Rows::contiguous(dx, hidden));
        Backward::with_rows((rows, hidden), x, Input::Memory(rstd).into(), dx.as_input(Output::Dx), dx)
    }
}

impl<I, O> Forward<I, O> {
    /// The same call as one whose inputs could lie in outputs.
    pub fn with_inputs(self) -> Forward<Input<I>, O> {
        let Ok(call) = self.try_map(|data| Ok::<_, Infallible>(Input::Memory(data)), Ok);
        call
    }
}

impl<I, O> Backward<I, O> {
    /// The same call as one whose inputs could lie in outputs.
    pub fn with_inputs(self) -> Backward<Input<I>, O> {
        let Ok(call) = self.try_map(|data| Ok::<_, Infallible>(Input::Memory(data)), Ok);
        call
    }
}

/// A buffer, wherever it is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub(crate) dtype: Dtype,
    pub(crate) address: u64,
    pub(crate) elements: usize,
}

impl Place {
    fn of(data: &impl Operand) -> Place {
        Place { dtype: data.dtype(), address: data.address(), elements: data.elements() }
    }
}

/// An [`Input`] of which it is known where it is.
#[derive(Clone, Copy, Debug)]
pub enum Found<D> {
    /// Memory of its own.
    Memory(D),
    /// That of an output.
    Output(Output, Place),
}

impl<D> Found<D> {
    /// The operand before it was looked for.
    pub fn input(self) -> Input<D> {
        match self {
            Found::Memory(data) => Input::Memory(data),
            Found::Output(output, _) => Input::Output(output),
        }
    }
}

impl<D: Operand> Operand for Found<D> {
    fn dtype(&self) -> Dtype {
        match self {
            Found::Memory(data) => data.dtype(),
            Found::Output(_, place) => place.dtype,
        }
    }
    fn elements(&self) -> usize {
        match self {
            Found::Memory(data) => data.elements(),
            Found::Output(_, place) => place.elements,
        }
    }
    fn address(&self) -> u64 {
        match self {
            Found::Memory(data) => data.address(),
            Found::Output(_, place) => place.address,
        }
    }
    fn lies_in(&self) -> Option<&'static str> {
        match self {
            Found::Memory(_) => None,
            Found::Output(output, _) => Some(output.name()),
        }
    }
}

/// Where an input is, `outputs` being where the outputs are.
fn find<I>(input: Input<I>, outputs: &[(Output, Option<Place>)], in_place: &mut bool) -> Result<Found<I>, Error> {
    match input {
        Input::Memory(data) => Ok(Found::Memory(data)),
        Input::Output(output) => {
            *in_place = true;
            let place = outputs.iter().find_map(|(there, place)| place.filter(|_| *there == output));
            place.map(|place| Found::Output(output, place)).ok_or(Error::NoOutput { output: output.name() })
        }
    }
}

impl<I: Operand, O: Operand> Forward<Input<I>, O> {
    /// The same call, whose inputs know where they are. It is checked already if one lies in an output: who sees addresses alone could not tell where it
    /// was said to lie.
    #[doc(hidden)]
    pub fn found(self) -> Result<Forward<Found<I>, O>, Error> {
        let z = self.residual.as_ref().map(|Residual { z, .. }| Place::of(&z.data));
        let outputs = [(Output::Y, Some(Place::of(&self.y.data))), (Output::Z, z)];
        let mut in_place = false;
        let call = self.try_map(|input| find(input, &outputs, &mut in_place), Ok)?;
        if in_place { call.check().map(|()| call) } else { Ok(call) }
    }
}

impl<I: Operand, O: Operand> Backward<Input<I>, O> {
    /// As that of a forward call.
    #[doc(hidden)]
    pub fn found(self) -> Result<Backward<Found<I>, O>, Error> {
        let outputs = [(Output::Dx, Some(Place::of(&self.dx.data)))];
        let mut in_place = false;
        let call = self.try_map(|input| find(input, &outputs, &mut in_place), Ok)?;
        if in_place { call.check().map(|()| call) } else { Ok(call) }
    }
}
