//! Property 10: bad arguments are refused.

use crate::buffer::Fill;
use crate::case::{Case, Name};
use crate::finding::{Evidence, Finding, Stop};
use crate::operands::Operands;
use crate::subject::Subject;
use rmsnorm_cuda::view::{TableLine, Types};
use rmsnorm_cuda::{
    Backward, Dtype, Error, Executor, Forward, HIDDEN_MAX, Input, Operand, Output, Residual, Rows, Slice, SliceMut,
    WeightGradient, WeightOffset, f16, scratch_len,
};
use std::cell::Cell;

mod levels;

/// *Bad arguments are refused with the right typed error before anything is written.* One argument after the other of the
/// case's calls (at most 5 × 300) is spoiled. Operands that overlap cannot be lent in safe Rust: they, and addresses at the
/// end of memory, go through [`Forward::check`] and [`Backward::check`] as operands without memory.
pub(crate) fn refusal(subject: &Subject, case: &Case) -> Finding {
    let executor = &*subject.executor;
    let mut evidence = Evidence::default();
    let case = Case { rows: case.rows.clamp(2, 5), hidden: case.hidden.clamp(2, 300), ..case.of_one_level() };
    let mut operands = Operands::new(&case, Fill::Nan);
    let mut judge = |what: &str, refused: Result<(), Error>, right: &dyn Fn(&Error) -> bool| match refused {
        Ok(()) => Err(Stop::Failed(format!("{what}: accepted"))),
        Err(error) if !right(&error) => Err(Stop::Failed(format!("{what}: refused for another reason: {error:?}"))),
        Err(_) => {
            evidence.comparisons += 1;
            Ok(())
        }
    };
    let fingerprints = |operands: &Operands| Name::ALL.map(|name| operands.buffer(name).map(|b| b.fingerprint()));
    let before = fingerprints(&operands);
    for (what, spoil, right) in FORWARD {
        let mut call = operands.forward_call(true);
        if spoil(&mut call) {
            judge(&format!("forward, {what}"), executor.forward(call), right)?;
        }
    }
    for (what, spoil, right) in BACKWARD {
        let mut call = operands.backward_call();
        if spoil(&mut call) {
            judge(&format!("backward, {what}"), executor.backward(call), right)?;
        }
    }
    each_operand(&mut operands, executor, &mut judge)?;
    inputs_beside_outputs(&mut operands, executor, &mut judge)?;
    if let Some(i) = (0..before.len()).find(|i| fingerprints(&operands)[*i] != before[*i]) {
        return Err(Stop::Failed(format!("a refused call has written {}", Name::ALL[i])));
    }
    places_in_memory(&mut judge)?;
    Ok(evidence)
}

/// Whether a call was refused, and for the right reason.
type Judge<'a> = dyn FnMut(&str, Result<(), Error>, &dyn Fn(&Error) -> bool) -> Result<(), Stop> + 'a;

