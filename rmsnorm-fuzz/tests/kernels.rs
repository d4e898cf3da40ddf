//! The compiled kernels: nothing approximate, flushing or atomic, every f32 operation rounded to nearest, no spills and no stack.
//!
//! Needs NVRTC, no GPU. Without NVRTC the tests say so and pass, unless `RMSNORM_REQUIRE_NVRTC=1`. What is sampled here is
//! compiled in full by `cargo xtask ptx --check`.
#![cfg(feature = "cuda")]

use rayon::prelude::*;
use rmsnorm_cuda::cuda::compile::compile_source;
use rmsnorm_cuda::cuda::library::nvrtc;
use rmsnorm_cuda::cuda::module::{Grouping, Module};
use rmsnorm_cuda::plan::{Arch, Class, Direction, classes};
use rmsnorm_cuda::{Dtype, Rounding, WeightOffset};
use rmsnorm_fuzz::compiled::{Unit, complaints, inspect, kinds, resources, units};
use std::collections::BTreeSet;
use std::process::Command;

#[path = "../../rmsnorm-cuda/tests/machine/mod.rs"]
mod machine;

fn nvrtc_is_there() -> bool {
    let missing = nvrtc((9, 0)).err();
    missing.iter().for_each(|error| machine::skip("NVRTC", error));
    missing.is_none()
}

/// For sm_90 every class in every layout with a weight of its own type, and a fifth of these with a residual and dz, with a bias, and of those that round
/// twice; a fifth of the modules for few rows, which take longest; for the others every class once, layouts and weights taking turns. And all that there are.
///
/// f16 and bf16 differ in two conversions of an element, by at most two registers a thread where they were compared, and f16 needs more: it stands for
/// both on sm_90, where bf16 has every class once; elsewhere they take turns.
fn chosen() -> (BTreeSet<Unit>, BTreeSet<Unit>) {
    let (mut chosen, mut all) = (BTreeSet::new(), BTreeSet::new());
    for (_, arch) in Arch::ALL {
        let is_hopper = arch.compute_capability == (9, 0);
        for dtype in Dtype::ALL {
            let mut of_dtype = Vec::new();
            for kind in kinds().into_iter().filter(|kind| kind.dtype == dtype) {
                let units = units(&arch, &kind).expect("legal calls");
                let special = kind.dz.is_some()
                    || kind.rounding == Rounding::Twice
                    || kind.bias.is_some()
                    || kind.two_levels
                    || kind.heads > 1
                    || Direction::BOTH.into_iter().any(|direction| kind.are_mixed(direction));
                let ordinary = kind.weight == Some(dtype) && kind.weight_offset == WeightOffset::Zero;
                if is_hopper && ordinary && dtype != Dtype::Bf16 {
                    let (few, others): (Vec<Unit>, Vec<Unit>) = units.iter().partition(|unit| is_few(unit));
                    chosen.extend(others.iter().step_by(if special { 5 } else { 1 }));
                    chosen.extend(few.iter().step_by(if special { 19 } else { 5 }));
                }
                of_dtype.extend(units);
            }
            for direction in Direction::BOTH {
                for (i, wanted) in classes(direction, dtype).into_iter().enumerate() {
                    let has_turn = is_hopper || dtype == Dtype::F32 || (dtype == Dtype::F16) == i.is_multiple_of(2);
                    let is_candidate =
                        |unit: &&Unit| is_of(unit, direction, wanted) && !is_grouped(unit) && !is_mixed(unit);
                    let of_class: Vec<&Unit> = of_dtype.iter().filter(is_candidate).collect();
                    // Not every GPU has clusters.
                    let one = of_class.get((7 * i + arch.sm_count as usize) % of_class.len().max(1));
                    chosen.extend(one.filter(|_| has_turn).copied());
                }
            }
            all.extend(of_dtype);
        }
    }
    (chosen, all)
}

/// What the units of one class on one architecture have in common, elements of as many bytes. Rows of several types have classes of the widest.
fn key(unit: &Unit) -> Option<((u32, u32), bool, usize, Class)> {
    match unit.module {
        _ if is_mixed(unit) => None,
        Module::Forward { rows, .. } => Some((unit.capability, true, rows.dtype.bytes(), rows.class)),
        Module::Backward { rows, .. } => Some((unit.capability, false, rows.dtype.bytes(), rows.class)),
        Module::ForwardFew { .. } | Module::BackwardFew { .. } | Module::BiasPartials { .. } | Module::Fold { .. } => {
            None
        }
    }
}

