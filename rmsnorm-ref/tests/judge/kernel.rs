//! RMSNorm kernels in plain f32, as others write them: with any order of their sums, and with one fault each.

use half::{bf16, f16};
use rmsnorm_ref::Format;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;

/// SplitMix64.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Bell-shaped, variance 1.
    pub(crate) fn normal(&mut self) -> f64 {
        let h = self.next();
        let sum = (h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48);
        (sum as f64 - 131_070.0) / 37_837.23
    }
}

/// What a kernel gets. Values are numbers of `format` (bias and weight too).
#[derive(Clone)]
pub(crate) struct Problem {
    pub(crate) rows: usize,
    pub(crate) hidden: usize,
    pub(crate) format: Format,
    pub(crate) eps: f32,
    pub(crate) offset: f32,
    pub(crate) x: Vec<f32>,
    pub(crate) residual: Option<Vec<f32>>,
    pub(crate) weight: Option<Vec<f32>>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) dy: Vec<f32>,
    pub(crate) dz: Option<Vec<f32>>,
}

impl Problem {
    /// Rows of different magnitudes, some of them so small that eps counts.
    pub(crate) fn new(rows: usize, hidden: usize, format: Format, seed: u64) -> Problem {
        let mut random = Random(seed);
        let fl = |v: f64| format.round(v) as f32;
        let mut x = Vec::new();
        for row in 0..rows {
            let scale = 2f64.powi(-((row % 7) as i32));
            x.extend((0..hidden).map(|_| fl(random.normal() * scale)));
        }
        let weight = (0..hidden).map(|_| fl(1.0 + 0.25 * random.normal())).collect();
        let dy = (0..rows * hidden).map(|_| fl(random.normal())).collect();
        let (offset, residual, bias, dz) = (0.0, None, None, None);
        Problem { rows, hidden, format, eps: 1e-3, offset, x, residual, weight: Some(weight), bias, dy, dz }
    }
}

/// How a sum is made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Chain {
        fused: bool,
    },
    Chains {
        chains: usize,
        fused: bool,
    },
    Halves,
    /// Two at random, again and again.
    RandomTree(u64),
    /// As `Chain`, from the last.
    Backwards,
    /// Blocks of this length whose sums arrive in any order.
    Atomics(usize, u64),
}

impl Order {
    pub(crate) fn random(random: &mut Random) -> Order {
        let fused = random.below(2) == 0;
        match random.below(6) {
            0 => Order::Chain { fused },
            1 => Order::Chains { chains: 1 + random.below(300), fused },
            2 => Order::Halves,
            3 => Order::RandomTree(random.next()),
            4 => Order::Backwards,
            _ => Order::Atomics(1 + random.below(64), random.next()),
        }
    }

    pub(crate) fn sum(self, products: &[(f32, f32)]) -> f32 {
        let chain = |products: &mut dyn Iterator<Item = (f32, f32)>, fused: bool| {
            products.fold(0f32, |sum, (a, b)| if fused { a.mul_add(b, sum) } else { sum + a * b })
        };
        match self {
            Order::Chain { fused } => chain(&mut products.iter().copied(), fused),
            Order::Backwards => chain(&mut products.iter().rev().copied(), false),
            Order::Chains { chains, fused } => {
                let one = |c: usize| chain(&mut products.iter().copied().skip(c).step_by(chains), fused);
                halves(&(0..chains).map(one).collect::<Vec<_>>())
            }
            Order::Halves => halves(&products.iter().map(|(a, b)| a * b).collect::<Vec<_>>()),
            Order::RandomTree(seed) => {
                let mut random = Random(seed);
                let mut sums: Vec<f32> = products.iter().map(|(a, b)| a * b).collect();
                while sums.len() > 1 {
                    let one = sums.swap_remove(random.below(sums.len()));
                    let at = random.below(sums.len());
                    sums[at] += one;
                }
                sums.first().copied().unwrap_or(0.0)
            }
            Order::Atomics(length, seed) => {
                let mut random = Random(seed);
                let mut parts: Vec<f32> =
                    products.chunks(length).map(|part| chain(&mut part.iter().copied(), true)).collect();
                let mut sum = 0.0;
                while !parts.is_empty() {
                    sum += parts.swap_remove(random.below(parts.len()));
                }
                sum
            }
        }
    }
}

