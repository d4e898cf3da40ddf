//! Two files beside each other.

use crate::kernel::{Fault, Order, Outputs, Problem, Style, file, run, write};
use rmsnorm_ref::Format;
use rmsnorm_ref::judge::{Comparison, Options, judge_file};

fn compared(p: &Problem, first: &Outputs, second: &Outputs) -> Comparison {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    write(&a, &file(p, first), None);
    write(&b, &file(p, second), None);
    let options = Options { eps: Some(f64::from(p.eps)), quiet: true, ..Options::default() };
    let report = judge_file(&a, Some(&b), &options).unwrap();
    println!("{report}");
    assert_eq!(report.exit_status() == 0, report.comparison.as_ref().unwrap().equal);
    report.comparison.unwrap()
}

#[test]
fn equal_and_different_bits() {
    let p = Problem::new(300, 200, Format::F32, 3);
    let out = run(&p, &Style::PLAIN, Fault::None);
    let same = compared(&p, &out, &out.clone());
    assert!(same.equal && same.pattern.is_none());
    let mut other = out.clone();
    other.y[5 * 200 + 7] = f64::from((other.y[5 * 200 + 7] as f32).next_up());
    let one = compared(&p, &out, &other);
    let y = one.outputs.iter().find(|d| d.output == "y").unwrap();
    assert_eq!((y.different, y.rows, y.columns, y.most_ulp), (1, 1, 1, Some(1)));
    assert_eq!(y.first.as_ref().map(|(row, column, ..)| (*row, *column)), Some((5, 7)));
}

#[test]
fn patterns_say_what_was_ordered_otherwise() {
    let p = Problem::new(300, 200, Format::F32, 3);
    let with = |style: Style| run(&p, &style, Fault::None);
    let plain = with(Style::PLAIN);
    let pattern = |other: &Outputs| compared(&p, &plain, other).pattern.unwrap_or_default();
    let rows = with(Style { row: Order::Halves, ..Style::PLAIN });
    assert!(pattern(&rows).starts_with("row order"), "{}", pattern(&rows));
    let split = with(Style { column: Order::Chains { chains: 16, fused: true }, ..Style::PLAIN });
    assert!(pattern(&split).starts_with("split"), "{}", pattern(&split));
    // Two runs of atomics with few blocks: most columns come out alike.
    let atomics = |seed: u64| with(Style { column: Order::Atomics(100, seed), ..Style::PLAIN });
    let first = atomics(1);
    let other = (2..20).map(atomics).find(|other| other.dw != first.dw).unwrap();
    let pattern = compared(&p, &first, &other).pattern.unwrap_or_default();
    assert!(pattern.starts_with("atomics"), "{pattern}");
}