fn is_mixed(unit: &Unit) -> bool {
    match unit.module {
        Module::Forward { rows, residual, y, .. } => {
            y != rows.dtype || residual.is_some_and(|sum| sum != [rows.dtype; 2])
        }
        Module::Backward { rows, dy, dz, dx, .. } => {
            [dy, dx, dz.unwrap_or(dx)].iter().any(|dtype| *dtype != rows.dtype)
        }
        _ => false,
    }
}

/// Of rows, and these of two levels or of heads: on other GPUs than Hoppers the others stand for them.
fn is_grouped(unit: &Unit) -> bool {
    matches!(unit.module, Module::Forward { rows, .. } | Module::Backward { rows, .. } if rows.grouping != Grouping::None)
}

fn is_few(unit: &Unit) -> bool {
    matches!(unit.module, Module::ForwardFew { .. } | Module::BackwardFew { .. })
}

fn is_of(unit: &Unit, direction: Direction, wanted: Class) -> bool {
    match unit.module {
        Module::Forward { rows, .. } => direction == Direction::Forward && rows.class == wanted,
        Module::Backward { rows, .. } => direction == Direction::Backward && rows.class == wanted,
        Module::ForwardFew { .. } | Module::BackwardFew { .. } | Module::BiasPartials { .. } | Module::Fold { .. } => {
            false
        }
    }
}

/// Needs no NVRTC: what a class, an element size, a type on Hopper or a special kind of call lacks would be compiled nowhere.
#[test]
fn every_class_is_chosen() {
    let (chosen, all) = chosen();
    let keys = |units: &BTreeSet<Unit>| units.iter().filter_map(key).collect::<BTreeSet<_>>();
    assert_eq!(keys(&chosen), keys(&all));
    for (name, arch) in Arch::ALL {
        let of_arch = || chosen.iter().filter(|unit| unit.capability == arch.compute_capability);
        for dtype in Dtype::ALL {
            let has = of_arch().any(|unit| matches!(unit.module, Module::Backward { rows, .. } if rows.dtype == dtype));
            assert!(has, "{name} {dtype}");
        }
        println!(
            "{name}: {} modules, {} for few rows",
            of_arch().count(),
            of_arch().filter(|unit| is_few(unit)).count()
        );
    }
}

#[test]
fn every_class_compiles_to_rounded_operations_without_spills() {
    if !nvrtc_is_there() {
        return;
    }
    let (chosen, all) = chosen();
    let inspected: Vec<_> = chosen.par_iter().map(|unit| (unit, inspect(unit))).collect();
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut kernels = 0;
    for (unit, inspected) in &inspected {
        match inspected {
            Ok(inspected) => {
                found.extend(inspected.complaints.iter().map(|complaint| format!("{unit}: {complaint}")));
                kernels += inspected.resources.len();
                seen.extend(key(unit));
            }
            Err(error) => found.push(format!("{unit}: {error}")),
        }
    }
    let expected: BTreeSet<_> = all.iter().filter_map(key).collect();
    println!(
        "{kernels} kernels of {} modules, {} plan classes on {} architectures; left out, for `cargo xtask ptx --check`: \
         {} modules that differ in the weight's type or the layout",
        chosen.len(),
        expected.len(),
        Arch::ALL.len(),
        all.difference(&chosen).count()
    );
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert_eq!(seen, expected);
    assert!(kernels >= expected.len(), "{kernels} kernels");
}

