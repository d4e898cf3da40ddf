//! Without NVRTC: kernels compiled ahead, or kept by a process that had one. The bundles are made here, of numbers that the stand-in takes for
//! PTX (the shared memory that a module declares).

use std::convert::Infallible;
use std::path::Path;

use rmsnorm_cuda::cuda::module::Module;
use rmsnorm_cuda::cuda::prebuilt::{Bundle, pack};
use rmsnorm_cuda::cuda::steps::{Step, backward, forward};
use rmsnorm_cuda::cuda::{Cache, Calls, Kernels, Origin};
use rmsnorm_cuda::plan::{Arch, Tuning};
use rmsnorm_cuda::{Dtype, Error, Rounding};

use super::raw::Operands;
use super::{Library, alone, calls_of, context_and_stream, machine, names};

const NOWHERE: (&str, &str) = ("RMSNORM_NVRTC", "/nonexistent/libnvrtc.so.13");

fn calls() -> Calls {
    Calls { weight: Some(Dtype::Bf16), dw: Some(Dtype::Bf16), ..Calls::new((64, 4096), Dtype::Bf16) }
}

/// The portable modules of these calls and of the fold that every bundle has.
fn modules() -> Vec<Module> {
    let arch = Arch { compute_capability: (8, 0), ..Arch::H200 };
    let tuning = Tuning { few_rows: false, ..Tuning::of(arch) };
    let steps = [forward(&calls().forward().unwrap(), &tuning), backward(&calls().backward().unwrap(), &tuning)];
    let module = |step: Step| if let Step::Kernel(kernel) = step { Some(kernel.module.portable()) } else { None };
    let all = steps.into_iter().flat_map(|steps| steps.expect("a plan")).filter_map(module);
    all.chain([Module::Fold { dw: Dtype::F32, per_head: false }]).collect()
}

/// A frame that stores what it is given: blocks of raw bytes behind a header that says how many there are.
fn stored(raw: &[u8]) -> Result<Vec<u8>, Infallible> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend((raw.len() as u32).to_le_bytes());
    frame.extend(&((raw.len() as u32) << 3 | 1).to_le_bytes()[..3]);
    frame.extend(raw);
    Ok(frame)
}

fn packed(modules: &[Module]) -> Vec<u8> {
    let modules: Vec<_> = modules.iter().enumerate().map(|(i, module)| (*module, format!("{}", 512 + i))).collect();
    pack((12, 0), &modules, stored).unwrap_or_else(|never| match never {})
}

fn bundle(modules: &[Module]) -> &'static Bundle {
    Box::leak(Box::new(Bundle::read(packed(modules).leak()).expect("a bundle")))
}

/// Prepared and called, it loads what was packed, launches without dynamic shared memory, and needs no compiler.
#[test]
fn a_bundle_is_enough() {
    alone("ahead::a_bundle_is_enough", Library::Complete, &[NOWHERE], || {
        let (context, _stream) = context_and_stream();
        let kernels = Kernels::of_bundle(&context, bundle(&modules())).expect("kernels");
        kernels.prepare(&calls()).expect("prepared");
        let operands = Operands::new(Dtype::Bf16, 64, 4096);
        let launched = calls_of(|| {
            // SAFETY: the stand-in touches no operand.
            unsafe { kernels.forward(&operands.forward(), std::ptr::without_provenance_mut(77)) }.expect("launched");
            // SAFETY: as above.
            unsafe { kernels.backward(&operands.backward(), std::ptr::without_provenance_mut(77)) }.expect("launched");
        });
        let launches: Vec<&String> = launched.iter().filter(|call| call.starts_with("cuLaunchKernel")).collect();
        assert_eq!(launches.len(), 3, "{launched:?}");
        assert!(launches.iter().all(|call| call.contains(" shared 0 ")), "{launches:?}");
        assert!(!names(&launched).contains(&"cuModuleLoadData"), "{launched:?}");
        let loaded = kernels.loaded();
        assert!(
            loaded.iter().all(|(name, origin)| *origin == Origin::Prebuilt && !name.contains("Ringed")),
            "{loaded:?}"
        );
        assert_eq!(loaded.len(), 3, "{loaded:?}");
        // What is not in it is named, with the other places.
        let error = kernels.prepare(&Calls::new((64, 4096), Dtype::F16)).expect_err("no such module");
        println!("{error}");
        let Error::NoCode { kernel, cache, nvrtc, prebuilt } = error else { panic!("another error: {error}") };
        assert!(kernel.contains("f16") && kernel.contains("unaligned") && cache == "is off", "{kernel} {cache}");
        assert!(nvrtc.contains("not to be used") && prebuilt.contains("4 modules by NVRTC 12.0"), "{nvrtc} {prebuilt}");
        // Nor is rounding twice, of calls that are in it otherwise.
        let error = kernels.prepare(&Calls { rounding: Rounding::Twice, ..calls() }).expect_err("no such module");
        let Error::NoCode { kernel, prebuilt, .. } = error else { panic!("another error: {error}") };
        assert!(kernel.contains("rounded twice") && prebuilt.contains("none of this"), "{kernel} {prebuilt}");
        // Nor are a bias and its gradient.
        let (bias, db) = (Some(Dtype::F32), Some(Dtype::Bf16));
        for (calls, name) in
            [(Calls { bias, ..calls() }, "a bias of f32"), (Calls { db, ..calls() }, "sums of dy bf16")]
        {
            let error = kernels.prepare(&calls).expect_err("no such module");
            let Error::NoCode { kernel, prebuilt, .. } = error else { panic!("another error: {error}") };
            assert!(kernel.contains(name) && prebuilt.contains("none of this"), "{kernel} {prebuilt}");
        }
    });
}

