//! Whether the launches that were timed wrote the right bits.

use super::report::Differ;
use rayon::prelude::*;
use rmsnorm_cuda::cuda::checks::meter::{Cell, Downloaded, EPS, Host};
use rmsnorm_cuda::{
    Backward, BiasGradient, Cpu, Dtype, Error, Executor, Forward, Operand, Residual, Rows, Slice, WeightGradient,
    scratch_len,
};

/// Computes y, rstd, dx, dw and what else was written of a cell again on the CPU, whole, and counts the elements that differ in any bit.
pub(super) fn differ(got: &Downloaded, cell: &Cell) -> Result<Differ, Error> {
    let Cell { dtype, rows, hidden, heads, .. } = *cell;
    let (inner, per_head) = (heads, heads > 1);
    let mut out = Host::zeros(dtype, rows * hidden);
    let (mut rstd, mut dw) = (Host::zeros(Dtype::F32, rows), Host::zeros(dtype, heads * hidden));
    let mut z = got.sum.as_ref().map(|_| Host::zeros(cell.stream_dtype(), rows * hidden));
    let residual = got.sum.as_ref().zip(z.as_mut()).map(|(sum, z)| Residual {
        residual: Rows::contiguous(sum.residual.slice(), hidden),
        z: Rows::contiguous(z.slice_mut(), hidden),
    });
    Cpu.forward(Forward {
        residual,
        weight: Some(got.weight.slice().into()),
        bias: got.bias.as_ref().map(|bias| bias.bias.slice().into()),
        rstd: Some(rstd.slice_mut().into()),
        inner,
        per_head,
        ..Forward::with_rows(
            (rows, hidden),
            EPS,
            cell.packed_rows(got.x.slice()),
            Rows::contiguous(out.slice_mut(), hidden),
        )
    })?;
    let y = count(got.y.slice(), out.slice());
    let partials = heads * scratch_len(rows / heads, hidden)?;
    let [mut scratch, mut db_scratch] = [partials; 2].map(|len| Host::zeros(Dtype::F32, len));
    let mut db = got.bias.as_ref().map(|_| Host::zeros(dtype, heads * hidden));
    let normalised = z.as_ref().map_or(cell.packed_rows(got.x.slice()), |z| Rows::contiguous(z.slice(), hidden));
    // What lies between the rows is nobody's.
    let mut dx = got.dx.clone();
    Cpu.backward(Backward {
        weight: Some(got.weight.slice().into()),
        dz: got.sum.as_ref().map(|sum| Rows::contiguous(sum.dz.slice(), hidden)),
        dw: Some(WeightGradient { dw: dw.slice_mut().into(), scratch: scratch.slice_mut().into() }),
        db: db.as_mut().map(|db| BiasGradient { db: db.slice_mut().into(), scratch: db_scratch.slice_mut().into() }),
        inner,
        per_head,
        ..Backward::with_rows(
            (rows, hidden),
            normalised,
            rstd.slice().into(),
            Rows::contiguous(got.dy.slice(), hidden),
            cell.packed_rows(dx.slice_mut()),
        )
    })?;
    Ok(Differ {
        elements: ((2 + usize::from(z.is_some())) * rows * hidden
            + rows
            + (1 + usize::from(db.is_some())) * heads * hidden) as u64,
        // A wrong z is a wrong y, a wrong db a wrong dw.
        y: y + z.as_ref().zip(got.sum.as_ref()).map_or(0, |(want, got)| count(got.z.slice(), want.slice())),
        rstd: count(got.rstd.slice(), rstd.slice()),
        dx: count(got.dx.slice(), dx.slice()),
        dw: count(got.dw.slice(), dw.slice())
            + db.as_ref().zip(got.bias.as_ref()).map_or(0, |(want, got)| count(got.db.slice(), want.slice())),
    })
}

