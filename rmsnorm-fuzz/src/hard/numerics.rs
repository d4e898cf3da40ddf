//! Hard cases of class G, numerics, and of the weight's type: magnitudes, special values, weights.

use super::{BF16, DTYPES, F16, F32, List};
use crate::case::{Case, DwKind, WeightKind};
use crate::values::{Values, Which, power_of_two};
use rmsnorm_cuda::{Rounding, WeightOffset};

pub(super) fn ranges(list: &mut List) {
    let case = |dtype, x| Case { x, eps: 0.0, ..Case::new(7, 200, dtype) };
    for (name, v, reason) in [
        ("x_1e19", 1e19, "squares near the end of the range: the sum overflows, no square does"),
        ("x_1e30", 1e30, "squares overflow, the answer is ordinary"),
        ("x_1e-22", 1e-22, "squares are subnormal or 0, the answer is ordinary"),
        ("x_1e-30", 1e-30, "squares are 0, the answer is ordinary"),
        ("x_1e-38", 1e-38, "rstd near the end of the range"),
        ("x_1e-41", 1e-41, "rstd overflows, x_hat is ordinary"),
    ] {
        list.add('G', format!("{name}_f32"), reason, case(F32, Values::Scaled(v)));
        list.add('G', format!("{name}_bf16"), reason, Case { rows: 3, hidden: 2100, ..case(BF16, Values::Scaled(v)) });
    }
    list.add('G', "x_max_f32", "every element is the largest number", case(F32, Values::Max));
    list.add('G', "x_max_f16", "squares overflow f16", case(F16, Values::Max));
    list.add('G', "x_max_bf16", "every element is the largest number", Case { eps: 1e30, ..case(BF16, Values::Max) });
    list.add(
        'G',
        "x_max_wide",
        "the scaled sum of squares of a streamed row",
        Case { rows: 1, hidden: 66_000, ..case(F32, Values::Max) },
    );
    list.add('G', "x_257_f16", "257² overflows f16", case(F16, Values::Signed(257.0)));
    list.add('G', "x_300_f16", "300² overflows f16", Case { eps: 1e-5, ..case(F16, Values::Scaled(300.0)) });
    for dtype in DTYPES {
        list.add('G', format!("x_subnormal_{dtype}"), "a row of subnormals", case(dtype, Values::Subnormal));
        list.add(
            'G',
            format!("x_any_bits_{dtype}"),
            "any finite bits at once, in x, dy and weight",
            Case { dy: Values::Bits, w: Values::Bits, ..case(dtype, Values::Bits) },
        );
    }
    let every = Case { rows: 400, hidden: 24, ..case(F32, Values::RowScaled(-126, 126)) };
    list.add(
        'G',
        "every_magnitude",
        "rows of every magnitude side by side: scaled and ordinary ones in a block",
        every,
    );
    list.add('G', "every_magnitude_eps", "eps scales with the row, or it is lost", Case { eps: 1e-30, ..every });
    list.add(
        'G',
        "eps_at_the_edge",
        "eps near the least normal number, rows above and below it",
        Case { eps: 1e-38, x: Values::RowScaled(-80, -50), ..every },
    );
    list.add(
        'G',
        "eps_subnormal",
        "a subnormal eps is an eps",
        Case { eps: 1e-42, x: Values::Scaled(1e-22), dy: Values::Outlier, ..Case::new(30, 5, F32) },
    );
    list.add(
        'G',
        "eps_equals_square",
        "eps inside the root: the mean square is about eps",
        Case { x: Values::NearEps, ..Case::new(33, 96, F16) },
    );
    list.add(
        'G',
        "eps_dominates",
        "eps is all there is",
        Case { eps: 1e-6, x: Values::Scaled(1e-12), ..Case::new(9, 96, F32) },
    );
    list.add(
        'G',
        "eps_huge",
        "v is infinite only because eps is added",
        Case { eps: f32::MAX, x: Values::Scaled(1.8e19), ..Case::new(9, 20, F32) },
    );
    list.add(
        'G',
        "eps_tiny_scaled_down",
        "a scaled row with an eps that scales to 0",
        Case { eps: 1e-12, x: Values::Scaled(1e25), ..Case::new(9, 20, F32) },
    );
    list.add('G', "offset_large", "a large common offset: nothing may be subtracted", case(F32, Values::Offset(1e4)));
    list.add(
        'G',
        "outlier_f16",
        "x_hat of one element is large, all others vanish",
        Case { rows: 5, hidden: 1030, ..case(F16, Values::Outlier) },
    );
    let edge = |dy| Case { weight: WeightKind::Absent, dy: Values::Signed(dy), ..Case::new(5, 64, F32) };
    list.add('G', "dot_at_the_edge", "N·|dy| is 2^126: dx is still promised", edge(power_of_two(120)));
    list.add(
        'G',
        "dot_beyond_the_edge",
        "N·|dy| is 2^130: dx may overflow, in the same bits everywhere",
        edge(power_of_two(124)),
    );
    list.add('G', "dot_far_beyond", "the sum over the row overflows", Case { dy: Values::Max, ..edge(1.0) });
    list.add(
        'G',
        "wdy_overflows",
        "dy·weight is infinite where weight and dy are finite",
        Case { dy: Values::Scaled(1e20), w: Values::Scaled(1e20), ..Case::new(5, 64, F32) },
    );
    list.add(
        'G',
        "y_overflows_f16",
        "y beyond f16 is infinite, not the largest number",
        Case { w: Values::Scaled(3e4), ..Case::new(7, 90, F16) },
    );
    list.add('G', "y_overflows_bf16", "y beyond bf16 is infinite", Case { w: Values::Max, ..Case::new(7, 90, BF16) });
    list.add(
        'G',
        "dx_overflows_f16",
        "dx beyond f16 is infinite",
        Case { x: Values::Scaled(1e-4), eps: 0.0, dy: Values::Scaled(30.0), ..Case::new(7, 90, F16) },
    );
    list.add(
        'G',
        "dw_overflows_f16",
        "a column sum beyond f16 is infinite, and only its conversion",
        Case { dy: Values::OneSided(3e4), x: Values::OneSided(1.0), ..Case::new(60, 9, F16) },
    );
    list.add(
        'G',
        "underflow_negative",
        "chains of underflowed negative products are −0, their sum is +0",
        Case {
            x: Values::OneSided(1e-30),
            dy: Values::OneSided(-1e-30),
            eps: 1.0,
            w: Values::OneSided(1.0),
            ..Case::new(12, 50, F32)
        },
    );
}