/// What is wrong, the spoiling of a call (false if the call has no such argument), and the right reason to refuse it.
type Spoil<F> = (&'static str, F, fn(&Error) -> bool);
type SpoilForward = fn(&mut Forward<Slice<'_>, SliceMut<'_>>) -> bool;
type SpoilBackward = fn(&mut Backward<Slice<'_>, SliceMut<'_>>) -> bool;

/// Spoils an argument that every call has.
macro_rules! spoil {
    ($call:ident => $change:expr) => {
        |$call| {
            $change;
            true
        }
    };
}

/// True for exactly this variant (and these fields).
macro_rules! refused {
    ($pattern:pat) => {
        |error| matches!(error, $pattern)
    };
}

const FORWARD: &[Spoil<SpoilForward>] = &[
    ("hidden 0", spoil!(c => c.hidden = 0), refused!(Error::Hidden { got: 0 })),
    ("hidden above the limit", spoil!(c => c.hidden = HIDDEN_MAX + 1), refused!(Error::Hidden { .. })),
    ("eps negative", spoil!(c => c.eps = -1e-5), refused!(Error::Eps { .. })),
    ("eps a negative subnormal", spoil!(c => c.eps = -f32::from_bits(1)), refused!(Error::Eps { .. })),
    ("eps NaN", spoil!(c => c.eps = f32::NAN), refused!(Error::Eps { .. })),
    ("eps infinite", spoil!(c => c.eps = f32::INFINITY), refused!(Error::Eps { .. })),
    ("inner 0", spoil!(c => c.inner = 0), refused!(Error::Inner { got: 0, .. })),
    ("inner no divisor of the rows", spoil!(c => c.inner = c.rows + 1), refused!(Error::Inner { .. })),
    (
        "x offset beyond the buffer",
        spoil!(c => c.x.offset = c.x.data.elements()),
        refused!(Error::Length { operand: "x", .. }),
    ),
    (
        "x rows that overlap",
        spoil!(c => c.x.row_stride = c.hidden - 1),
        refused!(Error::RowStride { operand: "x", broadcast: true, .. }),
    ),
    (
        "y rows that overlap",
        spoil!(c => c.y.row_stride = c.hidden - 1),
        refused!(Error::RowStride { operand: "y", broadcast: false, .. }),
    ),
    ("y with row stride 0", spoil!(c => c.y.row_stride = 0), refused!(Error::RowStride { operand: "y", .. })),
    (
        "stride beyond memory",
        spoil!(c => c.x.row_stride = usize::MAX / 2),
        refused!(Error::AddressRange { operand: "x", .. }),
    ),
    (
        "rows beyond memory",
        spoil!(c => (c.rows, c.x.row_stride) = (1 << 40, 1 << 40)),
        refused!(Error::AddressRange { operand: "x", .. }),
    ),
    (
        "rows whose bytes are beyond memory",
        spoil!(c => (c.rows, c.x.row_stride) = (1 << 31, 1 << 31)),
        refused!(Error::AddressRange { operand: "x", .. } | Error::Length { operand: "x", .. }),
    ),
    ("offset beyond memory", spoil!(c => c.y.offset = usize::MAX), refused!(Error::AddressRange { operand: "y", .. })),
    (
        "more rows than x holds",
        spoil!(c => (c.rows, c.x.row_stride) = (1 << 20, c.hidden)),
        refused!(Error::Length { operand: "x", .. }),
    ),
];

const BACKWARD: &[Spoil<SpoilBackward>] = &[
    ("hidden 0", spoil!(c => c.hidden = 0), refused!(Error::Hidden { got: 0 })),
    ("hidden above the limit", spoil!(c => c.hidden = HIDDEN_MAX + 1), refused!(Error::Hidden { .. })),
    ("inner 0", spoil!(c => c.inner = 0), refused!(Error::Inner { got: 0, .. })),
    ("inner no divisor of the rows", spoil!(c => c.inner = c.rows + 1), refused!(Error::Inner { .. })),
    (
        "dx with row stride 0",
        spoil!(c => c.dx.row_stride = 0),
        refused!(Error::RowStride { operand: "dx", broadcast: false, .. }),
    ),
    (
        "dy rows that overlap",
        spoil!(c => c.dy.row_stride = 1),
        refused!(Error::RowStride { operand: "dy", broadcast: true, .. }),
    ),
    (
        "dx stride beyond memory",
        spoil!(c => c.dx.row_stride = usize::MAX / 2),
        refused!(Error::AddressRange { operand: "dx", .. }),
    ),
    (
        "dw offset beyond memory",
        |c| c.dw.as_mut().map(|d| d.dw.offset = usize::MAX).is_some(),
        refused!(Error::AddressRange { operand: "dw", .. }),
    ),
];

/// Every operand of both calls, by the table of operands: of a type that it may not have, and one element too short.
fn each_operand(operands: &mut Operands, executor: &dyn Executor, judge: &mut Judge<'_>) -> Result<(), Stop> {
    let tables = [operands.forward_call(true).operands(), operands.backward_call().operands()];
    for (is_forward, table) in [true, false].into_iter().zip(tables) {
        for (spoiling, (i, line)) in SPOILINGS.iter().flat_map(|s| table.iter().enumerate().map(move |line| (s, line)))
        {
            // Most may have any type.
            if spoiling.is_of_type && line.types == Types::Any {
                continue;
            }
            // `try_map` visits the operands in the order of the table.
            let turn = Cell::new(0);
            let is_next = || turn.replace(turn.get() + 1) == i;
            let read = |data| Ok::<_, Error>(if is_next() { (spoiling.read)(line, data) } else { data });
            let write = |data| Ok::<_, Error>(if is_next() { (spoiling.write)(line, data) } else { data });
            let refused = match is_forward {
                true => executor.forward(operands.forward_call(true).try_map(read, write)?),
                false => executor.backward(operands.backward_call().try_map(read, write)?),
            };
            let right = |error: &Error| match *error {
                Error::ElementType { operand, .. } => spoiling.is_of_type && operand == line.name,
                Error::Length { operand, .. } => !spoiling.is_of_type && operand == line.name,
                _ => false,
            };
            let direction = if is_forward { "forward" } else { "backward" };
            judge(&format!("{direction}, {} {}", line.name, spoiling.what), refused, &right)?;
        }
    }
    Ok(())
}

/// Inputs that are said to lie in outputs, and do not with all their rows, may not, or lie in none that there is.
fn inputs_beside_outputs(operands: &mut Operands, executor: &dyn Executor, judge: &mut Judge<'_>) -> Result<(), Stop> {
    let overlap: fn(&Error) -> bool = |e| matches!(e, Error::Overlap { .. });
    // (An executor that computes nothing in place does not ask which outputs there are.)
    let absent: fn(&Error) -> bool = |e| matches!(e, Error::NoOutput { .. } | Error::Overlap { .. });
    for (what, offset, stride) in [("one element further on", 1, 0), ("one element further apart", 0, 1)] {
        let mut call = operands.forward_call(true).with_inputs();
        call.x = call.y.as_input(Output::Y);
        (call.x.offset, call.x.row_stride) = (call.y.offset + offset, call.y.row_stride + stride);
        judge(&format!("forward, x in y, {what}"), executor.forward_in_place(call), &overlap)?;
        let mut call = operands.backward_call().with_inputs();
        call.dy = call.dx.as_input(Output::Dx);
        (call.dy.offset, call.dy.row_stride) = (call.dx.offset + offset, call.dx.row_stride + stride);
        judge(&format!("backward, dy in dx, {what}"), executor.backward_in_place(call), &overlap)?;
    }
    let mut call = operands.forward_call(true).with_inputs();
    call.weight = Some(Input::Output(Output::Y).into());
    judge("forward, the weight in y", executor.forward_in_place(call), &overlap)?;
    let has_z = operands.case().has(Name::Z);
    for output in [Output::Z, Output::Dx].into_iter().filter(|output| *output == Output::Dx || !has_z) {
        let mut call = operands.forward_call(true).with_inputs();
        call.x = call.y.as_input(output);
        judge(&format!("forward, x in {output:?}"), executor.forward_in_place(call), &absent)?;
    }
    Ok(())
}

/// What is done to the memory of one operand.
struct Spoiling {
    what: &'static str,
    is_of_type: bool,
    read: for<'a> fn(&TableLine, Slice<'a>) -> Slice<'a>,
    write: for<'a> fn(&TableLine, SliceMut<'a>) -> SliceMut<'a>,
}

