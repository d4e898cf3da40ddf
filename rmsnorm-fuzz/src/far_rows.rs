//! Property 11: no product of a row and a stride is 32 bits wide.

use crate::finding::{Evidence, Finding, Stop};
use crate::subject::Subject;
use half::slice::HalfBitsSliceExt;
use rmsnorm_cuda::{
    Backward, BiasGradient, Error, Executor, Forward, Rows, Slice, SliceMut, WeightGradient, WeightOffset, bf16,
    scratch_len,
};

/// *Two rows so far apart that the second begins beyond 2^31 elements, and in `x` beyond 2^32, give the bits that they give side by
/// side.* The memory between them is never touched, so the system need not provide it (an executor that copies whole buffers
/// needs 22 GB).
pub(crate) fn far_rows(subject: &Subject) -> Finding {
    let executor = &*subject.executor;
    let mut evidence = Evidence::default();
    // db has kernels of its own, which are not compiled ahead.
    let (has_db, near) = match run(executor, HIDDEN, HIDDEN, true) {
        Err(Stop::NotApplicable(_)) => (false, run(executor, HIDDEN, HIDDEN, false)?),
        near => (true, near?),
    };
    evidence.exclude("db: its kernels were not compiled ahead", u64::from(!has_db));
    let far = run(executor, (1 << 32) + 24, (1 << 31) + 24, has_db)?;
    let compared = if has_db { 4 } else { 3 };
    for (name, (near, far)) in ["y", "dx", "dw", "db"].into_iter().zip(near.iter().zip(&far)).take(compared) {
        if let Some(at) = (0..near.len()).find(|&i| near[i].to_bits() != far[i].to_bits()) {
            return Err(Stop::Failed(format!("{name}[{at}] is {} side by side, and {} far apart", near[at], far[at])));
        }
        evidence.count(near.len() as u64);
    }
    Ok(evidence)
}

/// y, dx, dw and db of two rows, `x_stride` apart in x and `stride` in the other tensors.
fn run(executor: &dyn Executor, x_stride: usize, stride: usize, has_db: bool) -> Result<[Vec<bf16>; 4], Stop> {
    let (rows, hidden, weight_offset) = (2, HIDDEN, WeightOffset::Zero);
    // Zero bits from the system are pages that do not exist until they are touched.
    let tensor = |stride: usize| vec![0u16; stride + hidden];
    let (mut x, mut dy, mut y, mut dx) = (tensor(x_stride), tensor(stride), tensor(stride), tensor(stride));
    let value = |i: usize, step: usize| bf16::from_f32((i * step % 31) as f32 / 8.0 - 2.0);
    for i in 0..hidden {
        for (tensor, stride, step) in [(&mut x, x_stride, 7), (&mut dy, stride, 5)] {
            tensor[i] = value(i, step).to_bits();
            tensor[stride + i] = value(i + 3, step + 4).to_bits();
        }
    }
    let weight: Vec<bf16> = (0..hidden).map(|i| value(i, 11)).collect();
    let (mut rstd, [mut dw, mut db]) = ([0.0f32; 2], [(); 2].map(|()| vec![bf16::ZERO; hidden]));
    let needed = scratch_len(rows, hidden)?;
    let [mut scratch, mut db_scratch] = [(); 2].map(|()| vec![f32::NAN; needed]);
    let forward = executor.forward(Forward {
        weight_offset,
        weight: Some(Slice::Bf16(&weight).into()),
        rstd: Some(SliceMut::F32(&mut rstd).into()),
        ..Forward::with_rows(
            (rows, hidden),
            1e-5,
            Rows::strided(Slice::Bf16(x.reinterpret_cast()), 0, x_stride),
            Rows::strided(SliceMut::Bf16(y.reinterpret_cast_mut()), 0, stride),
        )
    });
    forward.map_err(no_memory)?;
    let backward = executor.backward(Backward {
        weight_offset,
        weight: Some(Slice::Bf16(&weight).into()),
        dw: Some(WeightGradient { dw: SliceMut::Bf16(&mut dw).into(), scratch: SliceMut::F32(&mut scratch).into() }),
        db: has_db.then(|| BiasGradient {
            db: SliceMut::Bf16(&mut db).into(),
            scratch: SliceMut::F32(&mut db_scratch).into(),
        }),
        ..Backward::with_rows(
            (rows, hidden),
            Rows::strided(Slice::Bf16(x.reinterpret_cast()), 0, x_stride),
            Slice::F32(&rstd).into(),
            Rows::strided(Slice::Bf16(dy.reinterpret_cast()), 0, stride),
            Rows::strided(SliceMut::Bf16(dx.reinterpret_cast_mut()), 0, stride),
        )
    });
    backward.map_err(no_memory)?;
    let rows_of = |tensor: &[u16]| {
        let both = tensor[..hidden].iter().chain(&tensor[stride..][..hidden]);
        both.map(|&bits| bf16::from_bits(bits)).collect::<Vec<_>>()
    };
    Ok([rows_of(&y), rows_of(&dx), dw, db])
}

/// A GPU with less memory than that has nothing to say.
fn no_memory(error: Error) -> Stop {
    match error {
        Error::Driver { call: "cuMemAlloc", code } => Stop::NotApplicable(format!("two rows far apart: {code}")),
        error => error.into(),
    }
}

/// Wide enough for bulk copies.
const HIDDEN: usize = 1024;
