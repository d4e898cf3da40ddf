//! Shares jobs out to threads, none of which reaches a bit: a thread that would compute otherwise, or that a fork left behind, gets no
//! job.

use crate::Error;
use crate::arith::environment;
use crate::process::Process;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Does every job, with its number, on the threads of rayon's current pool, each of which begins with `begin`. A job that falls
/// to a thread in another floating-point mode comes back, and so do all where there is no pool: the caller's thread does them.
pub(super) fn share<J: Send, S>(
    jobs: Vec<J>,
    begin: impl Fn() -> S + Send + Sync,
    work: impl Fn(&mut S, usize, J) + Send + Sync,
) -> Result<(), Error> {
    let left: Vec<(usize, J)> = if jobs.len() > 1 && pool_is_here() {
        let attempt = |state: &mut S, (i, job)| match environment() {
            Ok(()) => {
                work(state, i, job);
                None
            }
            Err(_) => Some((i, job)),
        };
        jobs.into_par_iter().enumerate().map_init(&begin, attempt).flatten_iter().collect()
    } else {
        jobs.into_iter().enumerate().collect()
    };
    if !left.is_empty() {
        environment()?;
        let mut state = begin();
        left.into_iter().for_each(|(i, job)| work(&mut state, i, job));
    }
    Ok(())
}

/// Whether the threads of rayon's current pool are in this process; they are begun if there is no pool. A fork leaves them behind,
/// and the pool would wait for them for ever.
fn pool_is_here() -> bool {
    // Asked before rayon is touched: a fork while a pool begins would leave its lock closed.
    static FIRST: Process = Process::first();
    static SEEN: AtomicBool = AtomicBool::new(false);
    FIRST.forked_from().is_none()
        && (SEEN.load(Relaxed) || {
            // A parent may have begun a pool without this crate.
            let threads = rayon::current_num_threads() + usize::from(rayon::current_thread_index().is_none());
            let here = std::fs::read_dir("/proc/self/task").map_or(true, |there| there.count() >= threads);
            SEEN.store(here, Relaxed);
            here
        })
}

pub(super) fn threads() -> usize {
    if pool_is_here() { rayon::current_num_threads() } else { 1 }
}

/// Rows that make a job: several jobs for each thread, but each worth handing over.
pub(super) fn rows_per_job(rows: usize, hidden: usize) -> usize {
    let worth = (JOB / hidden).max(1);
    if rows <= worth { worth } else { rows.div_ceil(8 * threads()).max(worth) }
}

/// Elements that are worth handing to a thread; as f32, a part of its cache.
pub(super) const JOB: usize = 1 << 14;
