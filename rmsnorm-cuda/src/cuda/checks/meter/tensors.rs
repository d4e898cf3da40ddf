//! The tensors of a cell on the GPU, and what is timed with them.

use std::sync::Arc;

use cudarc::driver::sys;
use cudarc::driver::{CudaSlice, DevicePtr};

use super::{Cell, EPS, Meter, Timing};
use crate::cuda::kernels::arg;
use crate::cuda::{DeviceMemory, Tuning, driver_error};
use crate::{
    Backward, BiasGradient, Dtype, Error, Forward, Residual, Rows, Slice, SliceMut, WeightGradient, bf16, f16,
    scratch_len, with_dtype,
};

/// The tensors of a cell, several times over.
pub struct Tensors {
    meter: Arc<Meter>,
    cell: Cell,
    sets: Vec<Set>,
}

impl Tensors {
    /// How many times over.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Times forward.
    pub fn forward(&self, tuning: &Tuning, replays: usize) -> Result<Timing, Error> {
        self.meter.time(self.sets.len(), replays, |set, stream| {
            let call = self.sets[set].forward(self.cell);
            // SAFETY: the buffers live as long as `self`, were sized by `Meter::set` on the stream of the same meter, and are used on no other.
            unsafe { self.meter.kernels.forward_tuned(&call, tuning, stream) }
        })
    }

    /// Times backward, dx and dw. Run [`Tensors::forward`] first: it stores rstd.
    pub fn backward(&self, tuning: &Tuning, replays: usize) -> Result<Timing, Error> {
        self.meter.time(self.sets.len(), replays, |set, stream| {
            let call = self.sets[set].backward(self.cell)?;
            // SAFETY: as in `forward`.
            unsafe { self.meter.kernels.backward_tuned(&call, tuning, stream) }
        })
    }

    /// The fastest of the ways to read one tensor of the cell and write another, with a residual two and two, with its name.
    pub fn ceiling_forward(&self, replays: usize) -> Result<(Timing, String), Error> {
        if self.cell.residual {
            // Of a stream in f32 four tensors of f32, of which three quarters are as many bytes.
            let of_four = |set: &Set, sum: &Sum| match self.cell.stream {
                false => [&set.x, &sum.residual, &set.y, &sum.z].map(Buffer::address),
                true => [&sum.residual, &sum.dz, &set.dx, &sum.z].map(Buffer::address),
            };
            let bytes = self.bytes(self.cell.dtype.bytes() + self.cell.stream_dtype().bytes()) / 2;
            return self
                .meter
                .ceiling((self, bytes), replays, &PAIRS, |set| set.sum.as_ref().map(|sum| of_four(set, sum)));
        }
        let of_two = |set: &Set| Some([&set.x, &set.x, &set.y, &set.y].map(Buffer::address));
        let mut best = self.meter.ceiling((self, self.bytes(self.cell.dtype.bytes())), replays, &COPIES, of_two)?;
        let copied = self.meter.time(self.sets.len(), replays, |set, stream| {
            let (x, y) = (&self.sets[set].x, &self.sets[set].y);
            let bytes = y.memory.elements * y.memory.dtype.bytes();
            // SAFETY: y has this length, and x is as long or longer.
            unsafe { sys::cuMemcpyDtoDAsync_v2(y.memory.address, x.memory.address, bytes, stream) }
                .result()
                .map_err(|e| driver_error("cuMemcpyDtoDAsync", e))
        })?;
        if copied.us_median < best.0.us_median {
            best = (copied, "cuMemcpyDtoD".into());
        }
        Ok(best)
    }

