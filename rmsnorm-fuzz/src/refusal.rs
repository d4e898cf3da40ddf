//! Property 10: bad arguments are refused.

use crate::buffer::Fill;
use crate::case::{Case, Name};
use crate::finding::{Evidence, Finding, Stop};
use crate::operands::Operands;
use crate::subject::Subject;
use rmsnorm_cuda::{
    Backward, Dtype, Error, Forward, HIDDEN_MAX, Operand, Rows, Slice, SliceMut, Vector, WeightGradient, WeightOffset,
    bf16, f16, scratch_len,
};

/// *Bad arguments are refused with the right typed error before anything is written.* One argument after the other of the
/// case's calls (at most 5 × 300) is spoiled. Operands that overlap cannot be lent in safe Rust: they, and addresses at the
/// end of memory, go through [`Forward::check`] and [`Backward::check`] as operands without memory.
pub(crate) fn refusal(subject: &Subject, case: &Case) -> Finding {
    let executor = &*subject.executor;
    let mut evidence = Evidence::default();
    let case = Case { rows: case.rows.clamp(2, 5), hidden: case.hidden.clamp(2, 300), ..*case };
    let mut operands = Operands::new(&case, Fill::Nan);
    let mut judge = |what: &str, refused: Result<(), Error>, right: fn(&Error) -> bool| match refused {
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
            judge(&format!("forward, {what}"), executor.forward(call), *right)?;
        }
    }
    for (what, spoil, right) in BACKWARD {
        let mut call = operands.backward_call();
        if spoil(&mut call) {
            judge(&format!("backward, {what}"), executor.backward(call), *right)?;
        }
    }
    if let Some(i) = (0..before.len()).find(|i| fingerprints(&operands)[*i] != before[*i]) {
        return Err(Stop::Failed(format!("a refused call has written {}", Name::ALL[i])));
    }
    places_in_memory(&mut judge)?;
    Ok(evidence)
}

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
    ("x of another type", spoil!(c => c.x.data = other_type(c.x.data.dtype())), refused!(Error::ElementType { .. })),
    (
        "y of another type",
        spoil!(c => c.y.data = other_type_mut(c.y.data.dtype())),
        refused!(Error::ElementType { operand: "y", .. }),
    ),
    (
        "rstd of another type",
        |c| c.rstd.as_mut().map(|r| r.data = SliceMut::F16(&mut [])).is_some(),
        refused!(Error::ElementType { operand: "rstd", .. }),
    ),
    (
        "weight of a third type",
        |c| third_type(&mut c.weight, c.x.data.dtype()),
        refused!(Error::ElementType { operand: "weight", .. }),
    ),
    (
        "x one element short",
        spoil!(c => short(&mut c.x, c.rows, c.hidden)),
        refused!(Error::Length { operand: "x", .. }),
    ),
    (
        "y one element short",
        spoil!(c => short_mut(&mut c.y, c.rows, c.hidden)),
        refused!(Error::Length { operand: "y", .. }),
    ),
    (
        "weight one element short",
        |c| c.weight.as_mut().map(|w| cut(&mut w.data, w.offset + c.hidden - 1)).is_some(),
        refused!(Error::Length { operand: "weight", .. }),
    ),
    (
        "rstd one element short",
        |c| c.rstd.as_mut().map(|r| cut_mut(&mut r.data, r.offset + c.rows - 1)).is_some(),
        refused!(Error::Length { operand: "rstd", .. }),
    ),
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
    (
        "dy of another type",
        spoil!(c => c.dy.data = other_type(c.dy.data.dtype())),
        refused!(Error::ElementType { operand: "dy", .. }),
    ),
    (
        "dx of another type",
        spoil!(c => c.dx.data = other_type_mut(c.dx.data.dtype())),
        refused!(Error::ElementType { operand: "dx", .. }),
    ),
    (
        "rstd of another type",
        spoil!(c => c.rstd.data = Slice::Bf16(&[])),
        refused!(Error::ElementType { operand: "rstd", .. }),
    ),
    (
        "weight of a third type",
        |c| third_type(&mut c.weight, c.x.data.dtype()),
        refused!(Error::ElementType { operand: "weight", .. }),
    ),
    ("dw of a third type", third_type_dw, refused!(Error::ElementType { operand: "dw", .. })),
    (
        "scratch of another type",
        |c| c.dw.as_mut().map(|d| d.scratch.data = SliceMut::F16(&mut [])).is_some(),
        refused!(Error::ElementType { operand: "scratch", .. }),
    ),
    (
        "x one element short",
        spoil!(c => short(&mut c.x, c.rows, c.hidden)),
        refused!(Error::Length { operand: "x", .. }),
    ),
    (
        "dy one element short",
        spoil!(c => short(&mut c.dy, c.rows, c.hidden)),
        refused!(Error::Length { operand: "dy", .. }),
    ),
    (
        "dx one element short",
        spoil!(c => short_mut(&mut c.dx, c.rows, c.hidden)),
        refused!(Error::Length { operand: "dx", .. }),
    ),
    (
        "weight one element short",
        |c| c.weight.as_mut().map(|w| cut(&mut w.data, w.offset + c.hidden - 1)).is_some(),
        refused!(Error::Length { operand: "weight", .. }),
    ),
    (
        "rstd one element short",
        spoil!(c => cut(&mut c.rstd.data, c.rstd.offset + c.rows - 1)),
        refused!(Error::Length { operand: "rstd", .. }),
    ),
    (
        "dw one element short",
        |c| c.dw.as_mut().map(|d| cut_mut(&mut d.dw.data, d.dw.offset + c.hidden - 1)).is_some(),
        refused!(Error::Length { operand: "dw", .. }),
    ),
    ("scratch one element short", short_scratch, refused!(Error::Length { operand: "scratch", .. })),
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

