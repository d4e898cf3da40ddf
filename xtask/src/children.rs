//! Child processes that do not outlive this one. Each leads a process group of its own, so that what it starts ends with it: when
//! its [`Running`] is dropped, and when a signal ends this process.

use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::collections::BTreeSet;
use std::io::{Read, Result};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A child that has been started. Dropped, it is killed with its group.
pub(crate) struct Running {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Starts `command`, which reads nothing.
    pub(crate) fn start(command: &mut Command) -> Result<Running> {
        let mut groups = groups();
        if groups.is_none() {
            end_children_on_signals()?;
        }
        let child = command.process_group(0).stdin(Stdio::null()).spawn()?;
        groups.get_or_insert_default().insert(child.id());
        Ok(Running { child, ended: None })
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            // Under the lock: once the child is waited for, its number may be another's, which no signal may reach.
            let mut groups = groups();
            self.ended = self.child.try_wait()?;
            if self.ended.is_some() {
                groups.get_or_insert_default().remove(&self.child.id());
            }
        }
        Ok(self.ended)
    }

    /// How it ended; None if it has not when `limit` is over.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let began = Instant::now();
        loop {
            match self.ended()? {
                None if began.elapsed() < limit => std::thread::sleep(POLL),
                ended => return Ok(ended),
            }
        }
    }

    /// Kills it and what it started.
    pub(crate) fn stop(&mut self) {
        if matches!(self.ended(), Ok(None)) {
            kill(self.child.id());
            let _ = self.wait(Duration::MAX);
        }
    }
}

#[cfg(feature = "cuda")]
impl Running {
    /// Stops it: what is in its pipe by then.
    pub(crate) fn stop_and_read(mut self) -> String {
        self.stop();
        self.child.stdout.take().and_then(|pipe| std::io::read_to_string(pipe).ok()).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a child said until it ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// None: it was killed after the limit.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

/// Runs `command` to its end, or to the end of `limit`.
pub(crate) fn output(command: &mut Command, limit: Duration) -> Result<Said> {
    let mut running = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let readers = (running.child.stdout.take().map(read), running.child.stderr.take().map(read));
    let status = running.wait(limit)?;
    running.stop();
    let text = |reader: Option<JoinHandle<Vec<u8>>>| {
        let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(Said { status, stdout: text(readers.0), stderr: text(readers.1) })
}

/// Nothing in this crate knows how long a build may take.
pub(crate) const NO_LIMIT: Duration = Duration::MAX;

fn read(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// Children that have not been waited for; None as long as nothing was started.
static GROUPS: Mutex<Option<BTreeSet<u32>>> = Mutex::new(None);

fn groups() -> MutexGuard<'static, Option<BTreeSet<u32>>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill(group: u32) {
    if let Some(group) = Pid::from_raw(group as i32) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn end_children_on_signals() -> Result<()> {
    let mut signals =
        Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(|signal| !is_ignored(*signal)))?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // Kept to the end: nothing is started any more.
            let groups = groups();
            groups.iter().flatten().for_each(|group| kill(*group));
            let _ = emulate_default_handler(signal);
        }
    });
    Ok(())
}

/// Whether whoever started this process had the signal ignored, as `nohup` does.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

const POLL: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    /// Gone, or dead and not yet waited for by whoever inherited it.
    fn is_dead(process: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.trim())).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
    }

    /// Whether it is dead within ten seconds: it was told to end, and how soon it has ended is the machine's.
    fn dies(process: &str) -> bool {
        (0..1000).any(|_| {
            is_dead(process) || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }
        })
    }

    #[test]
    fn what_a_child_says_is_read_and_its_status_kept() {
        let said = output(&mut shell("echo out; echo err >&2; exit 3"), NO_LIMIT).unwrap();
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\n", "err\n"));
        assert!(!said.succeeded() && said.status.unwrap().code() == Some(3));
        // More than a pipe holds.
        let said = output(&mut shell("head -c 300000 /dev/zero"), NO_LIMIT).unwrap();
        assert!(said.succeeded() && said.stdout.len() == 300_000);
        assert!(output(&mut Command::new("/nowhere"), NO_LIMIT).is_err());
    }

    #[test]
    fn a_child_that_does_not_end_is_killed_with_what_it_started() {
        let said = output(&mut shell("sleep 600 & echo $!; wait"), Duration::from_millis(300)).unwrap();
        assert!(said.status.is_none() && !said.stdout.is_empty());
        assert!(dies(&said.stdout), "{}", said.stdout);
    }

    #[test]
    fn a_child_ends_when_it_is_dropped() {
        let running = Running::start(&mut shell("sleep 600")).unwrap();
        let process = running.child.id().to_string();
        assert!(!is_dead(&process));
        drop(running);
        assert!(dies(&process));
    }
}
