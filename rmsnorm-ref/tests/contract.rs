//! What the checks must accept and what they must refuse: degenerate inputs, overflow, scaled rows, blocks of rows.

mod simulation;

use ndarray::ArrayView2;
use rmsnorm_ref::bound::ColumnSums;
use rmsnorm_ref::{Allowed, Columns, Depth, Format, Setting, bound, check_backward_rows, check_forward, depth};
use simulation::{Case, Computed, Mutant, Random, Verdict};

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

#[test]
fn depth_counts_fused_steps_and_levels() {
    for (length, chains, expected) in [
        (0, 8, 0),
        (1, 1, 1),
        (1, 8, 1),
        (2, 8, 2),
        (3, 8, 3),
        (8, 8, 4),
        (9, 8, 5),
        (64, 8, 11),
        (5120, 2560, 14),
        (7, 1, 7),
    ] {
        assert_eq!(depth(length, chains), expected, "{length} over {chains}");
    }
}

/// Each line of the table of degenerate inputs: the arithmetic passes, and each of its special values is demanded.
#[test]
fn degenerate_inputs_are_accepted_and_their_special_values_demanded() {
    let plain = [1.5f32, -2.0, 0.75];
    for (x, dy, weight, eps, what) in [
        ([0.0, -0.0, 0.0], plain, plain, 1e-5, "zero row"),
        ([0.0, -0.0, 0.0], plain, plain, 0.0, "zero row, eps 0"),
        ([1.0, NAN, 3.0], plain, plain, 1e-5, "NaN in x"),
        ([1.0, NAN, INF], plain, plain, 1e-5, "NaN and Inf in x"),
        ([1.0, -INF, 3.0], plain, plain, 1e-5, "Inf in x"),
        (plain, [1.0, NAN, 2.0], plain, 1e-5, "NaN in dy"),
        (plain, [1.0, INF, 2.0], plain, 1e-5, "Inf in dy"),
        (plain, plain, [1.0, NAN, 2.0], 1e-5, "NaN in weight"),
        (plain, plain, [1.0, INF, 2.0], 1e-5, "Inf in weight"),
        ([f32::from_bits(1), 0.0, f32::from_bits(3)], plain, plain, 0.0, "subnormal row: rstd overflows, y does not"),
    ] {
        // A second, ordinary row must stay untouched by the first.
        let case = case(&[x, [0.25, 3.0, -1.0]].concat(), &[dy, plain].concat(), Some(&weight), eps, Format::F32);
        let computed = case.run(Mutant::None);
        assert!(case.check(&computed).passed(), "{what}: {computed:?}");
        every_value_matters(&case, &computed, what);
        // Beside an ordinary bias, and an absent weight.
        for weight in [Some(weight.to_vec()), None] {
            let case = Case { bias: Some(vec![-0.5, 1.5, 3e-6]), weight, ..case.clone() };
            let computed = case.run(Mutant::None);
            assert!(case.check(&computed).passed(), "{what}, with a bias: {computed:?}");
            every_value_matters(&case, &computed, what);
        }
    }
}

/// A NaN in the bias is NaN in its column, and what is infinite in it stays so; the bias is y where x_hat or the weight is 0.
#[test]
fn a_bias_is_what_it_is() {
    for (x, weight, bias) in [
        ([1.5, -2.0, 0.75], [1.0, 2.0, 3.0], [NAN, INF, -INF]),
        ([0.0, -0.0, 0.0], [1.0, 2.0, 3.0], [0.1, -0.3, 1e-40]),
        ([1.0, INF, 3.0], [1.0, 2.0, 3.0], [0.1, -0.3, 1e-40]),
        ([1.5, -2.0, 0.75], [0.0, 1.0, -0.0], [0.1, -0.3, 65_500.0]),
        ([1.5, -2.0, 0.75], [INF, NAN, -INF], [0.1, INF, INF]),
        ([1.0, 1.0, 1.0], [-1.0, 1.0, 1e-20], [1.0, -1.0, 0.1]),
    ] {
        for (format, twice) in
            [Format::F32, Format::F16, Format::Bf16].into_iter().flat_map(|f| [(f, false), (f, true)])
        {
            let case = case(&[x, [0.25, 3.0, -1.0]].concat(), &[0.5; 6], Some(&weight), 1e-5, format);
            let case = Case { bias: Some(bias.to_vec()), twice, ..case };
            let computed = case.run(Mutant::None);
            assert!(case.check(&computed).passed(), "{case:?}: {computed:?}");
            every_value_matters(&case, &computed, "a bias");
        }
    }
}

