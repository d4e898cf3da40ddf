//! How close the CPU executor comes to the memory of the machine: `cargo run --release --example cpu_stream`
//!
//! Each line times three streams over the same memory with the same threads (read; copy; triad, c = a + 3b), then forward and
//! backward, in turns, and prints medians. The fractions are of the fastest stream. Bytes are those of the operands: forward
//! two tensors, backward three, copy two, triad three. It needs three times 256 MiB.

use half::bf16;
use rayon::prelude::*;
use rmsnorm_cuda::{
    Backward, Cpu, Executor, Forward, Rows, Slice, SliceMut, WeightGradient, WeightOffset, scratch_len,
};
use std::hint::black_box;
use std::time::Instant;

fn main() -> Result<(), rmsnorm_cuda::Error> {
    println!("{}, tensors of {} MiB, medians of {REPETITIONS}, GB/s", Cpu.name(), TENSOR_BYTES >> 20);
    println!(
        "{:>5} {:>6} | {:>5} {:>5} {:>5} | {:>7} {:>5} | {:>8} {:>5}",
        "type", "hidden", "read", "copy", "triad", "forward", "", "backward", ""
    );
    for hidden in [64, 256, 1024, 2048, 4096, 8192, 16384, 65536] {
        measure("f32", hidden, noise)?;
        measure("bf16", hidden, |i| bf16::from_f32(noise(i)))?;
    }
    Ok(())
}

fn measure<T>(dtype: &str, hidden: usize, element: impl Fn(usize) -> T + Sync) -> Result<(), rmsnorm_cuda::Error>
where
    T: Copy + Send + Sync + for<'a> Operands<'a>,
{
    let rows = TENSOR_BYTES / size_of::<T>() / hidden;
    let tensor = |seed: usize| (0..rows * hidden).into_par_iter().map(|i| element(i + seed)).collect::<Vec<T>>();
    let (x, dy, mut out) = (tensor(0), tensor(1 << 40), tensor(2 << 40));
    let weight: Vec<f32> = (0..hidden).map(noise).collect();
    let (mut rstd, mut dw) = (vec![1.0_f32; rows], vec![0.0_f32; hidden]);
    let mut scratch = vec![0.0_f32; scratch_len(rows, hidden)?];
    let weight_offset = WeightOffset::Zero;

    let mut seconds = [const { Vec::new() }; 5];
    for _ in 0..=REPETITIONS {
        seconds[0].push(timed(|| T::read(&x)));
        seconds[1].push(timed(|| T::copy(&x, &mut out)));
        seconds[2].push(timed(|| T::triad(&x, &dy, &mut out)));
        seconds[3].push(timed(|| {
            let y = Rows::contiguous(T::written(&mut out), hidden);
            let rstd = Some(SliceMut::from(&mut rstd[..]).into());
            let (x, weight) = (Rows::contiguous(T::slice(&x), hidden), Some(Slice::from(&weight[..]).into()));
            Cpu.forward(Forward { rows, hidden, eps: 1e-6, weight_offset, x, weight, y, rstd }).unwrap();
        }));
        seconds[4].push(timed(|| {
            let dx = Rows::contiguous(T::written(&mut out), hidden);
            let dw = WeightGradient {
                dw: SliceMut::from(&mut dw[..]).into(),
                scratch: SliceMut::from(&mut scratch[..]).into(),
            };
            let (x, weight) = (Rows::contiguous(T::slice(&x), hidden), Some(Slice::from(&weight[..]).into()));
            let (dy, rstd) = (Rows::contiguous(T::slice(&dy), hidden), Slice::from(&rstd[..]).into());
            Cpu.backward(Backward { rows, hidden, weight_offset, x, weight, rstd, dy, dx, dw: Some(dw) }).unwrap();
        }));
    }
    let rate = |i: usize, tensors: f64| tensors * TENSOR_BYTES as f64 / median(&seconds[i][1..]) / 1e9;
    let [read, copy, triad, forward, backward] = [rate(0, 1.0), rate(1, 2.0), rate(2, 3.0), rate(3, 2.0), rate(4, 3.0)];
    let best = read.max(copy).max(triad);
    println!(
        "{dtype:>5} {hidden:>6} | {read:5.1} {copy:5.1} {triad:5.1} | {forward:7.1} {:5.2} | {backward:8.1} {:5.2}",
        forward / best,
        backward / best
    );
    Ok(())
}

/// The operands of a call and the streams over their memory.
trait Operands<'a>: Sized {
    fn slice(data: &'a [Self]) -> Slice<'a>;
    fn written(data: &'a mut [Self]) -> SliceMut<'a>;
    fn read(a: &[Self]);
    fn copy(a: &[Self], c: &mut [Self]);
    fn triad(a: &[Self], b: &[Self], c: &mut [Self]);
}

macro_rules! operands {
    ($($t:ty: $bits:ty, $a:ident, $b:ident => $triad:expr);*) => { $(
        impl<'a> Operands<'a> for $t {
            fn slice(data: &'a [$t]) -> Slice<'a> {
                data.into()
            }
            fn written(data: &'a mut [$t]) -> SliceMut<'a> {
                data.into()
            }
            fn read(a: &[$t]) {
                black_box(a.par_chunks(STREAM).map(|a| a.iter().fold(0, |s: $bits, v| s ^ v.to_bits())).max());
            }
            fn copy(a: &[$t], c: &mut [$t]) {
                c.par_chunks_mut(STREAM).zip(a.par_chunks(STREAM)).for_each(|(c, a)| c.copy_from_slice(a));
            }
            fn triad(a: &[$t], b: &[$t], c: &mut [$t]) {
                c.par_chunks_mut(STREAM).zip(a.par_chunks(STREAM)).zip(b.par_chunks(STREAM)).for_each(|((c, a), b)| {
                    for ((c, &$a), &$b) in c.iter_mut().zip(a).zip(b) {
                        *c = $triad;
                    }
                });
            }
        }
    )* };
}

// On bf16 the triad adds bits: the arithmetic of its floats is not what the memory is asked for.
operands!(f32: u32, a, b => a + 3.0 * b; bf16: u16, a, b => bf16::from_bits(a.to_bits().wrapping_add(3 * (b.to_bits() & 3))));

fn timed(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Between −1 and 1.
fn noise(i: usize) -> f32 {
    let z = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}

const TENSOR_BYTES: usize = 256 << 20;
const REPETITIONS: usize = 9;
/// Elements that a thread streams over at a time.
const STREAM: usize = 1 << 18;
