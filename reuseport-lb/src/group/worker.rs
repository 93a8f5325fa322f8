//! One worker: what the user wants of it, and what its process is doing.

use std::time::{Duration, Instant};

use super::{Action, WorkerId, WorkerState, backoff::Backoff};

/// What the user wants of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Take connections.
    Serve,
    /// Take no new ones.
    Drain,
    /// The same, and end afterwards.
    Stop {
        /// When to end even with connections open.
        at: Instant,
        /// How long the process then has until it is killed.
        timeout: Duration,
    },
}

/// What a worker's process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// There is none.
    Down {
        /// When to start one.
        restart_at: Option<Instant>,
    },
    /// It runs.
    Running {
        /// Its process id.
        pid: u32,
        /// Since when.
        since: Instant,
    },
    /// It was told to end.
    Stopping {
        /// Its process id.
        pid: u32,
        /// When to kill it; none once that was done.
        kill_at: Option<Instant>,
    },
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

/// One worker.
#[derive(Clone, Debug)]
pub struct Worker {
    /// 1 to 256.
    pub weight: u16,
    /// What the user wants of it.
    pub wish: Wish,
    /// What its process is doing.
    pub process: Process,
    /// Whether its listening socket is open.
    pub open: bool,
    /// How often its process was started again.
    pub restarts: u64,
    /// Why its last process ended, unless the user wanted that.
    pub reason: Option<String>,
    /// When it took nothing from its accept queue.
    pub stalls: Stalls,
    /// Whether it has nothing left to do, while it drains.
    pub(super) idle: bool,
    backoff: Backoff,
    ever_started: bool,
}

impl Worker {
    /// A worker that is to be started at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            weight: 1,
            wish: Wish::Serve,
            process: Process::Down { restart_at: Some(now) },
            open: false,
            restarts: 0,
            reason: None,
            stalls: Stalls::default(),
            idle: false,
            backoff: Backoff::new(),
            ever_started: false,
        }
    }

    /// The word for what it is doing.
    pub fn state(&self) -> WorkerState {
        match (self.process, self.wish) {
            (Process::Down { .. }, _) if !self.ever_started && self.reason.is_none() => WorkerState::Starting,
            (Process::Down { .. }, _) => WorkerState::Down,
            (Process::Stopping { .. }, _) => WorkerState::Stopping,
            (Process::Running { .. }, Wish::Serve) if self.stalls.since.is_some() => WorkerState::Stalled,
            (Process::Running { .. }, Wish::Serve) => WorkerState::Active,
            (Process::Running { .. }, _) if self.idle => WorkerState::Drained,
            (Process::Running { .. }, _) => WorkerState::Draining,
        }
    }

    /// Its process id, while there is a process.
    pub const fn pid(&self) -> Option<u32> {
        match self.process {
            Process::Running { pid, .. } | Process::Stopping { pid, .. } => Some(pid),
            Process::Down { .. } => None,
        }
    }

    /// Whether it takes new connections.
    pub fn serves(&self) -> bool {
        self.wish == Wish::Serve && matches!(self.process, Process::Running { .. })
    }

    pub(super) fn is_draining(&self) -> bool {
        self.wish != Wish::Serve && matches!(self.process, Process::Running { .. })
    }

    const fn is_to_stop(&self) -> bool {
        matches!(self.wish, Wish::Stop { .. })
    }

    pub(super) fn set_stalled(&mut self, stalled: bool, now: Instant) {
        let Stalls { count, total, since } = &mut self.stalls;
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

    pub(super) fn started(&mut self, pid: u32, now: Instant) {
        self.process = Process::Running { pid, since: now };
        self.restarts += u64::from(self.ever_started);
        self.ever_started = true;
    }

    pub(super) fn ended(&mut self, reason: String, now: Instant) {
        let restart_at = match self.process {
            _ if self.is_to_stop() => None,
            // It was stopped, and the user has thought better of it.
            Process::Stopping { .. } => Some(now),
            Process::Running { since, .. } => Some(now + self.backoff.delay(since, now)),
            Process::Down { .. } => Some(now + self.backoff.delay(now, now)),
        };
        self.reason = (!self.is_to_stop()).then_some(reason);
        self.process = Process::Down { restart_at };
    }

    pub(super) fn advance(&mut self, id: WorkerId, now: Instant) -> Vec<Action> {
        let due = |at: Instant| at <= now;
        match (&mut self.process, self.wish) {
            (Process::Running { pid, .. }, Wish::Stop { at, timeout }) if self.idle || due(at) => {
                self.process = Process::Stopping { pid: *pid, kill_at: Some(now + timeout) };
                vec![Action::Terminate(id)]
            }
            (Process::Stopping { kill_at: kill_at @ Some(_), .. }, _) if kill_at.is_some_and(due) => {
                *kill_at = None;
                vec![Action::Kill(id)]
            }
            (Process::Down { .. }, Wish::Stop { .. }) if self.open => vec![Action::Close(id)],
            (Process::Down { restart_at: restart_at @ Some(_) }, Wish::Serve | Wish::Drain)
                if restart_at.is_some_and(due) =>
            {
                *restart_at = None;
                if self.open { vec![Action::Start(id)] } else { vec![Action::Open(id), Action::Start(id)] }
            }
            _ => vec![],
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match (self.process, self.wish) {
            (Process::Running { .. }, Wish::Stop { at, .. }) => Some(at),
            (Process::Stopping { kill_at, .. }, _) => kill_at,
            (Process::Down { restart_at }, Wish::Serve | Wish::Drain) => restart_at,
            _ => None,
        }
    }
}
