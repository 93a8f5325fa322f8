//! What a worker says of itself, by systemd's notify protocol.

use std::time::Duration;

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