/// Replaces each value in turn: special values by 0, finite ones by NaN, by Inf and by twice the value and one.
fn every_value_matters(case: &Case, computed: &Computed, what: &str) {
    let refused = |broken: &Computed, value: f64| {
        assert!(!case.check(broken).passed(), "{what}: {value} was accepted in {broken:?}");
    };
    let wrong =
        |value: f64| if value.is_finite() { vec![f64::NAN, f64::INFINITY, 2.0 * value + 1.0] } else { vec![0.0] };
    for i in 0..computed.rstd.len() {
        for value in wrong(f64::from(computed.rstd[i])) {
            let mut broken = computed.clone();
            broken.rstd[i] = value as f32;
            refused(&broken, value);
        }
    }
    for output in 0..4 {
        let select = |c: &mut Computed| std::mem::take([&mut c.y, &mut c.dx, &mut c.dw, &mut c.db][output]);
        let values = select(&mut computed.clone());
        for i in 0..values.len() {
            for value in wrong(values[i]) {
                let mut broken = computed.clone();
                [&mut broken.y, &mut broken.dx, &mut broken.dw, &mut broken.db][output][i] = value;
                refused(&broken, value);
            }
        }
    }
}

#[test]
fn no_rows_demand_zero_sums() {
    let case = case(&[], &[], None, 1e-5, Format::F32);
    let computed = case.run(Mutant::None);
    assert!(case.check(&computed).passed());
    every_value_matters(&case, &computed, "no rows");
}

#[test]
fn infinity_is_right_only_where_rounding_gives_it() {
    let dy = [0.0; 3];
    // x_hat of ±1 times 65519, 65520 − and beyond: the f16 threshold is 65520.
    for (weight, computed, right) in [
        (65_504.0, 65_504.0, true),
        (65_504.0, f64::INFINITY, false),
        (65_519.99, f64::INFINITY, true),
        (65_519.99, 65_504.0, true),
        (65_540.0, 65_504.0, false),
        (65_540.0, f64::INFINITY, true),
        (65_540.0, f64::NEG_INFINITY, false),
        (65_540.0, f64::NAN, false),
    ] {
        let case = case(&[1.0, 1.0, 1.0], &dy, Some(&[weight, 1.0, 1.0]), 0.0, Format::F16);
        let mut outputs = case.run(Mutant::None);
        outputs.y[0] = computed;
        assert_eq!(case.check(&outputs).y.passed(), right, "weight {weight}, y {computed}");
    }
}

#[test]
fn an_overflowing_intermediate_permits_what_is_not_finite_and_nothing_else() {
    let case = case(&[1.0, -2.0, 3.0], &[1e38, 2e38, 3e38], Some(&[3.0, 2.0, 1.0]), 0.0, Format::F32);
    let computed = case.run(Mutant::None);
    let verdict = case.check(&computed);
    assert!(verdict.passed(), "{verdict:?}");
    assert_eq!((verdict.dx.may_overflow, verdict.y.may_overflow), (3, 0));
    for (value, right) in [(f64::NAN, true), (f64::INFINITY, true), (1.0, false), (-1e38, false)] {
        let mut broken = computed.clone();
        broken.dx[1] = value;
        assert_eq!(case.check(&broken).dx.passed(), right, "{value}");
    }
}

