//! How the processes of workers are looked after, and what is seen of them.

use std::time::Duration;

use super::Ready;

/// How the processes of the workers are looked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supervision {
    /// When a process that was started counts as ready.
    pub ready: Ready,
    /// How long it may take for that; then it is ended and started again.
    pub ready_timeout: Duration,
    /// How long a process may take to end when it was not the user who said so; then it is killed.
    pub stop_timeout: Duration,
    /// How often a process is to give a sign of life, if it has to.
    pub watchdog: Option<Duration>,
    /// Whether a process has to open its socket by itself, and is not ready before.
    pub self_bound: bool,
}

impl Default for Supervision {
    fn default() -> Self {
        Self {
            ready: Ready::Exec,
            ready_timeout: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(30),
            watchdog: None,
            self_bound: false,
        }
    }
}

/// What was seen of a worker from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// It has no connection left, queued or open.
    pub idle: bool,
    /// It takes nothing from its accept queue.
    pub stalled: bool,
    /// How many connections it has accepted.
    pub accepted: u64,
    /// Connections wait for it, queued or in their handshake.
    pub waiting: bool,
}
