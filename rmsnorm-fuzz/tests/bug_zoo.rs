//! The table of docs/bug-zoo.md names cases, properties and mutants that exist, and few bugs are claimed to be impossible.

use rmsnorm_fuzz::hard_case;
use rmsnorm_fuzz::mutants::{judges, mutant};
use std::collections::BTreeSet;

#[test]
fn the_table_names_what_there_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/bug-zoo.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| |") && !line.starts_with("| ---"))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    let mut wrong = Vec::new();
    for row in &rows {
        let [id, bug, property, case, answer] = row[..] else { panic!("{row:?}") };
        assert!(!bug.is_empty());
        let cannot_occur = answer.starts_with("cannot occur: ");
        let named = |name: &str, known: bool| known || cannot_occur && name.is_empty();
        if !named(property, judges().any(|judge| judge.name == property)) {
            wrong.push(format!("{id}: no property {property}"));
        }
        if !named(case, hard_case(case).is_some()) {
            wrong.push(format!("{id}: no hard case {case}"));
        }
        if !cannot_occur && mutant(answer).is_none() {
            wrong.push(format!("{id}: no mutant {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let classes: BTreeSet<char> = rows.iter().filter_map(|row| row[0].chars().next()).collect();
    assert_eq!(classes, ('A'..='G').collect());
    let impossible = rows.iter().filter(|row| row[4].starts_with("cannot occur")).count();
    assert!(impossible * 10 <= rows.len() * 4, "{impossible} of {}", rows.len());
}
