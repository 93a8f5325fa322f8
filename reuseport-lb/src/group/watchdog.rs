//! The watchdog of one worker: it says `WATCHDOG=1` in time, or it hangs.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A worker that is to give a sign of life every `interval`.
///
/// After one interval without it has missed: it is passed over, as a stalled worker is. Most hiccups end there. After
/// a second one it is given up.
///
/// Pure: it reads no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watchdog {
    /// How often it is to give a sign.
    #[serde(with = "crate::moment::span")]
    pub interval: Duration,
    /// When it gave the last one. Not written down: it gives them too often, and a daemon that takes over counts anew.
    #[serde(skip, default = "Instant::now")]
    pub fed_at: Instant,
}

impl Watchdog {
    /// When it has missed.
    pub(super) fn misses_at(self) -> Instant {
        self.fed_at + self.interval
    }

    /// When it is given up.
    pub(super) fn gives_up_at(self) -> Instant {
        self.fed_at + 2 * self.interval
    }

    /// The next moment at which something changes.
    pub(super) fn next_deadline(self, now: Instant) -> Instant {
        if self.misses_at() > now { self.misses_at() } else { self.gives_up_at() }
    }
}
