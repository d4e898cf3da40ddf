//! The kernel sources, run on the CPU by the emulator, give the literal executor's bits: for every class, with rings and
//! without, aligned and not, however the threads of a block take turns and whenever bulk copies arrive.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use rmsnorm_cuda::Dtype;
use rmsnorm_cuda::cuda::emulator::Emulator;
use rmsnorm_cuda::cuda::Speed;
use rmsnorm_cuda::plan::{Arch, Class, class, classes, column_order};
use rmsnorm_fuzz::{Case, Outcome, property};

#[test]
fn first_light() {
    let emulator = Emulator::new(Speed { arch: Arch::H200, blocks: None }, 0).unwrap();
    for (rows, hidden) in [(3, 7), (3, 64), (20, 300), (5, 1024), (3, 2048), (3, 4097), (2, 20000)] {
        for dtype in Dtype::ALL {
            let case = Case { seed: 7, ..Case::new(rows, hidden, dtype) };
            let t = std::time::Instant::now();
            match property("identity").unwrap().check(&emulator, &case) {
                Outcome::Passed(evidence) => println!("{case}: {} elements {:?}", evidence.elements, t.elapsed()),
                other => panic!("{other:?}"),
            }
        }
    }
}
