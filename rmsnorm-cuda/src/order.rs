//! Which order a problem is reduced in: with [`arith`](crate::arith), all that decides bits.
//!
//! Numbers in, numbers out. Neither order knows the GPU, the element type or the alignment, and [`row_order`] does not know the
//! number of rows: so none of these can change a bit, and a row does not depend on its neighbours.

/// Version of every output bit. It rises with any change of [`row_order`], [`column_order`] or the specification
/// ([`arith`](crate::arith)), and with nothing else.
pub const BITS_VERSION: u32 = 1;

/// Widest row: beyond it `hidden` is not exact in f32, and the mean of squares would be divided by another number.
pub const HIDDEN_MAX: usize = 1 << 24;

/// Widest row whose elements have a chain each.
pub const NARROW: usize = 256;

/// Widest row for which a block holds the column sums of a row group in registers.
pub const HELD_MAX: usize = 16384;

/// Widest row of which a cluster of blocks can hold a part each.
pub const WIDE_MAX: usize = 131_072;

/// How a row is reduced (§2): decides the bits of `rstd`, `y` and `dx`. Of C chains, chain c folds the elements c, c + C, c + 2C, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowOrder {
    /// Number of chains of the statistic (§3, §4), in backward too.
    pub chains: usize,
    /// Number of chains of backward's dot product (§6).
    pub dot_chains: usize,
}

/// How the rows are reduced (§7): decides the bits of `dw`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnOrder {
    /// Number of row groups, G ≤ M. Group g folds the rows g, g + G, g + 2G, … No group is empty.
    pub groups: usize,
}

/// The order of a row of `hidden` elements.
///
/// Beyond [`NARROW`] there are a quarter as many chains as the next power of two has elements, so that a chain has three or four
/// elements and every team of threads is a power of two. Beyond [`HELD_MAX`] a cluster of blocks shares a row, each with an aligned
/// power of two of the chains: an eighth as many in forward, so that a thread has eight packs on their way; 32768 in backward, so that
/// a row has few packs a thread, whose column sums are in registers.
pub fn row_order(hidden: usize) -> RowOrder {
    let both = |chains| RowOrder { chains, dot_chains: chains };
    match hidden {
        _ if hidden <= NARROW => both(hidden.next_multiple_of(8)),
        _ if hidden <= HELD_MAX => both((hidden.next_power_of_two() / 4).max(NARROW)),
        _ => RowOrder { chains: (hidden.next_power_of_two() / 8).min(DOT_CHAINS), dot_chains: DOT_CHAINS },
    }
}

/// The order of `rows` rows of `hidden` elements in the weight's gradient.
pub fn column_order(rows: usize, hidden: usize) -> ColumnOrder {
    let groups = ROW_GROUPS.iter().find(|(hidden_max, _)| hidden <= *hidden_max).map_or(15, |(_, groups)| *groups);
    ColumnOrder { groups: groups.min(rows) }
}

/// Chains of the dot product of rows beyond [`HELD_MAX`].
const DOT_CHAINS: usize = 32768;

/// (Widest row, row groups); beyond the last, 15.
///
/// Up to [`HELD_MAX`] a team of threads folds whole groups, and there are 128 groups times a power of two: 128 blocks occupy most of
/// the 132 or 148 multiprocessors of a large GPU, and share a power-of-two number of rows without remainder (on an H200 0.5 to 1 %
/// faster than 132). Beyond, a cluster of blocks folds whole groups: an H200 has room for 30 clusters of four blocks that take a
/// multiprocessor each, or 15 of eight (which fold two groups each, one after the other, where there are 30).
const ROW_GROUPS: [(usize, usize); 10] = [
    (8, 128 * 1024),
    (16, 128 * 512),
    (32, 128 * 256),
    (64, 128 * 128),
    (128, 128 * 64),
    (NARROW, 128 * 32),
    (1024, 128 * 8),
    (4096, 128 * 4),
    (HELD_MAX, 128),
    (65536, 30),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Widths either side of every step of the tables.
    fn widths() -> impl Iterator<Item = usize> {
        let steps = (3..=24).map(|j| 1_usize << j);
        (1..=2100).chain((2100..=140_000).step_by(61)).chain(steps.flat_map(|e| [e - 1, e, e + 1]))
    }

    /// What docs/numerics.md §9 presumes of the orders.
    #[test]
    fn an_f64_reference_is_exact_enough_for_the_bound() {
        for hidden in widths() {
            let (order, groups) = (row_order(hidden), column_order(usize::MAX, hidden).groups);
            let chains = order.chains.max(order.dot_chains);
            assert!(chains <= 1 << 16 && groups <= 1 << 17, "{hidden}: {chains} chains, {groups} row groups");
        }
    }

    #[test]
    fn no_group_is_empty() {
        for hidden in widths() {
            assert!(column_order(usize::MAX, hidden).groups * hidden < 1 << 28, "{hidden}: the scratch");
            for rows in [0, 1, 2, 131, 132, 133, 100_000] {
                let groups = column_order(rows, hidden).groups;
                assert!(groups <= rows && (groups > 0) == (rows > 0));
            }
        }
    }
}
