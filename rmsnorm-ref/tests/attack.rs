//! Random and degenerate rows over the whole range of f32 against the bound: there must be no violation.

mod simulation;

use rmsnorm_ref::{Format, Tally};
use simulation::{Case, Mutant, Random};

/// The largest binades of random values start at these exponents.
const WHOLE: std::ops::Range<i32> = -149..128;
const ORDINARY: std::ops::Range<i32> = -4..1;

#[test]
fn no_violation_over_the_whole_range() {
    attack("whole range", 150_000, |random| random_case(random, WHOLE, 24, false));
}

#[test]
fn no_violation_on_ordinary_data() {
    attack("ordinary", 60_000, |random| random_case(random, ORDINARY, 24, false));
}

#[test]
fn no_violation_with_degenerate_values() {
    attack("degenerate", 150_000, |random| random_case(random, WHOLE, 24, true));
}

/// v near 2^128 and 2^-126, where the scaled paths begin, and rows whose rstd is near the edge of f32 (rms 2^-128 and 2^126).
#[test]
fn no_violation_at_the_edges_of_the_scaled_paths() {
    for edge in [62..66, -66..-60, -130..-125, 124..128] {
        attack(&format!("edge {edge:?}"), 15_000, |random| random_case(random, edge.clone(), 24, false));
    }
}

#[test]
fn no_violation_in_wide_rows() {
    attack("wide", 1_000, |random| random_case(random, WHOLE, 2_000, false));
    attack("wide, ordinary", 1_000, |random| random_case(random, ORDINARY, 2_000, false));
}

#[test]
fn no_violation_where_x_hat_is_rounded_first() {
    let twice = |case| Case { twice: true, ..case };
    attack("twice, whole range", 60_000, |random| twice(random_case(random, WHOLE, 24, false)));
    attack("twice, ordinary", 40_000, |random| twice(random_case(random, ORDINARY, 24, false)));
    attack("twice, degenerate", 40_000, |random| twice(random_case(random, WHOLE, 24, true)));
    attack("twice, wide", 500, |random| twice(random_case(random, ORDINARY, 2_000, false)));
    // x_hat at the edges of f16 and of its subnormals, eps being all there is.
    attack("twice, subnormal", 20_000, |random| {
        let case = twice(random_case(random, -26..-12, 24, false));
        Case { eps: 1.0, format: Format::F16, ..case }
    });
}

#[test]
fn mutants_are_caught() {
    for mutant in [
        Mutant::EpsRemoved,
        Mutant::LastElementDropped,
        Mutant::CNotDivided,
        Mutant::WeightTwice,
        Mutant::OffsetIgnored,
        Mutant::NoScaledPath,
        Mutant::EpsNotScaled,
        Mutant::XHatOff,
        Mutant::LastRowDropped,
        Mutant::DzIgnored,
        Mutant::BiasIgnored,
        Mutant::BiasAddedToRounded,
        Mutant::Truncates,
        Mutant::RoundedOnce,
        Mutant::DwOfUnrounded,
        Mutant::DotOfRounded,
    ] {
        let twice = matches!(mutant, Mutant::RoundedOnce | Mutant::DwOfUnrounded | Mutant::DotOfRounded);
        let mut random = Random(7);
        let caught = (0..20_000).filter(|k| {
            let case = random_case(&mut random, if k % 2 == 0 { ORDINARY } else { WHOLE }, 24, k % 3 == 0);
            let case = Case { twice, ..case };
            !case.check(&case.run(mutant)).passed()
        });
        let caught = caught.count();
        println!("{mutant:?}: {caught} of 20000 cases");
        assert!(caught > 0, "{mutant:?} survives");
    }
}

/// What a truncating conversion stores is refused wherever it is not what rounding stores: for half of what is not exact.
#[test]
fn a_truncating_conversion_is_refused() {
    for format in [Format::F16, Format::Bf16] {
        let mut random = Random(8);
        let mut totals: [Tally; 5] = Default::default();
        for _ in 0..2_000 {
            let case = Case { format, ..random_case(&mut random, ORDINARY, 24, false) };
            let verdict = case.check(&case.run(Mutant::Truncates));
            totals.iter_mut().zip(verdict.outputs()).for_each(|(total, (_, tally))| total.merge(tally));
        }
        for (total, output) in totals.iter().zip(["rstd", "y", "dx", "dw", "db"]).skip(1) {
            let refused = total.failures as f64 / total.elements as f64;
            println!("{format:?} {output}: {refused:.3} refused");
            assert!((0.25..=0.5).contains(&refused), "{format:?} {output}: {refused}");
        }
    }
}

