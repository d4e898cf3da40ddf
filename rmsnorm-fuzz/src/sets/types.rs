//! Cases whose operands have several types.

use super::Item;
use crate::case::{Case, DwKind, Name, WeightKind};
use crate::values::Values;
use rmsnorm_cuda::{Dtype, Rounding, WeightOffset};

/// At each width every pair of types of any two operands, of calls with all of them; and of calls with those alone that must be there. They are called
/// `types-WIDTH-NUMBER` and `types-WIDTH-plain-NUMBER`.
pub fn types() -> Vec<Item> {
    let items = SHAPES.into_iter().flat_map(|(rows, hidden)| {
        let all = (0..27)
            .map(move |number| Item { name: format!("types-{hidden}-{number}"), case: all(rows, hidden, number) });
        let plain = (0..9).map(move |number| Item {
            name: format!("types-{hidden}-plain-{number}"),
            case: plain(rows, hidden, number),
        });
        all.chain(plain)
    });
    items.collect()
}

/// Narrow rows, aligned ones, others, and streamed ones.
const SHAPES: [(usize, usize); 4] = [(300, 64), (37, 1000), (9, 4097), (5, 20_000)];

/// Of a call with every operand.
fn all(rows: usize, hidden: usize, number: usize) -> Case {
    let level = |column: usize| {
        let digits = [number / 9, number / 3, number].map(|digit| digit % 3);
        digits.iter().zip(POINTS[column]).map(|(digit, factor)| digit * factor).sum::<usize>() % 3
    };
    let values = |column| VALUES[level(column)];
    let mut case = Case {
        weight: WeightKind::Same,
        bias: WeightKind::Same,
        dw: DwKind::Same,
        db: DwKind::Same,
        residual: Some(values(3)),
        dz: Some(values(4)),
        x: values(1),
        dy: values(2),
        rounding: if level(11) == 0 { Rounding::Twice } else { Rounding::Once },
        weight_offset: if level(12) == 0 { WeightOffset::One } else { WeightOffset::Zero },
        seed: number as u64,
        ..Case::new(rows, hidden, Dtype::ALL[level(0)])
    };
    for (i, name) in OTHERS.into_iter().enumerate() {
        case.types[name as usize] = Some(Dtype::ALL[level(1 + i)]);
    }
    case
}

/// The operands that have a type of their own, beside what is normalised.
const OTHERS: [Name; 10] =
    [Name::X, Name::Residual, Name::Y, Name::Dy, Name::Dz, Name::Dx, Name::Weight, Name::Bias, Name::Dw, Name::Db];

/// The points of the projective plane over the field of three elements. Two of them are linearly independent: over all digits their two products take
/// every pair of values, each three times.
const POINTS: [[usize; 3]; 13] = [
    [1, 0, 0],
    [0, 1, 0],
    [1, 1, 0],
    [2, 1, 0],
    [0, 0, 1],
    [1, 0, 1],
    [2, 0, 1],
    [0, 1, 1],
    [1, 1, 1],
    [2, 1, 1],
    [0, 2, 1],
    [1, 2, 1],
    [2, 2, 1],
];

/// Ordinary ones, any of the type, and such as make rstd infinite, or what is stored in f16.
const VALUES: [Values; 3] = [Values::Normal, Values::Bits, Values::RowScaled(-126, 20)];

/// Of a call with x, y, dy, dx and a weight. The same, of the line.
fn plain(rows: usize, hidden: usize, number: usize) -> Case {
    let [a, b] = [number / 3, number % 3];
    let levels = [a, b, (a + b) % 3, (a + 2 * b) % 3];
    let mut case = Case { seed: number as u64, dw: DwKind::F32, ..Case::new(rows, hidden, Dtype::ALL[levels[0]]) };
    for (name, level) in [Name::Y, Name::Dy, Name::Dx].into_iter().zip(&levels[1..]) {
        case.types[name as usize] = Some(Dtype::ALL[*level]);
    }
    case
}

/// What training in bf16 around a residual stream in f32 asks for, of a case in f32.
pub fn around_f32(mut case: Case) -> Case {
    let narrow = [Name::X, Name::Y, Name::Dy, Name::Weight];
    narrow.into_iter().for_each(|name| case.types[name as usize] = Some(Dtype::Bf16));
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_pair_of_types_is_there_at_every_width() {
        let all: Vec<Name> = OTHERS.into_iter().chain([Name::Z]).collect();
        let plain = [Name::X, Name::Y, Name::Dy, Name::Dx];
        for (_, hidden) in SHAPES {
            for (residual, names) in [(true, &all[..]), (false, &plain)] {
                let cases: Vec<Case> = types().into_iter().map(|item| item.case).collect();
                let of_width = cases.iter().filter(|case| case.hidden == hidden && case.residual.is_some() == residual);
                for (i, first) in names.iter().enumerate() {
                    for second in &names[i + 1..] {
                        let pairs: BTreeSet<_> =
                            of_width.clone().map(|case| (case.type_of(*first), case.type_of(*second))).collect();
                        assert_eq!(pairs.len(), 9, "{first} and {second} of {hidden}");
                    }
                }
            }
        }
    }
}
