//! How far a long walk is, told on stderr.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Counts elements and says now and then how many are done.
pub(crate) struct Progress {
    what: String,
    total: usize,
    done: AtomicUsize,
    /// When something was said last; None where nobody reads.
    last: Option<Mutex<Instant>>,
}

impl Progress {
    pub(crate) fn silent() -> Self {
        Self { what: String::new(), total: 0, done: AtomicUsize::new(0), last: None }
    }

    /// Lines on stderr from the first second on: over each other on a terminal, every ten seconds elsewhere.
    pub(crate) fn of(what: &str, total: usize) -> Self {
        Self { what: what.into(), total, done: AtomicUsize::new(0), last: Some(Mutex::new(Instant::now())) }
    }

    pub(crate) fn add(&self, elements: usize) {
        let done = self.done.fetch_add(elements, Ordering::Relaxed) + elements;
        let Some(last) = &self.last else { return };
        let terminal = std::io::stderr().is_terminal();
        let Ok(mut last) = last.try_lock() else { return };
        if last.elapsed().as_secs_f64() < if terminal { 1.0 } else { 10.0 } {
            return;
        }
        *last = Instant::now();
        let percent = 100 * done / self.total.max(1);
        let (start, end) = if terminal { ("\r", "") } else { ("", "\n") };
        // Whoever closed stderr does not want to know.
        let _ = write!(std::io::stderr().lock(), "{start}{}: {percent} % of {} elements{end}", self.what, self.total);
    }

    /// Wipes what stands on a terminal.
    pub(crate) fn finish(&self) {
        if self.last.is_some() && std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr().lock(), "\r{:70}\r", "");
        }
    }
}
