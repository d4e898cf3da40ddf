//! Every kernel compiles for every architecture, without spills or stack. Needs NVRTC, no GPU.
#![cfg(feature = "cuda")]

use rmsnorm_cuda::Dtype;
use rmsnorm_cuda::cuda::compile::{Module, compile};
use rmsnorm_cuda::plan::classes;

#[test]
fn report() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for class in classes(dtype) {
            for (aligned, ring) in [(true, false), (true, true), (false, false)] {
                if ring && (class.lanes < 32 || class.packs == 0) { continue; }
                let module = Module::Rows { class, dtype, weight: Some(dtype), zero_centred: false, aligned, ring };
                let t = std::time::Instant::now();
                match compile(&module, (9, 0)) {
                    Ok(c) => {
                        let mut out = String::new();
                        for l in c.log.lines() {
                            if let Some(i) = l.find("properties for ") { out += &format!(" {}", &l[i + 15..]); }
                            if let Some(i) = l.find("Used ") { out += &format!(" {}", &l[i + 5..].split(',').next().unwrap()); }
                            if l.contains("spill") && !l.contains(" 0 bytes stack frame, 0 bytes spill stores") { out += &format!(" SPILL {}", l.split(',').nth(1).unwrap()); }
                            if l.contains("warning") { out += l; }
                        }
                        println!("{module} {} ms {out}", t.elapsed().as_millis());
                    }
                    Err(e) => panic!("{e}"),
                }
            }
        }
    }
}