    /// The fastest of the ways to read two tensors of the cell, with a dz three, and write one, with its name.
    pub fn ceiling_backward(&self, replays: usize) -> Result<(Timing, String), Error> {
        let of_four = |set: &Set, sum: &Sum| match self.cell.stream {
            false => [&set.x, &set.dy, &set.dx, &sum.dz].map(Buffer::address),
            true => [&sum.z, &sum.residual, &set.dx, &sum.dz].map(Buffer::address),
        };
        if self.cell.residual {
            let bytes = self.bytes(self.cell.dtype.bytes() + 3 * self.cell.stream_dtype().bytes()) / 4;
            return self
                .meter
                .ceiling((self, bytes), replays, &THREES, |set| set.sum.as_ref().map(|sum| of_four(set, sum)));
        }
        let of_three = |set: &Set| Some([&set.x, &set.dy, &set.dx, &set.dx].map(Buffer::address));
        self.meter.ceiling((self, self.bytes(self.cell.dtype.bytes())), replays, &ADDS, of_three)
    }

    /// Of a tensor with so many for an element.
    fn bytes(&self, of_element: usize) -> usize {
        self.cell.rows * self.cell.hidden * of_element
    }

    /// Copies the buffers of set 0 to the host: what the timed launches read and wrote.
    pub fn download(&self) -> Result<Downloaded, Error> {
        let set = &self.sets[0];
        Ok(Downloaded {
            x: self.meter.to_host(&set.x)?,
            dy: self.meter.to_host(&set.dy)?,
            weight: self.meter.to_host(&set.weight)?,
            y: self.meter.to_host(&set.y)?,
            rstd: self.meter.to_host(&set.rstd)?,
            dx: self.meter.to_host(&set.dx)?,
            dw: self.meter.to_host(&set.dw)?,
            sum: match &set.sum {
                Some(Sum { residual, z, dz }) => {
                    let [residual, z, dz] = [residual, z, dz].map(|buffer| self.meter.to_host(buffer));
                    Some(DownloadedSum { residual: residual?, z: z?, dz: dz? })
                }
                None => None,
            },
            bias: match &set.bias {
                Some(Bias { bias, db, .. }) => {
                    let [bias, db] = [bias, db].map(|buffer| self.meter.to_host(buffer));
                    Some(DownloadedBias { bias: bias?, db: db? })
                }
                None => None,
            },
        })
    }
}

struct Set {
    x: Buffer,
    dy: Buffer,
    weight: Buffer,
    y: Buffer,
    rstd: Buffer,
    dx: Buffer,
    dw: Buffer,
    scratch: Buffer,
    sum: Option<Sum>,
    bias: Option<Bias>,
}

/// What a residual adds to a set: backward gets z for its x.
struct Sum {
    residual: Buffer,
    z: Buffer,
    dz: Buffer,
}

/// What a bias adds to a set.
struct Bias {
    bias: Buffer,
    db: Buffer,
    scratch: Buffer,
}

struct Buffer {
    memory: DeviceMemory,
    /// Where the memory begins in it.
    offset_bytes: usize,
    bytes: CudaSlice<u8>,
}

impl Meter {
    /// Fills x, dy and weight of `cell` with normal numbers and the outputs with NaN, in so many sets that x and y alone are four
    /// times as large as the L2 cache, but no more than 2^14.
    pub fn tensors(self: &Arc<Self>, cell: Cell) -> Result<Tensors, Error> {
        let bytes = cell.rows * cell.hidden * cell.dtype.bytes();
        let sets = (4 * self.l2_bytes()?).div_ceil(2 * bytes.max(1)).clamp(2, SETS_MAX);
        let sets = (0..sets as u32).map(|i| self.set(cell, i)).collect::<Result<_, _>>()?;
        self.wait()?;
        Ok(Tensors { meter: self.clone(), cell, sets })
    }

    fn to_host(&self, buffer: &Buffer) -> Result<Host, Error> {
        let mut host = Host::zeros(buffer.memory.dtype, buffer.memory.elements);
        let mut data = host.slice_mut();
        let bytes = data.bytes_mut();
        if !bytes.is_empty() {
            let from = buffer.offset_bytes..buffer.offset_bytes + bytes.len();
            let copied = self.stream.memcpy_dtoh(&buffer.bytes.slice(from), bytes);
            copied.map_err(|e| driver_error("cuMemcpyDtoH", e))?;
        }
        self.wait()?;
        Ok(host)
    }

