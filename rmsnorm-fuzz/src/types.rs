//! Property 18: a mixture of element types has no arithmetic of its own.

use crate::buffer::Fill;
use crate::case::{Case, Name};
use crate::elements::Elements;
use crate::finding::{Evidence, Finding, Stop, demand_equal};
use crate::operands::{Operands, Outputs};
use crate::subject::Subject;
use rmsnorm_cuda::{Dtype, Rounding};

/// *Operands widened to f32, and outputs rounded afterwards, give the bits of the call on operands of their own types.* What is normalised keeps its type
/// where that is rounded to: with a residual, and where x_hat is rounded.
pub(crate) fn types(subject: &Subject, case: &Case) -> Finding {
    let executor = &*subject.executor;
    let mut own = Operands::new(case, Fill::Nan);
    let want = own.run(executor)?;
    let rounds = case.residual.is_some() || case.rounding == Rounding::Twice;
    let kept = if rounds { case.dtype } else { Dtype::F32 };
    let wide = Case { dtype: kept, types: [Some(Dtype::F32); Name::ALL.len()], ..*case };
    if Name::ALL.into_iter().all(|name| !case.has(name) || case.type_of(name) == wide.type_of(name)) {
        return Err(Stop::NotApplicable("every operand is f32 already".into()));
    }
    let mut widened = Operands::new(&wide, Fill::Plausible);
    for name in Name::ALL.into_iter().filter(|name| name.is_input() && case.has(*name)) {
        let from = own.buffer(name).expect("the case has it");
        widened.buffer_mut(name).take_numbers(from);
    }
    let got = widened.run(executor)?;
    let round = |name: Name, output: &Elements| output.rounded(case.type_of(name));
    let got = Outputs {
        rows: got.rows,
        hidden: got.hidden,
        z: got.z,
        y: round(Name::Y, &got.y),
        rstd: got.rstd,
        dx: round(Name::Dx, &got.dx),
        dw: got.dw.as_ref().map(|dw| round(Name::Dw, dw)),
        db: got.db.as_ref().map(|db| round(Name::Db, db)),
    };
    demand_equal("of operands widened to f32, rounded afterwards", want.difference(&got))?;
    let mut evidence = Evidence::default();
    evidence.count(got.elements());
    Ok(evidence)
}