const SPOILINGS: [Spoiling; 2] = [
    Spoiling {
        what: "of another type",
        is_of_type: true,
        read: |_, _| Slice::F16(HALVES),
        write: |_, _| SliceMut::F16(&mut []),
    },
    Spoiling {
        what: "one element short",
        is_of_type: false,
        read: |line, data| match data {
            Slice::F32(s) => Slice::F32(&s[..end(line) - 1]),
            Slice::F16(s) => Slice::F16(&s[..end(line) - 1]),
            Slice::Bf16(s) => Slice::Bf16(&s[..end(line) - 1]),
        },
        write: |line, data| match data {
            SliceMut::F32(s) => SliceMut::F32(&mut s[..end(line) - 1]),
            SliceMut::F16(s) => SliceMut::F16(&mut s[..end(line) - 1]),
            SliceMut::Bf16(s) => SliceMut::Bf16(&mut s[..end(line) - 1]),
        },
    },
];

/// Where the operand ends in its buffer.
fn end(line: &TableLine) -> usize {
    line.offset + line.levels.at(line.rows - 1) + line.len
}

// Long enough: the type alone must be the reason.
const HALVES: &[f16] = &[f16::ZERO; 4096];

/// An operand without memory.
#[derive(Clone, Copy)]
struct Claim {
    dtype: Dtype,
    elements: usize,
    address: u64,
}

