//! The two halves of the specification: the same sections, and the same functions in them, in the same order.

use std::collections::BTreeMap;

/// Functions that only one half has, each with the reason.
const ALONE: [(&str, &str); 1] = [("store_pair", "two conversions in one instruction, the same bits as `store` twice")];

/// Functions of each section, in order, without repetition.
fn sections(text: &str, function: impl Fn(&str) -> Option<String>) -> BTreeMap<String, Vec<String>> {
    let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("// §") {
            current = heading.trim_end_matches(['-', ' ']).to_string();
            sections.entry(current.clone()).or_default();
        } else if let (Some(name), Some(names)) = (function(line), sections.get_mut(&current))
            && !names.contains(&name)
            && !ALONE.iter().any(|(alone, _)| *alone == name)
        {
            names.push(name);
        }
    }
    sections
}

#[test]
fn both_halves_have_the_same_functions() {
    let identifier = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let rust = sections(include_str!("../src/arith.rs"), |line| {
        let line = line.trim_start().trim_start_matches("pub ");
        line.strip_prefix("fn ").map(identifier)
    });
    let cuda = sections(include_str!("../src/arith.cuh"), |line| {
        let (_, after) = line.split_once("__forceinline__ ")?;
        let (before, _) = after.split_once('(')?;
        let name = before.split_whitespace().last()?;
        Some(identifier(name))
    });
    assert_eq!(rust.len(), 7, "{rust:?}");
    assert_eq!(rust, cuda);
}
