//! How much of the bound a row can use up. A bound twice as large would pass every other test; here each output has, at each
//! depth, a row built to use most of it. `cargo test -p rmsnorm-ref --test tightness -- --nocapture` prints what is reached.
//!
//! The idea: a chain that holds 1 and takes in a little less than half an ulp, again and again, rounds down every time and loses
//! u of its value per step; a little more than half an ulp and it gains as much. One such element in chain 2^k does the same
//! to level k of the tree. So a whole depth of roundings can push the same way, in the statistic, in dot and down a column.

mod simulation;

use rmsnorm_ref::{Format, Tally};
use simulation::{Case, Random};

/// (length, chains): depths 8, 40 and 1026.
const SHAPES: [(usize, usize); 3] = [(8, 1), (37 * 8, 8), (1024 * 4, 4)];

#[test]
fn persistent_rounding_in_the_statistic_reaches_rstd_and_y() {
    for (index, (hidden, chains)) in SHAPES.into_iter().enumerate() {
        let (mut rstd, mut y) = (Tally::default(), Tally::default());
        let mut random = Random(11);
        for _ in 0..tries(hidden) {
            let (first, eps) = (1.0 + 0.2 * random.unit(), 1.0 + 0.1 * random.unit());
            let x = persistent(hidden, chains, first, Direction::Lose);
            // Just under half an ulp of the mean square: eps is lost as well.
            let mean_square = f64::from(x[0]).powi(2) / hidden as f64;
            let eps = (half_ulp(mean_square) / eps) as f32;
            let weight = (0..hidden).map(|_| (1.0 + random.unit() * 0.5) as f32).collect();
            let case = case(hidden, chains, x, vec![0.0; hidden], Some(weight), eps);
            let verdict = case.verdict();
            rstd.merge(&verdict.rstd);
            y.merge(&verdict.y);
        }
        demand("rstd", index, &rstd, 0.3);
        demand("y", index, &y, 0.3);
    }
}

#[test]
fn statistic_high_and_dot_low_reach_dx() {
    for (index, (hidden, chains)) in SHAPES.into_iter().enumerate() {
        let mut dx = Tally::default();
        let mut random = Random(12);
        for _ in 0..tries(hidden) {
            // v too large makes x_hat and so x_hat·c too small, dot too small does the same: all errors of element 0 add up.
            let x = persistent(hidden, chains, 1.0 + 0.2 * random.unit(), Direction::Gain);
            let dy = follow(&x, 1.0 + 0.2 * random.unit(), Direction::Lose);
            let case = case(hidden, chains, x, dy, None, 0.0);
            dx.merge(&case.verdict().dx);
        }
        demand("dx", index, &dx, 0.2);
    }
}

#[test]
fn persistent_rounding_down_the_column_reaches_dw_and_db() {
    for (index, (rows, groups)) in SHAPES.into_iter().enumerate() {
        let (hidden, mut dw, mut db) = (8, Tally::default(), Tally::default());
        let mut random = Random(13);
        for _ in 0..tries(rows * hidden) {
            let row = persistent(hidden, 1, 1.0 + 0.2 * random.unit(), Direction::Gain);
            let first = 1.0 + 0.2 * random.unit();
            // Column 0 attacks dw, by the products dy·x_hat with x_hat near sqrt(hidden); column 1 attacks db.
            let mut dy = vec![0.0; rows * hidden];
            for i in (0..rows).filter(|&i| takes_part(i, groups)) {
                let product = if i == 0 { first } else { half_ulp(first) * Direction::Lose.nudge() };
                dy[i * hidden] = (product / (hidden as f64).sqrt()) as f32;
                dy[i * hidden + 1] = product as f32;
            }
            let mut case = case(hidden, 1, row.repeat(rows), dy, None, 0.0);
            case.groups = groups;
            let verdict = case.verdict();
            dw.merge(&verdict.dw);
            db.merge(&verdict.db);
        }
        demand("dw", index, &dw, 0.3);
        demand("db", index, &db, 0.3);
    }
}

/// Prints what was reached and demands that it is a good part of the bound. Above one half, the halved bound fails.
fn demand(output: &str, shape: usize, tally: &Tally, least: f64) {
    let (length, chains) = SHAPES[shape];
    let depth = rmsnorm_ref::depth(length as u64, chains as u64);
    println!("{output:>4} f32, depth {depth:>4}: {:.3} of the bound", tally.worst);
    assert!(tally.passed(), "{output}: {tally}");
    assert!(tally.worst >= least, "{output} at depth {depth} reaches only {}", tally.worst);
    assert!(tally.worst > 0.5, "{output} at depth {depth}: half the bound would pass too: {}", tally.worst);
}

#[derive(Clone, Copy)]
enum Direction {
    Lose,
    Gain,
}

impl Direction {
    /// What a summand of half an ulp is multiplied by.
    fn nudge(self) -> f64 {
        match self {
            Direction::Lose => 1.0 - 2f64.powi(-9),
            Direction::Gain => 1.0 + 2f64.powi(-9),
        }
    }
}

/// A row with `first` in front, whose squares round in one direction in every step of chain 0 and at every level of the tree.
fn persistent(hidden: usize, chains: usize, first: f64, direction: Direction) -> Vec<f32> {
    let small = (half_ulp(first * first) * direction.nudge()).sqrt() as f32;
    let value = |j: usize| {
        if j == 0 {
            first as f32
        } else if takes_part(j, chains) {
            small
        } else {
            0.0
        }
    };
    (0..hidden).map(value).collect()
}

/// All of chain 0, and the first element of chain 2^k, which meets chain 0 at level k of the tree.
fn takes_part(index: usize, chains: usize) -> bool {
    index.is_multiple_of(chains) || (index < chains && index.is_power_of_two())
}

/// dy such that the products dy·x_hat round in `direction` wherever x is not 0, the first of them being about `first`.
fn follow(x: &[f32], first: f64, direction: Direction) -> Vec<f32> {
    let mean_square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
    let product = |j: usize| if j == 0 { first } else { half_ulp(first) * direction.nudge() };
    let dy = |(j, &x): (usize, &f32)| if x == 0.0 { 0.0 } else { product(j) / (f64::from(x) / mean_square.sqrt()) };
    x.iter().enumerate().map(dy).map(|dy| dy as f32).collect()
}

/// Half the distance of f32 values about `value`.
fn half_ulp(value: f64) -> f64 {
    2f64.powi(value.abs().log2().floor() as i32 - 24)
}

fn case(hidden: usize, chains: usize, x: Vec<f32>, dy: Vec<f32>, weight: Option<Vec<f32>>, eps: f32) -> Case {
    let (chains_forward, chains_backward) = (chains, chains);
    Case {
        hidden,
        x,
        dy,
        dz: None,
        bias: None,
        weight,
        offset: 0.0,
        eps,
        chains_forward,
        chains_backward,
        groups: 1,
        format: Format::F32,
        twice: false,
    }
}

/// More tries where a try is cheap: they search the roundings that are not built.
fn tries(elements: usize) -> usize {
    (2_000_000 / elements).min(20_000)
}