#[test]
fn the_checker_rejects_bad_kernels() {
    if !nvrtc_is_there() {
        return;
    }
    let kernel = |body: &str| format!("extern \"C\" __global__ void k(float* p, unsigned* u, int n) {{ {body} }}");
    let bad = [
        ("addition toward zero", "p[0] = __fadd_rz(p[0], p[1]);"),
        ("product toward infinity", "p[0] = __fmul_ru(p[0], p[1]);"),
        ("approximate reciprocal root", "p[0] = rsqrtf(p[1]);"),
        ("approximate division", "p[0] = __fdividef(p[0], p[1]);"),
        ("division toward zero", "p[0] = __fdiv_rz(p[0], p[1]);"),
        ("root toward minus infinity", "p[0] = __fsqrt_rd(p[1]);"),
        ("atomic addition", "atomicAdd(p, 1.0f);"),
        ("approximate power", "p[0] = __expf(p[1]);"),
        ("flushed", "asm(\"add.rn.ftz.f32 %0, %1, %2;\" : \"=f\"(p[0]) : \"f\"(p[1]), \"f\"(p[2]));"),
        ("saturating", "p[0] = __saturatef(p[1]);"),
        ("double precision", "p[0] = (float)(0.1 * (double)p[1]);"),
        (
            "conversion toward zero",
            "unsigned short h; asm(\"cvt.rz.bf16.f32 %0, %1;\" : \"=h\"(h) : \"f\"(p[1])); u[0] = h;",
        ),
        ("a load of what nobody writes", "p[0] = __ldg(p + 1);"),
        ("arithmetic of halves", "asm(\"add.rn.f16x2 %0, %1, %2;\" : \"=r\"(u[0]) : \"r\"(u[1]), \"r\"(u[2]));"),
    ];
    for (what, body) in bad {
        let compiled = compile_source(&kernel(body), what, (9, 0)).expect(what);
        assert!(!complaints(&compiled.ptx).is_empty(), "accepted: {what}\n{}", compiled.ptx);
    }
    let good = "unsigned short h; asm(\"cvt.rn.f16.f32 %0, %1;\" : \"=h\"(h) : \"f\"(p[1]));
                p[0] = __fadd_rn(__fmul_rn(p[0], p[1]), __fdiv_rn(__fsqrt_rn(p[2]), __fmaf_rn(p[3], p[4], p[5])));
                u[0] = atomicAdd(u + 1, h);";
    let compiled = compile_source(&kernel(good), "good", (9, 0)).expect("good");
    assert_eq!(complaints(&compiled.ptx), Vec::<String>::new());
}

/// A kernel whose threads need more registers than they have, and one with an array that is indexed.
#[test]
fn spills_and_stacks_are_seen() {
    if !nvrtc_is_there() {
        return;
    }
    let spills = "extern \"C\" __global__ void __launch_bounds__(1024) k(float* p) {
        float v[96];
        #pragma unroll
        for (int i = 0; i < 96; i++) v[i] = p[i * 1024 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 96; i++) p[(95 - i) * 1024 + threadIdx.x] = __fmul_rn(v[i], v[(i * 7) % 96]);
    }";
    let stack = "extern \"C\" __global__ void k(float* p, const int* at) {
        float v[40];
        for (int i = 0; i < 40; i++) v[at[i]] = p[i];
        for (int i = 0; i < 40; i++) p[i] = v[at[i + 40]];
    }";
    for (what, source) in [("spills", spills), ("stack", stack)] {
        let compiled = compile_source(source, what, (9, 0)).expect(what);
        let found = resources(&compiled.log);
        assert_eq!(found.len(), 1, "{}", compiled.log);
        assert_eq!((found[0].kernel.as_str(), found[0].registers > 0), ("k", true));
        let bytes = if what == "spills" { found[0].spill_bytes } else { found[0].stack_bytes };
        assert!(bytes > 0, "{what}: {}", compiled.log);
    }
}

/// A machine that ought to have NVRTC and does not must not pass.
#[test]
fn nvrtc_that_is_required_must_be_there() {
    let run = |required: bool| {
        let mut test = Command::new(std::env::current_exe().expect("this test"));
        test.args(["--exact", "the_checker_rejects_bad_kernels"]);
        test.env("RMSNORM_NVRTC", "/nowhere/libnvrtc.so.13").env_remove("RMSNORM_REQUIRE_NVRTC");
        if required {
            test.env("RMSNORM_REQUIRE_NVRTC", "1");
        }
        let output = test.output().expect("runs");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.success(), text)
    };
    let (passed, text) = run(false);
    assert!(
        passed
            && text.contains("SKIPPED the_checker_rejects_bad_kernels: NVRTC is not usable")
            && text.contains("/nowhere"),
        "{text}"
    );
    let (passed, text) = run(true);
    assert!(!passed && text.contains("RMSNORM_REQUIRE_NVRTC is set, but") && text.contains("/nowhere"), "{text}");
}
