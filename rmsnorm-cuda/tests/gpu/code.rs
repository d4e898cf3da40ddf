//! Where the code of kernels comes from.

use std::sync::Arc;
use std::time::Instant;

use rmsnorm_cuda::cuda::library::nvrtc;
use rmsnorm_cuda::cuda::prebuilt::Bundle;
use rmsnorm_cuda::cuda::{self, Cache, Calls, Kernels, Origin};
use rmsnorm_cuda::cudarc::driver::CudaContext;
use rmsnorm_cuda::{Dtype, Error};

use super::{alone, say};

/// A first call waits for its kernels: how long, by where they come from.
#[test]
fn where_code_comes_from() {
    alone("code::where_code_comes_from", 1, || {
        let f32s = Some(Dtype::F32);
        let calls = Calls { weight: f32s, dw: f32s, ..Calls::new((32_768, 4096), Dtype::Bf16) };
        let from = |origin: Origin, what: &str, kernels: &dyn Fn(&Arc<CudaContext>) -> Result<Kernels, Error>| {
            // Made anew, since what is loaded stays as long as a context.
            let kernels = kernels(&cuda::context(0).expect("a GPU")).expect("kernels");
            let begun = Instant::now();
            kernels.prepare(&calls).expect("prepared");
            let loaded = kernels.loaded();
            say(&format!("{} kernels' modules {what}: {} ms", loaded.len(), begun.elapsed().as_millis()));
            assert!(loaded.len() >= 3 && loaded.iter().all(|(_, from)| *from == origin), "{what}: {loaded:?}");
        };
        let folder = tempfile::tempdir().expect("a folder");
        let kept = |context: &Arc<CudaContext>| Kernels::with_cache(context, Cache::at(folder.path()));
        let capability = |kernels: Kernels| kernels.tuning().arch.compute_capability;
        // Not in the match, which would keep the context.
        let compiler = kept(&cuda::context(0).expect("a GPU")).and_then(|kernels| nvrtc(capability(kernels)));
        match compiler {
            Ok(_) => {
                from(Origin::Nvrtc, "compiled", &kept);
                from(Origin::Cache, "from disk", &kept);
            }
            Err(error) => say(&format!("SKIPPED: what NVRTC compiles: {error}")),
        }
        match Bundle::installed() {
            Ok(bundle) => {
                let ahead = |context: &Arc<CudaContext>| Kernels::of_bundle(context, bundle);
                from(Origin::Prebuilt, "compiled ahead, as PTX", &ahead);
                from(Origin::Prebuilt, "the same, in the driver's cache", &ahead);
            }
            Err(why) => say(&format!("SKIPPED: what was compiled ahead: {why}")),
        }
    });
}
