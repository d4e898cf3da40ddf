//! The command line: `rmsnorm-judge`, and `cargo xtask judge`, which is the same.

use super::options::parse_heights;
use super::{Height, Options, Reach, Rounding, Sum, Unreadable, judge_file, judge_folder, page};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// What is to be judged, and what is known of the kernel.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// A safetensors file with x and any of weight, bias, residual, dy, dz, eps and y, rstd, dx, dw, db, z; or a folder of the outputs of
    /// `cargo xtask cases`.
    file: PathBuf,
    /// Another file of the same kernel's outputs, to be compared by bits.
    second: Option<PathBuf>,
    /// What was added to the mean square.
    #[arg(long)]
    eps: Option<f64>,
    /// Whether x_hat is rounded to the type of x before the weight (transformers' Llama).
    #[arg(long, value_enum)]
    rounding: Option<RoundingChoice>,
    /// Added to the weight: 1 for zero-centred weights (Gemma).
    #[arg(long, value_parser = parse_offset)]
    offset: Option<f64>,
    /// What of x + residual is normalised: what is stored, or the sum in f32.
    #[arg(long, value_enum)]
    sum: Option<SumChoice>,
    /// Chains of the sums, `ROW` or `ROW,COLUMN`, each a number or `any`: a tighter bound.
    #[arg(long)]
    chains: Option<String>,
    /// The most roundings that one product passes through, `ROW` or `ROW,COLUMN`: tighter yet.
    #[arg(long, conflicts_with = "chains")]
    height: Option<String>,
    /// Do not let rows decide whose squares leave the range of f32.
    #[arg(long)]
    plain_range: bool,
    /// A tensor that is called otherwise: `y=out`.
    #[arg(long, value_name = "OURS=THEIRS")]
    name: Vec<String>,
    /// Where the inputs are, if not beside the outputs of the folder.
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write a page.
    #[arg(long, value_name = "OUT")]
    html: Option<PathBuf>,
    /// Say nothing of progress.
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoundingChoice {
    Once,
    Twice,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SumChoice {
    Rounded,
    Unrounded,
}

fn parse_offset(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(offset) if offset == 0.0 || offset == 1.0 => Ok(offset),
        _ => Err("expected 0 or 1".into()),
    }
}

impl Arguments {
    /// Judges, prints, and gives the exit status: 0 right, 1 outside, 2 unreadable.
    pub fn run(&self) -> ExitCode {
        match self.judged() {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                if self.json {
                    let text = serde_json::json!({ "verdict": "unreadable", "error": error });
                    say(&format!("{text}"));
                }
                // Whoever closed stderr does not want to know.
                let _ = writeln!(std::io::stderr().lock(), "error: {error}");
                ExitCode::from(2)
            }
        }
    }

    fn judged(&self) -> Result<u8, String> {
        let options = self.options()?;
        let unreadable = |error: Unreadable| error.to_string();
        if self.file.is_dir() {
            let inputs = self.cases.as_ref().unwrap_or(&self.file);
            let report = judge_folder(&self.file, inputs, &options).map_err(unreadable)?;
            self.tell(&report, || page::of_folder(&report))?;
            return Ok(report.exit_status());
        }
        let report = judge_file(&self.file, self.second.as_deref(), &options).map_err(unreadable)?;
        self.tell(&report, || page::of(&report))?;
        Ok(report.exit_status())
    }

    fn tell(&self, report: &(impl Display + Serialize), page: impl FnOnce() -> String) -> Result<(), String> {
        if let Some(path) = &self.html {
            std::fs::write(path, page()).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        if self.json {
            say(&serde_json::to_string_pretty(report).map_err(|error| error.to_string())?);
        } else {
            say(report.to_string().trim_end());
        }
        Ok(())
    }

    fn options(&self) -> Result<Options, String> {
        let mut names = Vec::new();
        for pair in &self.name {
            let mapped =
                pair.split_once('=').filter(|(ours, theirs)| super::file::NAMES.contains(ours) && !theirs.is_empty());
            let Some((ours, theirs)) = mapped else {
                return Err(Unreadable::Mapping { got: pair.clone() }.to_string());
            };
            names.push((ours.to_owned(), theirs.to_owned()));
        }
        let heights = |text: &Option<String>, height: fn(u64) -> Height| match text {
            None => Ok((None, None)),
            Some(text) => parse_heights(text, height),
        };
        let chains = heights(&self.chains, Height::Chains).map_err(|error| format!("--chains {error}"))?;
        let most = heights(&self.height, Height::Most).map_err(|error| format!("--height {error}"))?;
        Ok(Options {
            eps: self.eps,
            rounding: self.rounding.map(|rounding| match rounding {
                RoundingChoice::Once => Rounding::Once,
                RoundingChoice::Twice => Rounding::Twice,
            }),
            offset: self.offset,
            sum: self.sum.map(|sum| match sum {
                SumChoice::Rounded => Sum::Rounded,
                SumChoice::Unrounded => Sum::Unrounded,
            }),
            row: chains.0.or(most.0),
            column: chains.1.or(most.1),
            reach: if self.plain_range { Reach::Plain } else { Reach::Any },
            names,
            quiet: self.quiet,
        })
    }
}

/// Prints for whoever still reads.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
