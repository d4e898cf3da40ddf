#![no_main]
use libfuzzer_sys::{Corpus, fuzz_target};
fuzz_target!(|bytes: &[u8]| -> Corpus { rmsnorm_fuzz::targets::libfuzzer("forward", rmsnorm_cuda::Cpu, bytes) });
