//! What checks and benchmarks need, and users do not: behind the feature `checks`.
//!
//! [`emulator`] runs the kernels on a CPU, [`replay`] runs calls from graphs and beside other work, [`plain`] with one allocation an operand,
//! for the sanitizers, and [`meter`] times.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod emulator;
pub mod meter;
pub mod plain;
pub mod replay;