impl Operand for Claim {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn elements(&self) -> usize {
        self.elements
    }
    fn address(&self) -> u64 {
        self.address
    }
}

const CLAIM_ROWS: usize = 6;
const CLAIM_HIDDEN: usize = 10;

/// Claims of a backward call, in the order x, weight, rstd, dy, dx, dw, scratch; a forward call takes x, weight, dy as y, rstd.
fn claims() -> [Claim; 7] {
    let scratch = scratch_len(CLAIM_ROWS, CLAIM_HIDDEN).expect("a legal width");
    let matrix = CLAIM_ROWS * CLAIM_HIDDEN;
    let mut address = 1 << 20;
    [matrix, CLAIM_HIDDEN, CLAIM_ROWS, matrix, matrix, CLAIM_HIDDEN, scratch].map(|elements| {
        address += 1 << 20;
        Claim { dtype: Dtype::F32, elements, address }
    })
}

fn check_forward(c: [Claim; 7]) -> Result<(), Error> {
    let (rows, hidden) = (CLAIM_ROWS, CLAIM_HIDDEN);
    let (x, y) = (Rows::contiguous(c[0], hidden), Rows::contiguous(c[3], hidden));
    let weight_offset = WeightOffset::Zero;
    Forward {
        weight_offset,
        weight: Some(c[1].into()),
        rstd: Some(c[2].into()),
        ..Forward::with_rows((rows, hidden), 0.0, x, y)
    }
    .check()
}

fn check_backward(c: [Claim; 7]) -> Result<(), Error> {
    let (rows, hidden) = (CLAIM_ROWS, CLAIM_HIDDEN);
    let [x, dy, dx] = [c[0], c[3], c[4]].map(|data| Rows::contiguous(data, hidden));
    let (weight, rstd) = (Some(c[1].into()), c[2].into());
    let dw = Some(WeightGradient { dw: c[5].into(), scratch: c[6].into() });
    Backward { weight, dw, ..Backward::with_rows((rows, hidden), x, rstd, dy, dx) }.check()
}

/// Every output against every other operand: neighbours that touch are accepted, one shared element is refused.
fn places_in_memory(judge: &mut Judge<'_>) -> Result<(), Stop> {
    type Check = fn([Claim; 7]) -> Result<(), Error>;
    let calls: [(&str, Check, &[usize], &[usize]); 2] = [
        ("forward", check_forward, &[2, 3], &[0, 1, 2, 3]),
        ("backward", check_backward, &[4, 5, 6], &[0, 1, 2, 3, 4, 5, 6]),
    ];
    for (call, check, outputs, operands) in calls {
        for (output, other) in
            outputs.iter().flat_map(|o| operands.iter().map(move |p| (*o, *p))).filter(|(o, p)| o != p)
        {
            let end = |c: &Claim| c.address + 4 * c.elements as u64;
            let place = |address: u64| {
                let mut claims = claims();
                claims[output].address = address;
                check(claims)
            };
            let (moved, fixed) = (claims()[output], claims()[other]);
            let (after, before) = (end(&fixed), fixed.address - 4 * moved.elements as u64);
            let pair = format!("{call}, operand {output} against operand {other}");
            for address in [after, before] {
                place(address).map_err(|e| Stop::Failed(format!("{pair}, touching: {e}")))?;
            }
            // y has exactly the rows of x here, or dx those of x or dy.
            let may_be = [("forward", 3, 0), ("backward", 4, 0), ("backward", 4, 3)].contains(&(call, output, other));
            if may_be {
                place(fixed.address).map_err(|e| Stop::Failed(format!("{pair}, in place: {e}")))?;
            }
            let same = (!may_be).then_some(fixed.address);
            for address in [after - 4, before + 4, fixed.address + 4].into_iter().chain(same) {
                judge(&pair, place(address), &|e| matches!(*e, Error::Overlap { in_place, .. } if in_place == may_be))?;
            }
        }
        for i in operands {
            let spoiled = |change: fn(&mut Claim)| {
                let mut claims = claims();
                change(&mut claims[*i]);
                check(claims)
            };
            let what = format!("{call}, operand {i}");
            judge(&what, spoiled(|c| c.address += 2), &|e| matches!(e, Error::Misaligned { .. }))?;
            judge(&what, spoiled(|c| c.address = u64::MAX - 7), &|e| matches!(e, Error::AddressRange { .. }))?;
        }
    }
    interleaved(judge)?;
    levels::two_levels(judge)?;
    levels::heads(judge)?;
    in_place(judge)
}

