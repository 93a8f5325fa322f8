//! The words for workers, as the user reads them.

use serde::{Deserialize, Serialize};

/// The number of a worker: small, given once, never changed while the worker is part of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub u16);

impl std::fmt::Display for WorkerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for WorkerId {
    type Err = std::num::ParseIntError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self)
    }
}

/// What a worker is doing, in the words of logs, JSON and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerState {
    /// The process is being started and takes no connection yet.
    Starting,
    /// Takes new connections.
    Active,
    /// Takes nothing from its accept queue, so it is passed over until it does.
    Stalled,
    /// Takes no new connection and finishes what it has.
    Draining,
    /// Draining has finished: nothing queued, nothing open.
    Drained,
    /// The process was told to end.
    Stopping,
    /// No process runs.
    Down,
}

impl WorkerState {
    /// The state's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Stalled => "stalled",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Stopping => "stopping",
            Self::Down => "down",
        }
    }
}

impl std::fmt::Display for WorkerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// The lowest and the highest weight of a worker. HAProxy's range, less its 0, for which there is `drain`.
pub const WEIGHT_RANGE: std::ops::RangeInclusive<u16> = 1..=256;
