//! Hard cases with rows of two levels.

use super::{BF16, F16, F32, List};
use crate::case::{Case, DwKind, Gap, Groups, Name, Place, WeightKind};
use crate::values::Values;

/// `case` with the rows of every matrix in groups of `inner`, of one after the other as `groups` says.
pub(super) fn in_groups(case: Case, inner: usize, groups: &[Groups]) -> Case {
    let matrices = Name::ALL.into_iter().filter(|name| name.is_matrix());
    matrices.zip(groups.iter().cycle()).fold(case, |case, (name, groups)| case.with_groups(inner, name, *groups))
}

pub(super) fn levels(list: &mut List) {
    let added = Some(Values::Normal);
    let both = |case| Case { residual: added, dz: added, ..case };
    let packed = Case::new(296, 128, BF16).with_groups(8, Name::X, Groups::Apart(2 * 8 * 128));
    list.add('E', "heads_packed", "the queries of a packed buffer, normalised out of place", packed);
    let apart = in_groups(Case::new(120, 64, F16), 12, &[Groups::Apart(2 * 12 * 64)]);
    list.add('E', "heads_in_one_buffer", "every operand cut out of a packed buffer", apart);
    let across = in_groups(both(Case::new(128, 128, BF16)), 16, &[Groups::Across]);
    list.add('E', "heads_across", "heads come before tokens in memory, and not in the order of rows", across);
    let mixed = [Groups::Apart(25), Groups::Across, Groups::Even, Groups::Across, Groups::Apart(3)];
    let mixed = in_groups(both(Case::new(91, 100, F16)), 7, &mixed);
    list.add('E', "heads_mixed", "each operand has groups of its own, and gaps between rows", {
        Name::ALL.into_iter().fold(mixed, |c, o| c.with_place(o, Place { offset: o as u8, gap: Gap::Elements(9) }))
    });
    let one = in_groups(Case::new(9, 300, F32), 9, &[Groups::Apart(0)]);
    list.add('D', "groups_one", "one group, whose stride of 2^40 elements is irrelevant", one);
    let alone = in_groups(Case::new(11, 260, BF16), 1, &[Groups::Apart(4)]);
    list.add('D', "groups_of_one", "groups of one row, whose own stride is irrelevant", alone);
    let odd = in_groups(Case::new(26, 512, BF16), 2, &[Groups::Apart(1)]);
    list.add('E', "groups_of_two_odd", "alignment changes from group to group, and not within one", odd);
    let many = Case { db: DwKind::Same, ..Case::new(3 * 401, 40, F32) };
    list.add('B', "groups_many", "groups of rows and row groups of dw cross each other", {
        in_groups(many, 3, &[Groups::Apart(8), Groups::Across])
    });
    for (rows, inner, hidden, dtype) in [
        (4, 2, 4096, BF16),
        (140, 5, 1024, F32),
        (6, 3, 4097, F16),
        (9, 3, 16_384, F32),
        (34, 17, 20_000, BF16),
        (4, 2, 20_001, F32),
    ] {
        let plain = Case { bias: WeightKind::Same, db: DwKind::F32, ..Case::new(rows, hidden, dtype) };
        let groups = [Groups::Apart(16), Groups::Across];
        for (name, case) in [("plain", Case { bias: WeightKind::Absent, ..plain }), ("added", both(plain))] {
            list.add('E', format!("groups_{hidden}_{name}"), "two levels in each kind of kernel", {
                in_groups(case, inner, &groups)
            });
        }
    }
    let expanded = Place { offset: 0, gap: Gap::Broadcast };
    let expanded = in_groups(Case::new(40, 100, F32), 4, &[Groups::Apart(7)]).with_place(Name::Dy, expanded);
    list.add('E', "groups_dy_expanded", "one row of dy beside rows of two levels", expanded);
    let tiny = Case { x: Values::Scaled(1e-40), eps: 0.0, ..Case::new(24, 300, F32) };
    list.add('D', "groups_of_infinite_rstd", "rows that are read once more for their root", {
        in_groups(tiny, 4, &[Groups::Across, Groups::Apart(12)])
    });
}
