//! Property 14: a residual is an addition before the call.

use crate::buffer::Fill;
use crate::case::{Case, Name};
use crate::finding::{Evidence, Finding, Stop, demand_equal};
use crate::operands::Operands;
use crate::subject::Subject;

/// *Forward with a residual gives the bits of forward on the sum that it stored.*
pub(crate) fn fused(subject: &Subject, case: &Case) -> Finding {
    if case.residual.is_none() {
        return Err(Stop::NotApplicable("there is no residual".into()));
    }
    let executor = &*subject.executor;
    let mut fused = Operands::new(case, Fill::Nan);
    fused.forward(executor)?;
    let want = fused.outputs();
    let mut plain = Operands::new(case, Fill::Plausible);
    let z = fused.buffer(Name::Z).expect("there is a residual").rows();
    let mut call = plain.forward_call(true);
    (call.x, call.residual) = (z, None);
    executor.forward(call)?;
    let mut got = plain.outputs();
    // Neither call writes dx, nor the second one z.
    got.dx.clone_from(&want.dx);
    got.z.clone_from(&want.z);
    demand_equal("forward on the stored sum", want.row_difference(&got, |row| row))?;
    let mut evidence = Evidence::default();
    evidence.count((want.y.len() + want.rstd.len()) as u64);
    Ok(evidence)
}