/// Elements whose bits differ, or that only one side has.
fn count(got: Slice<'_>, want: Slice<'_>) -> u64 {
    fn of<T: Sync>(got: &[T], want: &[T], differ: impl Fn(&T, &T) -> bool + Sync) -> u64 {
        let both = got.par_chunks(1 << 16).zip(want.par_chunks(1 << 16));
        let pairs = |(got, want): (&[T], &[T])| got.iter().zip(want).filter(|(got, want)| differ(got, want)).count();
        (both.map(pairs).sum::<usize>() + got.len().abs_diff(want.len())) as u64
    }
    match (got, want) {
        (Slice::F32(got), Slice::F32(want)) => of(got, want, |got, want| got.to_bits() != want.to_bits()),
        (Slice::F16(got), Slice::F16(want)) => of(got, want, |got, want| got.to_bits() != want.to_bits()),
        (Slice::Bf16(got), Slice::Bf16(want)) => of(got, want, |got, want| got.to_bits() != want.to_bits()),
        (got, want) => got.elements().max(want.elements()) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rmsnorm_cuda::{bf16, f16};

    /// Flips the lowest bit of an element.
    fn flip(host: &mut Host, at: usize) {
        match host {
            Host::F32(data) => data[at] = f32::from_bits(data[at].to_bits() ^ 1),
            Host::F16(data) => data[at] = f16::from_bits(data[at].to_bits() ^ 1),
            Host::Bf16(data) => data[at] = bf16::from_bits(data[at].to_bits() ^ 1),
        }
    }

    fn noise(dtype: Dtype, elements: usize, seed: usize) -> Host {
        let value = |i: usize| ((i + seed) * 2_654_435_761 % 1009) as f32 / 512.0 - 1.0;
        match dtype {
            Dtype::F32 => Host::F32((0..elements).map(value).collect()),
            Dtype::F16 => Host::F16((0..elements).map(|i| f16::from_f32(value(i))).collect()),
            Dtype::Bf16 => Host::Bf16((0..elements).map(|i| bf16::from_f32(value(i))).collect()),
        }
    }

    /// What the CPU makes of some noise.
    fn computed(dtype: Dtype, rows: usize, hidden: usize) -> Downloaded {
        let mut all = Downloaded {
            x: noise(dtype, rows * hidden, 1),
            dy: noise(dtype, rows * hidden, 500),
            weight: noise(dtype, hidden, 77),
            y: Host::zeros(dtype, rows * hidden),
            rstd: Host::zeros(Dtype::F32, rows),
            dx: Host::zeros(dtype, rows * hidden),
            dw: Host::zeros(dtype, hidden),
            sum: None,
            bias: None,
        };
        let call = Forward {
            weight: Some(all.weight.slice().into()),
            rstd: Some(all.rstd.slice_mut().into()),
            ..Forward::new((rows, hidden), EPS, all.x.slice(), all.y.slice_mut())
        };
        Cpu.forward(call).unwrap();
        let mut scratch = Host::zeros(Dtype::F32, scratch_len(rows, hidden).unwrap());
        let dw = Some(WeightGradient { dw: all.dw.slice_mut().into(), scratch: scratch.slice_mut().into() });
        let call = Backward {
            weight: Some(all.weight.slice().into()),
            dw,
            ..Backward::new((rows, hidden), all.x.slice(), all.rstd.slice(), all.dy.slice(), all.dx.slice_mut())
        };
        Cpu.backward(call).unwrap();
        all
    }

    #[test]
    fn one_bit_is_found_wherever_it_is() {
        let (rows, hidden) = (1500, 97);
        for dtype in Dtype::ALL {
            let mut got = computed(dtype, rows, hidden);
            let (residual, stream, bias, moved) = (false, false, false, false);
            let cell = Cell { dtype, rows, hidden, residual, stream, bias, moved, heads: 1 };
            let right = Differ { elements: 2 * 1500 * 97 + 1500 + 97, ..Differ::default() };
            assert_eq!(differ(&got, &cell).unwrap(), right);
            flip(&mut got.y, 0);
            flip(&mut got.y, rows * hidden - 1);
            flip(&mut got.rstd, rows - 1);
            flip(&mut got.dx, 70_000);
            flip(&mut got.dw, hidden - 1);
            assert_eq!(differ(&got, &cell).unwrap(), Differ { y: 2, rstd: 1, dx: 1, dw: 1, ..right });
            // An output of another length or type differs.
            got.dw = Host::zeros(dtype, 0);
            assert_eq!(differ(&got, &cell).unwrap().dw, hidden as u64);
        }
    }
}
