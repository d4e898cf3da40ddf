//! What is compiled ahead is all that calls launch where there is no compiler.
#![cfg(feature = "cuda")]

use rmsnorm_cuda::Rounding;
use rmsnorm_cuda::cuda::module::Module;
use rmsnorm_cuda::plan::{Arch, Calls, Direction};
use rmsnorm_fuzz::compiled::{is_portable, kinds, portable, units};

#[test]
fn every_call_finds_its_modules() {
    let all = portable().expect("plans");
    println!("{} modules", all.len());
    for (name, arch) in Arch::ALL {
        let arch = Arch { compute_capability: (8, 0), ..arch };
        let (portable, others): (Vec<Calls>, Vec<Calls>) = kinds().into_iter().partition(is_portable);
        assert!(!portable.is_empty() && others.iter().any(|kind| kind.two_levels && kind.db.is_some()));
        for kind in others {
            // A bias is forward's alone, and db has kernels of its own; of heads all kernels are others. Of several types those of the direction are.
            let [forward, backward] = Direction::BOTH.map(|direction| kind.are_mixed(direction));
            let is_ordinary = |module: Module| match module {
                Module::Fold { per_head, .. } => !per_head,
                _ if kind.heads > 1 => false,
                Module::Backward { .. } => kind.rounding == Rounding::Once && !backward,
                Module::Forward { .. } => kind.rounding == Rounding::Once && kind.bias.is_none() && !forward,
                _ => false,
            };
            let missing = |module: Module| !is_ordinary(module) && !all.contains(&module.portable());
            let units = units(&arch, &kind).expect("a plan");
            assert!(units.iter().all(|unit| missing(unit.module) || is_ordinary(unit.module)), "{name}: {kind:?}");
            assert!(units.iter().any(|unit| missing(unit.module)), "{name}: {kind:?}");
        }
        for kind in portable {
            for (residual, dz) in [(false, false), (true, false), (false, true), (true, true)] {
                let (residual, dz) = (residual.then_some([kind.dtype; 2]), dz.then_some(kind.dtype));
                let units = units(&arch, &Calls { residual, dz, ..kind }).expect("a plan");
                for unit in units.iter().filter(|unit| !matches!(unit.module, Module::BackwardFew { .. })) {
                    assert!(all.contains(&unit.module.portable()), "{name}: {unit}");
                    assert_eq!(unit.dynamic_bytes, 0, "{name}: {unit} needs shared memory of a ring");
                }
            }
        }
    }
}

/// Whatever the layout, one kernel.
#[test]
fn a_portable_module_is_its_own() {
    for module in portable().expect("plans") {
        assert_eq!(module.portable(), module);
        match module {
            Module::Forward { rows, .. } | Module::Backward { rows, .. } => assert!(!rows.aligned && !rows.exact),
            Module::ForwardFew { .. } | Module::BackwardFew { .. } => panic!("{module} is for aligned rows"),
            Module::BiasPartials { .. } => panic!("{module} is not compiled ahead"),
            Module::Fold { .. } => {}
        }
    }
}
