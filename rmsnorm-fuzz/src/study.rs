//! The case study of issue 781, executable: on kernels with that defect, dw depends on what scratch held, whatever remedy was
//! suggested is applied; on the real ones it never does. docs/case-studies.md tells the story.

use crate::mutants::Subject;
use crate::property::{Evidence, Outcome, Stop, judged};
use rmsnorm_cuda::plan::column_order;
use rmsnorm_cuda::{
    Backward, Error, Executor, Forward, Rows, Slice, SliceMut, WeightGradient, WeightOffset, scratch_len,
};
use std::fmt::Write;

/// What somebody suggested against the symptom: a change of one training step.
struct Remedy {
    name: &'static str,
    run: fn(&Subject, Step, f32) -> Result<Vec<f32>, Error>,
}

const REMEDIES: &[Remedy] = &[
    Remedy { name: "nothing", run: |subject, step, stale| step.dw(&*subject.executor, stale) },
    Remedy {
        name: "a larger epsilon",
        run: |subject, step, stale| Step { eps: 1e-2, ..step }.dw(&*subject.executor, stale),
    },
    Remedy {
        name: "gradient clipping",
        run: |subject, step, stale| {
            let dw = step.dw(&*subject.executor, stale)?;
            let norm = dw.iter().map(|v| v * v).sum::<f32>().sqrt();
            Ok(dw.into_iter().map(|v| if norm > 1.0 { v / norm } else { v }).collect())
        },
    },
    Remedy {
        name: "a perturbed input",
        run: |subject, step, stale| {
            let x = step.x.iter().enumerate().map(|(i, x)| x + 1e-3 * (i % 7) as f32 - 2e-3).collect();
            Step { x, ..step }.dw(&*subject.executor, stale)
        },
    },
    Remedy {
        // One launch that never changes, and no other work beside it: what such a mode can order. It does not write memory.
        name: "a deterministic mode",
        run: |subject, step, stale| step.dw(&**subject.launches.first().unwrap_or(&subject.executor), stale),
    },
    Remedy {
        // A row less its mean, normalised, is LayerNorm's: its dw goes through the same reduction.
        name: "LayerNorm",
        run: |subject, step, stale| {
            let centred = |row: &[f32]| {
                let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / HIDDEN as f64;
                row.iter().map(|x| (f64::from(*x) - mean) as f32).collect::<Vec<_>>()
            };
            Step { x: step.x.chunks(HIDDEN).flat_map(centred).collect(), ..step }.dw(&*subject.executor, stale)
        },
    },
];

/// dw with one remedy, over two contents of scratch.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The remedy.
    pub remedy: String,
    /// dw where scratch held what was recycled, and where it held something else.
    pub dw: [Vec<f32>; 2],
}

/// What `subject` does with each remedy.
pub fn measure(subject: &Subject) -> Result<Vec<Measured>, String> {
    let measured = |Remedy { name, run }: &Remedy| {
        let dw = |stale| run(subject, Step::of_the_issue(), stale).map_err(|e| format!("{name}: {e}"));
        Ok(Measured { remedy: name.to_string(), dw: [dw(STALE[0])?, dw(STALE[1])?] })
    };
    REMEDIES.iter().map(measured).collect()
}

/// What kernels with the defect and the real ones did, as a table; or what does not come out as told.
pub fn study_781(broken: &[Measured], real: &[Measured]) -> Result<String, String> {
    let mut table =
        format!("{:22}{:>22}{:>22}{:>22}\n", "remedy", "over recycled memory", "over other memory", "the real kernels");
    for (wrong, right) in broken.iter().zip(real) {
        let name = &wrong.remedy;
        if bits(&wrong.dw[0]) == bits(&wrong.dw[1]) {
            return Err(format!("{name}: dw is {:?} whatever scratch held: the defect is not there", wrong.dw[0]));
        }
        if bits(&right.dw[0]) != bits(&right.dw[1]) {
            return Err(format!("{name}: dw of the real kernels depends on scratch: {:?}", right.dw));
        }
        let _ = writeln!(table, "{name:22}{:>22e}{:>22e}{:>22e}", wrong.dw[0][0], wrong.dw[1][0], right.dw[0][0]);
    }
    Ok(table)
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.remedy)?;
        self.dw.iter().flatten().try_for_each(|v| write!(f, "\t{:08x}", v.to_bits()))
    }
}

impl std::str::FromStr for Measured {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split('\t');
        let remedy = words.next().unwrap_or_default().to_string();
        let value = |word: &str| u32::from_str_radix(word, 16).map(f32::from_bits).map_err(|e| format!("{line}: {e}"));
        let values: Vec<f32> = words.map(value).collect::<Result<_, _>>()?;
        if values.len() != 2 * HIDDEN {
            return Err(format!("expected {} numbers: {line}", 2 * HIDDEN));
        }
        Ok(Measured { remedy, dw: [values[..HIDDEN].to_vec(), values[HIDDEN..].to_vec()] })
    }
}

