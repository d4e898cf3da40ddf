//! The CPU executor against the memory of its machine, as a device of the bench.
//!
//! Ceilings are streams over the same memory with the same threads: read; copy; triad, c = a + 3b. The one with the highest
//! rate counts, for both directions, as the time in which it would move their bytes.

use super::cells::{Cell, Direction};
use super::report::{Ceiling, Differ, Timing};
use super::run::Device;
use anyhow::{Result, ensure};
use rayon::prelude::*;
use rmsnorm_cuda::plan::{column_order, row_order};
use rmsnorm_cuda::{
    Backward, Cpu, Executor, Forward, Slice, SliceMut, WeightGradient, arith, bf16, f16, scratch_len, with_dtype,
};
use std::hint::black_box;
use std::time::Instant;

/// The CPU executor.
pub(super) struct OnCpu {
    pub(super) replays: usize,
}

/// What was measured of a cell, streams and calls in turns: the memory of a machine with other users drifts.
pub(super) struct Times {
    read: Timing,
    copy: Timing,
    triad: Timing,
    forward: Timing,
    backward: Timing,
}

impl Device for OnCpu {
    type Tensors = Times;
    const SHARES_CEILINGS: bool = false;

    fn plan(&self, cell: Cell) -> String {
        let (order, column) = (row_order(cell.hidden), column_order(cell.rows, cell.hidden));
        format!("forward C{}; backward C{} G{}", order.chains, order.dot_chains, column.groups)
    }

    fn tensors(&self, cell: Cell) -> Result<Times> {
        ensure!(cell.extras().is_empty(), "on the CPU calls are timed without {}", cell.extras());
        with_dtype!(cell.dtype, T => self.times(cell, |i| <T as arith::Element>::store(noise(i))))
    }

    fn sets(&self, _: &Times) -> usize {
        1
    }

    fn ceiling(&self, times: &Times, direction: Direction) -> Result<Ceiling> {
        let scaled = |how: &str, moved: f64, Timing { us_median, us_p10, us_p90, replays }: Timing| {
            let scale = direction.tensors(false) as f64 / moved;
            let [us_median, us_p10, us_p90] = [us_median, us_p10, us_p90].map(|us| us * scale);
            Ceiling { timing: Timing { us_median, us_p10, us_p90, replays }, how: how.into() }
        };
        let faster = |a: Ceiling, b: Ceiling| if b.timing.us_median < a.timing.us_median { b } else { a };
        let streams = [scaled("copy", 2.0, times.copy), scaled("triad", 3.0, times.triad)];
        Ok(streams.into_iter().fold(scaled("read", 1.0, times.read), faster))
    }

    fn call(&self, times: &Times, direction: Direction) -> Result<Timing> {
        Ok(match direction {
            Direction::Forward => times.forward,
            Direction::Backward => times.backward,
        })
    }

    fn differ(&self, _: &Times) -> Result<Option<Differ>> {
        Ok(None)
    }
}

impl OnCpu {
    fn times<T: Element>(&self, cell: Cell, element: impl Fn(usize) -> T + Sync) -> Result<Times> {
        let Cell { rows, hidden, .. } = cell;
        let tensor = |seed: usize| (0..rows * hidden).into_par_iter().map(|i| element(i + seed)).collect::<Vec<T>>();
        let mut o = Operands {
            x: tensor(0),
            dy: tensor(1 << 40),
            out: tensor(2 << 40),
            weight: (0..hidden).map(noise).collect(),
            rstd: vec![1.0; rows],
            dw: vec![0.0; hidden],
            scratch: vec![0.0; scratch_len(rows, hidden)?],
        };
        let mut us = [const { Vec::new() }; 5];
        // The first of each warms up.
        for _ in 0..=self.replays {
            us[0].push(timed(|| T::read(&o.x)));
            us[1].push(timed(|| T::copy(&o.x, &mut o.out)));
            us[2].push(timed(|| T::triad(&o.x, &o.dy, &mut o.out)));
            let (mut forward, mut backward) = (Ok(()), Ok(()));
            us[3].push(timed(|| forward = o.forward(rows, hidden)));
            us[4].push(timed(|| backward = o.backward(rows, hidden)));
            forward.and(backward)?;
        }
        let [read, copy, triad, forward, backward] = us.map(|us| Timing::of(us[1..].to_vec()));
        Ok(Times { read, copy, triad, forward, backward })
    }
}

