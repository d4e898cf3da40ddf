//! The checks can fail: executors with one defect each, and the property that must refute them.

use rmsnorm_cuda::{
    Backward, BiasGradient, Cpu, Error, Executor, Forward, Input, Rounding, Rows, Slice, SliceMut, Vector,
    WeightGradient, WeightOffset, bf16,
};
use rmsnorm_fuzz::elements::{get, put};
use rmsnorm_fuzz::property::PROPERTIES;
use rmsnorm_fuzz::subject::{OtherLaunch, Tried};
use rmsnorm_fuzz::{Case, Literal, Outcome, Subject, hard_case, property};

/// The defect, the property that must refute it, and the hard case that it uses for this.
const DEFECTS: &[(Defect, &str, &str)] = &[
    (Defect::LastRowSkipped, "content", "rows_3"),
    (Defect::LastRowSkipped, "identity", "rows_3"),
    (Defect::LastColumnSkipped, "content", "width_7"),
    (Defect::WritesOnePast, "writes", "width_7"),
    (Defect::WritesIntoGap, "writes", "gap_of_one"),
    (Defect::ReadsOnePast, "content", "gaps"),
    (Defect::ScratchSummedUnwritten, "content", "rows_17"),
    (Defect::OutputAddedTo, "content", "rows_17"),
    (Defect::SumInPlainOrder, "identity", "rows_17"),
    (Defect::EpsOutsideRoot, "accuracy", "eps_equals_square"),
    (Defect::EpsIgnored, "accuracy", "eps_dominates"),
    (Defect::NoScaledPath, "accuracy", "x_1e30_f32"),
    (Defect::NoScaledPath, "scaling", "every_magnitude"),
    (Defect::EpsNotScaled, "accuracy", "eps_at_the_edge"),
    (Defect::EpsNotScaled, "identity", "every_magnitude_eps"),
    (Defect::RstdRoundedToBf16, "accuracy", "rows_17"),
    (Defect::RstdRoundedToBf16, "identity", "rows_17"),
    (Defect::TruncatesToF16, "accuracy", "width_7"),
    (Defect::TruncatesToBf16, "accuracy", "width_31"),
    (Defect::OffsetIgnored, "accuracy", "zero_centred_small"),
    (Defect::RoundedOnce, "accuracy", "twice_f16"),
    (Defect::RoundedOnce, "twice", "twice_bf16"),
    (Defect::RoundedOnce, "twice", "twice_weight_absent"),
    (Defect::BiasIgnored, "accuracy", "bias_1024"),
    (Defect::BiasIgnored, "exact", "bias_weight_absent"),
    (Defect::DbLostRow, "exact", "db_1024"),
    (Defect::DbLostRow, "accuracy", "db_without_dw"),
    (Defect::WeightTwice, "accuracy", "w_awkward"),
    (Defect::WeightTwice, "exact", "w_awkward"),
    (Defect::DependsOnPosition, "batch", "rows_17"),
    (Defect::DependsOnPosition, "scaling", "rows_17"),
    (Defect::DependsOnRows, "batch", "rows_17"),
    (Defect::DependsOnAlignment, "layout", "rows_17"),
    (Defect::DependsOnStride, "layout", "rows_17"),
    (Defect::DxBiased, "scaling", "rows_17"),
    (Defect::NegativeZero, "identity", "underflow_negative"),
    (Defect::LostRow, "exact", "million_rows"),
    (Defect::AllNan, "accuracy", "rows_17"),
    (Defect::AllZero, "accuracy", "rows_17"),
    (Defect::Unwritten, "content", "rows_17"),
    (Defect::ChecksNothing, "refusal", "rows_17"),
    (Defect::ChecksTooLate, "refusal", "rows_17"),
    (Defect::RefusesForAnotherReason, "refusal", "rows_17"),
    (Defect::Panics, "identity", "rows_17"),
    (Defect::ReadsWhatItWrote, "in place", "rows_17"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Defect {
    LastRowSkipped,
    LastColumnSkipped,
    WritesOnePast,
    WritesIntoGap,
    ReadsOnePast,
    ScratchSummedUnwritten,
    OutputAddedTo,
    SumInPlainOrder,
    EpsOutsideRoot,
    EpsIgnored,
    NoScaledPath,
    EpsNotScaled,
    RstdRoundedToBf16,
    TruncatesToF16,
    TruncatesToBf16,
    OffsetIgnored,
    RoundedOnce,
    BiasIgnored,
    DbLostRow,
    WeightTwice,
    DependsOnPosition,
    DependsOnRows,
    DependsOnAlignment,
    DependsOnStride,
    DxBiased,
    NegativeZero,
    LostRow,
    AllNan,
    AllZero,
    Unwritten,
    ChecksNothing,
    ChecksTooLate,
    RefusesForAnotherReason,
    Panics,
    ReadsWhatItWrote,
}

#[test]
fn every_defect_is_refuted_by_its_property() {
    for (defect, name, hard) in DEFECTS {
        let case = hard_case(hard).unwrap_or_else(|| panic!("no hard case {hard}")).case;
        let property = property(name).unwrap_or_else(|| panic!("no property {name}"));
        match property.check(&Subject::of(Broken(*defect)), &case) {
            Outcome::Failed { property, message } => {
                assert_eq!(property, *name);
                println!("{defect:?}: {property}: {message}");
            }
            other => panic!("{defect:?} survives {name} on {hard}: {other:?}"),
        }
        // The case is no reason to fail by itself.
        assert!(matches!(property.check(&Subject::of(Cpu), &case), Outcome::Passed(_)), "{name} on {hard}");
    }
}

#[test]
fn stale_scratch_is_refuted_by_the_seed_test() {
    let case = hard_case("idle_groups_781").unwrap().case;
    let outcome =
        property("idle_groups_781").unwrap().check(&Subject::of(Broken(Defect::ScratchSummedUnwritten)), &case);
    assert!(matches!(outcome, Outcome::Failed { .. }));
}

#[test]
fn a_lost_row_is_within_the_bound() {
    // Why property 13 exists: of a million rows the bound does not miss one. An alarm is no verdict.
    let case = Case { x: rmsnorm_fuzz::Values::Constant(0.5), ..hard_case("million_rows").unwrap().case };
    let alarms = |subject: Subject| match property("accuracy").unwrap().check(&subject, &case) {
        Outcome::Passed(evidence) => evidence.accuracy["dw"].alarms,
        other => panic!("{other:?}"),
    };
    assert_eq!((alarms(Subject::of(Broken(Defect::LostRow))), alarms(Subject::of(Cpu))), (4, 0));
}

struct Broken(Defect);

impl Executor for Broken {
    fn name(&self) -> String {
        format!("{:?}", self.0)
    }

    fn forward(&self, mut call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        let defect = self.0;
        if defect == Defect::ChecksTooLate && get_mut(&call.y.data, 0).is_some() {
            put(&mut call.y.data, call.y.offset.min(9), 1.0);
        }
        match call.check() {
            Err(_) if defect == Defect::ChecksNothing => return Ok(()),
            Err(_) if defect == Defect::RefusesForAnotherReason => return Err(Error::Hidden { got: 0 }),
            other => other?,
        }
        let before = outputs(&call.y, call.rows, call.hidden);
        run_forward(defect, &mut call)?;
        let (rows, hidden) = (call.rows, call.hidden);
        let y = |i: usize, j: usize| call.y.offset + i * call.y.row_stride + j;
        let last = y(rows.max(1) - 1, hidden);
        let weight = |j: usize, default: f32| call.weight.as_ref().map_or(default, |w| get(w.data, w.offset + j));
        for i in 0..rows {
            for j in 0..hidden {
                let value = get_mut(&call.y.data, y(i, j)).unwrap();
                let wrong = match defect {
                    Defect::LastRowSkipped if i + 1 == rows => before[i * hidden + j],
                    Defect::LastColumnSkipped if j + 1 == hidden => before[i * hidden + j],
                    Defect::OutputAddedTo => value + before[i * hidden + j],
                    Defect::WeightTwice => value * weight(j, 1.0),
                    Defect::DependsOnPosition if i % 2 == 1 => value * 1.5,
                    Defect::DependsOnRows if rows >= 256 => value * 1.5,
                    Defect::DependsOnAlignment if !call.x.offset.is_multiple_of(8) => value * 1.5,
                    Defect::DependsOnStride if call.y.row_stride > hidden => value * 1.5,
                    Defect::AllNan => f32::NAN,
                    Defect::AllZero => 0.0,
                    Defect::Unwritten => before[i * hidden + j],
                    Defect::Panics => panic!("on purpose"),
                    _ => continue,
                };
                put(&mut call.y.data, y(i, j), wrong);
            }
        }
        match defect {
            Defect::WritesOnePast => put(&mut call.y.data, last, 0.0),
            Defect::WritesIntoGap => put(&mut call.y.data, call.y.offset + hidden, 0.0),
            Defect::ReadsOnePast => {
                let past = get(call.x.data, call.x.offset + hidden);
                let first = get_mut(&call.y.data, call.y.offset).unwrap();
                put(&mut call.y.data, call.y.offset, first + past);
            }
            _ => {}
        }
        Ok(())
    }

    fn backward(&self, mut call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        let defect = self.0;
        if matches!(defect, Defect::ChecksNothing) && call.check().is_err() {
            return Ok(());
        }
        call.check()?;
        let Backward { rows, hidden, weight_offset, mut rounding, x, weight, rstd, dy, .. } = call;
        if defect == Defect::RoundedOnce {
            rounding = Rounding::Once;
        }
        let stale = call.dw.as_ref().filter(|_| rows > 0).map(|d| get_mut(&d.scratch.data, d.scratch.offset).unwrap());
        // The lost row is lost in dw only, and with it the group's last step.
        let dw = call.dw.as_mut().map(|d| WeightGradient { dw: lend(&mut d.dw), scratch: lend(&mut d.scratch) });
        let db = call.db.as_mut().map(|d| BiasGradient { db: lend(&mut d.db), scratch: lend(&mut d.scratch) });
        let dx = Rows { data: relend(&mut call.dx.data), ..call.dx };
        let plain = Backward::with_rows((rows, hidden), x, rstd, dy, dx);
        Cpu.backward(Backward { weight_offset, rounding, weight, dw, db, ..plain })?;
        if let Some(out) = call.db.as_mut().filter(|_| defect == Defect::DbLostRow) {
            for j in 0..hidden {
                let at = out.db.offset + j;
                let lost = get(dy.data, dy.offset + (rows - 1) * dy.row_stride + j);
                let value = get_mut(&out.db.data, at).unwrap() - lost;
                put(&mut out.db.data, at, value);
            }
        }
        let Some(out) = &mut call.dw else { return Ok(()) };
        for j in 0..hidden {
            let at = out.dw.offset + j;
            let value = get_mut(&out.dw.data, at).unwrap();
            let element = |i: usize| {
                let x_hat = get(x.data, x.offset + i * x.row_stride + j) * get(rstd.data, rstd.offset + i);
                get(dy.data, dy.offset + i * dy.row_stride + j) * x_hat
            };
            match defect {
                Defect::ScratchSummedUnwritten => put(&mut out.dw.data, at, value + stale.unwrap_or(0.0)),
                Defect::LostRow => put(&mut out.dw.data, at, value - element(rows - 1)),
                Defect::NegativeZero if value == 0.0 => put(&mut out.dw.data, at, -0.0),
                _ => {}
            }
        }
        if defect == Defect::DxBiased {
            let first = get_mut(&call.dx.data, call.dx.offset).unwrap();
            put(&mut call.dx.data, call.dx.offset, first + 1.0);
        }
        Ok(())
    }

    fn forward_in_place(&self, mut call: Forward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        if self.0 == Defect::ReadsWhatItWrote {
            let Forward { rows, hidden, eps, x, weight, .. } = call;
            let y = Rows { data: relend(&mut call.y.data), ..call.y };
            Cpu.forward_in_place(Forward { weight, ..Forward::with_rows((rows, hidden), eps, x, y) })?;
        }
        Cpu.forward_in_place(call)
    }

    fn backward_in_place(&self, call: Backward<Input<Slice<'_>>, SliceMut<'_>>) -> Result<(), Error> {
        Cpu.backward_in_place(call)
    }
}

/// The forward call with a defect in the statistic, where the defect is there; else that of [`Literal`].
fn run_forward(defect: Defect, call: &mut Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
    let Forward { rows, hidden, mut eps, mut weight_offset, mut rounding, x, weight, mut bias, .. } = *call;
    match defect {
        Defect::EpsIgnored => eps = 0.0,
        Defect::OffsetIgnored => weight_offset = WeightOffset::Zero,
        Defect::RoundedOnce => rounding = Rounding::Once,
        Defect::BiasIgnored => bias = None,
        _ => {}
    }
    let rstd = call.rstd.as_mut().map(lend);
    let y = Rows { data: relend(&mut call.y.data), ..call.y };
    let plain = Forward::with_rows((rows, hidden), eps, x, y);
    Literal.forward(Forward { weight_offset, rounding, weight, bias, rstd, ..plain })?;
    for i in 0..rows {
        let z: Vec<f32> = (0..hidden).map(|j| get(x.data, x.offset + i * x.row_stride + j)).collect();
        let mean = |s: f32| z.iter().map(|z| (z * s) * (z * s)).sum::<f32>() / hidden as f32;
        let scaled = |s: f32, eps: f32| s / (mean(s) + eps).sqrt();
        let (up, down) = (2.0_f32.powi(100), 2.0_f32.powi(-100));
        let plain = 1.0 / (mean(1.0) + eps).sqrt();
        let rstd = match defect {
            Defect::SumInPlainOrder | Defect::NoScaledPath => plain,
            Defect::EpsOutsideRoot => 1.0 / (mean(1.0).sqrt() + eps),
            Defect::EpsNotScaled if mean(1.0) + eps < f32::MIN_POSITIVE => scaled(up, 0.0),
            Defect::EpsNotScaled if mean(1.0) + eps == f32::INFINITY => scaled(down, 0.0),
            Defect::TruncatesToF16 | Defect::TruncatesToBf16 => plain,
            Defect::RstdRoundedToBf16 => bf16::from_f32(plain).to_f32(),
            _ => continue,
        };
        if let Some(out) = &mut call.rstd {
            put(&mut out.data, out.offset + i, rstd);
        }
        for (j, z) in z.iter().enumerate() {
            let w = weight.as_ref().map_or(1.0, |w| get(w.data, w.offset + j));
            let w = if weight.is_some() && weight_offset == WeightOffset::One { w + 1.0 } else { w };
            let dropped_bits = match defect {
                Defect::TruncatesToF16 => 13,
                Defect::TruncatesToBf16 => 16,
                _ => 0,
            };
            let value = f32::from_bits((z * rstd * w).to_bits() >> dropped_bits << dropped_bits);
            put(&mut call.y.data, call.y.offset + i * call.y.row_stride + j, value);
        }
    }
    Ok(())
}

fn outputs(view: &Rows<SliceMut<'_>>, rows: usize, hidden: usize) -> Vec<f32> {
    let at = |i: usize| view.offset + i / hidden * view.row_stride + i % hidden;
    (0..rows * hidden).map(|i| get_mut(&view.data, at(i)).unwrap()).collect()
}

fn lend<'a>(vector: &'a mut Vector<SliceMut<'_>>) -> Vector<SliceMut<'a>> {
    Vector { data: relend(&mut vector.data), offset: vector.offset }
}

fn relend<'a>(data: &'a mut SliceMut<'_>) -> SliceMut<'a> {
    match data {
        SliceMut::F32(d) => SliceMut::F32(d),
        SliceMut::F16(d) => SliceMut::F16(d),
        SliceMut::Bf16(d) => SliceMut::Bf16(d),
    }
}

fn get_mut(data: &SliceMut<'_>, i: usize) -> Option<f32> {
    match data {
        SliceMut::F32(d) => d.get(i).copied(),
        SliceMut::F16(d) => d.get(i).map(|v| v.to_f32()),
        SliceMut::Bf16(d) => d.get(i).map(|v| v.to_f32()),
    }
}

/// As on a GPU without NVRTC, where nothing is compiled ahead.
struct WithoutCode;

impl WithoutCode {
    fn refuse() -> Result<(), Error> {
        let [kernel, cache, nvrtc, prebuilt] = ["forward", "is off", "is not there", "has none"].map(String::from);
        Err(Error::NoCode { kernel, cache, nvrtc, prebuilt })
    }
}

impl Executor for WithoutCode {
    fn name(&self) -> String {
        "without code".into()
    }
    fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        Cpu.forward(call)?; // A call that is wrong is refused first.
        WithoutCode::refuse()
    }
    fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        Cpu.backward(call)?;
        WithoutCode::refuse()
    }
}

/// What is not compiled ahead is left out, by every property: nobody can say that it is wrong.
#[test]
fn no_property_fails_for_want_of_code() {
    let launch = OtherLaunch {
        what: "another".into(),
        executor: Box::new(WithoutCode),
        elements_max: usize::MAX,
        left_out: "too large",
        tried: Tried::Always,
    };
    let subject = Subject { launches: vec![launch], refused: Some(Box::new(WithoutCode)), ..Subject::of(WithoutCode) };
    for name in ["rows_17", "idle_groups_781", "w_awkward", "twice_bf16", "db_1024"] {
        let case = hard_case(name).expect("a hard case").case;
        for property in PROPERTIES {
            let outcome = property.check(&subject, &case);
            let needs_code = property.name != "refusal";
            assert_eq!(
                matches!(outcome, Outcome::NotApplicable { .. }),
                needs_code,
                "{} of {name}: {outcome:?}",
                property.name
            );
            assert!(!matches!(outcome, Outcome::Failed { .. }), "{} of {name}: {outcome:?}", property.name);
        }
    }
}
