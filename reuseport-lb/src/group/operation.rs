//! What takes a while and concerns several workers: a restart, or another number of workers.
//!
//! The group drives it, not whoever asked for it, so it goes on when they have gone away.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Group, Process, Ready, Refusal, Restart, Wish, Worker, WorkerId, id_ranges};
use crate::policy::Policy;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Drain, stop, start, wait until ready, undrain: worker after worker.
    Restart,
    /// More workers, or fewer.
    Scale,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Restart => "restart",
            Self::Scale => "scale",
        })
    }
}

/// How far a worker is that an operation is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It finishes its connections, and its process ends.
    Leaving,
    /// It is started, and is to get ready.
    Coming,
    /// It leaves for good.
    Going,
}

/// An operation, under way or the last one that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its number, which no other operation of the group has.
    pub id: u64,
    /// What it does.
    pub kind: Kind,
    /// At how many workers it may be at the same time.
    pub parallel: u16,
    /// How long a worker may take to finish its connections, and once more to end.
    #[serde(with = "crate::moment::span")]
    pub timeout: Duration,
    /// Who has yet to come, in order.
    pub waiting: BTreeSet<WorkerId>,
    /// Who it is at.
    pub under_way: BTreeMap<WorkerId, Stage>,
    /// Who is done, in order.
    pub done: Vec<WorkerId>,
    /// Who did not come back, and why.
    pub failed: BTreeMap<WorkerId, String>,
    /// When it began.
    #[serde(with = "crate::moment")]
    pub begun: Instant,
    /// When it ended.
    #[serde(with = "crate::moment::option")]
    pub ended: Option<Instant>,
    /// Whether it was cancelled while somebody had yet to come.
    #[serde(default)]
    pub cancelled: bool,
}

/// Which workers to restart, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPlan {
    /// One worker, or all that are not stopped.
    pub worker: Option<WorkerId>,
    /// How many at the same time, 1 at least.
    pub parallel: u16,
    /// How long each may take to finish its connections.
    pub timeout: Duration,
}

impl Operation {
    fn new(id: u64, kind: Kind, parallel: u16, timeout: Duration, now: Instant) -> Self {
        Self {
            id,
            kind,
            parallel,
            timeout,
            waiting: BTreeSet::new(),
            under_way: BTreeMap::new(),
            done: Vec::new(),
            failed: BTreeMap::new(),
            begun: now,
            ended: None,
            cancelled: false,
        }
    }

    /// Takes note of how the workers are that it is at. Gives whether it got on.
    fn follow(&mut self, workers: &mut BTreeMap<WorkerId, Worker>, ready: Ready, now: Instant) -> bool {
        let mut moved = false;
        for (id, stage) in std::mem::take(&mut self.under_way) {
            let Some(worker) = workers.get(&id) else { continue };
            let next = match stage {
                Stage::Leaving if worker.restart.is_some() => Some(stage),
                Stage::Leaving => Some(Stage::Coming),
                Stage::Coming => match worker.is_well(ready, now) {
                    None => Some(stage),
                    Some(Ok(())) => {
                        self.done.push(id);
                        None
                    }
                    Some(Err(why)) => {
                        self.failed.insert(id, why);
                        None
                    }
                },
                Stage::Going if !worker.open && matches!(worker.process, Process::Down { .. }) => {
                    workers.remove(&id);
                    self.done.push(id);
                    None
                }
                // The user wants to keep it after all.
                Stage::Going if !worker.is_to_stop() => {
                    self.failed.insert(id, "it was taken back meanwhile".into());
                    None
                }
                Stage::Going => Some(stage),
            };
            moved |= next != Some(stage);
            if let Some(next) = next {
                self.under_way.insert(id, next);
            }
        }
        if !self.failed.is_empty() {
            // What is broken in one is broken in all.
            self.waiting.clear();
        }
        moved
    }

    /// Begins with as many more workers as may be begun with. Gives whether there was one.
    fn begin(&mut self, workers: &mut BTreeMap<WorkerId, Worker>, policy: Policy, now: Instant) -> bool {
        let mut moved = false;
        while self.under_way.len() < usize::from(self.parallel)
            && let Some(id) = self.waiting.first().copied()
        {
            let others = workers.iter().any(|(other, worker)| *other != id && worker.serves());
            // One goes on serving. A group that has but one is restarted all the same: connections wait in its queue.
            if !others && !self.under_way.is_empty() {
                break;
            }
            self.waiting.remove(&id);
            moved = true;
            let Some(worker) = workers.get_mut(&id).filter(|worker| !worker.is_to_stop()) else {
                self.failed.insert(id, "it was stopped meanwhile".into());
                continue;
            };
            // New connections go on coming where nobody else takes them, and so it would never be drained.
            let drains = others && policy != Policy::Kernel;
            let at = if drains { now + self.timeout } else { now };
            worker.begin_restart(Restart { at, timeout: self.timeout }, now);
            self.under_way.insert(id, Stage::Leaving);
        }
        moved
    }
}

impl Group {
    /// The operation that is under way, or else the last one.
    pub const fn operation(&self) -> Option<&Operation> {
        self.operation.as_ref()
    }

