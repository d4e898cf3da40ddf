//! Every mistake that the judge knows, planted: it gets its sentence, and no other.

use crate::kernel::{Fault, Named, Order, Outputs, Problem, Random, Style, file, run, write};
use rmsnorm_ref::Format;
use rmsnorm_ref::judge::{CaseReport, Kind, Options, Rounding, Verdict, judge_file};

const ROWS: usize = 97;
const HIDDEN: usize = 301;

fn judged(tensors: &Named, options: &Options) -> CaseReport {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.safetensors");
    write(&path, tensors, None);
    let mut report = judge_file(&path, None, options).unwrap();
    report.cases.remove(0)
}

fn options(p: &Problem) -> Options {
    Options { eps: Some(f64::from(p.eps)), offset: Some(f64::from(p.offset)), quiet: true, ..Options::default() }
}

fn demand(what: &str, p: &Problem, options: &Options, tensors: &Named, kind: Kind, outputs: &[&str]) {
    let report = judged(tensors, options);
    println!("{what} ({:?}):\n{report}", p.format);
    assert_eq!(report.verdict, Verdict::Outside, "{what}");
    let kinds: Vec<Kind> = report.looks_like.iter().map(|looks| looks.kind).collect();
    assert_eq!(kinds, [kind], "{what} in {:?}\n{report}", p.format);
    for output in outputs {
        assert!(report.looks_like[0].outputs.contains(output), "{what}: {output} is not explained\n{report}");
    }
    let outside = report.outputs.iter().filter(|o| o.outside > 0).count();
    assert_eq!(report.looks_like[0].outputs.len(), outside, "{what}: something is left unexplained\n{report}");
}

/// A fault of the arithmetic.
fn plant(what: &str, p: &Problem, fault: Fault, kind: Kind, outputs: &[&str]) {
    let healthy = judged(&file(p, &run(p, &Style::PLAIN, Fault::None)), &options(p));
    assert_eq!(healthy.verdict, Verdict::Right, "{what}, without the fault:\n{healthy}");
    assert!(healthy.looks_like.is_empty());
    demand(what, p, &options(p), &file(p, &run(p, &Style::PLAIN, fault)), kind, outputs);
}

/// A fault of what is written where.
fn spoil(what: &str, p: &Problem, kind: Kind, outputs: &[&str], spoil: impl Fn(&mut Outputs)) {
    let mut out = run(p, &Style::PLAIN, Fault::None);
    spoil(&mut out);
    demand(what, p, &options(p), &file(p, &out), kind, outputs);
}

fn in_every_format(plant: impl Fn(Problem)) {
    for (seed, format) in [Format::F32, Format::F16, Format::Bf16].into_iter().enumerate() {
        plant(Problem::new(ROWS, HIDDEN, format, seed as u64));
    }
}

#[test]
fn eps() {
    in_every_format(|p| {
        plant("eps outside the root", &p, Fault::EpsOutside, Kind::EpsOutsideRoot, &["y", "rstd", "dx"]);
        for other in [1e-5, 1e-6, 0.0, 3.3e-3] {
            plant("another eps", &p, Fault::EpsIs(other), Kind::AnotherEps, &["y", "rstd", "dx"]);
        }
    });
    let p = Problem::new(ROWS, HIDDEN, Format::F32, 5);
    let report = judged(&file(&p, &run(&p, &Style::PLAIN, Fault::EpsIs(1e-6))), &options(&p));
    assert!(report.looks_like[0].sentence.contains("1e-6 fits, 1e-3 was said"), "{report}");
}

#[test]
fn mean_subtracted() {
    in_every_format(|mut p| {
        p.x.iter_mut().for_each(|x| *x = p.format.round(f64::from(*x) + 0.125) as f32);
        plant("mean subtracted", &p, Fault::MeanSubtracted, Kind::MeanSubtracted, &["y", "rstd", "dx"]);
    });
}

#[test]
fn weights() {
    in_every_format(|p| {
        let forgotten = Problem { offset: 1.0, ..p.clone() };
        plant("weight + 1 forgotten", &forgotten, Fault::OffsetIs(0.0), Kind::WeightOffsetForgotten, &["y", "dx"]);
        plant("1 added to the weight", &p, Fault::OffsetIs(1.0), Kind::WeightOffsetAdded, &["y", "dx"]);
        plant("weight ignored", &p, Fault::WeightIgnored, Kind::WeightIgnored, &["y", "dx"]);
        plant("weight twice in dx", &p, Fault::WeightTwiceInDx, Kind::WeightTwiceInDx, &["dx"]);
        plant("no correction in dx", &p, Fault::NoCorrection, Kind::CorrectionMissingInDx, &["dx"]);
    });
}

