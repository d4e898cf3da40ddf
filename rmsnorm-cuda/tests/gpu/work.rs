//! Work for a GPU: a problem on the host, what follows from it on the CPU, and the same in a GPU's memory.

use std::collections::HashSet;
use std::sync::Arc;

use rmsnorm_cuda::cuda::module::Module;
use rmsnorm_cuda::cuda::steps::{self, Step};
use rmsnorm_cuda::cuda::{self, DeviceMemory, Kernels, Tuning};
use rmsnorm_cuda::cudarc::driver::sys::CUstream;
use rmsnorm_cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use rmsnorm_cuda::{
    Backward, Cpu, Dtype, Error, Executor, Forward, Rows, Slice, SliceMut, WeightGradient, WeightOffset, bf16,
    scratch_len,
};

/// A problem on the host: x and dy in bf16, the weight and its gradient in f32.
#[derive(Clone)]
pub(super) struct Problem {
    pub(super) rows: usize,
    pub(super) hidden: usize,
    pub(super) weight_offset: WeightOffset,
    pub(super) x: Vec<bf16>,
    pub(super) dy: Vec<bf16>,
    pub(super) weight: Vec<f32>,
}

/// What follows from a problem.
#[derive(PartialEq)]
pub(super) struct Solved {
    pub(super) y: Vec<bf16>,
    pub(super) rstd: Vec<f32>,
    pub(super) dx: Vec<bf16>,
    pub(super) dw: Vec<f32>,
}

pub(super) const EPS: f32 = 1e-6;

impl Problem {
    pub(super) fn new(rows: usize, hidden: usize, weight_offset: WeightOffset, seed: u64) -> Self {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 22) as f32 - 2.0
        };
        let mut matrix = || (0..rows * hidden).map(|_| bf16::from_f32(next())).collect();
        let (x, dy) = (matrix(), matrix());
        let weight = (0..hidden).map(|_| next()).collect();
        Problem { rows, hidden, weight_offset, x, dy, weight }
    }

    /// By the CPU.
    pub(super) fn solved(&self) -> Solved {
        let Problem { rows, hidden, weight_offset, .. } = *self;
        let (mut y, mut dx) = (self.x.clone(), self.x.clone());
        let (mut rstd, mut dw) = (vec![0.0; rows], vec![0.0; hidden]);
        let mut scratch = vec![0.0; scratch_len(rows, hidden).expect("a width")];
        let x = Rows::contiguous(Slice::Bf16(&self.x), hidden);
        let weight = Some(Slice::F32(&self.weight).into());
        Cpu.forward(Forward {
            weight_offset,
            weight,
            rstd: Some(SliceMut::F32(&mut rstd).into()),
            ..Forward::with_rows((rows, hidden), EPS, x, Rows::contiguous(SliceMut::Bf16(&mut y), hidden))
        })
        .expect("a call");
        Cpu.backward(Backward {
            weight_offset,
            weight,
            dw: Some(WeightGradient { dw: SliceMut::F32(&mut dw).into(), scratch: SliceMut::F32(&mut scratch).into() }),
            ..Backward::with_rows(
                (rows, hidden),
                x,
                Slice::F32(&rstd).into(),
                Rows::contiguous(Slice::Bf16(&self.dy), hidden),
                Rows::contiguous(SliceMut::Bf16(&mut dx), hidden),
            )
        })
        .expect("a call");
        Solved { y, rstd, dx, dw }
    }
}

/// A problem on a GPU, for the raw layer.
pub(super) struct Work {
    pub(super) problem: Problem,
    pub(super) stream: Arc<CudaStream>,
    /// x, dy, y, dx.
    pub(super) matrices: [CudaSlice<bf16>; 4],
    /// Weight, rstd, dw, scratch.
    pub(super) vectors: [CudaSlice<f32>; 4],
}

impl Work {
    /// There, and its outputs all ones, a NaN.
    pub(super) fn new(stream: &Arc<CudaStream>, problem: Problem) -> Self {
        let Problem { rows, hidden, .. } = problem;
        let ones = |n: usize| stream.clone_htod(&vec![f32::from_bits(u32::MAX); n]).expect("memory");
        let nans = || stream.clone_htod(&vec![bf16::from_bits(u16::MAX); rows * hidden]).expect("memory");
        let matrices = [
            stream.clone_htod(&problem.x).expect("memory"),
            stream.clone_htod(&problem.dy).expect("memory"),
            nans(),
            nans(),
        ];
        let scratch = scratch_len(rows, hidden).expect("a width");
        let weight = stream.clone_htod(&problem.weight).expect("memory");
        let vectors = [weight, ones(rows), ones(hidden), ones(scratch)];
        stream.synchronize().expect("uploaded");
        Work { problem, stream: stream.clone(), matrices, vectors }
    }

