//! `cargo xtask judge`: `rmsnorm-judge`, from the checkout.

use rmsnorm_ref::judge::cli::Arguments;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    arguments: Arguments,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    options.arguments.run()
}
