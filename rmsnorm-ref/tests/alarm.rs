//! The alarm of long columns: errors that the bound of dw allows, and rounding at random would not make.

mod simulation;

use rmsnorm_ref::Format;
use simulation::{Case, Computed, Mutant, Random, convert};

/// What is wrong with the sum of these products, dy·x_hat.
type Defect = (&'static str, fn(&[f32]) -> f32);

#[test]
fn planted_errors_raise_it_and_the_bound_allows_them() {
    let lost: Defect = ("a row lost", |products| -small(products));
    let twice: Defect = ("a row twice", small);
    let narrow: Defect = ("products in f16", |products| products.iter().map(|&p| error_in(Format::F16, p)).sum());
    let one_narrow: Defect = ("one product in bf16", |products| {
        products.iter().map(|&p| error_in(Format::Bf16, p)).max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap()
    });
    let mut random = Random(21);
    for (rows, defects) in [(1 << 18, &[lost, twice, narrow][..]), (1 << 15, &[one_narrow])] {
        let case = long_columns(&mut random, rows);
        let computed = case.run(Mutant::None);
        let verdict = case.check(&computed);
        assert!(verdict.passed() && verdict.dw.alarms == 0, "{}", verdict.dw);
        for (what, defect) in defects {
            let mut broken = computed.clone();
            for (column, dw) in broken.dw.iter_mut().enumerate() {
                *dw = f64::from(*dw as f32 + defect(&products(&case, &computed, column)));
            }
            let verdict = case.check(&broken);
            println!("{what}, {rows} rows: {}", verdict.dw);
            assert!(verdict.passed(), "{what}: {}", verdict.dw);
            assert_eq!(verdict.dw.alarms, case.hidden as u64, "{what}: {}", verdict.dw);
        }
    }
}

/// Also where rows repeat, so that chains round alike, and where one product outweighs the others.
#[test]
fn correct_columns_raise_none() {
    let mut random = Random(22);
    let mut alarms = 0;
    for index in 0..300 {
        let rows = 1 + random.below(3000);
        let groups = 1 + random.below(rows);
        let mut case = Case { groups, ..long_columns(&mut random, rows) };
        match index % 4 {
            // Equal rows round alike, in every chain.
            0 => {
                case.x = case.x[..case.hidden].repeat(rows);
                case.dy = case.dy[..case.hidden].repeat(rows);
            }
            // Few values, one sign.
            1 => case.dy.iter_mut().for_each(|dy| *dy = dy.abs().round() + 1.0),
            // Products that differ by many binades.
            2 => case.dy.iter_mut().for_each(|dy| *dy = random.at(40 - (dy.to_bits() % 80) as i32)),
            _ => {}
        }
        let verdict = case.verdict();
        assert!(verdict.passed(), "{index}: {}", verdict.dw);
        alarms += verdict.dw.alarms;
        // In f16 an interval is often one value: the right one raises no alarm either.
        if index % 30 == 0 {
            case.format = Format::F16;
            alarms += case.verdict().dw.alarms;
        }
    }
    assert_eq!(alarms, 0);
}

fn long_columns(random: &mut Random, rows: usize) -> Case {
    let hidden = 2;
    let mut value = |_| {
        let exponent = random.below(4) as i32 - 3;
        random.at(exponent)
    };
    let mut values = || (0..rows * hidden).map(&mut value).collect();
    Case {
        hidden,
        x: values(),
        dy: values(),
        dz: None,
        bias: None,
        weight: None,
        offset: 0.0,
        eps: 1e-5,
        chains_forward: 2,
        chains_backward: 2,
        groups: (rows / 8).next_power_of_two(),
        format: Format::F32,
        twice: false,
    }
}

fn products(case: &Case, computed: &Computed, column: usize) -> Vec<f32> {
    let product =
        |row: usize| case.dy[row * case.hidden + column] * (case.x[row * case.hidden + column] * computed.rstd[row]);
    (0..case.rows()).map(product).collect()
}

/// A product of which a tenth of all are smaller.
fn small(products: &[f32]) -> f32 {
    let mut sorted = products.to_vec();
    sorted.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    sorted[sorted.len() / 10]
}

fn error_in(format: Format, value: f32) -> f32 {
    (convert(value, format, f64::round_ties_even) - f64::from(value)) as f32
}