    pub(super) fn forward(&self) -> Forward<DeviceMemory, DeviceMemory> {
        let Problem { rows, hidden, weight_offset, .. } = self.problem;
        let ([x, _, y, _], [weight, rstd, ..]) = (self.matrices(), self.vectors());
        let (x, y) = (Rows::contiguous(x, hidden), Rows::contiguous(y, hidden));
        Forward {
            weight_offset,
            weight: Some(weight.into()),
            rstd: Some(rstd.into()),
            ..Forward::with_rows((rows, hidden), EPS, x, y)
        }
    }

    pub(super) fn backward(&self) -> Backward<DeviceMemory, DeviceMemory> {
        let Problem { rows, hidden, weight_offset, .. } = self.problem;
        let ([x, dy, _, dx], [weight, rstd, dw, scratch]) = (self.matrices(), self.vectors());
        let matrix = |memory| Rows::contiguous(memory, hidden);
        Backward {
            weight_offset,
            weight: Some(weight.into()),
            dw: Some(WeightGradient { dw: dw.into(), scratch: scratch.into() }),
            ..Backward::with_rows((rows, hidden), matrix(x), rstd.into(), matrix(dy), matrix(dx))
        }
    }

    pub(super) fn matrices(&self) -> [DeviceMemory; 4] {
        let address = |m: &CudaSlice<bf16>| m.device_ptr(&self.stream).0;
        self.matrices.each_ref().map(|m| DeviceMemory { dtype: Dtype::Bf16, address: address(m), elements: m.len() })
    }

    pub(super) fn vectors(&self) -> [DeviceMemory; 4] {
        let address = |v: &CudaSlice<f32>| v.device_ptr(&self.stream).0;
        self.vectors.each_ref().map(|v| DeviceMemory { dtype: Dtype::F32, address: address(v), elements: v.len() })
    }

    /// Forward, then backward.
    pub(super) fn launch(&self, kernels: &Kernels, stream: CUstream) -> Result<(), Error> {
        // SAFETY: the memory is this value's, untracked, of the lengths said, and every test waits before it reads or drops it.
        unsafe {
            kernels.forward(&self.forward(), stream)?;
            kernels.backward(&self.backward(), stream)
        }
    }

    /// Compares what is there, once the GPU is idle, with the CPU's.
    pub(super) fn check(&self, what: &str) {
        self.stream.context().synchronize().unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let ([_, _, y, dx], [_, rstd, dw, _]) = (&self.matrices, &self.vectors);
        let bf16s = |m| self.stream.clone_dtoh(m).expect("a download");
        let f32s = |v| self.stream.clone_dtoh(v).expect("a download");
        let got = Solved { y: bf16s(y), rstd: f32s(rstd), dx: bf16s(dx), dw: f32s(dw) };
        assert_same(&got, &self.problem.solved(), what);
    }
}

/// (Nothing here is a NaN or a zero.)
pub(super) fn assert_same(got: &Solved, expected: &Solved, what: &str) {
    let wrong = |same: bool, name| if same { "" } else { name };
    let names = [
        wrong(got.y == expected.y, "y "),
        wrong(got.rstd == expected.rstd, "rstd "),
        wrong(got.dx == expected.dx, "dx "),
        wrong(got.dw == expected.dw, "dw "),
    ];
    assert!(got == expected, "{what}: not the CPU's bits: {}", names.concat());
}

/// A context whose memory the test keeps in order itself, and a stream.
pub(super) fn untracked() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = cuda::context(0).expect("a GPU");
    // SAFETY: every test that uses this waits between uses on different streams.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    (context, stream)
}

pub(super) fn small(stream: &Arc<CudaStream>) -> Work {
    Work::new(stream, Problem::new(37, 128, WeightOffset::Zero, 1))
}

/// Work that needs a module which nothing needed before.
pub(super) struct Unseen {
    seen: HashSet<Module>,
    next: usize,
}

impl Unseen {
    pub(super) fn new() -> Self {
        Unseen { seen: HashSet::new(), next: 0 }
    }

    pub(super) fn work(&mut self, stream: &Arc<CudaStream>, tuning: &Tuning) -> Work {
        loop {
            let (hidden, rows) = (8 << (self.next / 2 % 12), 16 + self.next);
            let weight_offset = if self.next.is_multiple_of(2) { WeightOffset::Zero } else { WeightOffset::One };
            self.next += 1;
            assert!(self.next <= 24, "there are no more modules");
            let work = Work::new(stream, Problem::new(rows, hidden, weight_offset, self.next as u64));
            if let Step::Kernel(kernel) = steps::forward(&work.forward(), tuning).expect("a call")[0]
                && self.seen.insert(kernel.module)
            {
                return work;
            }
        }
    }
}