/// Every matrix that is written where each that is read is: exactly there, which some may; one element further on; with rows one element further
/// apart.
fn in_place(judge: &mut Judge<'_>) -> Result<(), Stop> {
    let (rows, hidden) = (CLAIM_ROWS, CLAIM_HIDDEN);
    let data = Claim { dtype: Dtype::F32, elements: 1 << 10, address: 1 << 20 };
    let view = |i: u64| {
        let data = Claim { address: data.address + (i << 16), ..data };
        Rows::strided(data, 3, hidden + 2)
    };
    let [of_x, of_y, of_z, of_residual, of_dx, of_dy, of_dz] = [0, 1, 2, 3, 4, 5, 6].map(view);
    let forward = |y, z| {
        let residual = Some(Residual { residual: of_residual, z });
        Forward { residual, ..Forward::with_rows((rows, hidden), 0.0, of_x, y) }.check()
    };
    let backward = |dx| {
        let rstd = Claim { address: 1 << 30, ..data }.into();
        Backward { dz: Some(of_dz), ..Backward::with_rows((rows, hidden), of_x, rstd, of_dy, dx) }.check()
    };
    type Check<'a> = &'a dyn Fn(Rows<Claim>) -> Result<(), Error>;
    let (y, z): (Check<'_>, Check<'_>) = (&|rows| forward(rows, of_z), &|rows| forward(of_y, rows));
    for (pair, check, input, may_be) in [
        ("y where x is", y, of_x, true),
        ("y where the residual is", y, of_residual, false),
        ("z where x is", z, of_x, true),
        ("z where the residual is", z, of_residual, true),
        ("dx where x is", &backward, of_x, true),
        ("dx where dy is", &backward, of_dy, true),
        ("dx where dz is", &backward, of_dz, true),
    ] {
        let overlap: &dyn Fn(&Error) -> bool = &|e| matches!(*e, Error::Overlap { in_place, .. } if in_place == may_be);
        match may_be {
            true => check(input).map_err(|e| Stop::Failed(format!("{pair}: {e}")))?,
            false => judge(pair, check(input), overlap)?,
        }
        let further_on = Rows { offset: input.offset + 1, ..input };
        let further_apart = Rows { row_stride: input.row_stride + 1, ..input };
        judge(&format!("{pair}, one element further on"), check(further_on), overlap)?;
        judge(&format!("{pair}, one element further apart"), check(further_apart), overlap)?;
    }
    let both = forward(of_x, of_residual).and(backward(of_dx));
    both.map_err(|e| Stop::Failed(format!("y where x is and z where the residual is, or dx elsewhere: {e}")))
}

/// Rows of x and y that alternate in one matrix share no element; one element more, and they do.
fn interleaved(judge: &mut Judge<'_>) -> Result<(), Stop> {
    let (rows, hidden) = (CLAIM_ROWS, CLAIM_HIDDEN);
    let data = Claim { dtype: Dtype::F32, elements: 2 * rows * hidden, address: 1 << 20 };
    let check = |offset: usize| {
        let view = |offset| Rows::strided(data, offset, 2 * hidden);
        let call = Forward {
            weight_offset: WeightOffset::One,
            ..Forward::with_rows((rows, hidden), 0.0, view(0), view(offset))
        };
        call.check()
    };
    check(hidden).map_err(|e| Stop::Failed(format!("rows of x and y that alternate: {e}")))?;
    judge("rows of x and y that share one element", check(hidden - 1), &|e| matches!(e, Error::Overlap { .. }))
}
