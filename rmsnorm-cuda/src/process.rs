//! What a fork does not take along: threads, and a driver's hold on a GPU.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A process, known by its number: one that came round again, or equals another namespace's, is taken for it. No lock, which a fork
/// could leave closed.
pub(crate) struct Process(AtomicU32);

impl Process {
    /// The one that will ask first.
    pub(crate) const fn first() -> Self {
        Process(AtomicU32::new(0))
    }

    /// This one.
    #[cfg(feature = "cuda")]
    pub(crate) fn this() -> Self {
        Process(AtomicU32::new(std::process::id()))
    }

    /// Its number, if the process that asks is another: one that was forked from it.
    pub(crate) fn forked_from(&self) -> Option<u32> {
        let this = std::process::id();
        self.0.compare_exchange(0, this, Relaxed, Relaxed).err().filter(|first| *first != this)
    }
}
