//! Calls on the CPU.

use candle_core::{CpuStorage, Error, Result};
use rmsnorm_cuda::{Cpu, Executor, Operand, Slice, SliceMut, Vector, bf16, f16, scratch_len};

use crate::ops::{At, NAME, RmsNorm};
use crate::rows::Place;

/// y, and rstd if gradients are wanted.
pub(crate) fn forward(
    op: &RmsNorm,
    x: &CpuStorage,
    weight: Option<At<CpuStorage>>,
) -> Result<(CpuStorage, Option<CpuStorage>)> {
    let x = read(x)?;
    let mut y = like(x, op.at.rows * op.at.hidden);
    let mut rstd = op.tracked.then(|| vec![0.0_f32; op.at.rows]);
    let rstd_out = rstd.as_mut().map(|rstd| rstd.as_mut_slice().into());
    Cpu.forward(op.forward(x, weight.map(vector).transpose()?, write(&mut y)?, rstd_out)).map_err(Error::wrap)?;
    Ok((y, rstd.map(CpuStorage::F32)))
}

/// dx, and dw if it is wanted.
pub(crate) fn backward(
    op: &RmsNorm,
    (x, weight, rstd): (&CpuStorage, Option<At<CpuStorage>>, &CpuStorage),
    (dy, dy_at): (&CpuStorage, Place),
    wants_dw: bool,
) -> Result<(CpuStorage, Option<CpuStorage>)> {
    let Place { rows, hidden, .. } = op.at;
    let (x, weight, rstd) = (read(x)?, weight.map(vector).transpose()?, read(rstd)?);
    let dy = (read(dy)?, dy_at);
    let mut dx = like(x, rows * hidden);
    let mut dw = weight.filter(|_| wants_dw).map(|weight| like(weight.data, hidden));
    let mut scratch = vec![0.0; if dw.is_some() { scratch_len(rows, hidden).map_err(Error::wrap)? } else { 0 }];
    let dw_out = dw.as_mut().map(|dw| Ok::<_, Error>((write(dw)?, scratch.as_mut_slice().into()))).transpose()?;
    Cpu.backward(op.backward((x, weight, rstd), dy, write(&mut dx)?, dw_out)).map_err(Error::wrap)?;
    Ok((dx, dw))
}

fn vector<'a>((storage, layout): At<'a, CpuStorage>) -> Result<Vector<Slice<'a>>> {
    Ok(Vector { data: read(storage)?, offset: layout.start_offset() })
}

fn read(storage: &CpuStorage) -> Result<Slice<'_>> {
    match storage {
        CpuStorage::F32(data) => Ok(data.as_slice().into()),
        CpuStorage::F16(data) => Ok(data.as_slice().into()),
        CpuStorage::BF16(data) => Ok(data.as_slice().into()),
        other => Err(unsupported(other)),
    }
}

fn write(storage: &mut CpuStorage) -> Result<SliceMut<'_>> {
    match storage {
        CpuStorage::F32(data) => Ok(data.as_mut_slice().into()),
        CpuStorage::F16(data) => Ok(data.as_mut_slice().into()),
        CpuStorage::BF16(data) => Ok(data.as_mut_slice().into()),
        other => Err(unsupported(other)),
    }
}

fn unsupported(storage: &CpuStorage) -> Error {
    use candle_core::backend::BackendStorage;
    Error::UnsupportedDTypeForOp(storage.dtype(), NAME).bt()
}

/// So many elements of the same type.
fn like(operand: Slice<'_>, elements: usize) -> CpuStorage {
    match operand.dtype() {
        rmsnorm_cuda::Dtype::F32 => CpuStorage::F32(vec![0.0; elements]),
        rmsnorm_cuda::Dtype::F16 => CpuStorage::F16(vec![f16::ZERO; elements]),
        rmsnorm_cuda::Dtype::Bf16 => CpuStorage::BF16(vec![bf16::ZERO; elements]),
    }
}