/// Rounding to nearest is wrong by half a last place, near 2 that is u/2 of the value: `u·|value|` would allow nearly the whole.
#[test]
fn the_neighbour_of_the_nearest_value_is_refused() {
    for (format, place) in [(Format::F16, 2f64.powi(-10)), (Format::Bf16, 2f64.powi(-7))] {
        let weight = 2.0 - 1.1 * place;
        let (nearest, truncated) = (2.0 - place, 2.0 - 2.0 * place);
        assert!(weight - truncated < format.unit_roundoff() * weight);
        let case = case(&[1.0; 3], &[0.0; 3], Some(&[weight as f32, 1.0, 1.0]), 0.0, format);
        let mut outputs = case.run(Mutant::None);
        assert_eq!(outputs.y[0], nearest);
        let verdict = case.check(&outputs);
        assert_eq!((verdict.passed(), verdict.y.single, verdict.y.worst), (true, 3, 0.0));
        outputs.y[0] = truncated;
        let failure = case.check(&outputs).y.first_failure.unwrap();
        assert_eq!(failure.interval, Some((nearest, nearest)), "{failure}");
    }
}

/// Where f64 and the bound may be wrong by a little, an intermediate may overflow that seems not to.
#[test]
fn an_intermediate_a_little_below_the_threshold_may_overflow() {
    let flagged = |allowed: Allowed| matches!(allowed, Allowed::Near { may_overflow: true, .. });
    let plain = bound::Scale { weight: 1.0, relative: 0.0, multiplies: false };
    for (below, expected) in [(2f64.powi(-11), true), (2f64.powi(-9), false)] {
        let most = Format::F32.overflow_threshold() * (1.0 - below);
        let dx = |row: &[(f64, f64)], of: usize| {
            let rms = (row.iter().map(|(x_hat, _)| x_hat * x_hat).sum::<f64>() / row.len() as f64).sqrt();
            let row: Vec<_> = row.iter().map(|(x_hat, dy)| (x_hat / rms, *dy, plain)).collect();
            let c = row.iter().map(|(x_hat, dy, _)| x_hat * dy).sum::<f64>() / row.len() as f64;
            let (x_hat, dy, _) = row[of];
            let shared = bound::BackwardRow::new(1.0, 0.0, 1, row.iter().copied());
            shared.dx(dy - x_hat * c, x_hat, dy, plain, None, Format::F32)
        };
        // wdy of another column; the sum of dot, whose terms cancel; t, larger than both: 0.96·wdy + 0.1·rest.
        assert_eq!(flagged(dx(&[(0.0, most), (1.0, 0.0)], 1)), expected);
        let quarter = most / 4.0;
        assert_eq!(flagged(dx(&[(1.0, quarter), (1.0, -quarter), (1.0, quarter), (1.0, -quarter)], 0)), expected);
        let (x_hat, wdy) = ((4.0f64 - 0.16).sqrt() / 3f64.sqrt(), most / 1.01);
        let rest = 0.5 * wdy / (3.0 * x_hat);
        assert_eq!(flagged(dx(&[(0.4, wdy), (x_hat, -rest), (x_hat, -rest), (x_hat, -rest)], 0)), expected);
        for format in [Format::F32, Format::Bf16] {
            let mut sums = bound::ColumnSums::default();
            sums.add(1.0, 0.0, most);
            assert_eq!((flagged(sums.dw(1, format)), flagged(sums.db(1, format))), (expected, expected));
        }
    }
}