    /// Exchanges the processes of workers: each finishes its connections, ends, and another one starts in its place.
    /// The next one is begun with when that one is ready; when it does not get ready, the rest are left as they are.
    ///
    /// What the user wishes of a worker remains: one that drains comes back as one that drains.
    ///
    /// # Errors
    ///
    /// Another operation is under way, the worker does not exist or is stopped, or all are.
    pub fn restart(&mut self, plan: RestartPlan, now: Instant) -> Result<u64, Refusal> {
        self.must_be_ours()?;
        let RestartPlan { worker, parallel, timeout } = plan;
        if parallel == 0 {
            return Err(Refusal::NoParallel);
        }
        let waiting: BTreeSet<WorkerId> = match worker {
            Some(id) if self.worker(id)?.is_to_stop() => return Err(Refusal::Stopped(id)),
            Some(id) => [id].into(),
            None => self.workers().filter(|(_, worker)| !worker.is_to_stop()).map(|(id, _)| id).collect(),
        };
        if waiting.is_empty() {
            return Err(Refusal::AllStopped);
        }
        let mut operation = self.new_operation(Kind::Restart, parallel, timeout, now)?;
        operation.waiting = waiting;
        Ok(self.operation.insert(operation).id)
    }

    /// Begins with no further worker of the restart that is under way. Those it is at come back; the rest are left as they
    /// are.
    ///
    /// # Errors
    ///
    /// No restart is under way.
    pub fn cancel_restart(&mut self) -> Result<u64, Refusal> {
        match &mut self.operation {
            Some(Operation { id, kind: Kind::Restart, ended: None, waiting, cancelled, .. }) => {
                *cancelled |= !waiting.is_empty();
                waiting.clear();
                Ok(*id)
            }
            _ => Err(Refusal::NoRestart),
        }
    }

    /// Another number of workers. More are started; of those that are too many, the highest ids finish their
    /// connections, end and are forgotten.
    ///
    /// # Errors
    ///
    /// Another operation is under way, the number is out of range, or there are too many and they cannot be drained:
    /// under [`Policy::Kernel`], or since none that remains takes new connections.
    pub fn scale(&mut self, workers: u16, timeout: Duration, now: Instant) -> Result<u64, Refusal> {
        self.must_be_ours()?;
        if !(1..=super::MAX_WORKERS).contains(&workers) {
            return Err(Refusal::Workers(workers));
        }
        let remains = |id: &WorkerId| id.0 < workers;
        let too_many: Vec<WorkerId> = self.workers.keys().copied().filter(|id| !remains(id)).collect();
        if !too_many.is_empty() {
            if self.program.policy == Policy::Kernel {
                return Err(Refusal::KernelCannotDrain);
            }
            let remaining = self.workers().filter(|(id, _)| remains(id));
            if !remaining.clone().any(|(_, worker)| worker.serves()) {
                return Err(Refusal::NobodyRemains(id_ranges(remaining.map(|(id, _)| id))));
            }
        }
        let mut operation = self.new_operation(Kind::Scale, super::MAX_WORKERS, timeout, now)?;
        for id in too_many {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.wish = Wish::Stop { at: now + timeout, timeout };
                operation.under_way.insert(id, Stage::Going);
            }
        }
        for id in (0..workers).map(WorkerId) {
            self.workers.entry(id).or_insert_with(|| {
                operation.under_way.insert(id, Stage::Coming);
                Worker::new(now)
            });
        }
        Ok(self.operation.insert(operation).id)
    }

    /// How many workers there are to be: all but those that leave for good.
    pub fn size(&self) -> u16 {
        let going = |id: &WorkerId| {
            let stage = self.operation.as_ref().and_then(|operation| operation.under_way.get(id));
            stage == Some(&Stage::Going)
        };
        let staying = self.workers.keys().filter(|id| !going(id)).count();
        u16::try_from(staying).unwrap_or(super::MAX_WORKERS)
    }

    fn new_operation(
        &self,
        kind: Kind,
        parallel: u16,
        timeout: Duration,
        now: Instant,
    ) -> Result<Operation, Refusal> {
        match &self.operation {
            Some(Operation { id, kind, ended: None, .. }) => Err(Refusal::Busy { kind: *kind, id: *id }),
            last => {
                let id = last.as_ref().map_or(1, |last| last.id + 1);
                Ok(Operation::new(id, kind, parallel, timeout, now))
            }
        }
    }

    /// Drives the operation on. Gives whether it got on.
    pub(super) fn advance_operation(&mut self, now: Instant) -> bool {
        let Some(operation) = self.operation.as_mut().filter(|operation| operation.ended.is_none()) else {
            return false;
        };
        let followed = operation.follow(&mut self.workers, self.supervision.ready, now);
        let begun = operation.begin(&mut self.workers, self.program.policy, now);
        if operation.waiting.is_empty() && operation.under_way.is_empty() {
            operation.ended = Some(now);
        }
        followed || begun
    }

    /// The operation is over, since all ends.
    pub(super) fn abandon_operation(&mut self, now: Instant) {
        if let Some(operation) = self.operation.as_mut().filter(|operation| operation.ended.is_none()) {
            operation.waiting.clear();
            for (id, _) in std::mem::take(&mut operation.under_way) {
                operation.failed.insert(id, "the group is shutting down".into());
            }
            operation.ended = Some(now);
        }
    }
}

#[cfg(test)]
mod tests;
