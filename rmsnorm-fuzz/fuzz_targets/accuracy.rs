#![no_main]
use libfuzzer_sys::{Corpus, fuzz_target};
fuzz_target!(|bytes: &[u8]| -> Corpus { rmsnorm_fuzz::targets::libfuzzer("accuracy", rmsnorm_cuda::Cpu, bytes) });
