//! The words for workers, as the user reads them.

use clap::ValueEnum;
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

/// `0-3`, `0-1, 4`: workers whose ids follow each other, drawn together; `none` where there are none.
pub fn id_ranges(ids: impl IntoIterator<Item = WorkerId>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for WorkerId(id) in ids {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(id) => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    if ranges.is_empty() {
        return "none".into();
    }
    let ranges = ranges.into_iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    ranges.collect::<Vec<_>>().join(", ")
}

/// What a worker is doing, in the words of logs, JSON and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerState {
    /// The process is being started, or is not ready, and takes no connection yet.
    Starting,
    /// Takes new connections.
    Active,
    /// Takes nothing from its accept queue, or has missed its watchdog, so it is passed over until it does again.
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
    /// All states, in the order of a worker's life.
    pub const ALL: &'static [Self] = &[
        Self::Starting,
        Self::Active,
        Self::Stalled,
        Self::Draining,
        Self::Drained,
        Self::Stopping,
        Self::Down,
    ];

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

    /// One line for people, about a worker in this state.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Starting => "is being started and takes no connection yet",
            Self::Active => "takes new connections",
            Self::Stalled => "takes nothing from its queue, and is passed over",
            Self::Draining => "takes no new connection, and finishes what it has",
            Self::Drained => "has finished: nothing open, nothing queued",
            Self::Stopping => "was told to end",
            Self::Down => "has no process",
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

/// The most workers that one group takes.
pub const MAX_WORKERS: u16 = reuseport_lb_ebpf::limits::MAX_WORKERS as u16;

/// When a worker that was started counts as ready, and takes connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// When it says so: READY=1 by systemd's notify protocol
    Notify,
    /// When it has accepted a connection
    Accept,
    /// As soon as its process runs
    #[default]
    Exec,
}

impl std::fmt::Display for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Notify => "notify",
            Self::Accept => "accept",
            Self::Exec => "exec",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_follow_each_other_are_drawn_together() {
        let render = |ids: &[u16]| id_ranges(ids.iter().copied().map(WorkerId));
        assert_eq!(render(&[]), "none");
        assert_eq!(render(&[0]), "0");
        assert_eq!(render(&[0, 1, 2, 3]), "0-3");
        assert_eq!(render(&[0, 1, 4, 6, 7]), "0-1, 4, 6-7");
        assert_eq!(render(&[u16::MAX]), "65535");
    }

    #[test]
    fn the_list_of_states_is_complete() {
        for state in WorkerState::ALL {
            // A new state must be given a place here, and then in the list.
            let place = match state {
                WorkerState::Starting => 0,
                WorkerState::Active => 1,
                WorkerState::Stalled => 2,
                WorkerState::Draining => 3,
                WorkerState::Drained => 4,
                WorkerState::Stopping => 5,
                WorkerState::Down => 6,
            };
            assert_eq!(WorkerState::ALL.get(place), Some(state));
        }
        assert_eq!(WorkerState::ALL.len(), 7);
    }
}
