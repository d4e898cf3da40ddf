//! `cargo xtask verify`, `cargo xtask bench`.
#![forbid(unsafe_code)]

mod bench;

use clap::{Parser, Subcommand};

/// Checks and measures RMSNorm.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time the kernels against the ceilings of the same machine.
    Bench(bench::Options),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Bench(options) => bench::run(&options),
    }
}