/// The seed test in small, for an executor that takes a minute for the [whole](crate::idle): *dw of a row of zeros is +0.0 in
/// every iteration, whatever scratch held.*
pub fn idle_row(executor: &dyn Executor) -> Outcome {
    judged("idle_groups_781", executor, "", || {
        let mut evidence = Evidence::default();
        for stale in [f32::NAN, STALE[0], STALE[1]] {
            for iteration in 0..ITERATIONS {
                let dw = Step::of_the_issue().dw(executor, stale)?;
                if bits(&dw).iter().any(|bits| *bits != 0) {
                    let what = format!("scratch holding {stale}, iteration {iteration}: dw is {dw:?}, expected +0.0");
                    return Err(Stop::Failed(what));
                }
                evidence.count(dw.len() as u64);
            }
        }
        Ok(evidence)
    })
}

/// One training step of the issue.
struct Step {
    eps: f32,
    x: Vec<f32>,
}

impl Step {
    fn of_the_issue() -> Step {
        Step { eps: EPS, x: vec![0.0; HIDDEN] }
    }

    /// dw, with `stale` in every slot of scratch.
    fn dw(&self, executor: &dyn Executor, stale: f32) -> Result<Vec<f32>, Error> {
        let (rows, hidden, weight_offset) = (self.x.len() / HIDDEN, HIDDEN, WeightOffset::Zero);
        let weight: Vec<f32> = (0..hidden).map(|j| 1.0 - 0.25 * j as f32).collect();
        let dy = vec![-1.0_f32; self.x.len()];
        let (mut y, mut dx, mut rstd) = (vec![0.0_f32; dy.len()], vec![0.0_f32; dy.len()], vec![0.0_f32; rows]);
        let mut dw = vec![0.0_f32; hidden];
        // As large as the largest problem needs: a caller who keeps one scratch for all.
        let mut scratch = vec![stale; scratch_len(column_order(usize::MAX, hidden).groups, hidden)?];
        let x = Rows::contiguous(Slice::F32(&self.x), hidden);
        executor.forward(Forward {
            rows,
            hidden,
            eps: self.eps,
            weight_offset,
            x,
            weight: Some(Slice::F32(&weight).into()),
            y: Rows::contiguous(SliceMut::F32(&mut y), hidden),
            rstd: Some(SliceMut::F32(&mut rstd).into()),
        })?;
        executor.backward(Backward {
            rows,
            hidden,
            weight_offset,
            x,
            weight: Some(Slice::F32(&weight).into()),
            rstd: Slice::F32(&rstd).into(),
            dy: Rows::contiguous(Slice::F32(&dy), hidden),
            dx: Rows::contiguous(SliceMut::F32(&mut dx), hidden),
            dw: Some(WeightGradient { dw: SliceMut::F32(&mut dw).into(), scratch: SliceMut::F32(&mut scratch).into() }),
        })?;
        Ok(dw)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Length of a row in the issue.
const HIDDEN: usize = 4;
const EPS: f32 = 1e-5;
const ITERATIONS: usize = 10;
/// What scratch may have held: −rstd, which is what the issue saw, and a number of no meaning.
const STALE: [f32; 2] = [-316.2278, 0.0625];

#[cfg(test)]
mod tests {
    use super::*;
    use rmsnorm_cuda::Cpu;

    /// The defect in small: a slot that nobody wrote is summed.
    struct SumsStale;

    impl Executor for SumsStale {
        fn name(&self) -> String {
            "sums stale memory".into()
        }
        fn forward(&self, call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            Cpu.forward(call)
        }
        fn backward(&self, call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
            let Some(WeightGradient { dw: mut out, scratch }) = call.dw else { return Cpu.backward(call) };
            let (SliceMut::F32(out_data), SliceMut::F32(data)) = (&mut out.data, scratch.data) else { panic!("f32") };
            let stale = data[data.len() - 1];
            let dw = WeightGradient { dw: SliceMut::F32(out_data).into(), scratch: SliceMut::F32(data).into() };
            Cpu.backward(Backward { dw: Some(dw), ..call })?;
            out_data.iter_mut().for_each(|v| *v += stale);
            Ok(())
        }
    }

    fn measured(executor: impl Executor + 'static) -> Vec<Measured> {
        let measured = measure(&Subject::cpu(executor)).unwrap();
        let text: Vec<String> = measured.iter().map(Measured::to_string).collect();
        assert_eq!(text.iter().map(|line| line.parse().unwrap()).collect::<Vec<Measured>>(), measured);
        measured
    }

    #[test]
    fn the_defect_is_told_and_no_remedy_helps() {
        let table = study_781(&measured(SumsStale), &measured(Cpu)).unwrap();
        assert_eq!(table.lines().count(), 1 + REMEDIES.len());
    }

    #[test]
    fn a_row_of_zeros_shows_it() {
        assert!(matches!(idle_row(&SumsStale), Outcome::Failed { .. }));
        assert!(matches!(idle_row(&Cpu), Outcome::Passed(found) if found.comparisons == 30));
    }

    #[test]
    fn without_the_defect_the_study_fails() {
        let repaired = study_781(&measured(Cpu), &measured(Cpu)).unwrap_err();
        assert!(repaired.contains("the defect is not there"), "{repaired}");
        let real = study_781(&measured(SumsStale), &measured(SumsStale)).unwrap_err();
        assert!(real.contains("depends on scratch"), "{real}");
    }
}
