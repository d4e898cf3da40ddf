//! Property 17: a call of heads with a weight each is a call for each head.

use crate::buffer::Fill;
use crate::case::Case;
use crate::finding::{Evidence, Finding, Stop, demand_equal};
use crate::identity::literal_outputs;
use crate::operands::Operands;
use crate::subject::Subject;

/// *Heads with a weight each get the bits that each gets from a call on its rows alone*, as the literal executor has it, wherever the rows of a
/// head lie; in the executor itself and in every launch that is always tried. Nothing else is written, and what memory held before is irrelevant.
pub(crate) fn heads(subject: &Subject, case: &Case) -> Finding {
    if case.inner < 2 {
        return Err(Stop::NotApplicable("there is one head".into()));
    }
    let mut evidence = Evidence::default();
    let want = literal_outputs(&Operands::per_head(case, Fill::Plausible));
    let launches = subject.always(case);
    let launches = launches.map(|launch| (format!("{}, ", launch.what), &*launch.executor, &[Fill::Nan][..]));
    let itself = (String::new(), &*subject.executor, &[Fill::Nan, Fill::Plausible][..]);
    for (what, executor, fills) in std::iter::once(itself).chain(launches) {
        for fill in fills {
            let mut operands = Operands::per_head(case, *fill);
            let got = operands.run(executor)?;
            demand_equal(format_args!("{what}all heads at once"), want.difference(&got))?;
            if let Some(damage) = operands.damaged_redzone() {
                return Err(Stop::Failed(format!("{what}all heads at once: {damage}")));
            }
            evidence.count(got.elements());
        }
    }
    Ok(evidence)
}
