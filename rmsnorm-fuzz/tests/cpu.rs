//! The CPU executor against the literal one where its loops change: at every narrow width, which no sweep of random cases visits one by
//! one, and on an rstd that is not its row's.

use rmsnorm_cuda::{Backward, Cpu, Dtype, Error, Executor, Layer, Rounding, Slice, WeightOffset};
use rmsnorm_fuzz::case::{DwKind, WeightKind};
use rmsnorm_fuzz::{Case, Fill, Literal, Name, Operands, Outputs, Place, Values};

const WEIGHTS: [WeightKind; 3] = [WeightKind::Absent, WeightKind::Same, WeightKind::F32];
const OFFSETS: [WeightOffset; 2] = [WeightOffset::Zero, WeightOffset::One];

/// Every number of pads, whole tiles, and one element more; each with every type, weight and offset.
#[test]
fn every_narrow_width_and_either_side_of_a_tile() {
    for hidden in (1..=64).chain([129, 256, 257, 1000, 2048, 2049, 2520, 4097]) {
        for rows in 0..=3 {
            for (i, case) in kinds(rows, hidden).enumerate() {
                let values = [Values::Normal, Values::Bits, Values::RowScaled(-120, 120), Values::Awkward];
                let place = Place { offset: (i % 9) as u8, ..Place::default() };
                let case = Case {
                    x: values[(hidden + rows + i) % 4],
                    dy: values[i % 4],
                    places: [place; Name::ALL.len()],
                    ..case
                };
                demand_equal(&case, |executor| Operands::new(&case, Fill::Plausible).run(executor).expect("a call"));
            }
        }
    }
}

/// Backward takes what it is given for rstd, whatever forward would have stored: +Inf asks for a scaled row, also where it is none.
#[test]
fn an_rstd_of_another_row() {
    let foreign = [f32::INFINITY, f32::NAN, 1e38, 1e-40, 0.0, -0.5, 1.0];
    for hidden in [1, 7, 40, 257, 2049, 16385] {
        for (i, case) in kinds(foreign.len() + 2, hidden).enumerate() {
            let case = Case { x: [Values::Normal, Values::Bits, Values::RowScaled(-120, 120)][i % 3], ..case };
            demand_equal(&case, |executor| {
                let mut operands = Operands::new(&case, Fill::Nan);
                operands.forward(executor).expect("a call");
                let rstd: Vec<f32> = (0..case.rows).map(|row| foreign[(row + i) % foreign.len()]).collect();
                let call = operands.backward_call();
                executor.backward(Backward { rstd: Slice::F32(&rstd).into(), ..call }).expect("a call");
                operands.outputs()
            });
        }
    }
}

/// In f32 rounding twice changes nothing, and without a weight, in any type, nothing but dw, which is that of a weight of one.
#[test]
fn where_rounding_twice_is_rounding_once() {
    let run = |case: Case| Operands::new(&case, Fill::Plausible).run(&Cpu).expect("a call");
    for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
        for weight in WEIGHTS {
            for x in [Values::Normal, Values::Bits, Values::RowScaled(-12, 10)] {
                let case = Case { weight, x, dw: DwKind::F32, eps: 0.0, seed: i as u64, ..Case::new(40, 300, dtype) };
                let twice = Case { rounding: Rounding::Twice, ..case };
                let (of_once, mut of_twice) = (run(case), run(twice));
                let differs = of_once.difference(&of_twice).map(|what| what.split('[').next().map(str::to_string));
                let expected = match (dtype, weight) {
                    (Dtype::F32, _) => None,
                    (_, WeightKind::Absent) => Some(Some("dw".to_string())),
                    _ => Some(Some("y".to_string())),
                };
                assert_eq!(differs, expected, "{case}");
                if weight == WeightKind::Absent {
                    let ones = Case { w: Values::Constant(1.0), weight: WeightKind::Same, ..twice };
                    assert_eq!(run(ones).difference(&of_twice), None, "{case}");
                    of_twice.dw.clone_from(&of_once.dw);
                    assert_eq!(of_once.difference(&of_twice), None, "{case}");
                }
            }
        }
    }
}

