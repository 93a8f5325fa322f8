//! Why the group does not do what it was asked for.

use super::{WEIGHT_RANGE, WorkerId, WorkerState, operation::Kind};

/// Why a change makes no sense at present. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such worker, but these.
    #[error("there is no worker {0}; there is: {1}")]
    NoSuchWorker(WorkerId, String),
    /// A weight out of range.
    #[error("weight {0} is out of range; a weight is {low} to {high} (to give a worker nothing, drain it)",
        low = WEIGHT_RANGE.start(), high = WEIGHT_RANGE.end())]
    Weight(u16),
    /// Nobody would take new connections.
    #[error(
        "worker {0} is the last one that takes new connections; --force drains it all the same, and new \
             connections are then refused"
    )]
    LastWorker(WorkerId),
    /// The kernel's own hash knows no draining.
    #[error("policy kernel cannot keep connections from a worker; choose another policy first")]
    KernelCannotDrain,
    /// The same, seen from the other side.
    #[error("worker {0} is {1}, and policy kernel cannot keep connections from it; undrain it first")]
    KernelWouldFeed(WorkerId, WorkerState),
    /// The processes of an adopted group are not the daemon's to start or end.
    #[error(
        "this daemon did not start the processes of this group, so it starts, stops and restarts none; do that by their \
             own means (a drain without --stop keeps new connections away)"
    )]
    NotOurs,
    /// There is no socket that could be given new connections.
    #[error("worker {0} has closed its socket, and finishes the connections that it has")]
    Leaves(WorkerId),
    /// No worker has a CPU that could be its own.
    #[error("policy cpu-local needs workers that are pinned to CPUs; start the group with --pin-workers")]
    NotPinned,
    /// One operation at a time.
    #[error("a {kind} is under way (operation {id}); wait for its end, `status` shows how far it is")]
    Busy {
        /// What is under way.
        kind: Kind,
        /// Its number.
        id: u64,
    },
    /// There is nothing to cancel.
    #[error("no restart is under way")]
    NoRestart,
    /// A worker that the user has stopped is not there to be restarted.
    #[error("worker {0} is stopped; `start {0}` starts it")]
    Stopped(WorkerId),
    /// A worker that was to be started runs.
    #[error("worker {0} runs already, it is {1}")]
    Runs(WorkerId, WorkerState),
    /// Every worker is stopped.
    #[error("all workers are stopped; `start WORKER` starts one")]
    AllStopped,
    /// A number of workers out of range.
    #[error("{0} workers cannot be; a group has 1 to 1,024 workers")]
    Workers(u16),
    /// Those who remain take no new connections.
    #[error(
        "none of those who would remain takes new connections, so the others cannot go; undrain one of them first: {0}"
    )]
    NobodyRemains(String),
    /// A number of workers at a time that means nothing.
    #[error("at least one worker at a time is restarted")]
    NoParallel,
}
