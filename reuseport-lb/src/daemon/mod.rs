//! The daemon: one task that owns all state; everything else talks to it by channel.
//!
//! [`Daemon`] is that task. It owns any number of groups, each with everything that belongs to it (`Runner`), and hands
//! requests and events on to the one that they are about.

use tokio::sync::{mpsc, oneshot};

pub use error::{GroupError, StartError};
pub use following::LeftOut;
pub use owner::{Daemon, Next};
pub use rehearsal::{Rehearsal, Unfit, rehearse};
pub use start::{Earlier, Options, Settings, check, start};

use crate::{
    control::{
        DrainRequest, OperationStatus, ReloadRequest, ReloadStatus, RestartRequest, ScaleRequest, Status,
        UpgradeRequest, UpgradeStatus, WorkerStatus,
    },
    group::{Refusal, WorkerId},
    policy::PolicySpec,
};

mod changes;
mod creation;
mod detach;
mod error;
mod events;
mod following;
mod listener;
mod look;
mod manager;
mod notices;
mod older;
mod owner;
mod owners;
mod process;
mod recover;
mod rehearsal;
mod reload;
mod resume;
mod runner;
mod socket;
mod start;
mod status;
mod upgrade;

/// What may be asked of the daemon, each with the channel for its answer.
#[derive(Debug)]
pub enum Request {
    /// Everything about everything.
    Status(Reply<Status>),
    /// Another policy for a group.
    SetPolicy(GroupName, PolicySpec, Reply<PolicySpec>),
    /// No new connection for a worker.
    Drain(GroupName, WorkerId, DrainRequest, Reply<WorkerStatus>),
    /// New connections for a worker again; starts it when it is down.
    Undrain(GroupName, WorkerId, Reply<WorkerStatus>),
    /// Starts a worker that is down.
    Start(GroupName, WorkerId, Reply<WorkerStatus>),
    /// Exchanges the processes of workers. Answered when that has begun.
    Restart(GroupName, RestartRequest, Reply<OperationStatus>),
    /// Restarts no further worker. Answered at once, while those under way come back.
    CancelRestart(GroupName, Reply<OperationStatus>),
    /// Another number of workers. Answered when that has begun.
    Scale(GroupName, ScaleRequest, Reply<OperationStatus>),
    /// Another weight for a worker.
    SetWeight(GroupName, WorkerId, u16, Reply<WorkerStatus>),
    /// The configuration file is read again.
    Reload(ReloadRequest, Reply<ReloadStatus>),
    /// The daemon becomes another program. Answered when that one has said that it can go on from here.
    Upgrade(UpgradeRequest, Reply<UpgradeStatus>),
    /// The daemon ends, as on SIGTERM. Answered at once.
    Shutdown(Reply<()>),
    /// The daemon ends and leaves the groups to the kernel; the workers go on. Answered when that is done.
    Detach(Reply<()>),
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The end.
    Stop,
    /// That the configuration file is read again.
    Reload,
}

/// The group that a request means: its name, or none for the only one there is.
pub type GroupName = Option<String>;

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// Why a request was not carried out. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no such group or worker.
    #[error("{0}")]
    NotFound(String),
    /// The request itself makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Not in the present state.
    #[error("{0}")]
    Refused(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// How the rest of the program talks to the daemon.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
}

impl Handle {
    /// A handle, and the end from which the daemon receives.
    pub fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(64);
        (Self { requests }, receiver)
    }

    /// Sends a request and waits for its answer: `handle.ask(Request::Status).await`.
    pub async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, RequestError> {
        let gone = || RequestError::Failed("the daemon is shutting down".into());
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NoSuchWorker(..) => Self::NotFound(text),
            Refusal::Weight(_) | Refusal::Workers(_) | Refusal::NoParallel => Self::Invalid(text),
            Refusal::LastWorker(_)
            | Refusal::KernelCannotDrain
            | Refusal::KernelWouldFeed(..)
            | Refusal::Busy { .. }
            | Refusal::Stopped(_)
            | Refusal::Runs(..)
            | Refusal::AllStopped
            | Refusal::NoRestart
            | Refusal::NobodyRemains(_)
            | Refusal::NotOurs
            | Refusal::Leaves(_)
            | Refusal::NotPinned => Self::Refused(text),
        }
    }
}