#[test]
fn conversions() {
    for format in [Format::Bf16, Format::F16] {
        let p = Problem::new(ROWS, HIDDEN, format, 7);
        plant("truncation", &p, Fault::Truncates, Kind::Truncated, &["y", "dx", "dw"]);
        plant("x_hat rounded first", &p, Fault::RoundedFirst, Kind::RoundedFirst, &["y"]);
        let twice = Options { rounding: Some(Rounding::Twice), ..options(&p) };
        let once = file(&p, &run(&p, &Style::PLAIN, Fault::None));
        demand("x_hat not rounded first", &p, &twice, &once, Kind::NotRoundedFirst, &["y"]);
        let rounded = judged(&file(&p, &run(&p, &Style::PLAIN, Fault::RoundedFirst)), &twice);
        assert_eq!(rounded.verdict, Verdict::Right, "{rounded}");
        let mut random = Random(3);
        let residual = p.x.iter().map(|_| format.round(random.normal()) as f32).collect();
        let p = Problem { residual: Some(residual), ..p };
        plant("sum not rounded", &p, Fault::SumNotRounded, Kind::SumNotRounded, &["y", "rstd"]);
    }
    // candle's fused kernel: the root rounded to the type of x, x divided by it, every step rounded.
    for format in [Format::Bf16, Format::F16] {
        let p = Problem::new(ROWS, HIDDEN, format, 12);
        let fl = |v: f64| format.round(f64::from(v as f32));
        spoil("the root in the type of x", &p, Kind::RmsRounded, &["y"], |out| {
            for (x, y) in p.x.chunks(HIDDEN).zip(out.y.chunks_mut(HIDDEN)) {
                let mean = x.iter().map(|x| x * x).sum::<f32>() / HIDDEN as f32;
                let root = fl(f64::from((mean + p.eps).sqrt()));
                for (j, (x, y)) in x.iter().zip(y).enumerate() {
                    *y = fl(fl(f64::from(*x) / root) * f64::from(p.weight.as_ref().unwrap()[j]));
                }
            }
        });
    }
    in_every_format(|p| plant("rstd in bf16", &p, Fault::RstdInBf16, Kind::RstdRounded, &["y", "rstd"]));
}

#[test]
fn squares() {
    let mut p = Problem::new(ROWS, HIDDEN, Format::F16, 8);
    p.x.iter_mut().step_by(3).for_each(|x| *x = Format::F16.round(f64::from(*x) * 300.0) as f32);
    plant("squares overflow f16", &p, Fault::SquaresInFormat, Kind::SquaresOverflowed, &["y", "rstd", "dx"]);
    let p = Problem::new(ROWS, HIDDEN, Format::Bf16, 9);
    plant("squares in bf16", &p, Fault::SquaresInFormat, Kind::SquaresInX, &["rstd"]);
    // A plain kernel in f32, on rows that it cannot square.
    for format in [Format::F32, Format::Bf16] {
        let mut p = Problem::new(ROWS, HIDDEN, format, 10);
        p.eps = 0.0;
        for (i, x) in p.x.iter_mut().enumerate() {
            *x = format.round(f64::from(*x) * [1.0, 1e25, 1e-30][i / HIDDEN % 3]) as f32;
        }
        let tensors = file(&p, &run(&p, &Style::PLAIN, Fault::None));
        demand("squares overflow f32", &p, &options(&p), &tensors, Kind::SquaresOverflowed, &["y", "rstd"]);
        let plain = Options { reach: rmsnorm_ref::judge::Reach::Plain, ..options(&p) };
        assert_eq!(judged(&tensors, &plain).outputs[1].verdict, Verdict::Right);
    }
    // Where every row overflows, squares in bf16 would explain it as well: f32 is enough.
    let mut p = Problem::new(ROWS, HIDDEN, Format::Bf16, 10);
    p.x.iter_mut().for_each(|x| *x = Format::Bf16.round(f64::from(*x) * 1e25) as f32);
    let tensors = file(&p, &run(&p, &Style::PLAIN, Fault::None));
    demand("squares of all rows", &p, &options(&p), &tensors, Kind::SquaresOverflowed, &["y", "rstd"]);
    let sentence = &judged(&tensors, &options(&p)).looks_like[0].sentence;
    assert!(sentence.contains("squares overflowed in f32"), "{sentence}");
    // The same on rows whose squares are subnormal: neither rstd's type nor another eps is to blame.
    for format in [Format::F32, Format::Bf16] {
        let mut p = Problem::new(ROWS, HIDDEN, format, 11);
        p.eps = 0.0;
        p.x.iter_mut().for_each(|x| *x = format.round(f64::from(*x) * 2e-22) as f32);
        for row in [Order::Chain { fused: false }, Style::PLAIN.row, Order::Halves] {
            for reciprocal in [false, true] {
                let tensors = file(&p, &run(&p, &Style { row, reciprocal, ..Style::PLAIN }, Fault::None));
                let kind = Kind::SquaresOverflowed;
                demand("squares lose digits", &p, &options(&p), &tensors, kind, &["y", "rstd", "dw"]);
                let report = judged(&tensors, &options(&p));
                assert!(report.looks_like[0].sentence.contains("squares lost digits in f32"), "{report}");
            }
        }
    }
}