pub(super) fn degenerate(list: &mut List) {
    for (name, eps) in [("zero_eps", 0.0), ("negative_zero_eps", -0.0), ("small_eps", 1e-12), ("ordinary_eps", 1e-5)] {
        list.add(
            'G',
            format!("zeros_{name}"),
            "a row of zeros is 0, and NaN only without eps",
            Case { eps, x: Values::Constant(0.0), ..Case::new(6, 33, F32) },
        );
    }
    for (i, which) in [Which::First, Which::Last, Which::Third].into_iter().enumerate() {
        let name = format!("zero_rows_{which:?}").to_lowercase();
        list.add(
            'G',
            name,
            "zero rows between ordinary ones, eps 0",
            Case { eps: 0.0, x: Values::ZeroRows(which), ..Case::new(7, 40, DTYPES[i]) },
        );
    }
    list.add(
        'G',
        "x_negative_zero",
        "−0 is a zero, and its sign reaches y",
        Case { x: Values::Constant(-0.0), ..Case::new(4, 70, F16) },
    );
    for (i, v) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        let lane = Values::Lane(Which::Middle, v);
        let name = ["nan", "inf", "minus_inf"][i];
        list.add(
            'G',
            format!("x_{name}"),
            "one element spoils its row and dw, and nothing else",
            Case { x: lane, ..Case::new(9, 77, DTYPES[i]) },
        );
        list.add(
            'G',
            format!("dy_{name}"),
            "one element spoils its row of dx and its column of dw",
            Case { dy: lane, ..Case::new(9, 77, DTYPES[i]) },
        );
        list.add(
            'G',
            format!("w_{name}"),
            "one weight spoils its column of y and every row of dx",
            Case { w: lane, ..Case::new(9, 77, DTYPES[i]) },
        );
    }
    list.add(
        'G',
        "x_nan_wide",
        "one NaN in a streamed row",
        Case { x: Values::Lane(Which::First, f32::NAN), ..Case::new(2, 16_500, BF16) },
    );
    list.add(
        'G',
        "x_inf_every_row",
        "one infinite element in each row",
        Case { x: Values::Lane(Which::All, f32::INFINITY), ..Case::new(20, 300, BF16) },
    );
    list.add(
        'G',
        "rstd_infinite_wide",
        "dw of rows that must be read whole, streamed",
        Case { eps: 0.0, x: Values::Scaled(1e-41), ..Case::new(3, 17_000, F32) },
    );
    list.add(
        'G',
        "rstd_infinite_some",
        "rows with rstd +Inf between ordinary ones",
        Case { eps: 0.0, x: Values::RowScaled(-127, -120), ..Case::new(64, 30, F32) },
    );
    list.add(
        'G',
        "constant_rows",
        "rows without variance, where dx cancels",
        Case { x: Values::ConstantRows, ..Case::new(8, 130, F32) },
    );
}

