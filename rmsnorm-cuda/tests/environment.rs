//! Threads whose control register flushes subnormals or rounds otherwise: they are refused or left out, and no bit is theirs.
//! Sets MXCSR, so x86-64 only; that threads begin with the mode of the one that begins them is Linux.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use rayon::{ThreadPool, ThreadPoolBuilder};
use rmsnorm_cuda::arith::environment;
use rmsnorm_cuda::{
    Backward, Cpu, Error, Executor, FloatingPoint, Forward, Rows, Slice, SliceMut, WeightGradient, scratch_len,
};
use std::arch::asm;

const FTZ: u32 = 0x8000;
const DAZ: u32 = 0x0040;
const DOWN: u32 = 0x2000;
const UP: u32 = 0x4000;

const MODES: [(u32, FloatingPoint); 7] = [
    (FTZ, FloatingPoint::FlushesSubnormals),
    (DAZ, FloatingPoint::FlushesSubnormals),
    (FTZ | DAZ, FloatingPoint::FlushesSubnormals),
    (FTZ | UP, FloatingPoint::FlushesSubnormals),
    (UP, FloatingPoint::RoundsUp),
    (DOWN, FloatingPoint::RoundsDown),
    (UP | DOWN, FloatingPoint::RoundsTowardZero),
];

fn set_mode(bits: u32) {
    let mxcsr = 0x1f80 | bits;
    // SAFETY: reads four bytes that exist, and masks every exception. Rust assumes the default mode: what runs in another is this
    // crate, which is not inlined here, and what stands around the calls, which computes with integers.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &mxcsr, options(nostack, readonly)) };
}

fn in_mode<R>(bits: u32, body: impl FnOnce() -> R) -> R {
    set_mode(bits);
    let result = body();
    set_mode(0);
    result
}

const HIDDEN: usize = 64;
const UNTOUCHED: f32 = 7.0;

/// Inputs of which every other row is subnormal.
struct Inputs {
    x: Vec<f32>,
    dy: Vec<f32>,
    weight: Vec<f32>,
    rstd: Vec<f32>,
}

/// What two calls returned, and the bits of y, rstd, dx, dw and scratch.
#[derive(Debug, PartialEq)]
struct Run {
    results: [Result<(), Error>; 2],
    bits: [Vec<u32>; 5],
}

impl Inputs {
    fn new(rows: usize) -> Inputs {
        let mut state = 1_u32;
        let mut random = move |subnormal: bool| {
            state = state.wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
            let (sign, mantissa, exponent) = (state >> 31 << 31, state >> 8 & 0x7f_ffff, 120 + (state >> 4 & 7));
            f32::from_bits(sign | mantissa | if subnormal { 0 } else { exponent << 23 })
        };
        let mut matrix = || (0..rows * HIDDEN).map(|i| random((i / HIDDEN).is_multiple_of(2))).collect();
        let (x, dy) = (matrix(), matrix());
        let rstd = (0..rows).map(|r| if r.is_multiple_of(3) { f32::INFINITY } else { 0.7 + r as f32 }).collect();
        Inputs { x, dy, weight: (0..HIDDEN).map(|c| random(c.is_multiple_of(5))).collect(), rstd }
    }

    fn run(&self) -> Run {
        let rows = self.rstd.len();
        let buffer = |len: usize| vec![UNTOUCHED; len];
        let (mut y, mut rstd, mut dx, mut dw) =
            (buffer(rows * HIDDEN), buffer(rows), buffer(rows * HIDDEN), buffer(HIDDEN));
        let mut scratch = buffer(scratch_len(rows, HIDDEN).unwrap());
        let read = |data| Rows::contiguous(Slice::F32(data), HIDDEN);
        let forward = Cpu.forward(Forward {
            weight: Some(Slice::F32(&self.weight).into()),
            rstd: Some(SliceMut::F32(&mut rstd).into()),
            ..Forward::with_rows((rows, HIDDEN), 0.0, read(&self.x), Rows::contiguous(SliceMut::F32(&mut y), HIDDEN))
        });
        let backward = Cpu.backward(Backward {
            weight: Some(Slice::F32(&self.weight).into()),
            dw: Some(WeightGradient { dw: SliceMut::F32(&mut dw).into(), scratch: SliceMut::F32(&mut scratch).into() }),
            ..Backward::with_rows(
                (rows, HIDDEN),
                read(&self.x),
                Slice::F32(&self.rstd).into(),
                read(&self.dy),
                Rows::contiguous(SliceMut::F32(&mut dx), HIDDEN),
            )
        });
        let bits = [y, rstd, dx, dw, scratch].map(|values| values.iter().map(|v| v.to_bits()).collect());
        Run { results: [forward, backward], bits }
    }
}

