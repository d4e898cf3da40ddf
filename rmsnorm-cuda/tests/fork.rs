//! A fork leaves the threads of a pool behind. Calls in the child return all the same, with the same bits.
//! One test, for a process can begin its global pool but once.
#![cfg(target_os = "linux")]

use rayon::ThreadPoolBuilder;
use rmsnorm_cuda::{Backward, Cpu, Executor, Forward, Rows, Slice, SliceMut, WeightGradient, scratch_len};
use std::ffi::{c_int, c_uint};

unsafe extern "C" {
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn alarm(seconds: c_uint) -> c_uint;
    fn _exit(status: c_int) -> !;
}

/// Whether `body` is true in a forked process. One that has not returned after a minute is killed, by SIGALRM.
fn in_child(what: &str, body: impl FnOnce() -> bool) {
    // SAFETY: the child has this thread alone. It allocates, which glibc and musl allow after a fork, takes no lock that another
    // thread could have held, and leaves without running what others registered.
    let child = unsafe { fork() };
    if child == 0 {
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // SAFETY: no memory is touched.
            unsafe { alarm(60) };
            body()
        }));
        // SAFETY: as above.
        unsafe { _exit(if matches!(held, Ok(true)) { 0 } else { 1 }) };
    }
    assert!(child > 0, "{what}: fork failed");
    let mut status = -1;
    // SAFETY: `status` is written before the call returns.
    assert_eq!(unsafe { waitpid(child, &raw mut status, 0) }, child, "{what}");
    // The low seven bits are the signal that ended it, the next byte is what it returned.
    assert_eq!((status & 0x7f, status >> 8 & 0xff), (0, 0), "{what}: signal and exit status; 14 is SIGALRM, it hung");
}

/// The bits of y, dx and dw.
fn outputs(rows: usize, hidden: usize) -> [Vec<u32>; 3] {
    let x: Vec<f32> = (0..rows * hidden).map(|i| (i % 1009) as f32 - 500.3).collect();
    let rstd: Vec<f32> = (0..rows).map(|r| 0.1 + r as f32).collect();
    let (mut y, mut dx, mut dw) = (vec![0.0_f32; x.len()], vec![0.0_f32; x.len()], vec![0.0_f32; hidden]);
    let mut scratch = vec![f32::NAN; scratch_len(rows, hidden).unwrap()];
    let read = |data| Rows::contiguous(Slice::F32(data), hidden);
    Cpu.forward(Forward::with_rows((rows, hidden), 1e-5, read(&x), Rows::contiguous(SliceMut::F32(&mut y), hidden)))
        .unwrap();
    Cpu.backward(Backward {
        dw: Some(WeightGradient { dw: SliceMut::F32(&mut dw).into(), scratch: SliceMut::F32(&mut scratch).into() }),
        ..Backward::with_rows(
            (rows, hidden),
            read(&x),
            Slice::F32(&rstd).into(),
            read(&x),
            Rows::contiguous(SliceMut::F32(&mut dx), hidden),
        )
    })
    .unwrap();
    [y, dx, dw].map(|values| values.iter().map(|v| v.to_bits()).collect())
}

#[test]
fn no_call_waits_for_threads_that_a_fork_left_behind() {
    let shape = (512, 1024);
    let same = |expected: &[Vec<u32>; 3]| outputs(shape.0, shape.1) == *expected;

    // One row never begins a pool, so the child has one of its own, and its child computes alone.
    outputs(1, 1024);
    in_child("before any pool", || {
        let own = outputs(shape.0, shape.1);
        in_child("in a child's child", || same(&own));
        std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1)
    });

    rayon::broadcast(|_| ());
    in_child("after somebody else began the global pool", || outputs(shape.0, shape.1)[2].iter().any(|&v| v != 0));

    let expected = outputs(shape.0, shape.1);
    in_child("after a call", || same(&expected));
    in_child("twice", || same(&expected) && same(&expected));
    in_child("other shapes", || outputs(2000, 8)[2] != outputs(3, 40000)[2]);
    in_child("the name", || Cpu.name().ends_with("1 thread)"));

    let pool = ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| in_child("on a pool's own thread", || same(&expected)));
    assert!(same(&expected), "the parent goes on");
}
