//! The checks, seen through the command: what is broken fails, and is named.

use super::judge::IDLE;
use super::*;
use rmsnorm_cuda::{Backward, Error, Forward, Input, Slice, SliceMut};
use rmsnorm_fuzz::subject::{Again, OtherLaunch};

/// Computes with another eps where rows have seven elements.
struct Broken;

impl Executor for Broken {
    fn name(&self) -> String {
        "broken".into()
    }
    fn forward(&self, mut call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        if call.hidden == 7 {
            call.eps += 1.0;
        }
        Cpu.forward(call)
    }
    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        Cpu.backward(call)
    }
    fn forward_in_place(&self, call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        Cpu.forward_in_place(call)
    }
    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        Cpu.backward_in_place(call)
    }
}

fn verify_case(name: &str, subjects: &[Subject]) -> (Report, String) {
    let mut out = Vec::new();
    let options = Options { case: Some(name.into()), ..Options::default() };
    let machine = Machine { missing: Some("not asked for".into()), ..Machine::default() };
    let (report, _) = verify(&options, Some(names::named(name).unwrap()), machine, subjects).unwrap();
    print_report(&report, &mut out).unwrap();
    (report, String::from_utf8(out).unwrap())
}

fn subject(executor: impl Executor + 'static) -> [Subject; 1] {
    [Subject::of(executor)]
}

#[test]
fn a_broken_executor_fails_and_the_case_is_named() {
    let (report, text) = verify_case("width_7", &subject(Broken));
    assert!(!report.passed);
    assert!(text.contains("verify --case width_7\n"), "{text}");
    let failed: Vec<&str> = report.rows.iter().filter(|r| r.failed > 0).map(|r| r.property.as_str()).collect();
    assert!(
        failed.contains(&"identity") && failed.contains(&"accuracy") && !failed.contains(&"two runs"),
        "{failed:?}"
    );
    assert!(verify_case("width_5", &subject(Broken)).0.passed);
}

#[test]
fn a_launch_that_differs_fails() {
    let launches = vec![OtherLaunch::new("forced", Broken)];
    let (report, text) = verify_case("width_7", &[Subject { name: CUDA, launches, ..Subject::of(Cpu) }]);
    assert!(!report.passed && text.contains("FAILED: launch on cuda"), "{text}");
    assert!(text.contains("--case width_7 --device cuda"), "{text}");
}

#[test]
fn another_run_that_differs_fails() {
    for at_once in [false, true] {
        let with = |executor: Box<dyn Executor>| {
            let again = vec![Again { how: "in another way", executor: Some(executor), at_once }];
            verify_case("width_7", &[Subject { name: CUDA, again, ..Subject::of(Cpu) }])
        };
        let (report, text) = with(Box::new(Broken));
        assert!(!report.passed && text.contains("FAILED: two runs on cuda"), "{text}");
        assert!(text.contains("in another way: rstd[0][0]"), "{text}");
        assert!(with(Box::new(Cpu)).0.passed);
    }
}

/// The driver refuses every launch of this one.
struct Refused;

impl Executor for Refused {
    fn name(&self) -> String {
        "refused".into()
    }
    fn forward(&self, _: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        Err(Error::Driver { call: "cuLaunchKernel", code: "CUDA_ERROR_INVALID_VALUE".into() })
    }
    fn backward(&self, _: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        Err(Error::Driver { call: "cuLaunchKernel", code: "CUDA_ERROR_INVALID_VALUE".into() })
    }
}

#[test]
fn a_refused_launch_that_nobody_is_told_of_fails() {
    let with =
        |refused: Box<dyn Executor>| verify_case("width_7", &[Subject { refused: Some(refused), ..Subject::of(Cpu) }]);
    assert!(with(Box::new(Refused)).0.passed);
    let (report, text) = with(Box::new(Cpu));
    assert!(!report.passed && text.contains("FAILED: launch failures on cpu"), "{text}");
}

#[test]
fn a_healthy_executor_passes_every_property() {
    let (report, text) = verify_case("idle_groups_781", &subject(Cpu));
    assert!(report.passed, "{text}");
    let (unlike, _) = verify_case("width_5", &subject(Cpu));
    assert!(unlike.rows.iter().all(|row| row.property != IDLE || row.skipped.is_some()));
    assert!(report.rows.iter().any(|row| row.property == IDLE && row.comparisons == 180), "{text}");
    // What needs a GPU is skipped, with a reason.
    let skipped = report.rows.iter().filter(|row| row.executor == CUDA);
    assert!(skipped.clone().count() > 10 && skipped.clone().all(|row| row.skipped.is_some()), "{text}");
}

#[test]
fn nothing_executed_is_a_failure() {
    let (report, text) = verify_case("width_7", &[]);
    assert!(!report.passed && text.contains("no case was executed"), "{text}");
}
