//! Measures cells on a device. The device is a trait, so that all of this can be tried without one.

use super::cells::{Cell, Direction};
use super::report::{Ceiling, Differ, Measured, Pass, Timed, Timing};
use anyhow::Result;
use std::collections::HashMap;

/// What can time calls and ceilings.
pub(super) trait Device {
    /// The tensors of a cell.
    type Tensors;
    /// Whether a ceiling counts for every cell of its size, measured once in a pass.
    const SHARES_CEILINGS: bool;
    /// What the public call will choose.
    fn plan(&self, cell: Cell) -> String;
    fn tensors(&self, cell: Cell) -> Result<Self::Tensors>;
    fn sets(&self, tensors: &Self::Tensors) -> usize;
    /// Depends on the tensors' size and number alone. May overwrite the outputs.
    fn ceiling(&self, tensors: &Self::Tensors, direction: Direction) -> Result<Ceiling>;
    fn call(&self, tensors: &Self::Tensors, direction: Direction) -> Result<Timing>;
    /// What the last calls wrote; None: nothing to compare with.
    fn differ(&self, tensors: &Self::Tensors) -> Result<Option<Differ>>;
}

/// Goes through `cells` `passes` times. What fails is recorded, and the others are still measured.
pub(super) fn measure<D: Device>(
    device: &D,
    cells: &[Cell],
    passes: usize,
    mut done: impl FnMut(usize, &Measured),
) -> Vec<Measured> {
    let new = |&cell| Measured { cell, plan: device.plan(cell), sets: 0, passes: Vec::new(), failures: Vec::new() };
    let mut all: Vec<Measured> = cells.iter().map(new).collect();
    for pass in 1..=passes {
        let mut ceilings = HashMap::new();
        for measured in &mut all {
            if let Err(error) = measure_cell(device, measured, pass, &mut ceilings) {
                measured.failures.push(format!("pass {pass}: {error:#}"));
            }
            done(pass, measured);
        }
    }
    all
}

fn measure_cell<D: Device>(
    device: &D,
    measured: &mut Measured,
    pass: usize,
    ceilings: &mut HashMap<(usize, bool, bool), [Ceiling; 2]>,
) -> Result<()> {
    let cell = measured.cell;
    let tensors = device.tensors(cell)?;
    measured.sets = device.sets(&tensors);
    let traffic = (cell.tensor_bytes(), cell.residual, cell.stream);
    let [copy, add] = match ceilings.get(&traffic) {
        Some(known) if D::SHARES_CEILINGS => known.clone(),
        _ => {
            let [forward, backward] = Direction::BOTH.map(|direction| device.ceiling(&tensors, direction));
            ceilings.entry(traffic).insert_entry([forward?, backward?]).get().clone()
        }
    };
    // In this order: backward reads the rstd that forward stored.
    let forward = Timed { call: device.call(&tensors, Direction::Forward)?, ceiling: copy };
    let backward = Timed { call: device.call(&tensors, Direction::Backward)?, ceiling: add };
    measured.passes.push(Pass { pass, forward, backward, differ: device.differ(&tensors)? });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Lists what it is asked for.
    #[derive(Default)]
    struct Listed(RefCell<Vec<String>>);

    impl Listed {
        fn list(&self, what: String) -> Timing {
            self.0.borrow_mut().push(what);
            Timing { us_median: self.0.borrow().len() as f64, us_p10: 0.0, us_p90: 0.0, replays: 1 }
        }
    }

    impl Device for Listed {
        type Tensors = Cell;
        const SHARES_CEILINGS: bool = true;
        fn plan(&self, cell: Cell) -> String {
            format!("plan {cell}")
        }
        fn tensors(&self, cell: Cell) -> Result<Cell> {
            Ok(cell)
        }
        fn sets(&self, _: &Cell) -> usize {
            2
        }
        fn ceiling(&self, cell: &Cell, direction: Direction) -> Result<Ceiling> {
            Ok(Ceiling { timing: self.list(format!("ceiling {cell} {direction}")), how: "how".into() })
        }
        fn call(&self, cell: &Cell, direction: Direction) -> Result<Timing> {
            Ok(self.list(format!("{cell} {direction}")))
        }
        fn differ(&self, cell: &Cell) -> Result<Option<Differ>> {
            self.list(format!("check {cell}"));
            anyhow::ensure!(cell.rows != 3, "three rows");
            Ok(Some(Differ { elements: 7, ..Differ::default() }))
        }
    }

    #[test]
    fn ceilings_are_shared_within_a_pass_and_outputs_are_checked_last() {
        let cells = ["bf16:8x4", "f32:4x4", "f16:2x8"].map(|cell| cell.parse().unwrap());
        let device = Listed::default();
        let measured = measure(&device, &cells, 2, |_, _| ());
        let once = [
            "ceiling bf16:8x4 forward",
            "ceiling bf16:8x4 backward",
            "bf16:8x4 forward",
            "bf16:8x4 backward",
            "check bf16:8x4",
            "f32:4x4 forward",
            "f32:4x4 backward",
            "check f32:4x4",
            "ceiling f16:2x8 forward",
            "ceiling f16:2x8 backward",
            "f16:2x8 forward",
            "f16:2x8 backward",
            "check f16:2x8",
        ];
        assert_eq!(*device.0.borrow(), [once, once].concat());
        let passes: Vec<_> = measured[1]
            .passes
            .iter()
            .map(|p| {
                (p.forward.ceiling.timing.us_median, p.backward.ceiling.timing.us_median, p.forward.call.us_median)
            })
            .collect();
        assert_eq!(passes, [(1.0, 2.0, 6.0), (14.0, 15.0, 19.0)]);
        assert_eq!((measured[1].plan.as_str(), measured[1].sets), ("plan f32:4x4", 2));
    }

    #[test]
    fn a_cell_that_fails_does_not_end_the_run() {
        let cells = ["bf16:3x4", "f32:4x4"].map(|cell| cell.parse().unwrap());
        let measured = measure(&Listed::default(), &cells, 2, |_, _| ());
        assert_eq!(measured[0].failures, ["pass 1: three rows", "pass 2: three rows"]);
        assert_eq!(measured.iter().map(|m| m.passes.len()).collect::<Vec<_>>(), [0, 2]);
    }
}