impl Run {
    /// Asserts that both calls were refused, and wrote nothing.
    fn assert_refused(&self, got: FloatingPoint, what: &str) {
        assert_eq!(self.results, [Err(Error::FloatingPoint { got }), Err(Error::FloatingPoint { got })], "{what}");
        assert!(self.bits.iter().flatten().all(|&v| v == UNTOUCHED.to_bits()), "{what}: something was written");
    }
}

/// What an ordinary thread computes, alone.
fn expected(inputs: &Inputs) -> Run {
    let run = ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| inputs.run());
    assert_eq!(run.results, [Ok(()), Ok(())]);
    run
}

/// Runs on thread `index` of a pool; the others are there to help.
fn on_thread(pool: &ThreadPool, index: usize, inputs: &Inputs) -> Run {
    pool.broadcast(|thread| (thread.index() == index).then(|| inputs.run())).swap_remove(index).unwrap()
}

#[test]
fn a_caller_in_another_mode_is_refused() {
    for rows in [0, 1, 512] {
        let inputs = Inputs::new(rows);
        for (bits, got) in MODES {
            assert_eq!(in_mode(bits, environment), Err(Error::FloatingPoint { got }), "{bits:#x}");
            in_mode(bits, || inputs.run()).assert_refused(got, &format!("{rows} rows, {bits:#x}"));
            assert_eq!(environment(), Ok(()));
        }
    }
}

/// The only test here that uses the global pool.
#[test]
fn a_pool_begun_by_a_flushing_thread_decides_no_bit() {
    in_mode(FTZ | DAZ, || ThreadPoolBuilder::new().num_threads(3).build_global()).expect("nobody has begun it");
    let modes = rayon::broadcast(|_| environment());
    assert!(modes.iter().all(Result::is_err), "{modes:?}");
    for rows in [1, 512, 4099] {
        let inputs = Inputs::new(rows);
        assert!(inputs.run() == expected(&inputs), "{rows} rows");
    }
    // A pool's thread is the calling thread to what is installed on it.
    let pool = in_mode(DOWN, || ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    let run = pool.install(|| Inputs::new(512).run());
    run.assert_refused(FloatingPoint::RoundsDown, "on a pool of that mode");
}

#[test]
fn one_thread_in_another_mode_decides_no_bit() {
    for (bits, got) in MODES {
        let start = move |index: usize| {
            if index == 2 {
                set_mode(bits)
            }
        };
        let pool = ThreadPoolBuilder::new().num_threads(3).start_handler(start).build().unwrap();
        let inputs = Inputs::new(4099);
        let expected = expected(&inputs);
        for _ in 0..5 {
            assert!(on_thread(&pool, 0, &inputs) == expected, "{bits:#x}");
            on_thread(&pool, 2, &inputs).assert_refused(got, &format!("thread {bits:#x}"));
        }
    }
}

/// A thread that flushes takes a negative subnormal for zero, and a GPU would then be asked to compute with it.
#[test]
fn a_check_refuses_the_same_in_every_mode() {
    let x = [1.0_f32; HIDDEN];
    for bits in MODES.map(|(bits, _)| bits).into_iter().chain([0]) {
        for (eps, refused) in [(0x8000_0001, true), (0x807f_ffff, true), (0x8000_0000, false), (1, false), (0, false)] {
            let mut y = [0.0_f32; HIDDEN];
            let call = Forward::new((1, HIDDEN), f32::from_bits(eps), Slice::F32(&x), SliceMut::F32(&mut y));
            let result = in_mode(bits, || call.check());
            assert_eq!(matches!(result, Err(Error::Eps { .. })), refused, "eps {eps:#x}, mode {bits:#x}: {result:?}");
        }
    }
}