/// A sum too deep for the theorem leaves whatever depends on it without a bound, and that does not pass, right or wrong.
#[test]
fn a_depth_without_a_bound_does_not_pass() {
    let (x, dy) = ([1.5f32, -2.0, 0.75], [1.0f32, 2.0, -3.0]);
    for weight in [None, Some(&[0.5f32, 2.0, 3.0][..])] {
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let case = case(&x, &dy, weight, 1e-5, format);
            let good = case.run(Mutant::None);
            let mut junk = good.clone();
            junk.rstd[0] = 9.0;
            [&mut junk.y, &mut junk.dx, &mut junk.dw, &mut junk.db].into_iter().for_each(|values| values.fill(1e4));
            let depth = case.depth();
            for (deep, without) in [
                (Depth { forward: 1 << 23, ..depth }, &["rstd", "y", "dx", "dw"][..]),
                (Depth { backward: 1 << 23, ..depth }, &["dx"]),
                (Depth { column: 1 << 23, ..depth }, &["dw", "db"]),
            ] {
                for (outputs, right) in [(&good, true), (&junk, false)] {
                    for (output, tally) in case.check_at(deep, outputs).outputs() {
                        let unbounded = without.contains(&output);
                        assert_eq!(tally.unbounded, if unbounded { tally.elements } else { 0 }, "{deep:?} {output}");
                        assert_eq!(tally.passed(), right && !unbounded, "{deep:?} {output} {tally}");
                    }
                }
            }
        }
    }
    assert_eq!(bound::relative_rstd(1.0, 1 << 23), f64::INFINITY);
}

/// Rows that need scaling are as accurate as the same row scaled to 1: at most 4 times its relative bound, and within it.
#[test]
fn scaled_rows_are_as_accurate_as_ordinary_ones() {
    let mut random = Random(3);
    let row: Vec<f32> = (0..7).map(|_| random.at(-1)).collect();
    let largest = f64::from(row.iter().fold(0f32, |m, x| m.max(x.abs())));
    let relative = |row: &[f32]| -> (Option<f64>, f64) {
        let case = case_of_width(7, row, &[0.0; 7], None, 0.0, Format::F32);
        let computed = case.run(Mutant::None);
        let Verdict { rstd, y, .. } = case.check(&computed);
        assert!(rstd.passed() && y.passed(), "{rstd} {y}");
        let v = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 7.0;
        let of = |allowed: Allowed| match allowed {
            Allowed::Near { exact, error, .. } => error / exact.abs(),
            other => panic!("{other:?} for a finite row"),
        };
        let rho = bound::relative_rstd(v, case.depth().forward);
        let scale = bound::Scale { weight: 1.0, relative: 0.0, multiplies: false };
        let x_hat = |&x: &f32| of(bound::y(f64::from(x) / v.sqrt(), rho, scale, None, Format::F32));
        let rstd = (computed.rstd[0] != INF).then(|| of(bound::rstd(v, case.depth().forward)));
        (rstd, row.iter().map(x_hat).fold(0.0, f64::max))
    };
    let (ordinary_rstd, ordinary_y) = relative(&row);
    for magnitude in [1e19, 1e30, f64::from(f32::MAX), 1e-19, 1e-22, 1e-30, 1e-38, 1e-40, 1e-44, 1.5e-45] {
        let scaled: Vec<f32> = row.iter().map(|&x| (f64::from(x) / largest * magnitude) as f32).collect();
        let scaled: Vec<f32> = scaled.iter().map(|&x| if x == 0.0 { f32::from_bits(1) } else { x }).collect();
        let (rstd, y) = relative(&scaled);
        println!("{magnitude:e}: rstd {rstd:?} of {ordinary_rstd:?}, y {y:e} of {ordinary_y:e}");
        assert!(rstd.is_none_or(|rstd| rstd <= 4.0 * ordinary_rstd.unwrap()), "rstd at {magnitude:e}");
        assert!(rstd.is_some() || magnitude < 1e-38);
        assert!(y <= 4.0 * ordinary_y, "y at {magnitude:e}");
    }
}

