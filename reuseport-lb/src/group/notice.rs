//! What a worker says of itself, by systemd's notify protocol.

use std::time::{Duration, Instant};

use super::{Process, Ready, Supervision, Worker};

/// The longest status that is kept, in characters; it has to fit a line of a table.
const MAX_STATUS_CHARS: usize = 200;

/// One message of a worker, understood. What it does not say is none or false.
///
/// See [sd_notify(3)](https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// `READY=1`: it has started, or has reloaded.
    pub ready: bool,
    /// `RELOADING=1`: it reads its configuration anew, and goes on serving.
    pub reloading: bool,
    /// `STOPPING=1`: it is about to end.
    pub stopping: bool,
    /// `WATCHDOG=1` or `WATCHDOG=trigger`.
    pub watchdog: Option<Sign>,
    /// `WATCHDOG_USEC=…`: another interval for its watchdog.
    pub watchdog_interval: Option<Duration>,
    /// `EXTEND_TIMEOUT_USEC=…`: it needs so much more time, from now on, to start or to stop.
    pub extend_timeout: Option<Duration>,
    /// `STATUS=…`: what it is doing, in its own words; empty for nothing any more.
    pub status: Option<String>,
}

/// What a worker says to its watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It lives.
    Alive,
    /// It has found out by itself that it is broken.
    Broken,
}

impl Worker {
    /// Takes note of what its process says.
    pub(super) fn notified(&mut self, notice: Notice, supervision: &Supervision, now: Instant) {
        let Notice { ready, reloading, stopping, watchdog, watchdog_interval, extend_timeout, status } =
            notice;
        if self.pid().is_none() {
            return;
        }
        self.said.reloading |= reloading;
        if ready {
            self.said.reloading = false;
            if let Process::Starting { pid, since, .. } = self.process
                && supervision.ready != Ready::Accept
            {
                self.ready(pid, since, supervision, now);
            }
        }
        self.said.stopping |= stopping;
        if let Some(status) = status {
            let line: String = status.chars().filter(|c| !c.is_control()).take(MAX_STATUS_CHARS).collect();
            self.said.status = (!line.trim().is_empty()).then_some(line);
        }
        if let Some(more) = extend_timeout {
            let until = now + more;
            match &mut self.process {
                Process::Starting { give_up_at, .. } => *give_up_at = until.max(*give_up_at),
                Process::Stopping { kill_at: Some(kill_at), .. } => *kill_at = until.max(*kill_at),
                _ => {}
            }
        }
        if let Some(of) = &mut self.watchdog {
            of.interval = watchdog_interval.unwrap_or(of.interval);
            match watchdog {
                Some(Sign::Alive) => of.fed_at = now,
                Some(Sign::Broken) => self.watchdog_broken(now),
                None => {}
            }
        }
    }

    fn watchdog_broken(&mut self, now: Instant) {
        if let Some(watchdog) = &mut self.watchdog {
            // As if it had been silent for both intervals.
            watchdog.interval = Duration::ZERO;
            watchdog.fed_at = now;
        }
    }
}