/// Where squares vanish x_hat is infinite: that explains no finite dw.
#[test]
fn a_finite_dw_of_squares_that_vanished() {
    let mut p = Problem::new(ROWS, HIDDEN, Format::F32, 14);
    p.eps = 0.0;
    p.x.iter_mut().for_each(|x| *x *= 1e-30);
    let mut out = run(&p, &Style::PLAIN, Fault::None);
    let mut random = Random(2);
    out.dw.iter_mut().for_each(|dw| *dw = f64::from(random.normal() as f32));
    let report = judged(&file(&p, &out), &options(&p));
    let squares = report.looks_like.iter().find(|looks| looks.kind == Kind::SquaresOverflowed).expect("of y");
    assert!(squares.outputs.contains(&"y") && !squares.outputs.contains(&"dw"), "{report}");
}

/// dx as autograd makes it, of rows whose rstd³ no f32 holds.
#[test]
fn cubes() {
    for format in [Format::F32, Format::Bf16] {
        let mut p = Problem::new(ROWS, HIDDEN, format, 13);
        p.eps = 0.0;
        for (i, x) in p.x.iter_mut().enumerate() {
            *x = format.round(f64::from(*x) * [1.0, 1e-15][i / HIDDEN % 2]) as f32;
        }
        let tensors = file(&p, &run(&p, &Style { cubed: true, ..Style::PLAIN }, Fault::None));
        demand("rstd cubed", &p, &options(&p), &tensors, Kind::CubesOverflowed, &["dx"]);
    }
}

#[test]
fn rows_and_columns() {
    in_every_format(|p| {
        let n = HIDDEN;
        spoil("rows not written", &p, Kind::RowsPast, &["y"], |out| out.y[64 * n..].fill(f64::NAN));
        spoil("rows of zeros", &p, Kind::RowsPast, &["dx"], |out| out.dx[80 * n..].fill(0.0));
        spoil("rows with another's rstd", &p, Kind::RowsPast, &["y"], |out| {
            out.y[64 * n..].iter_mut().for_each(|y| *y = p.format.round(*y * 0.75));
        });
        let columns = |values: &mut [f64], from: usize, to: &dyn Fn(f64) -> f64| {
            values.chunks_mut(n).for_each(|row| row[from..].iter_mut().for_each(|v| *v = to(*v)));
        };
        spoil("columns not written", &p, Kind::ColumnsPast, &["y"], |out| columns(&mut out.y, 256, &|_| 0.0));
        spoil("dw past a threshold", &p, Kind::ColumnsPast, &["dw"], |out| out.dw[256..].fill(0.0));
        spoil("last columns not written", &p, Kind::LastColumns, &["y"], |out| columns(&mut out.y, 296, &|_| 0.0));
        spoil("the last column not written", &p, Kind::LastColumns, &["dw"], |out| out.dw[300] = 0.0);
        spoil("last columns wrong", &p, Kind::LastColumns, &["dx"], |out| {
            columns(&mut out.dx, 296, &|v| p.format.round(v * 1.5));
        });
        plant("last columns not summed", &p, Fault::FirstColumns(296), Kind::LastColumns, &["y", "rstd", "dx"]);
        plant("columns not summed", &p, Fault::FirstColumns(256), Kind::ColumnsPast, &["y", "rstd", "dx"]);
        spoil("a tile", &p, Kind::Tile, &["y"], |out| {
            for row in 32..64 {
                out.y[row * n + 128..row * n + 256].iter_mut().for_each(|y| *y = p.format.round(*y * 1.5));
            }
        });
    });
}

#[test]
fn part_of_the_rows() {
    in_every_format(|p| {
        for fault in [
            Fault::DwOfRows(0, 64),
            Fault::DwOfRows(0, 96),
            Fault::DwOfRows(1, ROWS),
            Fault::DwWithoutRow(40),
            Fault::DwWithoutEvery(8, 3),
        ] {
            plant("dw of part of the rows", &p, fault, Kind::PartOfRows, &["dw"]);
        }
    });
}

