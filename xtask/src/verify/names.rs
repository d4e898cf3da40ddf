//! What cases are called on the command line.

use anyhow::{Result, bail};
use rmsnorm_fuzz::sets::{self, Item, RANDOM_POWER_MAX};

/// The case of this name; an error that names others like it.
pub(super) fn named(name: &str) -> Result<Item> {
    if let Some(item) = sets::named(name) {
        return Ok(item);
    }
    if name.starts_with("random-") {
        bail!(
            "{name} is no random case: expected random-POWER-SEED, such as random-18-7, with a power of at most \
             {RANDOM_POWER_MAX}"
        );
    }
    let mut known = sets::fixed();
    known.sort_by_cached_key(|item| strsim::damerau_levenshtein(&item.name, name));
    bail!("no case is called {name}; there are{}; all of them: verify --list", in_lines(&known[..NEAREST]))
}

/// What [`named`] knows.
pub(super) fn list() -> String {
    format!(
        "hard cases:{}\nplan classes:{}\nseveral types:{}\ngrid of shapes, as grid-ROWS-WIDTH:{}\nrandom-POWER-SEED: random-18-7 has at most \
         2^18 elements and seed 7\ndeep-SEED: deep-7 has more rows than row groups",
        in_lines(&[sets::hard(false), sets::hard(true)].concat()),
        in_lines(&sets::plan_classes()),
        in_lines(&sets::types()),
        in_lines(&sets::grid())
    )
}

/// The names, in lines that fit a terminal.
fn in_lines(items: &[Item]) -> String {
    let (mut lines, mut width) = (String::new(), usize::MAX);
    for Item { name, .. } in items {
        if width.saturating_add(name.len()) > LINE {
            (lines, width) = (lines + "\n ", 1);
        }
        lines = lines + " " + name;
        width += name.len() + 1;
    }
    lines
}

const LINE: usize = 79;
/// Names that are offered for one that does not exist.
const NEAREST: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_told_the_nearest() {
        let error = named("idle_groups_782").unwrap_err().to_string();
        assert!(error.contains("idle_groups_781") && error.len() < 1000, "{error}");
        assert!(named("random-99-1").unwrap_err().to_string().contains("at most 28"));
        for known in ["idle_groups_781", "class-bf16-", "random-18-7", "deep-7"] {
            assert!(list().contains(known), "{known}");
        }
    }
}
