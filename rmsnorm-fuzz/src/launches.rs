//! Properties 5 and 12: how kernels are launched is irrelevant, and a launch that fails is told by its call.

use crate::finding::{Evidence, Finding, Stop};
use crate::identity::Trial;
use crate::subject::{OtherLaunch, Subject};
use rmsnorm_cuda::Error;

/// *Every grid, every plan and every class of kernels gives the same bits*: those of the literal executor.
pub(crate) fn launch(subject: &Subject, trial: &mut Trial) -> Finding {
    if subject.launches.is_empty() {
        return Err(Stop::NotApplicable("the CPU has no launches".into()));
    }
    let mut evidence = Evidence::default();
    for OtherLaunch { what, executor, elements_max, left_out, tried } in &subject.launches {
        if *tried > trial.launches {
            continue;
        }
        if trial.case.elements() > *elements_max {
            evidence.exclude(left_out, 1);
            continue;
        }
        evidence.count(trial.demand(&**executor, &format!("{what}: "))?);
    }
    if evidence.comparisons == 0 {
        return Err(Stop::NotApplicable("no launch fits the case".into()));
    }
    Ok(evidence)
}

/// *A launch that fails is told by the call that made it, and by no other*: the driver refuses it, the call says so, and the next
/// calls give the right bits.
pub(crate) fn launch_failures(subject: &Subject, trial: &mut Trial) -> Finding {
    let Some(refused) = &subject.refused else {
        return Err(Stop::NotApplicable("nothing refuses launches on demand".into()));
    };
    if trial.case.rows == 0 {
        return Err(Stop::NotApplicable("nothing is launched for no rows".into()));
    }
    let (operands, _) = trial.literal();
    for (call, result) in [("forward", operands.forward(&**refused)), ("backward", operands.backward(&**refused))] {
        match result {
            Err(Error::Driver { call: "cuLaunchKernel", .. }) => {}
            Err(error @ Error::NoCode { .. }) => return Err(error.into()),
            other => return Err(Stop::Failed(format!("{call} whose launch is refused returned {other:?}"))),
        }
    }
    let mut evidence = Evidence::default();
    evidence.count(trial.demand(&*subject.executor, "after refused launches: ")?);
    Ok(evidence)
}