#[test]
fn narrow_accumulators() {
    in_every_format(|p| {
        plant("dw in bf16", &p, Fault::Bf16ColumnSums, Kind::NarrowAccumulator, &["dw"]);
    });
    let p = Problem::new(ROWS, HIDDEN, Format::F32, 2);
    let report = judged(&file(&p, &run(&p, &Style::PLAIN, Fault::Bf16Sums)), &options(&p));
    let kinds: Vec<Kind> = report.looks_like.iter().map(|l| l.kind).collect();
    assert_eq!(kinds, [Kind::NarrowAccumulator], "{report}");
}

#[test]
fn memory() {
    in_every_format(|p| {
        let n = HIDDEN;
        spoil("rows of an earlier block", &p, Kind::Stale, &["y"], |out| out.y.copy_within(0..8 * n, 40 * n));
        spoil("part of rows of an earlier block", &p, Kind::Stale, &["dx"], |out| {
            (40..48).for_each(|row| out.dx.copy_within((row - 32) * n + 64..(row - 32) * n + 128, row * n + 64));
        });
        spoil("y is x there", &p, Kind::Stale, &["y"], |out| {
            out.y[n..5 * n].iter_mut().zip(&p.x[n..]).for_each(|(y, x)| *y = f64::from(*x));
        });
        spoil("nothing written", &p, Kind::Stale, &["y"], |out| out.y.fill(0.0));
        spoil("every third row not written", &p, Kind::Stale, &["y"], |out| {
            out.y.chunks_mut(n).step_by(3).for_each(|row| row.fill(f64::NAN));
        });
        spoil("dw added to what was there", &p, Kind::Stale, &["dw"], |out| {
            out.dw.iter_mut().for_each(|dw| *dw = p.format.round(*dw * 2.0));
        });
    });
    let p = Problem::new(64, 64, Format::F32, 2);
    spoil("transposed", &p, Kind::Transposed, &["y"], |out| {
        let y = out.y.clone();
        (0..64 * 64).for_each(|i| out.y[i] = y[i % 64 * 64 + i / 64]);
    });
}

/// One number that is off, even if it is the last, is no place.
#[test]
fn one_number_is_no_place() {
    in_every_format(|p| {
        let mut out = run(&p, &Style::PLAIN, Fault::None);
        out.dw[HIDDEN - 1] = p.format.round(1.1 * out.dw[HIDDEN - 1] + 1.0);
        let report = judged(&file(&p, &out), &options(&p));
        assert_eq!((report.verdict, report.looks_like.as_slice()), (Verdict::Outside, &[][..]), "{report}");
    });
}

#[test]
fn none_where_none_fits() {
    let p = Problem::new(ROWS, HIDDEN, Format::F32, 12);
    let mut out = run(&p, &Style::PLAIN, Fault::None);
    let mut random = Random(1);
    out.y.iter_mut().for_each(|y| *y *= 1.0 + 0.3 * random.normal());
    out.dx.iter_mut().for_each(|dx| *dx += 0.01 * random.normal());
    out.dw.iter_mut().for_each(|dw| *dw *= 1.0 + 0.3 * random.normal());
    let report = judged(&file(&p, &out), &options(&p));
    assert_eq!(report.verdict, Verdict::Outside);
    assert!(report.looks_like.is_empty(), "{report}");
}

/// Beyond the range of f32 NaN is what arithmetic makes, even if it is everywhere: nobody says that it was not written.
#[test]
fn all_nan_beyond_the_range() {
    let autograd = Style { cubed: true, ..Style::PLAIN };
    for format in [Format::F32, Format::Bf16] {
        let mut p = Problem::new(ROWS, HIDDEN, format, 15);
        p.eps = 0.0;
        let problem = p.clone();
        let scaled = |values: &[f32], by: f64| values.iter().map(|v| format.round(f64::from(*v) * by) as f32).collect();
        // rstd³·Σ wdy·x is ∞·0.
        p.x = scaled(&problem.x, 1e-15);
        p.dy = scaled(&problem.dy, 1e-33);
        let out = run(&p, &autograd, Fault::None);
        assert!(out.dx.iter().all(|dx| dx.is_nan()));
        demand("0 times rstd cubed", &p, &options(&p), &file(&p, &out), Kind::CubesOverflowed, &["dx"]);
        // It is 0·∞.
        p.x = scaled(&problem.x, 1e37);
        p.dy = scaled(&problem.dy, 1e6);
        let out = run(&p, &autograd, Fault::None);
        assert!(out.dx.iter().all(|dx| dx.is_nan()));
        demand("0 times a sum", &p, &options(&p), &file(&p, &out), Kind::SquaresOverflowed, &["y", "rstd", "dx", "dw"]);
        // Whoever wrote nothing within the range is still told.
        let mut out = run(&problem, &autograd, Fault::None);
        out.dx.fill(f64::NAN);
        demand("nothing written", &problem, &options(&problem), &file(&problem, &out), Kind::Stale, &["dx"]);
    }
}