pub(super) fn weights(list: &mut List) {
    let zero_centred = Case { weight_offset: WeightOffset::One, ..Case::new(9, 260, BF16) };
    list.add('G', "zero_centred_small", "1 + w must be added in f32", Case { w: Values::Scaled(2e-3), ..zero_centred });
    list.add(
        'G',
        "zero_centred_f16",
        "1 + w of a wide range of w",
        Case { w: Values::Awkward, dtype: F16, ..zero_centred },
    );
    list.add(
        'G',
        "zero_centred_absent",
        "an offset without a weight adds nothing",
        Case { weight: WeightKind::Absent, ..zero_centred },
    );
    list.add(
        'G',
        "w_awkward",
        "weights of 0, −0, 1e-8, 1e4 and below 0",
        Case { w: Values::Awkward, ..Case::new(9, 260, F32) },
    );
    for dtype in [F16, BF16] {
        list.add(
            'E',
            format!("w_f32_{dtype}"),
            "a weight of another type than x",
            Case { weight: WeightKind::F32, ..Case::new(9, 260, dtype) },
        );
        list.add(
            'E',
            format!("dw_f32_{dtype}"),
            "dw of another type than the weight",
            Case { dw: DwKind::F32, ..Case::new(9, 260, dtype) },
        );
    }
    list.add(
        'F',
        "integers",
        "integers with an exactly known sum: a tail counted twice shows",
        Case { x: Values::Integers(3), dy: Values::Integers(5), w: Values::Integers(4), ..Case::new(50, 100, F32) },
    );
}

pub(super) fn rounded_twice(list: &mut List) {
    let mut add = |name, reason, case| list.add('G', name, reason, Case { rounding: Rounding::Twice, ..case });
    let ordinary = Case::new(40, 1024, BF16);
    add("twice_bf16", "a quarter of y is one place off what a single rounding gives", ordinary);
    let f16 = Case { weight: WeightKind::F32, dw: DwKind::F32, ..Case::new(9, 4096, F16) };
    add("twice_f16", "x_hat is rounded to the type of x, not of the weight", f16);
    // All that is added to eps is below its last place, so rstd is 1.5, and times 1.5 every third element of x lies between two.
    let ties = Case { eps: 4.0 / 9.0, ..Case::new(20, 300, BF16) };
    add("twice_tie_bf16", "x_hat lies halfway between two bf16", Case { x: Values::Scaled(1e-5), ..ties });
    let subnormal = Case { x: Values::Subnormal, dtype: F16, w: Values::Scaled(1e4), ..ties };
    add("twice_tie_f16", "x_hat is subnormal in f16, and halfway between two", subnormal);
    add(
        "twice_subnormal_bf16",
        "x_hat is subnormal in bf16, y and dw are not",
        Case { eps: 1.0, x: Values::Scaled(1e-39), dy: Values::Scaled(1e30), w: Values::Scaled(1e30), ..ordinary },
    );
    add(
        "twice_every_magnitude",
        "x_hat of scaled rows is rounded as that of ordinary ones",
        Case { eps: 0.0, x: Values::RowScaled(-126, 126), ..Case::new(400, 24, BF16) },
    );
    add(
        "twice_infinite_rstd",
        "dw of rows that are read whole and rounded",
        Case { eps: 0.0, x: Values::Scaled(1e-40), ..Case::new(5, 2100, BF16) },
    );
    add(
        "twice_residual",
        "x_hat is that of the stored sum, and rounded to its type",
        Case { residual: Some(Values::Normal), dz: Some(Values::Normal), ..Case::new(37, 2048, BF16) },
    );
    let zero_centred = Case { weight_offset: WeightOffset::One, w: Values::Scaled(2e-3), ..Case::new(9, 260, F16) };
    add("twice_zero_centred", "1 + w is added in f32, x_hat is rounded before", zero_centred);
    let absent = Case { weight: WeightKind::Absent, ..Case::new(9, 1000, F16) };
    add("twice_weight_absent", "y as if rounded once, but dw of a weight of one", absent);
    add("twice_dw_absent", "dx is that of rounding once", Case { dw: DwKind::Absent, ..Case::new(9, 513, BF16) });
    add("twice_f32", "an f32 is what it is rounded to: all as if rounded once", Case::new(9, 513, F32));
    let spoilt = Case { x: Values::Lane(Which::Middle, f32::NAN), ..Case::new(9, 77, F16) };
    add("twice_nan", "NaN is rounded to NaN", spoilt);
    add("twice_wide", "rows that blocks share", Case::new(5, 20_000, BF16));
    add("twice_streamed", "rows that are streamed", Case { weight: WeightKind::F32, ..Case::new(3, 20_001, F16) });
}
