//! What the daemon says of itself: the group's state together with the kernel's counters.

use std::{collections::HashMap, io, time::Instant};

use super::{RequestError, runner::Runner};
use crate::{
    adopt,
    chain::chain,
    config::Sockets,
    control::{
        AtWorker, Connections, FailedWorker, GroupStatus, Mode, OperationState, OperationStatus, Protocol,
        Stalls, WorkerStatus,
    },
    datapath::{self, Datapath as _},
    group::{self, Operation, Worker, WorkerId},
};

impl From<datapath::Error> for RequestError {
    fn from(error: datapath::Error) -> Self {
        Self::Failed(chain(&error))
    }
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Runner {
    /// The group.
    pub(super) fn status(&self) -> Result<GroupStatus, RequestError> {
        let queues = self.queues()?;
        Ok(GroupStatus {
            name: self.spec.name.clone(),
            protocol: Protocol::Tcp,
            listen: self.spec.listen,
            mode: match self.spec.sockets {
                Sockets::HandedOver | Sockets::SelfBound => Mode::Supervised,
                Sockets::Adopted => Mode::Adopted,
            },
            policy: self.group.policy(),
            workers: self
                .group
                .workers()
                .map(|(id, worker)| self.describe(id, worker, &queues))
                .collect::<Result<_, _>>()?,
            outcomes: self.applied.datapath().outcomes()?.into(),
            operation: self.group.operation().map(operation),
        })
    }

    /// The operation that has just begun.
    pub(super) fn operation_status(&self) -> Result<OperationStatus, RequestError> {
        let begun = self.group.operation().map(operation);
        begun.ok_or_else(|| RequestError::Failed("nothing is under way".into()))
    }

    /// One worker.
    pub(super) fn worker_status(&self, id: WorkerId) -> Result<WorkerStatus, RequestError> {
        self.describe(id, self.group.worker(id)?, &self.queues()?)
    }

    fn describe(
        &self,
        id: WorkerId,
        worker: &Worker,
        queues: &HashMap<u64, adopt::Queue>,
    ) -> Result<WorkerStatus, RequestError> {
        let datapath = self.applied.datapath();
        let load = datapath.load(id.0);
        let queue = self.listeners.get(&id).and_then(|listener| queues.get(&listener.cookie()));
        Ok(WorkerStatus {
            id,
            pid: worker.pid(),
            state: worker.state(),
            reason: worker.reason.clone().filter(|_| worker.pid().is_none()),
            last_words: if worker.pid().is_none() { worker.last_words.clone() } else { Vec::new() },
            status: worker.said.status.clone(),
            reloading: worker.said.reloading,
            weight: worker.weight,
            cpu: self.group.cpu(id),
            connections: Connections {
                active: load.active,
                pending: load.pending,
                queued: queue.map_or(0, |queue| queue.depth.into()),
                selected_total: load.selected,
                migrated_in_total: load.migrated_in,
            },
            restarts: worker.restarts,
            stalls: stalls(&worker.stalls),
        })
    }

    /// The accept queues, by the cookies of their sockets.
    pub(super) fn queues(&self) -> io::Result<HashMap<u64, adopt::Queue>> {
        self.netns.within(|| adopt::queue_depths(self.spec.listen.port())).flatten()
    }
}

fn stalls(stalls: &group::Stalls) -> Stalls {
    let present = stalls.since.map(|since| since.elapsed());
    Stalls {
        count: stalls.count,
        seconds_total: (stalls.total + present.unwrap_or_default()).as_secs_f64(),
        since_seconds: present.map(|present| present.as_secs_f64()),
    }
}

fn operation(operation: &Operation) -> OperationStatus {
    let Operation {
        id,
        kind,
        waiting,
        under_way,
        done,
        failed,
        begun,
        ended,
        cancelled,
        parallel: _,
        timeout: _,
    } = operation;
    let until = ended.unwrap_or_else(Instant::now);
    OperationStatus {
        id: *id,
        kind: *kind,
        state: match ended {
            None => OperationState::Running,
            Some(_) if !failed.is_empty() => OperationState::Failed,
            Some(_) if *cancelled => OperationState::Cancelled,
            Some(_) => OperationState::Done,
        },
        seconds: until.saturating_duration_since(*begun).as_secs_f64(),
        done: done.clone(),
        under_way: under_way
            .iter()
            .map(|(worker, stage)| AtWorker { worker: *worker, stage: *stage })
            .collect(),
        waiting: waiting.iter().copied().collect(),
        failed: failed
            .iter()
            .map(|(worker, reason)| FailedWorker { worker: *worker, reason: reason.clone() })
            .collect(),
    }
}