    fn set(&self, cell: Cell, seed: u32) -> Result<Set, Error> {
        let n = cell.rows * cell.hidden;
        let (t, streamed) = (cell.dtype, cell.stream_dtype());
        let moved = |elements| if cell.moved { elements } else { 0 };
        let per_column = cell.heads * cell.hidden;
        let scratch = || self.buffer(Dtype::F32, cell.heads * scratch_len(cell.rows / cell.heads, cell.hidden)?);
        let set = Set {
            x: self.moved_buffer(t, cell.packed_elements(), moved(1))?,
            dy: self.moved_buffer(t, n, moved(3))?,
            weight: self.buffer(t, per_column)?,
            y: self.moved_buffer(t, n, moved(2))?,
            rstd: self.buffer(Dtype::F32, cell.rows)?,
            dx: self.moved_buffer(streamed, cell.packed_elements(), moved(4))?,
            dw: self.buffer(t, per_column)?,
            scratch: scratch()?,
            sum: match cell.residual {
                true => {
                    let [residual, z, dz] = [(); 3].map(|()| self.buffer(streamed, n));
                    Some(Sum { residual: residual?, z: z?, dz: dz? })
                }
                false => None,
            },
            bias: match cell.bias {
                true => {
                    let [bias, db] = [self.buffer(t, per_column)?, self.buffer(t, per_column)?];
                    Some(Bias { bias, db, scratch: scratch()? })
                }
                false => None,
            },
        };
        let inputs = [&set.x, &set.dy, &set.weight].into_iter();
        let inputs = inputs.chain(set.sum.iter().flat_map(|sum| [&sum.residual, &sum.dz]));
        let inputs = inputs.chain(set.bias.iter().map(|bias| &bias.bias));
        for (i, buffer) in inputs.enumerate() {
            let (address, n) = (buffer.memory.address, buffer.memory.elements as u64);
            let dtype = buffer.memory.dtype;
            let (bytes, half, seed) = (dtype.bytes() as u32, u32::from(dtype == Dtype::F16), 6 * seed + i as u32);
            let arguments = [arg(&address), arg(&n), arg(&bytes), arg(&half), arg(&seed)];
            let blocks = n.div_ceil(256).clamp(1, 4096) as u32;
            // SAFETY: `fill_normal` writes n elements of so many bytes, which the buffer has.
            unsafe { self.launch("fill_normal", blocks, 256, &arguments, self.stream.cu_stream())? };
        }
        // All ones are a NaN of every type: an element that no launch writes is found.
        let outputs = [&set.y, &set.rstd, &set.dx, &set.dw, &set.scratch].into_iter();
        let of_bias = set.bias.iter().flat_map(|bias| [&bias.db, &bias.scratch]);
        for output in outputs.chain(set.sum.iter().map(|sum| &sum.z)).chain(of_bias) {
            // SAFETY: the buffer has this length.
            unsafe { sys::cuMemsetD8Async(output.address(), 0xff, output.bytes.len(), self.stream.cu_stream()) }
                .result()
                .map_err(|e| driver_error("cuMemsetD8Async", e))?;
        }
        Ok(set)
    }

    fn buffer(&self, dtype: Dtype, elements: usize) -> Result<Buffer, Error> {
        self.moved_buffer(dtype, elements, 0)
    }

    fn moved_buffer(&self, dtype: Dtype, elements: usize, offset: usize) -> Result<Buffer, Error> {
        // SAFETY: `set` writes all elements of it before anything reads them.
        let bytes = unsafe { self.stream.alloc::<u8>(((elements + offset) * dtype.bytes()).max(16)) }
            .map_err(|e| driver_error("cuMemAllocAsync", e))?;
        let offset_bytes = offset * dtype.bytes();
        let address = bytes.device_ptr(&self.stream).0 + offset_bytes as u64;
        Ok(Buffer { memory: DeviceMemory { dtype, address, elements }, offset_bytes, bytes })
    }