/// Blocks of rows, checked apart with a first row and merged in any order, find what one check of all rows finds.
#[test]
fn blocks_of_rows_merge_to_the_whole() {
    let mut random = Random(5);
    let (rows, hidden) = (6, 3);
    let x: Vec<f32> = (0..rows * hidden).map(|_| random.at(0)).collect();
    let dy: Vec<f32> = (0..rows * hidden).map(|_| random.at(1)).collect();
    let case = case(&x, &dy, None, 1e-5, Format::F32);
    let mut computed = case.run(Mutant::None);
    computed.y[13] = 9.0;
    computed.dx[16] = f64::NAN;
    computed.rstd[5] = 0.0;
    let whole = case.check(&computed);
    assert_eq!(whole.y.first_failure.as_ref().map(|f| (f.row, f.column)), Some((4, 1)));
    assert_eq!(whole.dx.first_failure.as_ref().map(|f| (f.row, f.column)), Some((5, 1)));
    assert_eq!(whole.y.worst_at, Some((4, 1)));

    let wide: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    let wide_dy: Vec<f64> = dy.iter().map(|&v| f64::from(v)).collect();
    let setting = Setting {
        weight: None,
        weight_offset: 0.0,
        bias: None,
        rounded: None,
        eps: f64::from(1e-5f32),
        depth: case.depth(),
    };
    let (mut forward, mut dx, mut columns) =
        (rmsnorm_ref::ForwardTallies::default(), rmsnorm_ref::Tally::default(), Columns::new(hidden));
    for first in [4, 0, 2] {
        let block = |values: &'_ [f64]| {
            ArrayView2::from_shape((2, hidden), &values[first * hidden..][..2 * hidden]).unwrap().to_owned()
        };
        let (x, dy) = (block(&wide), block(&wide_dy));
        let rstd = &computed.rstd[first..first + 2];
        forward.merge(&check_forward(&setting, Format::F32, first, x.view(), Some(rstd), block(&computed.y).view()));
        let rows = block(&computed.dx);
        dx.merge(&check_backward_rows(&setting, Format::F32, first, x.view(), dy.view(), None, rows.view()));
        let mut part = Columns::new(hidden);
        part.add_rows(&setting, x.view(), dy.view());
        columns.merge(&part);
    }
    assert_eq!((&forward.rstd, &forward.y), (&whole.rstd, &whole.y));
    // A failure that is NaN differs from itself, so the rest is compared.
    assert_eq!((dx.worst_at, dx.histogram, dx.failures), (whole.dx.worst_at, whole.dx.histogram, whole.dx.failures));
    assert!(columns.check_dw(case.depth(), Format::F32, &computed.dw).passed());
    assert!(columns.check_db(case.depth(), Format::F32, &computed.db).passed());
    println!("{}", whole.dx);
}

fn case(x: &[f32], dy: &[f32], weight: Option<&[f32]>, eps: f32, format: Format) -> Case {
    case_of_width(3, x, dy, weight, eps, format)
}

fn case_of_width(hidden: usize, x: &[f32], dy: &[f32], weight: Option<&[f32]>, eps: f32, format: Format) -> Case {
    let weight = weight.map(<[f32]>::to_vec);
    Case {
        hidden,
        x: x.to_vec(),
        dy: dy.to_vec(),
        dz: None,
        bias: None,
        weight,
        offset: 0.0,
        eps,
        chains_forward: 2,
        chains_backward: 4,
        groups: 2,
        format,
        twice: false,
    }
}

/// What one block knows of NaN and infinity, the whole knows.
#[test]
fn special_values_of_one_block_reach_the_whole() {
    let of = |x_hat: f64, dy: f64| {
        let mut sums = ColumnSums::default();
        sums.add(x_hat, 1e-7, dy);
        sums
    };
    let ordinary = of(1.0, 1.0);
    for (special, dw, db) in [
        (of(f64::NAN, 1.0), Allowed::Nan, None),
        (of(1.0, f64::INFINITY), Allowed::NotFinite, Some(Allowed::NotFinite)),
    ] {
        for (mut into, from) in [(special, ordinary), (ordinary, special)] {
            into.merge(&from);
            assert_eq!(into.dw(3, Format::F32), dw);
            assert_eq!(matches!(into.db(3, Format::F32), Allowed::NotFinite), db.is_some());
        }
    }
}