/// Kept by a process with NVRTC, taken by one without; what was not kept is an error that names all three places.
#[test]
fn what_was_kept_needs_no_compiler() {
    let folder = machine::folder();
    let path = std::env::var("KEPT").unwrap_or_else(|_| folder.path().join("kept").display().to_string());
    let body = || {
        let (context, _stream) = context_and_stream();
        let kernels = || Kernels::with_cache(&context, Cache::at(Path::new(&path)));
        match std::env::var("STEP").expect("a step").as_str() {
            "nothing kept" => {
                let Some(Error::NoCode { cache, prebuilt, .. }) = kernels().err() else { panic!("another error") };
                assert!(cache == format!("{path} has none") && !prebuilt.is_empty(), "{cache}");
            }
            "compiled" => {
                let kernels = kernels().expect("kernels");
                kernels.prepare(&calls()).expect("prepared");
                assert!(kernels.loaded().iter().all(|(_, origin)| *origin == Origin::Nvrtc), "{:?}", kernels.loaded());
            }
            _ => {
                let kernels = kernels().expect("kernels");
                kernels.prepare(&calls()).expect("prepared");
                assert!(kernels.loaded().iter().all(|(_, origin)| *origin == Origin::Cache), "{:?}", kernels.loaded());
                let error = kernels.prepare(&Calls::new((64, 512), Dtype::F32)).expect_err("not kept");
                assert!(matches!(error, Error::NoCode { .. }), "{error}");
            }
        }
    };
    // The stand-in is of no version that exists, unless it is told.
    for (step, nvrtc) in [("nothing kept", NOWHERE), ("compiled", ("STAND_IN_NVRTC", "12080")), ("taken", NOWHERE)] {
        let variables = [("STEP", step), ("KEPT", path.as_str()), nvrtc];
        if alone("ahead::what_was_kept_needs_no_compiler", Library::Complete, &variables, body).is_none() {
            return;
        }
    }
}

#[test]
fn bundles_that_are_none() {
    let refused = |bytes: Vec<u8>| Bundle::read(bytes.leak()).expect_err("a refusal");
    let good = packed(&modules());
    assert!(refused(Vec::new()).contains("no list"));
    assert!(refused(b"something\nelse\n\n".to_vec()).contains("begins \"something\""));
    assert!(refused(good[..good.len() - 1].to_vec()).contains("has the line"));
    assert!(refused(packed(&modules()[..1])).contains("other kernels"));
    // One byte of a module is another: it is not given to the driver.
    let mut damaged = good;
    *damaged.last_mut().expect("a byte") ^= 1;
    let bundle = Bundle::read(damaged.leak()).expect("a bundle, as far as its list goes");
    assert!(bundle.image(&modules()[0]).is_ok());
    assert!(
        bundle
            .image(&Module::Fold { dw: Dtype::F32, per_head: false })
            .expect_err("a refusal")
            .contains("not what was packed")
    );
}
