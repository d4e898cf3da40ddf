//! Property 16: an output may have the rows of an input.

use crate::buffer::Fill;
use crate::case::{Case, Name};
use crate::finding::{Evidence, Finding, Stop, demand_equal};
use crate::operands::Operands;
use crate::subject::Subject;
use rmsnorm_cuda::{Backward, Executor, Forward, Input, Output, Slice, SliceMut};

/// *An output that has the rows of an input gets the bits that it gets in memory of its own*: each input in each output that it may lie in, in the
/// executor itself and in every launch that is always tried. The rows lie where the case has those of the output.
pub(crate) fn in_place(subject: &Subject, case: &Case) -> Finding {
    let mut evidence = Evidence::default();
    judge(&*subject.executor, "", case, Operands::new(case, Fill::Nan), &mut evidence)?;
    for launch in subject.always(case) {
        judge(&*launch.executor, &format!(", {}", launch.what), case, Operands::new(case, Fill::Nan), &mut evidence)?;
    }
    if case.inner > 1 {
        let heads = Operands::per_head(case, Fill::Nan);
        judge(&*subject.executor, ", of heads with a weight each", case, heads, &mut evidence)?;
    }
    Ok(evidence)
}

fn judge(
    executor: &dyn Executor,
    what: &str,
    case: &Case,
    mut operands: Operands,
    evidence: &mut Evidence,
) -> Result<(), Stop> {
    let want = operands.run(executor)?;
    let ways = FORWARD.iter().map(|way| (*way, true)).chain(BACKWARD.iter().map(|way| (*way, false)));
    // Backward's x is what forward normalised.
    let in_call =
        |name, is_forward: bool| if !is_forward && name == Name::X && case.has(Name::Z) { Name::Z } else { name };
    for (way, is_forward) in ways {
        // Of another type an input has never the rows of an output.
        let fits = |(input, output): &(Name, Output)| {
            let output = Name::from(*output);
            let is_one_type = case.type_of(in_call(*input, is_forward)) == case.type_of(output);
            case.has(*input) && case.has(output) && is_one_type
        };
        if !way.iter().all(fits) {
            continue;
        }
        let of_way = way.iter().map(|(input, output)| format!("{input} in {}", output.name())).collect::<Vec<_>>();
        let how = format!("{}{what}", of_way.join(", "));
        // Of the other call the outputs are still there, as they should be; and rstd, where forward is not asked for it.
        let written = if is_forward { [Name::Z, Name::Y, Name::Rstd] } else { [Name::Dx, Name::Dw, Name::Scratch] };
        for name in written.into_iter().filter(|name| case.has(*name) && (*name != Name::Rstd || case.rstd)) {
            operands.buffer_mut(name).refill();
        }
        for (input, output) in way {
            operands.lay(in_call(*input, is_forward), Name::from(*output));
        }
        let called = match is_forward {
            true => executor.forward_in_place(forward(operands.forward_call(case.rstd), way)),
            false => executor.backward_in_place(backward(operands.backward_call(), way)),
        };
        called.map_err(|error| Stop::Failed(format!("{how}: refused a good call: {error}")))?;
        demand_equal(&how, want.difference(&operands.outputs()))?;
        if let Some(damage) = operands.damaged_redzone() {
            return Err(Stop::Failed(format!("{how}: {damage}")));
        }
        evidence.count((way.len() * case.elements()) as u64);
    }
    Ok(())
}

/// Inputs, and the output that each lies in.
type Way = &'static [(Name, Output)];

const FORWARD: [Way; 4] = [
    &[(Name::X, Output::Y)],
    &[(Name::Residual, Output::Z)],
    &[(Name::X, Output::Y), (Name::Residual, Output::Z)],
    &[(Name::X, Output::Z)],
];

const BACKWARD: [Way; 3] = [&[(Name::Dy, Output::Dx)], &[(Name::Dz, Output::Dx)], &[(Name::X, Output::Dx)]];

impl From<Output> for Name {
    fn from(output: Output) -> Self {
        match output {
            Output::Y => Name::Y,
            Output::Z => Name::Z,
            Output::Dx => Name::Dx,
        }
    }
}

fn forward<'a>(call: Forward<Slice<'a>, SliceMut<'a>>, way: Way) -> Forward<Input<Slice<'a>>, SliceMut<'a>> {
    let mut call = call.with_inputs();
    for (input, output) in way {
        let z = call.residual.as_ref().map(|sum| sum.z.as_input(*output));
        let rows = z.filter(|_| *output == Output::Z).unwrap_or(call.y.as_input(*output));
        match (input, &mut call.residual) {
            (Name::Residual, Some(sum)) => sum.residual = rows,
            _ => call.x = rows,
        }
    }
    call
}

fn backward<'a>(call: Backward<Slice<'a>, SliceMut<'a>>, way: Way) -> Backward<Input<Slice<'a>>, SliceMut<'a>> {
    let mut call = call.with_inputs();
    for (input, output) in way {
        let rows = call.dx.as_input(*output);
        match input {
            Name::X => call.x = rows,
            Name::Dy => call.dy = rows,
            _ => call.dz = Some(rows),
        }
    }
    call
}
