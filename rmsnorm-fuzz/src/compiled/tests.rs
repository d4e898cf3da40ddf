use super::*;
use rmsnorm_cuda::HIDDEN_MAX;
use rmsnorm_cuda::order::HELD_MAX;
use rmsnorm_cuda::plan::{self, class, class_unaligned};

#[test]
fn every_class_is_a_unit_in_every_layout() {
    for (_, arch) in Arch::ALL {
        for kind in kinds() {
            let units = units(&arch, &kind).unwrap();
            for direction in Direction::BOTH {
                let (widest, is_mixed) = (kind.widest(direction), kind.are_mixed(direction));
                // Backward of several types has classes of its own.
                let has_own = direction == Direction::Backward && is_mixed;
                for wanted in classes(direction, widest).into_iter().filter(|_| !has_own) {
                    let of = |wants_aligned| {
                        units.iter().any(|unit| match (direction, unit.module) {
                            (Direction::Forward, Module::Forward { rows, .. })
                            | (Direction::Backward, Module::Backward { rows, .. }) => {
                                rows.class == wanted && rows.aligned == wants_aligned
                            }
                            _ => false,
                        })
                    };
                    let unaligned = |hidden| match arch.compute_capability {
                        (9, 0) => class_unaligned(direction, hidden, widest),
                        _ => class(direction, hidden, widest),
                    };
                    // Aligned rows of such widths are a cluster's there, if they are not a head's.
                    let is_replaced = (arch.compute_capability, kind.heads) == ((9, 0), 1)
                        && (direction, widest) == (Direction::Backward, Dtype::F32)
                        && (HELD_MAX / 2 + 1..=HELD_MAX).any(|n| class(direction, n, widest) == wanted);
                    let expected = match wanted.is_clustered() {
                        true => {
                            let is_there = ((9, 0)..(12, 0)).contains(&arch.compute_capability);
                            let has_heads = direction == Direction::Backward && kind.heads > 1;
                            (is_there && !has_heads && !is_mixed, false)
                        }
                        false => {
                            (!is_replaced, (1..=HELD_MAX).chain([HIDDEN_MAX]).any(|hidden| unaligned(hidden) == wanted))
                        }
                    };
                    assert_eq!((of(true), of(false)), expected, "{arch:?} {kind:?} {direction:?} {wanted}");
                }
            }
        }
    }
}

#[test]
fn what_is_launched_is_a_unit() {
    for (_, arch) in Arch::ALL {
        for kind in kinds() {
            let units = units(&arch, &kind).unwrap();
            let [mixed_forward, mixed_backward] = Direction::BOTH.map(|direction| kind.are_mixed(direction));
            assert!(units.iter().any(|unit| matches!(unit.module, Module::Fold { .. })));
            // Unaligned rows have classes of their own.
            for (hidden, direction) in (257..=HELD_MAX).step_by(255).flat_map(|n| Direction::BOTH.map(|d| (n, d))) {
                let (rows, aligned) = (100_000, false);
                let calls = Calls { rows, hidden, aligned, ..kind };
                let class = match direction {
                    Direction::Forward => plan::forward(&calls, &Tuning::of(arch)).rows.class,
                    Direction::Backward => plan::backward(&calls, &Tuning::of(arch)).rows.class,
                };
                assert!(units.iter().any(|unit| unit.module.class() == Some(class)), "{arch:?} {calls:?} {class}");
            }
            // A block a row, and each number of blocks that a row can have.
            let shares: BTreeSet<u32> = units
                .iter()
                .filter_map(|unit| match unit.module {
                    Module::ForwardFew { shares, residual, .. } => Some(shares).filter(|_| residual == kind.residual),
                    _ => None,
                })
                .collect();
            let hopper = arch.compute_capability == (9, 0);
            assert_eq!(
                shares,
                if hopper && !mixed_forward { [1, 3, 4, 6, 8, 12, 16].into() } else { BTreeSet::new() },
                "{arch:?} {kind:?}"
            );
            // Backward of heads has the kernels of many rows, and so have rows of several types.
            for wanted in [2, 4, 8, 16] {
                let of =
                    |module| matches!(module, Module::BackwardFew { span, dz, .. } if span == wanted && dz == kind.dz);
                assert_eq!(
                    units.iter().any(|unit| of(unit.module)),
                    kind.heads == 1 && !mixed_backward,
                    "{arch:?} {kind:?} span {wanted}"
                );
            }
            let ring =
                |unit: &Unit| unit.module.has_dynamic_shared_memory() && !matches!(unit.module, Module::Forward { .. });
            let (rings, bulk_copies) = (units.iter().any(ring), arch.compute_capability >= (9, 0));
            // Three rows a stage leave no room for a second stage of any f32 class in 99 KiB.
            let can_ring = bulk_copies && !mixed_backward;
            assert!(if kind.dz.is_some() { rings <= can_ring } else { rings == can_ring }, "{arch:?} {kind:?}");
            let is_staged = |unit: &Unit| matches!(unit.module, Module::Forward { staged: true, .. });
            let is_plain = kind.residual.is_none() && kind.bias.is_none() && !mixed_forward;
            assert_eq!(units.iter().any(is_staged), bulk_copies && is_plain, "{arch:?} {kind:?}");
            let has_dynamic = |unit: &Unit| unit.module.has_dynamic_shared_memory();
            assert!(units.iter().all(|unit| has_dynamic(unit) == (unit.dynamic_bytes > 0)));
        }
    }
}

#[test]
fn a_report_of_the_assembler_is_read() {
    let log = "ptxas info    : 0 bytes gmem\n\
               ptxas info    : Compiling entry function 'backward' for 'sm_90'\n\
               ptxas info    : Function properties for backward\n    \
               16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n\
               ptxas info    : Used 168 registers, used 3 barriers, 16 bytes cumulative stack size, 4704 bytes smem\n\
               ptxas info    : Compiling entry function 'forward' for 'sm_90'\n\
               ptxas info    : Used 40 registers, used 1 barriers\n";
    let wide =
        Resources { kernel: "backward".into(), registers: 168, spill_bytes: 20, stack_bytes: 16, shared_bytes: 4704 };
    let narrow = Resources { kernel: "forward".into(), registers: 40, ..Resources::default() };
    assert_eq!(resources(log), [wide, narrow]);
}