fn attack(name: &str, cases: usize, mut make: impl FnMut(&mut Random) -> Case) {
    let mut random = Random(1);
    let mut totals: [Tally; 5] = Default::default();
    for index in 0..cases {
        let case = make(&mut random);
        let verdict = case.verdict();
        for (total, (output, tally)) in totals.iter_mut().zip(verdict.outputs()) {
            if let Some(failure) = &tally.first_failure {
                panic!("{name} {index}, {output}: {failure}\n{case:?}");
            }
            assert_eq!(tally.unbounded, 0, "{name} {index}, {output}: no finite bound\n{case:?}");
            if output == "dx" && promises_dx(&case) {
                assert_eq!(tally.may_overflow, 0, "{name} {index}: dx was promised\n{case:?}");
            }
            total.merge(tally);
        }
    }
    for (total, output) in totals.iter().zip(["rstd", "y", "dx", "dw", "db"]) {
        println!("{name}: {output}: {total}");
        assert!(total.passed() && total.elements > 0);
    }
}

/// hidden · max|dy·w'| ≤ 2^126, and no infinite dz: no intermediate of dx may leave the range (docs/numerics.md §8).
fn promises_dx(case: &Case) -> bool {
    let weight = |j: usize| case.weight.as_ref().map_or(1.0, |w| f64::from(w[j]) + f64::from(case.offset));
    let wdy = |(i, &dy): (usize, &f32)| f64::from(dy) * weight(i % case.hidden);
    let finite = case.dz.iter().flatten().all(|dz| dz.is_finite());
    finite && case.dy.iter().enumerate().map(wdy).all(|wdy| wdy.abs() * case.hidden as f64 <= 2f64.powi(126))
}

/// A few rows whose magnitudes spread over some binades, the least of them one of `exponents`.
fn random_case(random: &mut Random, exponents: std::ops::Range<i32>, hidden_max: usize, degenerate: bool) -> Case {
    let hidden = 1 + random.below(hidden_max);
    let rows = random.below(6);
    let values = |random: &mut Random, count: usize, wide: bool| -> Vec<f32> {
        let base = if wide { exponents.start + random.below(exponents.len()) as i32 } else { 0 };
        let around = [1, 2, 8, 40][random.below(if exponents.len() > 8 { 4 } else { 2 })];
        let mut value = || {
            let exponent = base + random.below(around) as i32;
            random.at(exponent)
        };
        let mut values: Vec<f32> = (0..count).map(|_| value()).collect();
        if random.below(8) == 0 {
            let at = random.below(count.max(1));
            values[at..].iter_mut().for_each(|v| *v = 0.0);
        }
        if degenerate && count > 0 && random.below(3) == 0 {
            let special = [f32::NAN, f32::INFINITY, -f32::INFINITY, -0.0, f32::MAX, -f32::MAX, f32::from_bits(1)];
            values[random.below(count)] = special[random.below(special.len())];
        }
        values
    };
    let mut x = vec![];
    let mut dy = vec![];
    for _ in 0..rows {
        x.extend(values(random, hidden, true));
        let wide = random.below(2) == 0;
        dy.extend(values(random, hidden, wide));
    }
    let wide = random.below(3) == 0;
    let weight = (random.below(4) > 0).then(|| values(random, hidden, wide));
    let square = x.first().map_or(1.0, |x| x * x);
    let eps = [0.0, 0.0, 1e-5, f32::from_bits(1), 1e30, square][random.below(6)];
    // Of any size; or what nearly cancels dx.
    let dz = match random.below(3) {
        0 => Some(values(random, rows * hidden, true)),
        _ => None,
    };
    let cancels = random.below(3) == 0;
    let mut case = Case {
        hidden,
        x,
        dy,
        dz,
        weight,
        bias: None,
        offset: [0.0, 1.0][random.below(2)],
        eps: if eps.is_finite() { eps } else { 1e-6 },
        chains_forward: 1 + random.below(32),
        chains_backward: 1 + random.below(32),
        groups: 1 + random.below(rows.max(1)),
        format: [Format::F32, Format::F32, Format::F16, Format::Bf16][random.below(4)],
        twice: false,
    };
    // The same of a bias and y.
    let biased = random.below(3) > 0;
    if biased {
        let wide = random.below(2) == 0;
        case.bias = Some(values(random, hidden, wide));
    }
    if biased && cancels && case.rows() > 0 {
        let y = Case { bias: None, ..case.clone() }.run(Mutant::None).y;
        case.bias = Some(y[..hidden].iter().map(|&y| -y as f32 * (1.0 + random.at(-20))).collect());
    }
    if cancels {
        let dx = case.run(Mutant::None).dx;
        case.dz = Some(dx.iter().map(|&dx| -dx as f32 * (1.0 + random.at(-20))).collect());
    }
    case
}
