//! What a fork does not take along: threads, and a driver's hold on a GPU.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The process that asked first, known by its number: one that came round again, or equals another namespace's, is taken for it.
pub(crate) struct Process(AtomicU32);

impl Process {
    /// Nobody has asked.
    pub(crate) const fn new() -> Self {
        Process(AtomicU32::new(0))
    }

    /// Whether it is this process, and not one that this was forked from.
    pub(crate) fn is_this(&self) -> bool {
        let this = std::process::id();
        match self.0.compare_exchange(0, this, Relaxed, Relaxed) {
            Ok(_) => true,
            Err(first) => first == this,
        }
    }
}
