//! How far a phase is: a bar on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A phase. Ends when it is dropped.
pub(crate) struct Progress {
    what: String,
    total: usize,
    started: Instant,
    bar: Option<ProgressBar>,
    done: Mutex<(usize, Instant)>,
}

impl Progress {
    /// Begins a phase of `total` steps.
    pub(crate) fn new(what: &str, total: usize) -> Progress {
        let started = Instant::now();
        // indicatif prints nothing where stderr is no terminal.
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg:18} {bar:40} {pos}/{len} {elapsed}");
            let bar = ProgressBar::new(total as u64).with_message(what.to_string());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress { what: what.into(), total, started, bar, done: Mutex::new((0, started)) }
    }

    /// One step is done.
    pub(crate) fn tick(&self) {
        if let Some(bar) = &self.bar {
            return bar.inc(1);
        }
        let mut done = self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        done.0 += 1;
        if done.1.elapsed() > EVERY && done.0 < self.total {
            done.1 = Instant::now();
            eprintln!("  {}: {} of {}", self.what, done.0, self.total);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("  {}: {} in {:.1} s", self.what, self.total, self.started.elapsed().as_secs_f64());
    }
}

const EVERY: Duration = Duration::from_secs(10);