    fn ceiling(
        &self,
        (tensors, bytes): (&Tensors, usize),
        replays: usize,
        shapes: &[(&'static str, u32, u32)],
        operands: impl Fn(&Set) -> Option<[u64; 4]>,
    ) -> Result<(Timing, String), Error> {
        let mut best: Option<(Timing, String)> = None;
        for &(name, per_sm, threads) in shapes {
            let timing = self.time(tensors.sets.len(), replays, |set, stream| {
                let set = &tensors.sets[set];
                let [a, b, c, d] =
                    operands(set).ok_or(Error::Driver { call: "ceiling", code: "no residual".into() })?;
                let n = (bytes / 16) as u64;
                let depth = u64::from(name.as_bytes()[name.len() - 1] - b'0');
                let blocks = match per_sm {
                    0 => n.div_ceil(depth * u64::from(threads)).max(1) as u32,
                    _ => per_sm * self.kernels.tuning().arch.sm_count,
                };
                let arguments = [arg(&a), arg(&b), arg(&c), arg(&d), arg(&n)];
                // SAFETY: every kernel takes four buffers of n times 16 bytes; no buffer that is written is another's in these.
                unsafe { self.launch(name, blocks, threads, &arguments, stream) }
            })?;
            if best.as_ref().is_none_or(|(b, _)| timing.us_median < b.us_median) {
                best = Some((timing, format!("{name} {per_sm}×{threads}")));
            }
        }
        best.ok_or(Error::Driver { call: "ceiling", code: "no shape".into() })
    }
}

impl Buffer {
    /// Where it begins, a multiple of 256 bytes.
    fn address(&self) -> u64 {
        self.memory.address - self.offset_bytes as u64
    }
}

impl Set {
    fn forward(&self, cell: Cell) -> Forward<DeviceMemory, DeviceMemory> {
        let rows = |buffer: &Buffer| Rows::contiguous(buffer.memory, cell.hidden);
        let residual = self.sum.as_ref().map(|sum| Residual { residual: rows(&sum.residual), z: rows(&sum.z) });
        Forward {
            residual,
            weight: Some(self.weight.memory.into()),
            bias: self.bias.as_ref().map(|bias| bias.bias.memory.into()),
            rstd: Some(self.rstd.memory.into()),
            inner: cell.heads,
            per_head: cell.heads > 1,
            ..Forward::with_rows((cell.rows, cell.hidden), EPS, cell.packed_rows(self.x.memory), rows(&self.y))
        }
    }

    fn backward(&self, cell: Cell) -> Result<Backward<DeviceMemory, DeviceMemory>, Error> {
        let rows = |buffer: &Buffer| Rows::contiguous(buffer.memory, cell.hidden);
        let x = self.sum.as_ref().map_or(cell.packed_rows(self.x.memory), |sum| rows(&sum.z));
        let dz = self.sum.as_ref().map(|sum| rows(&sum.dz));
        Ok(Backward {
            dz,
            weight: Some(self.weight.memory.into()),
            dw: Some(WeightGradient { dw: self.dw.memory.into(), scratch: self.scratch.memory.into() }),
            db: self
                .bias
                .as_ref()
                .map(|Bias { db, scratch, .. }| BiasGradient { db: db.memory.into(), scratch: scratch.memory.into() }),
            inner: cell.heads,
            per_head: cell.heads > 1,
            ..Backward::with_rows(
                (cell.rows, cell.hidden),
                x,
                self.rstd.memory.into(),
                rows(&self.dy),
                cell.packed_rows(self.dx.memory),
            )
        })
    }
}

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub enum Host {
    /// f32.
    F32(Vec<f32>),
    /// f16.
    F16(Vec<f16>),
    /// bf16.
    Bf16(Vec<bf16>),
}

impl Host {
    /// `elements` zeros.
    pub fn zeros(dtype: Dtype, elements: usize) -> Host {
        match dtype {
            Dtype::F32 => Host::F32(vec![0.0; elements]),
            Dtype::F16 => Host::F16(vec![f16::ZERO; elements]),
            Dtype::Bf16 => Host::Bf16(vec![bf16::ZERO; elements]),
        }
    }

    /// As an operand that is read.
    pub fn slice(&self) -> Slice<'_> {
        with_dtype!(Host(data) = self => data[..].into())
    }

    /// As an operand that is written.
    pub fn slice_mut(&mut self) -> SliceMut<'_> {
        with_dtype!(Host(data) = self => (&mut data[..]).into())
    }
}

