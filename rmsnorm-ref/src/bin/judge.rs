//! `rmsnorm-judge`: is this RMSNorm right? docs/judge.md says how to ask.
#![forbid(unsafe_code)]

use clap::Parser;
use rmsnorm_ref::judge::cli::Arguments;
use std::process::ExitCode;

/// Judges an RMSNorm by a file of its inputs and outputs: exit status 0 right, 1 outside the bound, 2 unreadable.
#[derive(Parser)]
#[command(name = "rmsnorm-judge", version)]
struct Cli {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    Cli::parse().arguments.run()
}
