//! The compiled kernels: nothing approximate, flushing or atomic, every f32 operation rounded to nearest.
//!
//! Needs NVRTC, no GPU. Without NVRTC the tests say so and pass, unless `RMSNORM_REQUIRE_NVRTC=1`.
#![cfg(feature = "cuda")]

use rmsnorm_cuda::Dtype;
use rmsnorm_cuda::cuda::compile::{Module, compile, compile_source};
use rmsnorm_cuda::cuda::library::nvrtc;
use rmsnorm_cuda::plan::classes;

fn nvrtc_is_there() -> bool {
    let Err(error) = nvrtc() else { return true };
    assert!(std::env::var_os("RMSNORM_REQUIRE_NVRTC").is_none(), "RMSNORM_REQUIRE_NVRTC is set, but: {error}");
    println!("SKIPPED, no kernel was compiled: {error}");
    false
}

/// Every class of `dtype` as its fastest kernel for sm_90.
fn modules(dtype: Dtype) -> Vec<Module> {
    let rows = |class: rmsnorm_cuda::plan::Class| {
        let held = class.packs > 0;
        let ring = held && class.lanes >= 32;
        Module::Rows { class, dtype, weight: Some(dtype), zero_centred: true, aligned: true, ring, exact: held }
    };
    classes(dtype).into_iter().map(rows).chain([Module::Fold { dw: dtype }]).collect()
}

#[test]
fn every_operation_rounds_to_nearest() {
    if !nvrtc_is_there() {
        return;
    }
    let mut all: Vec<(Module, (u32, u32))> =
        [Dtype::F32, Dtype::Bf16].into_iter().flat_map(modules).map(|m| (m, (9, 0))).collect();
    // The other architectures, without bulk copies, and what the launch code asks for if something is not aligned.
    for architecture in [(8, 0), (9, 0), (10, 0), (12, 0)] {
        for (dtype, weight, aligned) in
            [(Dtype::F16, None, false), (Dtype::F16, Some(Dtype::F32), true), (Dtype::F32, Some(Dtype::F32), false)]
        {
            for hidden in [7, 100, 4096, 1 << 20] {
                let class = rmsnorm_cuda::plan::class(hidden, dtype);
                let module =
                    Module::Rows { class, dtype, weight, zero_centred: false, aligned, ring: false, exact: false };
                all.push((module, architecture));
            }
        }
    }
    let mut spilled_bytes = 0;
    for (module, architecture) in &all {
        let compiled = compile(module, *architecture).unwrap_or_else(|error| panic!("{error}"));
        let found = complaints(&compiled.ptx);
        assert!(found.is_empty(), "{module} for {architecture:?}: {}", found.join("\n"));
        spilled_bytes += spills(&compiled.log);
    }
    println!("{} kernels compiled; {spilled_bytes} bytes of spill stores in all of them", all.len());
}

/// Bytes of spill stores, from the assembler's report.
fn spills(log: &str) -> u32 {
    let stores = log.split(',').filter_map(|part| part.trim().strip_suffix(" bytes spill stores"));
    stores.filter_map(|bytes| bytes.parse::<u32>().ok()).sum()
}

/// The lines of a kernel that round otherwise than to nearest, approximate, flush, or add floats atomically.
fn complaints(ptx: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in ptx.lines().map(str::trim) {
        let Some(operation) = line.split_whitespace().find(|w| !w.starts_with('@')) else { continue };
        let parts: Vec<&str> = operation.trim_end_matches(';').split('.').collect();
        let is = |part: &str| parts.contains(&part);
        let arithmetic =
            matches!(parts[0], "add" | "sub" | "mul" | "fma" | "mad" | "div" | "sqrt" | "rcp" | "rsqrt" | "cvt");
        let unrounded = is("f32")
            && !is("rn")
            && matches!(parts[0], "add" | "sub" | "mul" | "fma" | "mad" | "div" | "sqrt" | "rcp");
        let approximate =
            is("approx") || is("ftz") || is("full") || matches!(parts[0], "rsqrt" | "ex2" | "lg2" | "sin" | "cos");
        let atomic = matches!(parts[0], "atom" | "red") && (is("f32") || is("f16") || is("bf16") || is("f64"));
        if (arithmetic && unrounded) || approximate || atomic {
            found.push(line.to_string());
        }
    }
    found
}

#[test]
fn the_checker_rejects_bad_kernels() {
    if !nvrtc_is_there() {
        return;
    }
    let kernel = |body: &str| format!("extern \"C\" __global__ void k(float* p, int n) {{ {body} }}");
    let bad = [
        ("addition toward zero", "p[0] = __fadd_rz(p[0], p[1]);"),
        ("approximate root", "p[0] = rsqrtf(p[1]);"),
        ("approximate division", "p[0] = __fdividef(p[0], p[1]);"),
        ("atomic addition", "atomicAdd(p, 1.0f);"),
        ("approximate power", "p[0] = __expf(p[1]);"),
    ];
    for (what, body) in bad {
        let compiled = compile_source(&kernel(body), what, (9, 0)).expect(what);
        assert!(!complaints(&compiled.ptx).is_empty(), "accepted: {what}");
    }
    let good = "p[0] = __fadd_rn(__fmul_rn(p[0], p[1]), __fdiv_rn(__fsqrt_rn(p[2]), p[3]));";
    let compiled = compile_source(&kernel(good), "good", (9, 0)).expect("good");
    assert_eq!(complaints(&compiled.ptx), Vec::<String>::new());
}