fn halves(values: &[f32]) -> f32 {
    match values {
        [] => 0.0,
        [one] => *one,
        _ => halves(&values[..values.len() / 2]) + halves(&values[values.len() / 2..]),
    }
}

/// What of a kernel is free to its author.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub(crate) row: Order,
    pub(crate) column: Order,
    /// rstd by a root and a division, or by an approximation off by up to this many ulp.
    pub(crate) rsqrt_ulp: Option<i32>,
    /// The mean by 1/N.
    pub(crate) reciprocal: bool,
    /// 0: (z·r)·w, 1: z·(r·w), 2: (z·w)·r.
    pub(crate) y_order: usize,
    /// dx as PyTorch's autograd makes it, with rstd cubed.
    pub(crate) cubed: bool,
    /// x_hat is rounded to the format before the weight.
    pub(crate) twice: bool,
}

impl Style {
    pub(crate) const PLAIN: Style = Style {
        row: Order::Chains { chains: 32, fused: true },
        column: Order::Chain { fused: true },
        rsqrt_ulp: None,
        reciprocal: false,
        y_order: 0,
        cubed: false,
        twice: false,
    };

    pub(crate) fn random(random: &mut Random) -> Style {
        let (row, column) = (Order::random(random), Order::random(random));
        let rsqrt_ulp = (random.below(2) == 0).then(|| random.below(3) as i32 - 1);
        let (reciprocal, cubed, twice) = (random.below(2) == 0, random.below(2) == 0, random.below(4) == 0);
        Style { row, column, rsqrt_ulp, reciprocal, y_order: random.below(3), cubed, twice }
    }
}

/// What may be wrong with a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    EpsOutside,
    EpsIs(f32),
    MeanSubtracted,
    OffsetIs(f32),
    WeightIgnored,
    WeightTwiceInDx,
    NoCorrection,
    RoundedFirst,
    Truncates,
    SumNotRounded,
    SquaresInFormat,
    RstdInBf16,
    FirstColumns(usize),
    DwOfRows(usize, usize),
    DwWithoutRow(usize),
    DwWithoutEvery(usize, usize),
    Bf16Sums,
    Bf16ColumnSums,
}

/// What a kernel stores, widened.
#[derive(Clone)]
pub(crate) struct Outputs {
    pub(crate) z: Option<Vec<f64>>,
    pub(crate) rstd: Vec<f64>,
    pub(crate) y: Vec<f64>,
    pub(crate) dx: Vec<f64>,
    pub(crate) dw: Vec<f64>,
    pub(crate) db: Vec<f64>,
}

fn narrow_sum(products: impl Iterator<Item = f64>) -> f32 {
    products.fold(0.0, |sum, product| Format::Bf16.round(sum + Format::Bf16.round(product))) as f32
}

/// The kernel: rows, and then columns.
pub(crate) fn run(p: &Problem, style: &Style, fault: Fault) -> Outputs {
    let kernel = Kernel { p, style, fault };
    let z = p.residual.is_some().then(Vec::new);
    let mut out = Outputs { z, rstd: vec![], y: vec![], dx: vec![], dw: vec![], db: vec![] };
    let mut factors: Vec<f32> = Vec::new();
    for row in 0..p.rows {
        let z = kernel.normalised(row, &mut out);
        let r = kernel.rstd(&z);
        out.rstd.push(f64::from(r));
        let x_hat: Vec<f32> = z.iter().map(|z| z * r).collect();
        let h: Vec<f32> = x_hat.iter().map(|x| kernel.rounded_first(*x)).collect();
        kernel.y(&z, r, &h, &mut out);
        kernel.dx(row, &z, r, &x_hat, &mut out);
        factors.extend(h);
    }
    kernel.columns(&factors, &mut out);
    out
}

#[derive(Clone, Copy)]
struct Kernel<'a> {
    p: &'a Problem,
    style: &'a Style,
    fault: Fault,
}

