//! Judges an executor that is not this repository's. Put calls of yours in the place of the loops of `Theirs`, and see what is refuted, on which input.
//!
//! `Theirs` is RMSNorm as it is mostly written. What `verify` tries as "identity" is left out: another order of sums gives other bits, and nobody else has
//! promised these. The bound of "accuracy" allows for sums in as many chains as this repository's; one long chain may fail it in wide rows of f32.
use rmsnorm_cuda::{Backward, Error, Executor, Forward, Rows, Slice, SliceMut, WeightOffset};
use rmsnorm_fuzz::elements::{get, put};
use rmsnorm_fuzz::{Outcome, PROPERTIES, Subject, hard_cases};

struct Theirs;

impl Executor for Theirs {
    fn name(&self) -> String {
        "theirs".into()
    }

    fn forward(&self, mut call: Forward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?; // Yours may judge for itself; then property 10 judges that.
        let one = f32::from(call.weight_offset == WeightOffset::One);
        for i in 0..call.rows {
            let x = |j: usize| get(call.x.data, first(&call.x, i, call.inner) + j);
            let sum: f32 = (0..call.hidden).map(|j| x(j) * x(j)).sum();
            let rstd = 1.0 / (sum / call.hidden as f32 + call.eps).sqrt();
            let y = first(&call.y, i, call.inner);
            for j in 0..call.hidden {
                let weight = call.weight.as_ref().map_or(1.0, |w| get(w.data, w.offset + j) + one);
                put(&mut call.y.data, y + j, x(j) * rstd * weight);
            }
            call.rstd.iter_mut().for_each(|out| put(&mut out.data, out.offset + i, rstd));
        }
        Ok(())
    }

    fn backward(&self, mut call: Backward<Slice<'_>, SliceMut<'_>>) -> Result<(), Error> {
        call.check()?;
        let one = f32::from(call.weight_offset == WeightOffset::One);
        let mut dw = vec![0.0; call.hidden];
        for i in 0..call.rows {
            let rstd = get(call.rstd.data, call.rstd.offset + i);
            let x_hat = |j: usize| get(call.x.data, first(&call.x, i, call.inner) + j) * rstd;
            let dy = |j: usize| get(call.dy.data, first(&call.dy, i, call.inner) + j);
            let wdy = |j: usize| dy(j) * call.weight.as_ref().map_or(1.0, |w| get(w.data, w.offset + j) + one);
            let mean = (0..call.hidden).map(|j| wdy(j) * x_hat(j)).sum::<f32>() / call.hidden as f32;
            let first_of_dx = first(&call.dx, i, call.inner);
            for (j, dw) in dw.iter_mut().enumerate() {
                *dw += dy(j) * x_hat(j);
                let dx = (wdy(j) - x_hat(j) * mean) * rstd;
                put(&mut call.dx.data, first_of_dx + j, dx);
            }
        }
        if let Some(mut out) = call.dw {
            dw.iter().enumerate().for_each(|(j, dw)| put(&mut out.dw.data, out.dw.offset + j, *dw));
        }
        Ok(())
    }
}

/// Where row `i` begins: rows may lie in groups of `inner`.
fn first<D>(rows: &Rows<D>, i: usize, inner: usize) -> usize {
    rows.offset + rows.outer_stride.map_or(i * rows.row_stride, |outer| i / inner * outer + i % inner * rows.row_stride)
}

fn main() {
    let subject = Subject::of(Theirs);
    let small = |hard: &&rmsnorm_fuzz::HardCase| hard.case.rows * hard.case.hidden <= 1 << 13;
    // Nor does `Theirs` compute in place.
    for property in PROPERTIES.iter().filter(|p| !["identity", "in place"].contains(&p.name) && !p.has_own_inputs()) {
        let (mut passed, mut failed) = (0, Vec::new());
        for hard in hard_cases().iter().filter(small) {
            match property.check(&subject, &hard.case) {
                Outcome::Passed(_) => passed += 1,
                Outcome::Failed { message, .. } => failed.push((&hard.name, message)),
                Outcome::NotApplicable { .. } => {}
            }
        }
        if passed + failed.len() > 0 {
            println!("{}: {passed} passed, {} failed", property.name, failed.len());
        }
        if let Some((name, message)) = failed.first() {
            println!("    {name}: {message}");
        }
    }
}
