//! How much is tried.

use super::judge::{Depth, Judge};
use super::report::Phase;
use rmsnorm_fuzz::sets::{self, Coverage, Item};
use std::time::Instant;

/// How much is tried.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    /// One hard case in so many is launched with kernels that nothing else needs.
    pub(super) hard_launches: usize,
    /// Random cases: how many, and their largest number of elements as a power of two.
    pub(super) random: &'static [(u64, u32)],
    /// So many more with more rows than row groups.
    pub(super) deep: u64,
    /// One random case in so many is tried with identity and accuracy, the others with identity alone: where all bits are the literal
    /// executor's, accuracy is a property of the specification.
    pub(super) random_accurate: usize,
    /// One random case in so many is tried with every property.
    pub(super) random_thorough: usize,
    /// One case of plan classes in so many is tried, and of several types, and of the former one in so many with every property.
    pub(super) classes: usize,
    pub(super) classes_thorough: usize,
    /// The same for the grid of shapes; one of several types in so many with every property.
    pub(super) grid: usize,
    pub(super) grid_thorough: usize,
    /// What large hard cases are tried with.
    pub(super) large: Depth,
    /// Whether missing a quota of the random cases is a failure.
    pub(super) quotas: bool,
}

impl Effort {
    /// At most a minute on two cores.
    pub(super) const QUICK: Effort = Effort {
        hard_launches: 8,
        random: &[(330, 18), (10, 21)],
        deep: 10,
        random_accurate: 1,
        random_thorough: 7,
        classes: 8,
        classes_thorough: 2,
        grid: 17,
        grid_thorough: 11,
        large: Depth::Large,
        quotas: false,
    };

    /// A few minutes.
    pub(super) const DEFAULT: Effort = Effort {
        hard_launches: 3,
        random: &[(2000, 18), (200, 21)],
        deep: 200,
        random_accurate: 2,
        random_thorough: 20,
        classes: 1,
        classes_thorough: 2,
        grid: 3,
        grid_thorough: 11,
        large: Depth::Wide,
        quotas: false,
    };

    /// For 16 cores.
    pub(super) const FULL: Effort = Effort {
        hard_launches: 1,
        random: &[(13_800, 18), (200, 21)],
        deep: 6000,
        random_accurate: 3,
        random_thorough: 40,
        classes: 1,
        classes_thorough: 2,
        grid: 1,
        grid_thorough: 11,
        large: Depth::Wide,
        quotas: true,
    };

    /// Tries every set of cases, as deeply as this says. What the random ones covered is returned, how long each set took added to
    /// `phases`.
    pub(super) fn try_sets(&self, seed: u64, judge: &Judge, phases: &mut Vec<Phase>) -> anyhow::Result<Coverage> {
        let mut try_all = |what: &str, items: &[Item], depth: &(dyn Fn(usize) -> Depth + Sync)| {
            let began = Instant::now();
            judge.judge_all(what, items, depth)?;
            let elapsed_s = began.elapsed().as_secs_f64();
            phases.push(Phase { what: what.into(), cases: items.len() as u64, elapsed_s });
            anyhow::Ok(())
        };
        try_all("hard cases", &sets::hard(false), &|i| one_in(i, self.hard_launches, Depth::Hard, Depth::All))?;
        let classes = sets::one_in(self.classes, sets::plan_classes());
        try_all("plan classes", &classes, &|i| one_in(i, self.classes_thorough, Depth::All, Depth::Wide))?;
        let types = sets::one_in(self.classes, sets::types());
        try_all("cases of several types", &types, &|i| one_in(i, self.grid_thorough, Depth::All, Depth::Wide))?;
        let grid = sets::one_in(self.grid, sets::grid());
        try_all("grid", &grid, &|i| one_in(i, self.grid_thorough, Depth::All, Depth::Basic))?;
        let drawn = sets::random(seed, self.random, self.deep);
        let accurate = |i: usize| one_in(i, self.random_accurate, Depth::Basic, Depth::Bits);
        try_all("random cases", &drawn, &|i| one_in(i, self.random_thorough, Depth::All, accurate(i)))?;
        try_all("large hard cases", &sets::hard(true), &|_| self.large)?;
        Ok(Coverage::of(&drawn))
    }
}

/// What a mode may take, and on what.
pub(super) fn promised(mode: &str) -> Option<&'static str> {
    match mode {
        "quick" => Some("60 s on two cores, with a GPU or without"),
        "default" => Some("240 s on two cores, or on 16 with a GPU"),
        "full" => Some("480 s on 16 cores with a GPU"),
        _ => None,
    }
}

/// One case in so many gets the greater depth.
fn one_in(index: usize, every: usize, greater: Depth, otherwise: Depth) -> Depth {
    if index.is_multiple_of(every) { greater } else { otherwise }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_random_cases_of_full_meet_their_quotas() {
        for seed in [0, 1, 77] {
            let coverage = Coverage::of(&sets::random(seed, Effort::FULL.random, Effort::FULL.deep));
            println!("{coverage}");
            assert!(coverage.cases >= 20_000 && coverage.shortfalls().is_empty(), "{:?}", coverage.shortfalls());
        }
    }
}
