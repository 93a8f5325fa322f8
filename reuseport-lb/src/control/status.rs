//! What `status` tells.

use std::{fmt, net::SocketAddr};

use reuseport_lb_ebpf::outcome::{self, Outcome};
use serde::{Deserialize, Serialize};

use crate::{
    group::{Kind, Stage, WorkerId, WorkerState},
    policy::PolicySpec,
};

/// Everything that `status --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: f64,
    /// How many daemons have had these groups, one after the other: 1 for the first, one more for each that took over.
    #[serde(default)]
    pub generation: u64,
    /// What this daemon has taken over, if it is not the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over: Option<TakenOver>,
    /// Why the daemon did not become another program when it was about to; the next `upgrade` clears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_error: Option<String>,
    /// The groups.
    pub groups: Vec<GroupStatus>,
    /// Groups that a reload has removed or replaced, and that finish what they have. A name may be that of a group.
    #[serde(default)]
    pub leaving: Vec<GroupStatus>,
}

/// What a daemon has taken over from the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// The version of that daemon.
    pub version: String,
    /// How many processes of workers go on.
    pub workers: usize,
    /// The maps that did not fit, and are new; in any group.
    pub maps_replaced: Vec<String>,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group's name.
    pub name: String,
    /// The protocol, `tcp`.
    pub protocol: Protocol,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whose workers these are.
    pub mode: Mode,
    /// The policy that picks.
    pub policy: PolicySpec,
    /// The workers, by id.
    pub workers: Vec<WorkerStatus>,
    /// The operation that is under way, or else the last one since the daemon started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// What became of the program's runs; they add up to the number of runs.
    pub outcomes: Outcomes,
}

/// A restart, or a change of the number of workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// Its number: the first of a group is 1.
    pub id: u64,
    /// What it does.
    pub kind: Kind,
    /// How it is going.
    pub state: OperationState,
    /// How long it has been going on, or went on, in seconds.
    pub seconds: f64,
    /// The workers that are done, in order.
    pub done: Vec<WorkerId>,
    /// The workers that it is at.
    pub under_way: Vec<AtWorker>,
    /// The workers that have yet to come.
    pub waiting: Vec<WorkerId>,
    /// The workers that did not come back. Those behind them were left as they were.
    pub failed: Vec<FailedWorker>,
}

/// How an operation is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// It is under way.
    Running,
    /// All was done.
    Done,
    /// Some workers did not come back.
    Failed,
    /// It was cancelled: some workers were left as they were.
    Cancelled,
}

impl OperationState {
    /// All states, in order.
    pub const ALL: &'static [Self] = &[Self::Running, Self::Done, Self::Failed, Self::Cancelled];

    /// The state's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A worker that an operation is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtWorker {
    /// The worker.
    pub worker: WorkerId,
    /// How far it is.
    pub stage: Stage,
}

/// A worker that did not come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedWorker {
    /// The worker.
    pub worker: WorkerId,
    /// Why.
    pub reason: String,
}

/// The protocol of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
        })
    }
}

/// Whose workers a group's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The daemon starts them.
    Supervised,
    /// The daemon found their sockets in running processes.
    Adopted,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Supervised => "supervised",
            Self::Adopted => "adopted",
        })
    }
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The worker's number.
    pub id: WorkerId,
    /// Its process, or none while it is down.
    pub pid: Option<u32>,
    /// What it is doing.
    pub state: WorkerState,
    /// Why it is not active, where that is known and not the user's own doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The last lines that its process wrote to standard error, while it is down for that reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_words: Vec<String>,
    /// What it says that it is doing, by the notify protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Whether it reads its configuration anew, by the notify protocol.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reloading: bool,
    /// Its weight.
    pub weight: u16,
    /// The CPU that it is pinned to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u16>,
    /// Its connections.
    pub connections: Connections,
    /// How often its process was started again.
    pub restarts: u64,
    /// When it took nothing from its accept queue.
    #[serde(default)]
    pub stalls: Stalls,
}

/// The stalls of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stalls {
    /// How often it began to be stalled.
    pub count: u64,
    /// How long it was stalled altogether, in seconds.
    pub seconds_total: f64,
    /// How long it has been stalled now, in seconds; none while it is not.
    pub since_seconds: Option<f64>,
}

/// The connections of one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Established and not yet closed, those in the accept queue included.
    pub active: u64,
    /// Selected and still in the handshake.
    pub pending: u64,
    /// Waiting in the accept queue.
    pub queued: u64,
    /// Given to this worker by the policy since the group was made.
    pub selected_total: u64,
    /// Moved to this worker because another one's socket was closed.
    pub migrated_in_total: u64,
}

/// What became of the program's runs. The fields, less `fallback_reasons`, add up to the number of runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// The policy's first choice took the connection.
    pub selected: u64,
    /// A later choice took it, since an earlier one's socket was gone.
    pub retried: u64,
    /// The kernel's own hash picked, since the program could not.
    pub fallback: u64,
    /// Refused, as the user asked for.
    pub dropped: u64,
    /// A waiting connection was moved from a closed socket to another worker.
    pub migrated: u64,
    /// The segment opens no connection (a late reset, for one); steered, but not counted as a selection.
    pub stray: u64,
    /// Why the kernel's own hash picked; these add up to `fallback`.
    #[serde(default)]
    pub fallback_reasons: FallbackReasons,
}

/// Why the kernel's own hash picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackReasons {
    /// No worker is eligible.
    pub no_worker: u64,
    /// The packet could not be read.
    pub unreadable: u64,
    /// The sockets of all choices were gone.
    pub refused: u64,
}

impl Outcomes {
    /// How many runs ended in this outcome.
    pub const fn count(&self, outcome: Outcome) -> u64 {
        match outcome {
            Outcome::Selected => self.selected,
            Outcome::Retried => self.retried,
            Outcome::Migrated => self.migrated,
            Outcome::Stray => self.stray,
            Outcome::FallbackNoWorker => self.fallback_reasons.no_worker,
            Outcome::FallbackUnreadable => self.fallback_reasons.unreadable,
            Outcome::FallbackRefused => self.fallback_reasons.refused,
            Outcome::Dropped => self.dropped,
        }
    }
}

impl From<outcome::Outcomes> for Outcomes {
    fn from(counts: outcome::Outcomes) -> Self {
        let count = |outcome: Outcome| counts[outcome.index()];
        let fallback_reasons = FallbackReasons {
            no_worker: count(Outcome::FallbackNoWorker),
            unreadable: count(Outcome::FallbackUnreadable),
            refused: count(Outcome::FallbackRefused),
        };
        let FallbackReasons { no_worker, unreadable, refused } = fallback_reasons;
        Self {
            selected: count(Outcome::Selected),
            retried: count(Outcome::Retried),
            fallback: no_worker + unreadable + refused,
            dropped: count(Outcome::Dropped),
            migrated: count(Outcome::Migrated),
            stray: count(Outcome::Stray),
            fallback_reasons,
        }
    }
}
