//! `cargo xtask verify`, `cargo xtask bench`, `cargo xtask fuzz`, `cargo xtask ptx`, `cargo xtask judge`, `cargo xtask cases`.
#![forbid(unsafe_code)]
// `print!` and `eprint!` panic where nobody reads. What is printed is written to a lock of stdout, what is told goes through `record::tell`.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

mod bench;
mod cases;
mod children;
mod copies;
mod fuzz;
mod judge;
#[cfg(test)]
#[path = "../../rmsnorm-cuda/tests/machine/mod.rs"]
mod machine;
#[cfg(feature = "cuda")]
mod prebuilt;
#[cfg(feature = "cuda")]
mod ptx;
mod record;
mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Checks and measures RMSNorm.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try every property on every executor there is.
    Verify(verify::Options),
    /// Time the calls against the ceilings of the same machine.
    Bench(bench::Options),
    /// Look for inputs that refute a property.
    Fuzz(fuzz::Options),
    /// Judge somebody's RMSNorm by a file of its inputs and outputs: 0 right, 1 outside the bound, 2 unreadable.
    Judge(judge::Options),
    /// Write hard and random inputs for somebody's RMSNorm, to be judged.
    Cases(cases::Options),
    /// Compile the kernels without a GPU: PTX, cubin, registers, spills.
    #[cfg(feature = "cuda")]
    Ptx(ptx::Options),
    /// Compile the kernels ahead, for GPUs without NVRTC.
    #[cfg(feature = "cuda")]
    Prebuilt(prebuilt::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Verify(options) => verify::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Judge(options) => Ok(judge::run(&options)),
        Command::Cases(options) => cases::run(&options),
        #[cfg(feature = "cuda")]
        Command::Ptx(options) => ptx::run(&options),
        #[cfg(feature = "cuda")]
        Command::Prebuilt(options) => prebuilt::run(&options),
    };
    done.unwrap_or_else(|error| {
        record::tell(format_args!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
