//! One worker: what the user wants of it, and what its process is doing.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{
    Action, Process, Ready, Restart, Said, Seen, Stalls, Supervision, WorkerId, WorkerState,
    backoff::Backoff, watchdog::Watchdog,
};

/// How long a worker on trial (see [`Ready::Accept`]) is waited for when nothing comes that it could accept.
const QUIET: Duration = Duration::from_secs(1);

/// How long a worker that is ready as soon as it runs has to go on running until it is believed.
const SETTLE: Duration = Duration::from_secs(1);

/// How long a process may take to end by SIGABRT: writing a core dump takes its time.
const ABORT_PATIENCE: Duration = Duration::from_secs(10);

/// What the user wants of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// Take connections.
    Serve,
    /// Take no new ones.
    Drain,
    /// The same, and end afterwards.
    Stop {
        /// When to end even with connections open.
        #[serde(with = "crate::moment")]
        at: Instant,
        /// How long the process then has until it is killed.
        #[serde(with = "crate::moment::span")]
        timeout: Duration,
    },
}

/// One worker.
///
/// What is as usual is not written down: it would be most of the state file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// 1 to 256.
    pub weight: u16,
    /// What the user wants of it.
    pub wish: Wish,
    /// Whether its process is to be exchanged.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub restart: Option<Restart>,
    /// What its process is doing.
    pub process: Process,
    /// Whether its listening socket is open.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub open: bool,
    /// Whether its socket was closed by others, so that it only finishes what it has. Of adopted groups only.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub(super) leaves: bool,
    /// How often its process was started again.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub restarts: u64,
    /// Why its last process ended, unless the user wanted that.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub reason: Option<String>,
    /// The last lines that this process wrote to standard error.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub last_words: Vec<String>,
    /// When it took nothing from its accept queue, or missed its watchdog.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub stalls: Stalls,
    /// What its process says of itself.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub said: Said,
    /// Its watchdog, once it is ready.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub watchdog: Option<Watchdog>,
    /// Why its process was told to end, when that was not the user's doing.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub given_up: Option<String>,
    /// Whether it has missed its watchdog.
    #[serde(skip)]
    pub(super) missed: bool,
    /// Whether connections wait for it, while it is on trial.
    #[serde(skip)]
    pub(super) waited_for: bool,
    /// Whether it has nothing left to do, while it drains.
    #[serde(skip)]
    pub(super) idle: bool,
    #[serde(default, skip_serializing_if = "is_usual")]
    backoff: Backoff,
    #[serde(default, skip_serializing_if = "is_usual")]
    ever_started: bool,
}

fn is_usual<T: Default + PartialEq>(field: &T) -> bool {
    *field == T::default()
}

