//! A worker's process: what it is doing, and what is known of it.

use std::time::{Duration, Instant};

/// What a worker's process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// There is none.
    Down {
        /// When to start one.
        restart_at: Option<Instant>,
    },
    /// It runs, and is not ready.
    Starting {
        /// Its process id.
        pid: u32,
        /// Since when.
        since: Instant,
        /// When it is given up.
        give_up_at: Instant,
        /// How many connections the worker had accepted when it was first looked at.
        accepted: Option<u64>,
    },
    /// It runs, and is ready.
    Running {
        /// Its process id.
        pid: u32,
        /// Since when it runs.
        since: Instant,
    },
    /// It was told to end.
    Stopping {
        /// Its process id.
        pid: u32,
        /// Since when it runs.
        since: Instant,
        /// When to kill it; none once that was done.
        kill_at: Option<Instant>,
    },
}

/// What a process has said of itself. Forgotten with the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// What it is doing, in its own words.
    pub status: Option<String>,
    /// It reads its configuration anew.
    pub reloading: bool,
    /// It is about to end.
    pub stopping: bool,
}

/// The process of a worker is to be exchanged, whatever is wished of the worker otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// When to end it even with connections open.
    pub at: Instant,
    /// How long it then has until it is killed.
    pub timeout: Duration,
}

/// The stalls of a worker since it was added to the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// How often it began to be stalled.
    pub count: u64,
    /// How long it was stalled, without the present stall.
    pub total: Duration,
    /// Since when it is stalled now.
    pub since: Option<Instant>,
}

impl Stalls {
    /// Whether it is stalled at `now`.
    pub(super) fn set(&mut self, stalled: bool, now: Instant) {
        let Self { count, total, since } = self;
        match since {
            None if stalled => {
                *count += 1;
                *since = Some(now);
            }
            Some(begun) if !stalled => {
                *total += now.saturating_duration_since(*begun);
                *since = None;
            }
            _ => {}
        }
    }
}
