//! What was prepared is launched, and nothing else is asked of the driver.

use rmsnorm_cuda::cuda::{Calls, Kernels};
use rmsnorm_cuda::cudarc::driver::sys::CUstream;
use rmsnorm_cuda::{Dtype, Error, WeightOffset};

use super::raw::{Operands, kernels};
use super::{Library, alone, calls_of, names};

/// Whatever is prepared needs nothing more, on any stream, in place or not: a call is its launches.
#[test]
fn a_prepared_call_only_launches() {
    alone("prepared::a_prepared_call_only_launches", Library::Complete, &[], || {
        let (kernels, stream) = kernels();
        let mut prepared = 0;
        for hidden in [1, 7, 64, 180, 2048, 4096, 5000, 65536] {
            for dtype in Dtype::ALL {
                for weight in [None, Some(dtype), Some(Dtype::F32)] {
                    for (aligned, rows) in [(true, 5), (false, 300)] {
                        let weight_offset = if rows == 5 { WeightOffset::One } else { WeightOffset::Zero };
                        let dw = Some(weight.unwrap_or(Dtype::F32));
                        let kind = Calls { weight, weight_offset, dw, aligned, ..Calls::new((rows, hidden), dtype) };
                        kernels.prepare(&kind).expect("prepared");
                        demand_launches_alone(&kernels, stream, &kind);
                        prepared += 2;
                    }
                }
            }
        }
        println!("{prepared} kinds of calls");
    });
}

/// Calls of this kind, out of place and in place, ask the driver for nothing but their launches.
fn demand_launches_alone(kernels: &Kernels, stream: CUstream, kind: &Calls) {
    let Calls { rows, hidden, dtype, weight, weight_offset, dw, aligned, .. } = *kind;
    // Whole buffers with rows of 16-byte packs, or one element into them.
    let operands = Operands::new(dtype, rows, hidden);
    let shift = usize::from(!aligned);
    let (mut forward, mut backward) = (operands.forward(), operands.backward());
    for matrix in [&mut forward.x, &mut forward.y, &mut backward.x, &mut backward.dx] {
        (matrix.offset, matrix.data.elements) = (shift, matrix.data.elements + shift);
    }
    let vector = |dtype| operands.memory(dtype, hidden).into();
    (forward.weight, backward.weight) = (weight.map(vector), weight.map(vector));
    (forward.weight_offset, backward.weight_offset) = (weight_offset, weight_offset);
    if let (Some(gradient), Some(dtype)) = (&mut backward.dw, dw) {
        gradient.dw.data.dtype = dtype;
    }
    for in_place in [false, true] {
        if in_place {
            (forward.y, backward.dx) = (forward.x, backward.dy);
        }
        let calls = calls_of(|| {
            // SAFETY: the stand-in runs no kernel, so no operand is read or written.
            unsafe { kernels.forward(&forward, stream) }.expect("a forward call");
            // SAFETY: as above; with rows there is nothing to clear.
            unsafe { kernels.backward(&backward, stream) }.expect("a backward call");
        });
        let launches = calls.iter().filter(|c| c.starts_with("cuLaunchKernel") && c.ends_with("stream 77")).count();
        let others = calls.iter().filter(|call| *call == "cuCtxGetCurrent").count();
        let few = aligned && !in_place && (257..=16_384).contains(&hidden);
        assert!(launches >= if few { 2 } else { 3 } && others == 2, "{calls:#?}");
        assert_eq!(calls.len(), launches + others, "{calls:#?}");
    }
}

/// Prepared without rows, called with any number of them; what cannot be prepared is told.
#[test]
fn what_is_prepared_has_any_number_of_rows() {
    alone("prepared::what_is_prepared_has_any_number_of_rows", Library::Complete, &[], || {
        let (kernels, stream) = kernels();
        let bf16 = Some(Dtype::Bf16);
        let kind = Calls { weight: bf16, dw: bf16, ..Calls::new((0, 256), Dtype::Bf16) };
        assert_eq!(kernels.prepare(&kind), Ok(()));
        for rows in [1, 100_000] {
            let operands = Operands::new(Dtype::Bf16, rows, kind.hidden);
            let calls = calls_of(|| {
                // SAFETY: the stand-in runs no kernel, so no operand is read or written.
                unsafe { kernels.forward(&operands.forward(), stream) }.expect("a forward call");
                // SAFETY: as above; with rows there is nothing to clear.
                unsafe { kernels.backward(&operands.backward(), stream) }.expect("a backward call");
            });
            let expected = ["cuCtxGetCurrent", "cuLaunchKernel", "cuCtxGetCurrent", "cuLaunchKernel", "cuLaunchKernel"];
            assert_eq!(names(&calls), expected);
        }
        let kind = Calls::new((8, 4096), Dtype::F32);
        assert_eq!(kernels.prepare(&Calls { hidden: 0, ..kind }), Err(Error::Hidden { got: 0 }));
        for rows in [usize::MAX, usize::MAX / 4096, usize::MAX / 4096 / 5, usize::MAX / 4096 / 12] {
            let Err(Error::AddressRange { .. }) = kernels.prepare(&Calls { rows, ..kind }) else {
                panic!("{rows} rows")
            };
        }
    });
}