impl Kernel<'_> {
    /// As it is stored.
    fn fl(&self, v: f32) -> f64 {
        let format = self.p.format;
        let rounded = format.round(f64::from(v));
        let up = rounded.abs() > f64::from(v).abs();
        if self.fault == Fault::Truncates && format != Format::F32 && up {
            // Towards zero: the neighbour below.
            return f64::from(f32::from_bits(v.to_bits() & if format == Format::Bf16 { !0xffff } else { !0x1fff }));
        }
        rounded
    }

    fn weight(&self, j: usize) -> f32 {
        let offset = if let Fault::OffsetIs(offset) = self.fault { offset } else { self.p.offset };
        match (&self.p.weight, self.fault) {
            (None, _) | (_, Fault::WeightIgnored) => 1.0,
            (Some(w), _) if offset == 0.0 => w[j],
            (Some(w), _) => w[j] + offset,
        }
    }

    /// In the type of x, if that is the style or the fault.
    fn rounded_first(&self, v: f32) -> f32 {
        if self.is_twice() { self.p.format.round(f64::from(v)) as f32 } else { v }
    }

    fn is_twice(&self) -> bool {
        self.style.twice || self.fault == Fault::RoundedFirst
    }

    /// What of a row is normalised.
    fn normalised(&self, row: usize, out: &mut Outputs) -> Vec<f32> {
        let Problem { hidden, format, .. } = *self.p;
        let mut z = self.p.x[row * hidden..][..hidden].to_vec();
        if let (Some(residual), Some(stored)) = (&self.p.residual, &mut out.z) {
            for (z, residual) in z.iter_mut().zip(&residual[row * hidden..]) {
                *z += residual;
                stored.push(format.round(f64::from(*z)));
                if self.fault != Fault::SumNotRounded {
                    *z = format.round(f64::from(*z)) as f32;
                }
            }
        }
        if self.fault == Fault::MeanSubtracted {
            let mean = self.style.row.sum(&z.iter().map(|z| (*z, 1.0)).collect::<Vec<_>>()) / hidden as f32;
            z.iter_mut().for_each(|z| *z -= mean);
        }
        z
    }

    fn rstd(&self, z: &[f32]) -> f32 {
        let Kernel { p, style, fault } = *self;
        let n = p.hidden as f32;
        let eps = if let Fault::EpsIs(eps) = fault { eps } else { p.eps };
        let summed = if let Fault::FirstColumns(columns) = fault { columns } else { p.hidden };
        let squares: Vec<(f32, f32)> = match fault {
            Fault::SquaresInFormat => z.iter().map(|z| (p.format.round(f64::from(z * z)) as f32, 1.0)).collect(),
            _ => z[..summed].iter().map(|z| (*z, *z)).collect(),
        };
        let sum = match fault {
            Fault::Bf16Sums => narrow_sum(squares.iter().map(|(a, b)| f64::from(a * b))),
            _ => style.row.sum(&squares),
        };
        let mean = if style.reciprocal { sum * (1.0 / n) } else { sum / n };
        let r = match (fault, style.rsqrt_ulp) {
            (Fault::EpsOutside, _) => 1.0 / (mean.sqrt() + eps),
            (_, None) => 1.0 / (mean + eps).sqrt(),
            (_, Some(off)) => {
                let right = (1.0 / f64::from(mean + eps).sqrt()) as f32;
                let is_number = right.is_finite() && right > 0.0;
                if is_number { f32::from_bits(right.to_bits().wrapping_add_signed(off)) } else { right }
            }
        };
        if fault == Fault::RstdInBf16 { bf16::from_f32(r).to_f32() } else { r }
    }

    fn y(&self, z: &[f32], r: f32, h: &[f32], out: &mut Outputs) {
        for j in 0..z.len() {
            let w = self.weight(j);
            let product = match (self.is_twice(), self.style.y_order) {
                (true, _) | (_, 0) => h[j] * w,
                (_, 1) => z[j] * (r * w),
                _ => z[j] * w * r,
            };
            out.y.push(self.fl(self.p.bias.as_ref().map_or(product, |bias| product + bias[j])));
        }
    }

    fn dx(&self, row: usize, z: &[f32], r: f32, x_hat: &[f32], out: &mut Outputs) {
        let (Kernel { p, style, fault }, n) = (*self, z.len() as f32);
        let at = row * z.len();
        let wdy: Vec<f32> = (0..z.len())
            .map(|j| {
                let once = self.rounded_first(p.dy[at + j] * self.weight(j));
                if fault == Fault::WeightTwiceInDx { once * self.weight(j) } else { once }
            })
            .collect();
        let with = if style.cubed { z } else { x_hat };
        let dot = style.row.sum(&wdy.iter().copied().zip(with.iter().copied()).collect::<Vec<_>>());
        let mean_wdy = match fault {
            Fault::MeanSubtracted => style.row.sum(&wdy.iter().map(|v| (*v, 1.0)).collect::<Vec<_>>()) / n,
            _ => 0.0,
        };
        for j in 0..z.len() {
            let value = match (fault, style.cubed) {
                (Fault::NoCorrection, _) => wdy[j] * r,
                (_, true) => wdy[j] * r - z[j] * (r * r * r * (dot / n)),
                _ => (wdy[j] - mean_wdy - x_hat[j] * (dot / n)) * r,
            };
            out.dx.push(self.fl(p.dz.as_ref().map_or(value, |dz| value + dz[at + j])));
        }
    }

    /// dw, of the factors of dy, and db.
    fn columns(&self, factors: &[f32], out: &mut Outputs) {
        let Problem { rows, hidden, ref dy, .. } = *self.p;
        let chosen: Vec<usize> = match self.fault {
            Fault::DwOfRows(first, end) => (first..end).collect(),
            Fault::DwWithoutRow(row) => (0..rows).filter(|i| *i != row).collect(),
            Fault::DwWithoutEvery(k, phase) => (0..rows).filter(|i| i % k != phase).collect(),
            _ => (0..rows).collect(),
        };
        for j in 0..hidden {
            let products: Vec<(f32, f32)> =
                chosen.iter().map(|i| (dy[i * hidden + j], factors[i * hidden + j])).collect();
            let sum = match self.fault {
                Fault::Bf16ColumnSums => narrow_sum(products.iter().map(|(a, b)| f64::from(a * b))),
                _ => self.style.column.sum(&products),
            };
            out.dw.push(self.fl(sum));
            let ones: Vec<(f32, f32)> = (0..rows).map(|i| (dy[i * hidden + j], 1.0)).collect();
            out.db.push(self.fl(self.style.column.sum(&ones)));
        }
    }
}

