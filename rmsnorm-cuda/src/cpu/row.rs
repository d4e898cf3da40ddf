//! Along a row, tile by tile: the reductions, what is written, and what is asked of the memory meanwhile.

use super::convert::Packed;
use super::memory::Aligned;
use crate::arith::{
    self, RowScale, centred, chain, fold, gradient, gradient_with, scaled, total, weighted, weighted_with,
};
use std::ops::Range;

/// What backward reads of a row, or of a tile of it.
#[derive(Clone, Copy)]
pub(super) struct Row<'a, T> {
    pub(super) x: &'a [T],
    pub(super) dy: &'a [T],
    pub(super) scale: RowScale,
}

impl<T> Row<'_, T> {
    #[inline(always)]
    pub(super) fn tile(&self, tile: &Range<usize>) -> Self {
        Row { x: &self.x[tile.clone()], dy: &self.dy[tile.clone()], scale: self.scale }
    }
}

/// One accumulator for each chain that has elements, and pads for [`tree`].
pub(super) struct Accumulators {
    values: Aligned,
    chains: usize,
}

impl Accumulators {
    /// Of rows of `hidden` elements in this many chains.
    pub(super) fn new(chains: usize, hidden: usize) -> Self {
        let chains = chains.min(hidden);
        Accumulators { values: Aligned::new(chains.next_multiple_of(16)), chains }
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.values.fill(0.0);
    }

    /// The chains of a tile: a tile never reaches past the last one and round to the first.
    #[inline(always)]
    pub(super) fn chains(&mut self, tile: &Range<usize>) -> &mut [f32] {
        &mut self.values[tile.start % self.chains..]
    }
}

#[inline(always)]
pub(super) fn tiles<T>(hidden: usize) -> impl Iterator<Item = Range<usize>> {
    (0..hidden).step_by(tile_len::<T>()).map(move |start| start..(start + tile_len::<T>()).min(hidden))
}

/// Elements that are read and written in turns: a divisor of every number of chains above 256.
const fn tile_len<T>() -> usize {
    64 * size_of::<T>() // Measured; twice as many cost 16-bit types 7 %, half as many cost f32 as much.
}

/// What a tile of an output holds that is about to be written, for inputs that lie there.
pub(super) struct Held<T>([T; 256]);

impl<T: Packed> Held<T> {
    pub(super) fn new() -> Self {
        Held([T::pack(0.0, true); 256])
    }

    /// The tile of an input: of its `row`, or if it has none a copy of the output's.
    #[inline(always)]
    pub(super) fn tile<'a>(&'a mut self, row: Option<&'a [T]>, tile: &Range<usize>, output: &[T]) -> &'a [T] {
        match row {
            Some(row) => &row[tile.clone()],
            None => self.copy(&output[tile.clone()]),
        }
    }

    #[inline(always)]
    pub(super) fn copy(&mut self, output: &[T]) -> &[T] {
        let held = &mut self.0[..output.len()];
        held.copy_from_slice(output);
        held
    }
}

/// §2 `reduce(scaled(z, s)²)`.
#[inline(always)]
pub(super) fn squares<T: Packed>(row: &[T], s: f32, acc: &mut Accumulators) -> f32 {
    acc.clear();
    for tile in tiles::<T>(row.len()) {
        add_squares(&row[tile.clone()], s, acc.chains(&tile));
    }
    tree(acc)
}

#[inline(always)]
pub(super) fn add_squares<T: Packed>(row: &[T], s: f32, acc: &mut [f32]) {
    for (acc, z) in acc.iter_mut().zip(row) {
        let z = scaled(z.unpack(), s);
        *acc = chain(z, z, *acc);
    }
}

/// §6 `reduce(wdy·x_hat)`.
#[inline(always)]
pub(super) fn products<T: Packed>(row: Row<T>, weight: &[f32], acc: &mut Accumulators) -> f32 {
    acc.clear();
    for tile in tiles::<T>(weight.len()) {
        add_products(row.tile(&tile), &weight[tile.clone()], acc.chains(&tile));
    }
    tree(acc)
}

#[inline(always)]
pub(super) fn add_products<T: Packed>(row: Row<T>, weight: &[f32], acc: &mut [f32]) {
    for (((acc, &x), dy), &w) in acc.iter_mut().zip(row.x).zip(row.dy).zip(weight) {
        *acc = chain(weighted(dy.unpack(), w), x_hat(x, row.scale), *acc);
    }
}

/// §2 The tree over the accumulators, and the end of the reduction.
///
/// Nodes 0 and 1, 2 and 3, … of a level become nodes 0, 1, … of the next: the same pairs as at distance 1, 2, 4, …, in place and with
/// whole vectors. A level is padded with +0.0 to a multiple of 16 nodes instead of the leaves to a power of two, so that a node may
/// meet more pads than in §2, or fewer. A pad only turns −0.0 into +0.0, which [`total`] does in any case.
#[inline(always)]
pub(super) fn tree(acc: &mut Accumulators) -> f32 {
    let p = &mut acc.values[..];
    let mut len = p.len();
    while len > 8 {
        let padded = len.next_multiple_of(16);
        p[len..padded].fill(0.0);
        for k in 0..padded / 16 {
            // An array, so that the compiler sees two vectors become one.
            let v: [f32; 16] = p[16 * k..][..16].try_into().unwrap();
            let nodes: [f32; 8] = std::array::from_fn(|i| fold(v[2 * i], v[2 * i + 1]));
            p[8 * k..][..8].copy_from_slice(&nodes);
        }
        len = padded / 2;
    }
    let [a, b, c, d, e, f, g, h] = p[..8].try_into().unwrap();
    total(fold(fold(fold(a, b), fold(c, d)), fold(fold(e, f), fold(g, h))))
}

