//! Property 3: a run changes nothing for the next, and who runs beside it changes nothing for either.

use crate::buffer::Fill;
use crate::case::Case;
use crate::finding::{Evidence, Finding, Stop, demand_equal};
use crate::operands::{Operands, Outputs};
use crate::subject::{Again, Subject};
use rmsnorm_cuda::Executor;
use std::panic::resume_unwind;

/// *Two runs are equal, however the second is made*: on other threads, on another stream while the first is repeated, beside
/// competing kernels, from a graph.
pub(crate) fn two_runs(subject: &Subject, case: &Case) -> Finding {
    let mut evidence = Evidence::default();
    let executor = &*subject.executor;
    let run = |executor: &dyn Executor| Operands::new(case, Fill::Nan).run(executor);
    let first = run(executor)?;
    for Again { how, executor: other, at_once } in &subject.again {
        let other = other.as_deref().unwrap_or(executor);
        let mut demand = |got: Result<Outputs, _>| {
            let got = got.map_err(|error| Stop::Failed(format!("{how}: {error}")))?;
            evidence.count(got.elements());
            demand_equal(how, first.difference(&got))
        };
        if *at_once {
            let (one, other) = std::thread::scope(|scope| {
                let other = scope.spawn(|| run(other));
                (run(executor), other.join().unwrap_or_else(|panic| resume_unwind(panic)))
            });
            demand(one)?;
            demand(other)?;
        } else {
            demand(run(other))?;
        }
    }
    Ok(evidence)
}