/// In microseconds.
fn timed(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64() * 1e6
}

/// The operands of both calls. `y` and `dx` are one tensor: what is written is not kept.
struct Operands<T> {
    x: Vec<T>,
    dy: Vec<T>,
    out: Vec<T>,
    weight: Vec<f32>,
    rstd: Vec<f32>,
    dw: Vec<f32>,
    scratch: Vec<f32>,
}

impl<T: Element> Operands<T> {
    fn forward(&mut self, rows: usize, hidden: usize) -> Result<(), rmsnorm_cuda::Error> {
        Cpu.forward(Forward {
            weight: Some(Slice::F32(&self.weight).into()),
            rstd: Some(SliceMut::F32(&mut self.rstd).into()),
            ..Forward::new((rows, hidden), 1e-5, T::slice(&self.x), T::slice_mut(&mut self.out))
        })
    }

    fn backward(&mut self, rows: usize, hidden: usize) -> Result<(), rmsnorm_cuda::Error> {
        Cpu.backward(Backward {
            weight: Some(Slice::F32(&self.weight).into()),
            dw: Some(WeightGradient {
                dw: SliceMut::F32(&mut self.dw).into(),
                scratch: SliceMut::F32(&mut self.scratch).into(),
            }),
            ..Backward::new(
                (rows, hidden),
                T::slice(&self.x),
                Slice::F32(&self.rstd),
                T::slice(&self.dy),
                T::slice_mut(&mut self.out),
            )
        })
    }
}

/// An element type, and the streams over its memory.
trait Element: Copy + Send + Sync {
    fn slice(data: &[Self]) -> Slice<'_>;
    fn slice_mut(data: &mut [Self]) -> SliceMut<'_>;
    /// Of all bits.
    fn xor(a: &[Self]) -> u32;
    fn add(self, b: Self) -> Self;

    fn read(a: &[Self]) {
        black_box(a.par_chunks(STREAM).map(|a| Self::xor(a)).max());
    }

    fn copy(a: &[Self], c: &mut [Self]) {
        c.par_chunks_mut(STREAM).zip(a.par_chunks(STREAM)).for_each(|(c, a)| c.copy_from_slice(a));
    }

    fn triad(a: &[Self], b: &[Self], c: &mut [Self]) {
        c.par_chunks_mut(STREAM).zip(a.par_chunks(STREAM)).zip(b.par_chunks(STREAM)).for_each(|((c, a), b)| {
            c.iter_mut().zip(a).zip(b).for_each(|((c, &a), &b)| *c = a.add(b));
        });
    }
}

// On 16-bit types the triad adds bits: the arithmetic of their floats is not what the memory is asked for.
macro_rules! elements {
    ($($t:ty: $bits:ty, $a:ident, $b:ident => $triad:expr);*) => { $(
        impl Element for $t {
            fn slice(data: &[$t]) -> Slice<'_> {
                data.into()
            }
            fn slice_mut(data: &mut [$t]) -> SliceMut<'_> {
                data.into()
            }
            fn xor(a: &[$t]) -> u32 {
                a.iter().fold(0, |s: $bits, v| s ^ v.to_bits()).into()
            }
            #[inline(always)]
            fn add(self, $b: $t) -> $t {
                let $a = self;
                $triad
            }
        }
    )* };
}

elements!(
    f32: u32, a, b => a + 3.0 * b;
    f16: u16, a, b => f16::from_bits(a.to_bits().wrapping_add(3 * (b.to_bits() & 3)));
    bf16: u16, a, b => bf16::from_bits(a.to_bits().wrapping_add(3 * (b.to_bits() & 3)))
);

/// Between −1 and 1.
fn noise(i: usize) -> f32 {
    let z = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Elements that a thread streams over at a time.
const STREAM: usize = 1 << 18;