/// What the launches on one set read and wrote.
pub struct Downloaded {
    /// Rows × hidden, of heads [packed](Cell::packed) with others.
    pub x: Host,
    /// Rows × hidden.
    pub dy: Host,
    /// Hidden, for each head.
    pub weight: Host,
    /// Rows × hidden.
    pub y: Host,
    /// Rows, f32.
    pub rstd: Host,
    /// Rows × hidden, packed as x is.
    pub dx: Host,
    /// Hidden, for each head.
    pub dw: Host,
    /// With a residual.
    pub sum: Option<DownloadedSum>,
    /// With a bias.
    pub bias: Option<DownloadedBias>,
}

/// What a bias adds to it, each of `hidden` elements.
pub struct DownloadedBias {
    /// Added to y.
    pub bias: Host,
    /// Its gradient.
    pub db: Host,
}

/// What a residual adds to it, each rows × hidden.
pub struct DownloadedSum {
    /// Added to x.
    pub residual: Host,
    /// The sum.
    pub z: Host,
    /// Added to dx.
    pub dz: Host,
}

/// Launch shapes of the ceilings: kernel, blocks (0: as many as take all in one go, otherwise so many per multiprocessor),
/// threads. The digit is the number of 16-byte accesses of a thread to each tensor in one go.
const COPIES: [(&str, u32, u32); 10] = [
    ("copy_1", 0, 512),
    ("copy_1", 0, 256),
    ("copy_2", 8, 256),
    ("copy_4", 4, 512),
    ("copy_4", 8, 256),
    ("copy_4", 2, 1024),
    ("copy_cached_1", 0, 128),
    ("copy_cached_1", 0, 512),
    ("copy_cached_2", 0, 256),
    ("copy_cached_4", 0, 128),
];
const ADDS: [(&str, u32, u32); 12] = [
    ("add_1", 0, 512),
    ("add_1", 0, 256),
    ("add_2", 8, 256),
    ("add_4", 4, 512),
    ("add_2", 4, 512),
    ("add_1", 2, 1024),
    ("add_cached_1", 0, 128),
    ("add_cached_1", 0, 256),
    ("add_cached_1", 0, 1024),
    ("add_cached_2", 0, 128),
    ("add_cached_2", 0, 256),
    ("add_cached_4", 0, 128),
];

const PAIRS: [(&str, u32, u32); 6] = [
    ("pair_1", 0, 128),
    ("pair_1", 0, 256),
    ("pair_1", 0, 1024),
    ("pair_2", 0, 128),
    ("pair_2", 0, 256),
    ("pair_4", 0, 128),
];
const THREES: [(&str, u32, u32); 6] = [
    ("three_1", 0, 128),
    ("three_1", 0, 256),
    ("three_1", 0, 1024),
    ("three_2", 0, 128),
    ("three_2", 0, 256),
    ("three_4", 0, 128),
];

/// Most buffer sets of a cell: one graph node or more for each.
const SETS_MAX: usize = 1 << 14;