/// The buffer ends one element before its last row does.
fn short(view: &mut Rows<Slice<'_>>, rows: usize, hidden: usize) {
    cut(&mut view.data, view.offset + (rows - 1) * view.row_stride + hidden - 1);
}

fn short_mut(view: &mut Rows<SliceMut<'_>>, rows: usize, hidden: usize) {
    cut_mut(&mut view.data, view.offset + (rows - 1) * view.row_stride + hidden - 1);
}

fn cut(data: &mut Slice<'_>, len: usize) {
    *data = match *data {
        Slice::F32(s) => Slice::F32(&s[..len]),
        Slice::F16(s) => Slice::F16(&s[..len]),
        Slice::Bf16(s) => Slice::Bf16(&s[..len]),
    };
}

fn cut_mut(data: &mut SliceMut<'_>, len: usize) {
    *data = match std::mem::replace(data, SliceMut::F32(&mut [])) {
        SliceMut::F32(s) => SliceMut::F32(&mut s[..len]),
        SliceMut::F16(s) => SliceMut::F16(&mut s[..len]),
        SliceMut::Bf16(s) => SliceMut::Bf16(&mut s[..len]),
    };
}

fn short_scratch(call: &mut Backward<Slice<'_>, SliceMut<'_>>) -> bool {
    let needed = scratch_len(call.rows, call.hidden).expect("a legal width");
    call.dw.as_mut().map(|d| cut_mut(&mut d.scratch.data, d.scratch.offset + needed - 1)).is_some()
}

fn other_type<'a>(dtype: Dtype) -> Slice<'a> {
    const HALVES: &[f16] = &[f16::ZERO; 4096];
    const BRAINS: &[bf16] = &[bf16::ZERO; 4096];
    // Long enough: the type alone must be the reason.
    if dtype == Dtype::F16 { Slice::Bf16(BRAINS) } else { Slice::F16(HALVES) }
}

fn other_type_mut<'a>(dtype: Dtype) -> SliceMut<'a> {
    if dtype == Dtype::F16 { SliceMut::Bf16(&mut []) } else { SliceMut::F16(&mut []) }
}

/// A weight that is neither f32 nor of the type of `x`.
fn third_type(weight: &mut Option<Vector<Slice<'_>>>, dtype: Dtype) -> bool {
    weight.as_mut().map(|w| w.data = other_type(dtype)).is_some()
}

fn third_type_dw(call: &mut Backward<Slice<'_>, SliceMut<'_>>) -> bool {
    let weight = call.weight.as_ref().map_or(Dtype::F32, |w| w.data.dtype());
    call.dw.as_mut().map(|d| d.dw.data = other_type_mut(weight)).is_some()
}

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
    Forward { rows, hidden, eps: 0.0, weight_offset, x, weight: Some(c[1].into()), y, rstd: Some(c[2].into()) }.check()
}

fn check_backward(c: [Claim; 7]) -> Result<(), Error> {
    let (rows, hidden) = (CLAIM_ROWS, CLAIM_HIDDEN);
    let [x, dy, dx] = [c[0], c[3], c[4]].map(|data| Rows::contiguous(data, hidden));
    let (weight, rstd) = (Some(c[1].into()), c[2].into());
    let dw = Some(WeightGradient { dw: c[5].into(), scratch: c[6].into() });
    Backward { rows, hidden, weight_offset: WeightOffset::Zero, x, weight, rstd, dy, dx, dw }.check()
}

/// Every output against every other operand: neighbours that touch are accepted, one shared element is refused.
fn places_in_memory(
    judge: &mut impl FnMut(&str, Result<(), Error>, fn(&Error) -> bool) -> Result<(), Stop>,
) -> Result<(), Stop> {
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
            for address in [after - 4, before + 4, fixed.address] {
                judge(&pair, place(address), refused!(Error::Overlap { .. }))?;
            }
        }
        for i in operands {
            let spoiled = |change: fn(&mut Claim)| {
                let mut claims = claims();
                change(&mut claims[*i]);
                check(claims)
            };
            let what = format!("{call}, operand {i}");
            judge(&what, spoiled(|c| c.address += 2), refused!(Error::Misaligned { .. }))?;
            judge(&what, spoiled(|c| c.address = u64::MAX - 7), refused!(Error::AddressRange { .. }))?;
        }
    }
    interleaved(judge)
}

/// Rows of x and y that alternate in one matrix share no element; one element more, and they do.
fn interleaved(
    judge: &mut impl FnMut(&str, Result<(), Error>, fn(&Error) -> bool) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let (rows, hidden) = (CLAIM_ROWS, CLAIM_HIDDEN);
    let data = Claim { dtype: Dtype::F32, elements: 2 * rows * hidden, address: 1 << 20 };
    let check = |offset: usize| {
        let view = |offset| Rows { data, offset, row_stride: 2 * hidden };
        let call = Forward {
            rows,
            hidden,
            eps: 0.0,
            weight_offset: WeightOffset::One,
            x: view(0),
            weight: None,
            y: view(offset),
            rstd: None,
        };
        call.check()
    };
    check(hidden).map_err(|e| Stop::Failed(format!("rows of x and y that alternate: {e}")))?;
    judge("rows of x and y that share one element", check(hidden - 1), refused!(Error::Overlap { .. }))
}
