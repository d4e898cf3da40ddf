//! Correct kernels in any order are right.

use crate::kernel::{Fault, Problem, Random, Style, file, run, write};
use rmsnorm_ref::Format;
use rmsnorm_ref::judge::{Options, Reach, Rounding, Verdict, judge_file};

/// Random kernels on random problems: trees, chains, splits, atomics; roots and approximations; either form of dx; with and
/// without weight, bias, residual and dz; ordinary rows, rows built to round one way, rows of great range.
#[test]
fn two_hundred_correct_kernels_are_right() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outputs, mut alarms, mut worst) = (0u64, 0u64, 0f64);
    for seed in 0..240 {
        let mut random = Random(seed);
        let format = [Format::F32, Format::F16, Format::Bf16][random.below(3)];
        let (rows, hidden) = match random.below(4) {
            0 => (1 + random.below(5), 1 + random.below(40)),
            1 => (1 + random.below(300), 1 + random.below(20)),
            2 => (1 + random.below(4), 1 + random.below(6000)),
            _ => (1 + random.below(60), 1 + random.below(400)),
        };
        let mut p = Problem::new(rows, hidden, format, seed);
        let kind = random.below(4);
        let fl = |v: f64| format.round(v) as f32;
        if kind == 1 {
            // Equal elements round alike.
            let one = fl(random.normal());
            p.x.fill(one);
        } else if kind == 2 {
            let most = if format == Format::F16 { 12 } else { 40 };
            p.x.chunks_mut(hidden).for_each(|row| {
                let scale = 2f64.powi(random.below(2 * most) as i32 - most as i32);
                row.iter_mut().for_each(|x| *x = fl(f64::from(*x) * scale));
            });
        } else if kind == 3 {
            p.x.iter_mut().step_by(hidden).for_each(|x| *x *= 1024.0);
        }
        p.eps = [0.0, 1e-5, 1e-6, 1e-3][random.below(4)];
        if p.eps == 0.0 && p.x.chunks(hidden).any(|row| row.iter().all(|x| *x == 0.0)) {
            p.eps = 1e-6;
        }
        p.offset = random.below(2) as f32;
        let matrix = |random: &mut Random| Some((0..rows * hidden).map(|_| fl(random.normal())).collect::<Vec<f32>>());
        p.residual = if random.below(3) == 0 { matrix(&mut random) } else { None };
        p.dz = if random.below(3) == 0 { matrix(&mut random) } else { None };
        p.bias = (random.below(3) == 0).then(|| (0..hidden).map(|_| fl(random.normal())).collect());
        if random.below(4) == 0 {
            p.weight = None;
        }
        let style = Style::random(&mut random);
        let path = dir.path().join("case.safetensors");
        write(&path, &file(&p, &run(&p, &style, Fault::None)), None);
        let options = Options {
            eps: Some(f64::from(p.eps)),
            offset: Some(f64::from(p.offset)),
            rounding: style.twice.then_some(Rounding::Twice),
            // They do not scale, so what leaves the range of f32 is not theirs.
            reach: Reach::Plain,
            quiet: true,
            ..Options::default()
        };
        let report = judge_file(&path, None, &options).unwrap();
        assert_eq!(report.verdict, Verdict::Right, "seed {seed}, {style:?}:\n{report}");
        for output in &report.cases[0].outputs {
            outputs += output.elements;
            alarms += output.alarms;
            worst = worst.max(output.worst.as_ref().map_or(0.0, |worst| worst.of_bound));
        }
    }
    println!("{outputs} elements, worst {worst} of the bound, {alarms} alarms");
    assert!(outputs > 1_000_000 && worst > 0.3);
}
