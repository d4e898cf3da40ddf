//! Property 15: rounding twice is storing x_hat, and then a product.

use crate::buffer::{Buffer, Fill};
use crate::case::{Case, Name, WeightKind};
use crate::elements::{Elements, put};
use crate::finding::{Evidence, Finding, Stop, demand_equal};
use crate::operands::{Operands, Outputs};
use crate::subject::Subject;
use rayon::prelude::*;
use rmsnorm_cuda::{Dtype, Rounding, Rows, Slice, WeightOffset};

/// *Rounding twice gives the product of the stored x_hat, dw of backward on it, and all else as rounding once; in f32 everything.*
pub(crate) fn twice(subject: &Subject, case: &Case) -> Finding {
    if case.rounding != Rounding::Twice {
        return Err(Stop::NotApplicable("y is rounded once".into()));
    }
    let executor = &*subject.executor;
    let got = Operands::new(case, Fill::Nan).run(executor)?;

    // Without a weight and a bias y is x_hat, stored; here in the type of what is normalised.
    let mut unweighted =
        Case { weight: WeightKind::Absent, bias: WeightKind::Absent, rounding: Rounding::Once, ..*case };
    unweighted.types[Name::Y as usize] = None;
    let mut plain = Operands::new(&unweighted, Fill::Plausible);
    plain.forward(executor)?;
    let h = plain.outputs().y;
    drop(plain);

    let mut once = Operands::new(&Case { rounding: Rounding::Once, ..*case }, Fill::Plausible);
    let of_once = once.run(executor)?;
    if case.dtype == Dtype::F32 {
        demand_equal("against rounding once in f32", of_once.difference(&got))?;
    }
    // An rstd of one makes h the x_hat of the call.
    let ones = vec![1.0_f32; case.rows];
    let mut call = once.backward_call();
    call.x = Rows::contiguous(h.slice(), case.hidden);
    call.rstd = Slice::F32(&ones).into();
    executor.backward(call)?;
    let dw = once.outputs().dw;

    let y = products(case, h, once.buffer(Name::Weight), once.buffer(Name::Bias));
    let want = Outputs { y, dw, ..of_once };
    demand_equal("against the stored x_hat, multiplied", want.difference(&got))?;
    let mut evidence = Evidence::default();
    evidence.count(got.elements());
    Ok(evidence)
}

/// `h·w'`, or `h·w' + bias`, rounded once.
fn products(case: &Case, h: Elements, weight: Option<&Buffer>, bias: Option<&Buffer>) -> Elements {
    let mut y = Elements::zeros(case.type_of(Name::Y), h.len());
    let offset = |w: f32| if case.weight_offset == WeightOffset::One { w + 1.0 } else { w };
    let weight: Vec<f32> = (0..case.hidden).map(|j| weight.map_or(1.0, |w| offset(w.get(0, j)))).collect();
    y.pieces_mut(case.hidden).into_par_iter().enumerate().for_each(|(i, mut row)| {
        for (j, weight) in weight.iter().enumerate() {
            let h = h.get(i * case.hidden + j);
            let y = bias.map_or(h * weight, |bias| h.mul_add(*weight, bias.get(0, j)));
            put(&mut row, j, y);
        }
    });
    y
}