/// Every type, weight and offset.
fn kinds(rows: usize, hidden: usize) -> impl Iterator<Item = Case> {
    let kinds = Dtype::ALL.into_iter().flat_map(|dtype| WEIGHTS.map(|weight| (dtype, weight)));
    kinds.flat_map(|kind| OFFSETS.map(|offset| (kind, offset))).enumerate().map(
        move |(i, ((dtype, weight), weight_offset))| Case {
            weight,
            weight_offset,
            // In turn, so that each kind is rounded either way at some width and number of rows.
            rounding: [Rounding::Once, Rounding::Twice][(i + hidden + rows) % 2],
            bias: WEIGHTS[(i / 2 + hidden + rows) % 3],
            db: [DwKind::Absent, DwKind::Same, DwKind::F32][(i + hidden) % 3],
            eps: [0.0, 1e-5, f32::from_bits(1)][i % 3],
            seed: (i + hidden) as u64,
            ..Case::new(rows, hidden, dtype)
        },
    )
}

fn demand_equal(case: &Case, run: impl Fn(&dyn Executor) -> Outputs) {
    let difference = run(&Literal).difference(&run(&Cpu));
    assert_eq!(difference, None, "{case:?}");
}

/// Of every output, scratch included: a layer of heads is a layer for each head on its rows alone, in place too.
#[test]
fn a_layer_of_heads_is_one_for_each() {
    let (tokens, heads, hidden) = (301, 3, 20);
    let values = |n: usize, seed: usize| -> Vec<f32> {
        (0..n).map(|i| ((i + seed) * 2_654_435_761 % 1009) as f32 / 512.0 - 1.0).collect()
    };
    let (rows, all) = (tokens * heads, tokens * heads * hidden);
    let (x, dy, weight) = (values(all, 1), values(all, 500), values(heads * hidden, 77));
    let mut layer = Layer::new(hidden, 1e-5, WeightOffset::One).expect("a width").with_heads(heads);
    let (mut y, mut rstd, mut dx, mut dw) =
        (vec![0.0; all], vec![0.0; rows], vec![0.0; all], vec![0.0; heads * hidden]);
    layer.forward(&x[..], Some((&weight[..]).into()), &mut y[..], Some((&mut rstd[..]).into())).expect("a call");
    let of_weight = Some((&weight[..]).into());
    layer.backward(&x[..], of_weight, &rstd[..], &dy[..], &mut dx[..], Some((&mut dw[..]).into())).expect("a call");
    let (mut in_place, mut dw_in_place) = ((x.clone(), dy.clone()), vec![0.0; heads * hidden]);
    layer.forward_in_place(&mut in_place.0[..], of_weight, None).expect("a call");
    let dw_of = Some((&mut dw_in_place[..]).into());
    layer.backward_in_place(&x[..], of_weight, &rstd[..], &mut in_place.1[..], dw_of).expect("a call");
    assert_eq!((&in_place, &dw_in_place), (&(y.clone(), dx.clone()), &dw));
    for head in 0..heads {
        let rows_of = |all: &[f32], width: usize| -> Vec<f32> {
            all.chunks(width).skip(head).step_by(heads).flatten().copied().collect()
        };
        let (x, dy, w) = (rows_of(&x, hidden), rows_of(&dy, hidden), &weight[head * hidden..][..hidden]);
        let mut one = Layer::new(hidden, 1e-5, WeightOffset::One).expect("a width");
        let (mut y1, mut rstd1) = (vec![0.0; tokens * hidden], vec![0.0; tokens]);
        let (mut dx1, mut dw1) = (vec![0.0; tokens * hidden], vec![0.0; hidden]);
        one.forward(&x[..], Some(w.into()), &mut y1[..], Some((&mut rstd1[..]).into())).expect("a call");
        let dw_of = Some((&mut dw1[..]).into());
        one.backward(&x[..], Some(w.into()), &rstd1[..], &dy[..], &mut dx1[..], dw_of).expect("a call");
        assert_eq!((y1, rstd1), (rows_of(&y, hidden), rows_of(&rstd, 1)), "head {head}");
        assert_eq!((dx1, dw1), (rows_of(&dx, hidden), dw[head * hidden..][..hidden].to_vec()), "head {head}");
    }
    // Rows that are no multiple of the heads.
    let error = layer.forward(&x[..hidden], of_weight, &mut y[..hidden], None).expect_err("one row");
    assert!(matches!(error, Error::Inner { got: 3, rows: 1 }), "{error}");
}
