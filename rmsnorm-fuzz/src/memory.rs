//! Properties 4, 7 and 8: what memory held, where operands lie, and what is written.

use crate::buffer::Fill;
use crate::case::{Case, Gap, Groups, Name, Place};
use crate::finding::{Evidence, Finding, Stop, demand_equal};
use crate::operands::{Operands, Outputs};
use crate::subject::Subject;
use std::collections::BTreeSet;

/// *What scratch, outputs and the memory around operands held before a call is irrelevant*: NaNs, plausible finite numbers, the
/// leftovers of a call with other values, the leftovers of the same call.
pub(crate) fn content(subject: &Subject, case: &Case) -> Finding {
    let executor = &*subject.executor;
    let mut evidence = Evidence::default();
    let mut operands = Operands::new(case, Fill::Nan);
    let want = operands.run(executor)?;
    let mut judge = |what: &str, got: &Outputs| {
        evidence.count(got.elements());
        demand_equal(what, want.difference(got))
    };
    judge("called again on the same memory", &operands.run(executor)?)?;
    operands = Operands::new(case, Fill::Plausible);
    judge("over finite memory instead of NaNs", &operands.run(executor)?)?;
    let mut earlier = Operands::new(&Case { seed: case.seed + 1, ..*case }, Fill::Plausible);
    earlier.run(executor)?;
    operands = Operands::new(case, Fill::Plausible);
    operands.adopt_leftovers(&earlier);
    drop(earlier);
    judge("over the leftovers of another call", &operands.run(executor)?)?;
    Ok(evidence)
}

/// *Alignment and row stride of every operand are irrelevant*: offsets of 1 to 7 elements for each operand by itself (large
/// cases: one offset each), gaps between rows, a row stride of 0 against rows that are copies of each other, and rows of two levels, in groups of the
/// least number and of the most.
pub(crate) fn layout(subject: &Subject, case: &Case) -> Finding {
    let executor = &*subject.executor;
    let mut evidence = Evidence::default();
    let aligned = Case { places: [Place::default(); Name::ALL.len()], ..case.of_one_level() };
    let want = Operands::new(&aligned, Fill::Nan).run(executor)?;
    let mut judge = |what: String, moved: &Case| {
        let got = Operands::new(moved, Fill::Nan).run(executor)?;
        evidence.count(got.elements());
        demand_equal(what, want.difference(&got))
    };
    let small = case.elements() <= SMALL;
    for (i, operand) in Name::ALL.into_iter().enumerate().filter(|(_, operand)| case.has(*operand)) {
        if !small && i % 3 != case.seed as usize % 3 {
            continue;
        }
        let offsets = if small { 1..=7 } else { 1 + 2 * (i as u8 % 4)..=1 + 2 * (i as u8 % 4) };
        for offset in offsets {
            let place = Place { offset, gap: Gap::None };
            judge(format!("{operand} at element {offset}"), &aligned.with_place(operand, place))?;
        }
        for gap in if operand.is_matrix() { &[1, 3, 8, 64][..if small { 4 } else { 1 }] } else { &[] } {
            let place = Place { offset: 0, gap: Gap::Elements(*gap) };
            judge(format!("{operand} with {gap} elements between rows"), &aligned.with_place(operand, place))?;
        }
        if case.rows < 2 && operand.is_matrix() {
            let place = Place { offset: 0, gap: Gap::Irrelevant };
            judge(format!("{operand} with an irrelevant row stride"), &aligned.with_place(operand, place))?;
        }
    }
    let together = Name::ALL.into_iter().enumerate().fold(aligned, |moved, (i, operand)| {
        moved.with_place(operand, Place { offset: 1 + i as u8 * 3 % 7, gap: Gap::Elements(5 + i as u16) })
    });
    judge("every operand at its own offset and row stride".into(), &together)?;

    let least = (2..=case.rows).find(|inner| case.rows.is_multiple_of(*inner) && *inner < case.rows);
    let inners: BTreeSet<usize> = least.into_iter().flat_map(|inner| [inner, case.rows / inner]).collect();
    for inner in inners {
        let matrices = Name::ALL.into_iter().filter(|name| name.is_matrix() && case.has(*name));
        for operand in matrices.clone() {
            for groups in [Groups::Apart(8), Groups::Across, Groups::Apart(1)] {
                let moved = aligned.with_groups(inner, operand, groups);
                judge(format!("{operand} in groups of {inner} rows, {groups:?}"), &moved)?;
            }
        }
        let together = matrices.enumerate().fold(together, |moved, (i, operand)| {
            let groups = if i % 2 == 0 { Groups::Apart(3 + i as u16) } else { Groups::Across };
            moved.with_groups(inner, operand, groups)
        });
        judge(format!("every operand with its own groups of {inner} rows"), &together)?;
    }

    for operand in Name::ALL.into_iter().filter(|o| o.may_broadcast() && case.has(*o)) {
        let place = Place { offset: 0, gap: Gap::Broadcast };
        let expanded = Operands::new(&aligned.with_place(operand, place), Fill::Nan).run(executor)?;
        let mut copies = Operands::with_copies(&aligned, Fill::Nan, operand);
        evidence.count(expanded.elements());
        demand_equal(format!("{operand} with row stride 0"), copies.run(executor)?.difference(&expanded))?;
    }
    Ok(evidence)
}