impl Worker {
    /// A worker that is to be started at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            weight: 1,
            wish: Wish::Serve,
            restart: None,
            process: Process::Down { restart_at: Some(now) },
            open: false,
            leaves: false,
            restarts: 0,
            reason: None,
            last_words: Vec::new(),
            stalls: Stalls::default(),
            said: Said::default(),
            watchdog: None,
            given_up: None,
            missed: false,
            waited_for: false,
            idle: false,
            backoff: Backoff::new(),
            ever_started: false,
        }
    }

    /// The word for what it is doing.
    pub fn state(&self) -> WorkerState {
        match self.process {
            Process::Down { .. } if !self.ever_started && self.reason.is_none() => WorkerState::Starting,
            Process::Down { .. } => WorkerState::Down,
            Process::Stopping { .. } => WorkerState::Stopping,
            Process::Starting { .. } | Process::Running { .. } if self.is_leaving() => {
                if self.idle {
                    WorkerState::Drained
                } else {
                    WorkerState::Draining
                }
            }
            Process::Starting { .. } => WorkerState::Starting,
            Process::Running { .. } if !self.open => WorkerState::Starting,
            Process::Running { .. } if self.stalls.since.is_some() => WorkerState::Stalled,
            Process::Running { .. } => WorkerState::Active,
        }
    }

    /// Its process id, while there is a process.
    pub const fn pid(&self) -> Option<u32> {
        match self.process {
            Process::Starting { pid, .. } | Process::Running { pid, .. } | Process::Stopping { pid, .. } => {
                Some(pid)
            }
            Process::Down { .. } => None,
        }
    }

    const fn runs(&self) -> bool {
        matches!(self.process, Process::Starting { .. } | Process::Running { .. })
    }

    /// Whether it takes no new connections although its process runs.
    const fn is_leaving(&self) -> bool {
        !matches!(self.wish, Wish::Serve) || self.restart.is_some() || self.said.stopping
    }

    /// Whether it takes new connections, or would if it were not stalled.
    pub fn serves(&self) -> bool {
        matches!(self.process, Process::Running { .. }) && self.open && !self.is_leaving()
    }

    /// Whether new connections may go to it.
    pub(super) fn is_eligible(&self, ready: Ready) -> bool {
        // To accept a connection, it has to get one; and none but the first has to wait for it.
        let on_trial =
            ready == Ready::Accept && matches!(self.process, Process::Starting { .. }) && !self.waited_for;
        (self.serves() && !self.missed) || (on_trial && !self.is_leaving())
    }

    pub(super) const fn is_draining(&self) -> bool {
        self.is_leaving() && self.runs()
    }

    pub(super) const fn is_starting(&self) -> bool {
        matches!(self.process, Process::Starting { .. })
    }

    pub(super) const fn is_to_stop(&self) -> bool {
        matches!(self.wish, Wish::Stop { .. })
    }

    /// When its process is to end even with connections open, and how long it then has.
    fn deadline(&self) -> Option<(Instant, Duration)> {
        let restart = self.restart.map(|Restart { at, timeout }| (at, timeout));
        match self.wish {
            Wish::Stop { at, timeout } => Some((at, timeout)),
            Wish::Serve | Wish::Drain => restart,
        }
    }

    /// Its process is to be exchanged. What went wrong before is forgotten.
    pub(super) fn begin_restart(&mut self, restart: Restart, now: Instant) {
        self.reason = None;
        self.last_words.clear();
        match &mut self.process {
            Process::Down { restart_at } => *restart_at = Some(now),
            Process::Starting { .. } | Process::Running { .. } | Process::Stopping { .. } => {
                self.given_up = None;
                self.restart = Some(restart);
            }
        }
    }

    /// Whether a process has come up and stays: a reason if it has not, none if that is not known yet.
    pub(super) fn is_well(&self, ready: Ready, now: Instant) -> Option<Result<(), String>> {
        if self.is_to_stop() {
            return Some(Err("it was stopped meanwhile".into()));
        }
        match self.process {
            Process::Down { .. } => self.reason.clone().map(Err),
            Process::Running { since, .. } if ready != Ready::Exec || now >= since + SETTLE => Some(Ok(())),
            _ => None,
        }
    }

    /// Seen from outside.
    pub(super) fn look(&mut self, seen: Seen, supervision: &Supervision, now: Instant) {
        let Seen { idle, stalled, accepted, waiting } = seen;
        self.idle = self.is_draining() && idle;
        self.waited_for = waiting;
        if let Process::Starting { pid, since, accepted: before, .. } = &mut self.process
            && supervision.ready == Ready::Accept
        {
            let before = *before.get_or_insert(accepted);
            let quiet = !waiting && now >= *since + QUIET;
            if accepted > before || quiet {
                let (pid, since) = (*pid, *since);
                self.ready(pid, since, supervision, now);
            }
        }
        self.missed = self.serves() && self.watchdog.is_some_and(|watchdog| watchdog.misses_at() <= now);
        self.stalls.set((stalled || self.missed) && self.serves(), now);
    }

    /// Its process has opened its socket.
    pub(super) fn bound(&mut self, supervision: &Supervision, now: Instant) {
        self.open = true;
        if let Process::Starting { pid, since, .. } = self.process
            && supervision.ready == Ready::Exec
        {
            self.ready(pid, since, supervision, now);
        }
    }

    pub(super) fn ready(&mut self, pid: u32, since: Instant, supervision: &Supervision, now: Instant) {
        self.process = Process::Running { pid, since };
        self.watchdog = supervision.watchdog.map(|interval| Watchdog { interval, fed_at: now });
    }

    pub(super) fn started(&mut self, pid: u32, supervision: &Supervision, now: Instant) {
        self.restarts += u64::from(self.ever_started);
        self.ever_started = true;
        self.said = Said::default();
        self.given_up = None;
        let give_up_at = now + supervision.ready_timeout;
        self.process = Process::Starting { pid, since: now, give_up_at, accepted: None };
        if supervision.ready == Ready::Exec && !supervision.self_bound {
            self.ready(pid, now, supervision, now);
        }
    }

    pub(super) fn ended(&mut self, reason: String, last_words: Vec<String>, now: Instant) {
        let is_restart = self.restart.take().is_some();
        let given_up = self.given_up.take();
        let restart_at = match self.process {
            _ if self.is_to_stop() => None,
            _ if is_restart => Some(now),
            // It was stopped, and the user has thought better of it.
            Process::Stopping { .. } if given_up.is_none() => Some(now),
            Process::Starting { since, .. }
            | Process::Running { since, .. }
            | Process::Stopping { since, .. } => Some(now + self.backoff.delay(since, now)),
            Process::Down { .. } => Some(now + self.backoff.delay(now, now)),
        };
        let is_wanted = self.is_to_stop() || is_restart;
        self.reason = (!is_wanted).then(|| match given_up {
            Some(why) => format!("{why}; {reason}"),
            None => reason,
        });
        self.last_words = if is_wanted { Vec::new() } else { last_words };
        self.process = Process::Down { restart_at };
        self.said = Said::default();
        self.watchdog = None;
        self.missed = false;
        self.waited_for = false;
        self.stalls.set(false, now);
    }

    /// Makes the transitions that are due. `others` tells whether somebody else would take what waits in its queue, and
    /// `may_start` whether it may be started now.
    pub(super) fn advance(
        &mut self,
        id: WorkerId,
        supervision: &Supervision,
        others: bool,
        may_start: bool,
        now: Instant,
    ) -> Vec<Action> {
        let due = |at: Instant| at <= now;
        let deadline = self.deadline();
        let stop = |worker: &mut Self, pid, since, patience| {
            worker.process = Process::Stopping { pid, since, kill_at: Some(now + patience) };
        };
        match self.process {
            Process::Running { .. } if self.leaves => {
                if self.idle {
                    vec![Action::Forget(id)]
                } else {
                    vec![]
                }
            }
            Process::Starting { pid, since, .. } | Process::Running { pid, since }
                if deadline.is_some_and(|(at, _)| self.idle || due(at)) =>
            {
                stop(self, pid, since, deadline.map_or(Duration::ZERO, |(_, timeout)| timeout));
                vec![Action::Terminate(id)]
            }
            Process::Starting { pid, since, give_up_at, .. } if due(give_up_at) => {
                let patience = humantime::format_duration(supervision.ready_timeout);
                self.given_up = Some(format!("not ready within {patience}"));
                stop(self, pid, since, supervision.stop_timeout);
                vec![Action::Terminate(id)]
            }
            Process::Running { pid, since } if self.watchdog.is_some_and(|of| due(of.gives_up_at())) => {
                self.given_up = Some("missed its watchdog twice".into());
                stop(self, pid, since, ABORT_PATIENCE);
                vec![Action::Abort(id)]
            }
            Process::Stopping { pid, since, kill_at: Some(at) } if due(at) => {
                self.process = Process::Stopping { pid, since, kill_at: None };
                vec![Action::Kill(id)]
            }
            Process::Down { .. } if self.is_to_stop() && self.open => vec![Action::Close(id)],
            // Its successor failed, too, and so may the next. Clients need not wait for the one that does not.
            Process::Down { .. } if self.backoff.is_loop() && self.open && others => vec![Action::Close(id)],
            Process::Down { restart_at: Some(at) } if may_start && !self.is_to_stop() && due(at) => {
                self.process = Process::Down { restart_at: None };
                if self.open { vec![Action::Start(id)] } else { vec![Action::Open(id), Action::Start(id)] }
            }
            _ => vec![],
        }
    }

    /// When [`is_well`](Self::is_well) may change its mind by itself.
    pub(super) fn settles_at(&self, ready: Ready, now: Instant) -> Option<Instant> {
        match self.process {
            Process::Running { since, .. } if ready == Ready::Exec => {
                Some(since + SETTLE).filter(|at| *at > now)
            }
            _ => None,
        }
    }

    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let end = self.deadline().map(|(at, _)| at);
        match self.process {
            Process::Starting { give_up_at, .. } => [Some(give_up_at), end].into_iter().flatten().min(),
            Process::Running { .. } => {
                let watchdog = self.watchdog.map(|watchdog| watchdog.next_deadline(now));
                [watchdog, end].into_iter().flatten().min()
            }
            Process::Stopping { kill_at, .. } => kill_at,
            Process::Down { restart_at } => restart_at.filter(|_| !self.is_to_stop()),
        }
    }
}