/// A tensor's type and bytes.
pub(crate) fn stored(format: Format, values: impl Iterator<Item = f64>) -> (Dtype, Vec<u8>) {
    match format {
        Format::F32 => (Dtype::F32, values.flat_map(|v| (v as f32).to_le_bytes()).collect()),
        Format::F16 => (Dtype::F16, values.flat_map(|v| f16::from_f64(v).to_le_bytes()).collect()),
        Format::Bf16 => (Dtype::BF16, values.flat_map(|v| bf16::from_f64(v).to_le_bytes()).collect()),
    }
}

/// A file's tensors by name.
pub(crate) type Named = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The file of a problem and what a kernel made of it.
pub(crate) fn file(p: &Problem, out: &Outputs) -> Named {
    let mut tensors = Named::new();
    let matrix = vec![p.rows, p.hidden];
    let mut add = |name: &str, shape: &[usize], format: Format, values: &mut dyn Iterator<Item = f64>| {
        let (dtype, bytes) = stored(format, values);
        tensors.insert(name.into(), (dtype, shape.to_vec(), bytes));
    };
    let wide = |values: &Vec<f32>| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>().into_iter();
    add("x", &matrix, p.format, &mut wide(&p.x));
    add("dy", &matrix, p.format, &mut wide(&p.dy));
    let row = [p.hidden];
    for (name, shape, values) in [
        ("residual", &matrix[..], &p.residual),
        ("dz", &matrix[..], &p.dz),
        ("weight", &row[..], &p.weight),
        ("bias", &row[..], &p.bias),
    ] {
        if let Some(values) = values {
            add(name, shape, p.format, &mut wide(values));
        }
    }
    if let Some(z) = &out.z {
        add("z", &matrix, p.format, &mut z.iter().copied());
    }
    add("rstd", &[p.rows], Format::F32, &mut out.rstd.iter().copied());
    add("y", &matrix, p.format, &mut out.y.iter().copied());
    add("dx", &matrix, p.format, &mut out.dx.iter().copied());
    add("dw", &row, p.format, &mut out.dw.iter().copied());
    add("db", &row, p.format, &mut out.db.iter().copied());
    tensors
}

pub(crate) fn write(path: &Path, tensors: &Named, metadata: Option<HashMap<String, String>>) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, metadata, path).unwrap();
}