/// *Nothing but the outputs and scratch is written*: redzones before and after each buffer and between rows, and every input.
pub(crate) fn writes(subject: &Subject, case: &Case) -> Finding {
    let executor = subject.strict();
    let mut evidence = Evidence::default();
    for fill in [Fill::Nan, Fill::Plausible] {
        let mut operands = Operands::new(case, fill);
        let fingerprints = |operands: &Operands, names: &[Name]| -> Vec<_> {
            names.iter().map(|name| operands.buffer(*name).map(|b| b.fingerprint())).collect()
        };
        let demand_unchanged = |operands: &Operands, names: &[Name], before: &[Option<u64>], call: &str| {
            if let Some(damage) = operands.damaged_redzone() {
                return Err(Stop::Failed(format!("{call}: {damage}")));
            }
            match names.iter().zip(before).find(|(name, b)| operands.buffer(**name).map(|b| b.fingerprint()) != **b) {
                Some((name, _)) => Err(Stop::Failed(format!("{call}: the input {name} was changed"))),
                None => Ok(()),
            }
        };
        let inputs = &all_but(&[Name::Y, Name::Rstd, Name::Z]);
        let before = fingerprints(&operands, inputs);
        operands.forward(executor)?;
        demand_unchanged(&operands, inputs, &before, "forward")?;
        let inputs = &all_but(&[Name::Dx, Name::Dw, Name::Scratch, Name::Db, Name::DbScratch]);
        let before = fingerprints(&operands, inputs);
        operands.backward(executor)?;
        demand_unchanged(&operands, inputs, &before, "backward")?;
        evidence.count(2 * case.elements() as u64);
    }
    Ok(evidence)
}

fn all_but(written: &[Name]) -> Vec<Name> {
    Name::ALL.into_iter().filter(|name| !written.contains(name)).collect()
}

/// Cases of so many elements or fewer are tried in every layout.
const SMALL: usize = 1 << 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{DwKind, WeightKind};
    use crate::elements::put;
    use crate::values::Values;
    use rmsnorm_cuda::Dtype;

    /// An injected change of any operand or redzone is seen, be it by the redzone or by the fingerprint.
    #[test]
    fn injected_corruption_is_seen() {
        for dtype in Dtype::ALL {
            let gapped = Place { offset: 3, gap: Gap::Elements(2) };
            let normal = Some(Values::Normal);
            let full = Case {
                dz: normal,
                residual: normal,
                bias: WeightKind::Same,
                db: DwKind::Same,
                ..Case::new(3, 5, dtype)
            };
            let case = Name::ALL.into_iter().fold(full, |c, o| c.with_place(o, gapped));
            for fill in [Fill::Nan, Fill::Plausible] {
                let mut operands = Operands::new(&case, fill);
                assert_eq!(operands.damaged_redzone(), None);
                for name in Name::ALL {
                    let buffer = operands.buffer_mut(name);
                    let before = buffer.fingerprint();
                    let view = buffer.rows();
                    let (first, len) = (view.offset, rmsnorm_cuda::Operand::elements(&view.data));
                    let rows = if name.is_matrix() { 3 } else { 1 };
                    let end = first + (rows - 1) * view.row_stride + if name.is_matrix() { 5 } else { 1 };
                    let mut redzones = vec![0, first - 1, len - 1];
                    if name.is_matrix() {
                        redzones.extend([end, first + 5, first + view.row_stride - 1]);
                    }
                    for (i, outside) in
                        redzones.into_iter().map(|i| (i, true)).chain([(first, false), (end - 1, false)])
                    {
                        let buffer = operands.buffer_mut(name);
                        put(&mut buffer.slice_mut(), i, 123.0);
                        assert_ne!(operands.buffer(name).map(|b| b.fingerprint()), Some(before), "{name} {i}");
                        assert_eq!(operands.damaged_redzone().is_some(), outside, "{name} {i}");
                        // NaNs have payloads here, so what was there is made again instead of being put back.
                        operands = Operands::new(&case, fill);
                    }
                }
            }
        }
    }
}