/// §4 The normalised element.
#[inline(always)]
pub(super) fn x_hat<T: Packed>(z: T, row: RowScale) -> f32 {
    arith::x_hat(z.unpack(), row)
}

/// §5 What the weight multiplies.
#[inline(always)]
fn factor<T: Packed>(x_hat: f32, number: bool, twice: bool) -> f32 {
    arith::factor(x_hat, twice, |x_hat| T::pack(x_hat, number).unpack())
}

/// §5 One tile of y, H being the type that is normalised. `number`: neither an x_hat nor a y is NaN.
#[inline(always)]
pub(super) fn normalise<T: Packed, H: Packed>(
    x: &[T],
    row: RowScale,
    (number, twice): (bool, bool),
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [T],
) {
    let y = y.iter_mut().zip(x).zip(weight);
    // A loop each: what is asked of every element would cost the ordinary one.
    if let Some(bias) = bias {
        y.zip(bias).for_each(|(((y, &z), &w), &b)| {
            *y = T::pack(weighted_with(factor::<H>(x_hat(z, row), number, twice), w, b), number)
        });
    } else if twice {
        y.for_each(|((y, &z), &w)| *y = T::pack(weighted(factor::<H>(x_hat(z, row), number, true), w), number));
    } else {
        y.for_each(|((y, &z), &w)| *y = T::pack(weighted(factor::<H>(x_hat(z, row), number, false), w), number));
    }
}

/// §6 One tile of dx, and §7 of the group's partial if there is one; H as above. `number`: neither an x_hat nor a dx without dz is NaN.
#[inline(always)]
pub(super) fn gradients<T: Packed, H: Packed>(
    row: Row<T>,
    c: f32,
    (number, twice): (bool, bool),
    weight: &[f32],
    dz: Option<&[T]>,
    dx: &mut [T],
    partial: Option<&mut [f32]>,
) {
    let columns = dx.iter_mut().zip(row.x).zip(row.dy).zip(weight);
    let in_one_loop = dz.is_none() && !twice;
    match partial {
        Some(partial) if in_one_loop => {
            for ((((dx, &x), &dy), &w), partial) in columns.zip(partial) {
                let (x_hat, dy) = (x_hat(x, row.scale), dy.unpack());
                *partial = chain(dy, factor::<H>(x_hat, number, false), *partial);
                *dx = T::pack(gradient(centred(x_hat, c, weighted(dy, w)), row.scale), number);
            }
            return;
        }
        // A loop each: what is asked of every element would cost the ordinary one.
        Some(partial) if twice => add_to_partial::<T, H>(row, (number, true), partial),
        Some(partial) => add_to_partial::<T, H>(row, (number, false), partial),
        None => {}
    }
    match dz {
        Some(dz) => {
            for ((((dx, &x), &dy), &w), &dz) in columns.zip(dz) {
                let t = centred(x_hat(x, row.scale), c, weighted(dy.unpack(), w));
                // Nothing is known of dz, so its sum may be NaN.
                *dx = T::pack(gradient_with(t, row.scale, dz.unpack()), false);
            }
        }
        None => {
            for (((dx, &x), &dy), &w) in columns {
                *dx = T::pack(gradient(centred(x_hat(x, row.scale), c, weighted(dy.unpack(), w)), row.scale), number);
            }
        }
    }
}

/// §7 One tile of the group's partial.
#[inline(always)]
fn add_to_partial<T: Packed, H: Packed>(row: Row<T>, (number, twice): (bool, bool), partial: &mut [f32]) {
    for ((partial, &x), dy) in partial.iter_mut().zip(row.x).zip(row.dy) {
        *partial = chain(dy.unpack(), factor::<H>(x_hat(x, row.scale), number, twice), *partial);
    }
}

/// Asks for the lines of `len` elements that are read or written soon.
#[inline(always)]
pub(super) fn prefetch<T>(data: &[T], start: usize, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if let (true, Some(sse)) = (start < data.len(), pulp::core_arch::x86::Sse::try_new()) {
        for line in data[start..data.len().min(start + len)].chunks(64 / size_of::<T>()) {
            sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, start, len);
}

/// How many rows on (0 or 1), and at which column, the tile begins that is prefetched while `tile` is worked on: 2 KiB ahead.
/// The processor's own prefetching ends with each page, and memory takes longer than a tile.
#[inline(always)]
pub(super) fn ahead<T>(tile: &Range<usize>, hidden: usize) -> (usize, usize) {
    let column = tile.start + (2048 / size_of::<T>()).min(hidden);
    if column < hidden { (0, column) } else { (1, column - hidden) }
}

/// Works on a tile. Ordinary rows of numbers, nearly all, get code without the multiplications by 1 and the search for NaN.
/// A closure `tile` is marked `#[inline(always)]`: one that remained a function would be compiled for the least instruction set.
#[inline(always)]
pub(super) fn specialised(row: RowScale, numbers: bool, tile: impl FnOnce(RowScale, bool)) {
    if numbers && row.pre == 1.0 { tile(RowScale { pre: 1.0, post: row.post }, true) } else { tile(row, false) }
}
