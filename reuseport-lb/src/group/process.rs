//! A worker's process: what it is doing, and what is known of it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a worker's process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Process {
    /// There is none.
    Down {
        /// When to start one.
        #[serde(with = "crate::moment::option")]
        restart_at: Option<Instant>,
    },
    /// It runs, and is not ready.
    Starting {
        /// Its process id.
        pid: u32,
        /// Since when.
        #[serde(with = "crate::moment")]
        since: Instant,
        /// When it is given up.
        #[serde(with = "crate::moment")]
        give_up_at: Instant,
        /// How many connections the worker had accepted when it was first looked at.
        accepted: Option<u64>,
    },
    /// It runs, and is ready.
    Running {
        /// Its process id.
        pid: u32,
        /// Since when it runs.
        #[serde(with = "crate::moment")]
        since: Instant,
    },
    /// It was told to end.
    Stopping {
        /// Its process id.
        pid: u32,
        /// Since when it runs.
        #[serde(with = "crate::moment")]
        since: Instant,
        /// When to kill it; none once that was done.
        #[serde(with = "crate::moment::option")]
        kill_at: Option<Instant>,
    },
}

/// What a process has said of itself. Forgotten with the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// What it is doing, in its own words.
    pub status: Option<String>,
    /// It reads its configuration anew.
    pub reloading: bool,
    /// It is about to end.
    pub stopping: bool,
}

/// The process of a worker is to be exchanged, whatever is wished of the worker otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// When to end it even with connections open.
    #[serde(with = "crate::moment")]
    pub at: Instant,
    /// How long it then has until it is killed.
    #[serde(with = "crate::moment::span")]
    pub timeout: Duration,
}

/// The stalls of a worker since it was added to the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stalls {
    /// How often it began to be stalled.
    pub count: u64,
    /// How long it was stalled, without the present stall.
    #[serde(with = "crate::moment::span")]
    pub total: Duration,
    /// Since when it is stalled now.
    #[serde(with = "crate::moment::option")]
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
