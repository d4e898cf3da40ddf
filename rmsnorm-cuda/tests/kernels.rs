//! Every kernel compiles for every architecture, without spills or stack. Needs NVRTC, no GPU.
#![cfg(feature = "cuda")]

use rmsnorm_cuda::Dtype;
use rmsnorm_cuda::cuda::compile::{Module, compile};
use rmsnorm_cuda::plan::CLASSES;

#[test]
fn report() {
    for class in CLASSES {
        for dtype in Dtype::ALL {
            for aligned in [true, false] {
                let module = Module::Rows { class, dtype, weight: Some(dtype), zero_centred: false, aligned };
                let t = std::time::Instant::now();
                match compile(&module, (9, 0)) {
                    Ok(c) => {
                        let log: Vec<&str> = c.log.lines().filter(|l| l.contains("registers") || (l.contains("spill") && !l.contains("0 bytes stack frame, 0 bytes spill stores")) || l.contains("warning")).collect();
                        println!("{module} {:?} {}", t.elapsed(), log.join(" | "));
                    }
                    Err(e) => panic!("{e}"),
                }
            }
        }
    }
    println!("{}", compile(&Module::Fold { dw: Dtype::Bf16 }, (9, 0)).unwrap().log);
}
