//! Hard cases with a bias.

use super::{BF16, F16, F32, List};
use crate::case::{Case, DwKind, Gap, Name, Place, WeightKind};
use crate::values::{Values, Which};
use rmsnorm_cuda::plan::column_order;
use rmsnorm_cuda::{Rounding, WeightOffset};

pub(super) fn biases(list: &mut List) {
    forward(list);
    gradients(list);
}

fn forward(list: &mut List) {
    let ordinary = |rows, hidden, dtype| Case { bias: WeightKind::Same, ..Case::new(rows, hidden, dtype) };
    for (rows, hidden, dtype) in [
        (40, 64, F32),
        (140, 1024, BF16),
        (9, 4096, F16),
        (3, 16_384, F32),
        (9, 4097, BF16),
        (5, 20_000, BF16),
        (3, 20_001, F32),
    ] {
        list.add('G', format!("bias_{hidden}"), "added to the product, in one rounding", ordinary(rows, hidden, dtype));
    }
    for dtype in [F16, BF16] {
        let case = Case { bias: WeightKind::F32, weight_offset: WeightOffset::One, ..ordinary(9, 260, dtype) };
        list.add('E', format!("bias_f32_{dtype}"), "a bias of another type than x and the weight", case);
    }
    let absent = Case { weight: WeightKind::Absent, ..ordinary(9, 1000, F32) };
    list.add('G', "bias_weight_absent", "the bias is added to x_hat", absent);
    let cancels =
        Case { x: Values::ConstantRows, w: Values::OneSided(1.0), b: Values::OneSided(-1.0), ..ordinary(12, 300, F32) };
    list.add('G', "bias_cancels", "the bias takes away what it is added to, but for the roundings", cancels);
    list.add(
        'G',
        "bias_of_zero_rows",
        "y of a row of zeros is the bias, its subnormals and negative zeros too",
        Case { x: Values::ZeroRows(Which::Third), b: Values::Awkward, ..ordinary(7, 40, F16) },
    );
    list.add(
        'G',
        "bias_underflow",
        "the product is below the smallest subnormal, and decides on which side of a tie the sum lies",
        Case { w: Values::Scaled(1e-30), x: Values::Outlier, b: Values::Subnormal, ..ordinary(9, 200, F32) },
    );
    list.add(
        'G',
        "bias_overflows_f16",
        "product and bias are in the range, y is not",
        Case { w: Values::OneSided(3e4), b: Values::OneSided(6e4), ..ordinary(7, 90, F16) },
    );
    list.add('D', "bias_bits", "any bits in the bias", Case { b: Values::Bits, ..ordinary(30, 512, BF16) });
    for (name, v) in [("nan", f32::NAN), ("inf", f32::INFINITY)] {
        let case = Case { b: Values::Lane(Which::All, v), ..ordinary(9, 77, BF16) };
        list.add('D', format!("bias_{name}"), "one bias spoils its column of y", case);
        let case = Case { b: Values::Lane(Which::All, -v), w: Values::Lane(Which::All, f32::INFINITY), ..case };
        list.add('D', format!("bias_{name}_beside_inf"), "beside an infinite weight", case);
    }
    let twice = Case { rounding: Rounding::Twice, ..ordinary(40, 1024, BF16) };
    list.add('G', "bias_twice", "x_hat is rounded, its product is not", twice);
    let absent = Case { weight: WeightKind::Absent, bias: WeightKind::F32, dtype: F16, ..twice };
    list.add('G', "bias_twice_weight_absent", "the bias is added to a rounded x_hat", absent);
    let residual = Case { residual: Some(Values::Normal), dz: Some(Values::Normal), ..ordinary(37, 2048, BF16) };
    list.add('G', "bias_residual", "a bias and a residual", residual);
    let moved = ordinary(13, 2048, F16).with_place(Name::Bias, Place { offset: 3, gap: Gap::None });
    list.add('E', "bias_moved", "the bias alone is not on 16 bytes", moved);
}

fn gradients(list: &mut List) {
    let ordinary = |rows, hidden, dtype| Case { db: DwKind::Same, ..Case::new(rows, hidden, dtype) };
    for (rows, hidden, dtype) in [
        (1, 1, F32),
        (300, 7, F16),
        (600, 64, BF16),
        (140, 1024, BF16),
        (9, 4096, F16),
        (130, 4097, BF16),
        (3, 16_384, F32),
        (17, 20_000, BF16),
        (3, 20_001, F32),
    ] {
        list.add('G', format!("db_{hidden}"), "the sum of dy, in the order of dw", ordinary(rows, hidden, dtype));
    }
    let groups = column_order(usize::MAX, 8).groups;
    list.add('F', "db_every_group", "as many partial rows as there can be", ordinary(groups + 3, 8, BF16));
    let alone = Case { dw: DwKind::Absent, bias: WeightKind::F32, db: DwKind::F32, ..ordinary(70, 300, F16) };
    list.add('E', "db_without_dw", "db of another type than dy, and no dw", alone);
    list.add('A', "db_no_rows", "no rows: +0.0", ordinary(0, 40, BF16));
    list.add(
        'A',
        "db_zeros",
        "zeros of either sign add up to +0.0",
        Case { dy: Values::Constant(-0.0), ..ordinary(12, 50, F32) },
    );
    let cancels = Case { dy: Values::Awkward, ..ordinary(1500, 33, F32) };
    list.add('B', "db_awkward", "terms of very different size", cancels);
    list.add('D', "db_bits", "any bits in dy", Case { dy: Values::Bits, ..ordinary(30, 512, BF16) });
    for (name, v) in [("nan", f32::NAN), ("inf", f32::INFINITY)] {
        let case = Case { dy: Values::Lane(Which::Middle, v), ..ordinary(9, 77, F16) };
        list.add('D', format!("db_{name}"), "one element spoils its column", case);
    }
    let spoilt = Case { x: Values::Lane(Which::All, f32::NAN), ..ordinary(9, 77, BF16) };
    list.add('D', "db_beside_nan", "a row of NaN spoils dx and dw, and not db", spoilt);
    let zeros = Case { x: Values::Constant(0.0), eps: 0.0, ..ordinary(40, 256, F32) };
    list.add('D', "db_of_zero_rows", "dw is NaN, db is not", zeros);
    list.add(
        'G',
        "db_overflows_f16",
        "a sum beyond f16, and only its conversion",
        Case { dy: Values::OneSided(3e4), ..ordinary(60, 9, F16) },
    );
    let all = Case {
        bias: WeightKind::Same,
        rounding: Rounding::Twice,
        residual: Some(Values::Normal),
        dz: Some(Values::Normal),
        ..ordinary(600, 1000, BF16)
    };
    list.add('G', "db_of_all", "with all that a call can have", all);
    let expanded = ordinary(40, 512, BF16).with_place(Name::Dy, Place { offset: 0, gap: Gap::Broadcast });
    list.add('E', "db_expanded", "one row of dy, summed many times", expanded);
    let moved = ordinary(13, 2048, F16).with_place(Name::Dy, Place { offset: 3, gap: Gap::Elements(1) });
    list.add('E', "db_moved", "dy alone changes its alignment from row to row", moved);
}
