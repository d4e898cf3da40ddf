//! How the rows of a kernel are grouped, and what levels.cuh is told of it.

use std::fmt;

/// How the rows of a kernel are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Grouping {
    /// They are not.
    None,
    /// Those of an operand lie in two levels.
    Levels,
    /// They are those of several heads with a weight each, which take turns.
    Heads,
}

impl fmt::Display for Grouping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grouping::None => "",
            Grouping::Levels => " of two levels",
            Grouping::Heads => " of heads",
        })
    }
}

/// What a kernel whose rows are not grouped has in place of the parameters, `names`, of those that are.
pub(super) fn grouping_constants(grouping: Grouping, two_levels: bool, names: &[&str]) -> String {
    let absent = if grouping == Grouping::None { names } else { &[] };
    let absent: String = absent.iter().map(|name| format!("constexpr u64 {name} = 0;\n")).collect();
    let heads = grouping == Grouping::Heads;
    format!("constexpr bool TWO_LEVELS = {two_levels}, HEADS = {heads};\n{absent}")
}

/// Those of the kernels over rows, in both directions: each is in one text with those of the other.
pub(super) const ROW_GROUPING: &[&str] =
    &["inner", "reciprocal", "x_jump", "residual_jump", "z_out_jump", "y_jump", "dy_jump", "dz_jump", "dx_jump"];
