//! What checks and benchmarks need, and users do not: behind the feature `checks`.
//!
//! [`emulator`] runs the kernels on a CPU, [`replay`] runs calls from graphs and beside other work, [`plain`] with one allocation an operand,
//! for the sanitizers, [`meter`] times calls on the GPU and [`host_time`] what they cost the host.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod emulator;
pub mod host_time;
pub mod meter;
pub mod plain;
pub mod replay;