/// The error counts towards the range, too: sums that end just below the threshold may leave it on their way.
#[test]
fn an_error_that_reaches_over_the_threshold_permits_infinity() {
    let threshold = Format::F32.overflow_threshold();
    // γ of 2^16 roundings is 2^-8, four times the slack.
    let deep = 1 << 16;
    for (part, expected) in [(1.0 - 2f64.powi(-9), true), (1.0 - 2f64.powi(-6), false)] {
        let mut sums = ColumnSums::default();
        sums.add(1.0, 1e-7, part * threshold);
        for allowed in [sums.dw(deep, Format::F32), sums.db(deep, Format::F32)] {
            let Allowed::Near { may_overflow, .. } = allowed else { panic!("{allowed:?}") };
            assert_eq!(may_overflow, expected, "{part}: {allowed:?}");
        }
    }
}

/// Either side of the values at which another line of the formula of ρ begins to hold.
#[test]
fn rho_changes_its_formula_where_the_page_says() {
    let rho = |v: f64| bound::relative_rstd(v, 10);
    assert_eq!([f64::NAN, 0.0, f64::INFINITY].map(rho), [0.0; 3]);
    let (gamma, u) = (bound::gamma(12), Format::F32.unit_roundoff());
    let of_tau = |tau: f64| 0.5 * (gamma + tau) / (1.0 - gamma - tau) + 2.0 * u;
    let close = |a: f64, b: f64| (a - b).abs() < 1e-6 * b;
    let (low, high, far) = (2f64.powi(-127), 2f64.powi(103), 2f64.powi(250));
    assert!(close(rho(low.next_down()), of_tau(0.0)) && close(rho(low), of_tau(2f64.powi(-22))));
    // Below 2^103 nothing of τ is left; from there on it is 2^-51, half of which reaches ρ.
    let (below, at) = (rho(high.next_down()), rho(high));
    assert!(at > below && at - below < 2f64.powi(-51), "{below:e} {at:e}");
    // rstd = 2^-125 is stored without a subnormal's rounding; the next smaller one is not.
    assert!(rho(far.next_up().next_up()) - rho(far) > 0.9 * 2f64.powi(-25), "{:e}", rho(far));
}

/// One failure, in rstd or in y, fails both.
#[test]
fn forward_passes_if_both_outputs_do() {
    let good = rmsnorm_ref::Tally::default();
    let bad = rmsnorm_ref::Tally { failures: 1, ..good.clone() };
    for (rstd, y, passed) in [(&good, &good, true), (&bad, &good, false), (&good, &bad, false), (&bad, &bad, false)] {
        assert_eq!(rmsnorm_ref::ForwardTallies { rstd: rstd.clone(), y: y.clone() }.passed(), passed);
    }
}

/// A weight that is made by an addition may be wrong by its rounding, and no other.
#[test]
fn only_an_offset_widens_the_weight() {
    let x = [1.0, 2.0, 3.0];
    let x = ArrayView2::from_shape((1, 3), &x).unwrap();
    let ratio = |weight: f64, weight_offset: f64| {
        let weight = [weight; 3];
        let depth = Depth { forward: 3, backward: 3, column: 1 };
        let setting =
            Setting { weight: Some(weight[..].into()), weight_offset, bias: None, rounded: None, eps: 0.0, depth };
        let y = rmsnorm_ref::forward(x, setting.weight, weight_offset, 0.0).y * (1.0 + 1e-6);
        check_forward(&setting, Format::F32, 0, x, None, y.view()).y.worst
    };
    assert!(ratio(2.0, 1.0) < 0.95 * ratio(3.0, 0.0), "{} {}", ratio(2.0, 1.0), ratio(3.0, 0.0));
}
