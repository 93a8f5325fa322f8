//! The group: its workers and their states, as they should be.
//!
//! A state machine. It is told what happened and what time it is, and says what is to be done; it asks neither the
//! kernel nor a process.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

pub use notice::{Notice, Sign};
pub use operation::{Kind, Operation, RestartPlan, Stage};
pub use process::{Process, Restart, Said, Stalls};
pub use refusal::Refusal;
pub use resume::Found;
pub use supervision::{Seen, Supervision};
pub use watchdog::Watchdog;
pub use words::{MAX_WORKERS, Ready, WEIGHT_RANGE, WorkerId, WorkerState, id_ranges};
pub use worker::{Wish, Worker};

use serde::{Deserialize, Serialize};

use crate::{
    plan::State,
    policy::{BalanceFactor, HashOn, Member, Policy, PolicySpec, Program},
    shared::Shared,
};

mod adopted;
mod backoff;
#[cfg(test)]
mod fuzz;
mod notice;
mod operation;
mod process;
mod refusal;
mod resume;
mod steering;
mod supervision;
mod watchdog;
mod words;
mod worker;

/// How many processes are started before whoever else waits has a turn. A start takes a millisecond or more, and what
/// follows each turn (tables, the state file) as much again in the largest groups.
pub const STARTS_A_TURN: usize = 32;

/// Something that the daemon is to do for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make its listening socket.
    Open(WorkerId),
    /// Start its process.
    Start(WorkerId),
    /// Tell its process to end.
    Terminate(WorkerId),
    /// End its process with a core dump: it hangs, and somebody will want to know where.
    Abort(WorkerId),
    /// End its process.
    Kill(WorkerId),
    /// Close its listening socket for good; what waits in its queue goes to other workers.
    Close(WorkerId),
    /// Its socket has been closed by others, and its last connection is gone: nothing of it is left.
    Forget(WorkerId),
}

/// One group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    program: Program,
    hash_on: [HashOn; 2],
    /// The last one given, whether the program keeps it or not.
    balance_factor: BalanceFactor,
    /// The CPUs that workers are pinned to, by turns; empty while they are not.
    #[serde(skip)]
    cpus: Vec<u16>,
    /// As configured, so it is not written down.
    #[serde(skip)]
    stall_after: Duration,
    /// The same.
    #[serde(skip)]
    supervision: Supervision,
    pub(crate) workers: Shared<BTreeMap<WorkerId, Worker>>,
    operation: Option<Operation>,
    /// Until each of the first workers has been ready, or has failed.
    #[serde(skip)]
    founding: bool,
    /// Whether the processes are others'.
    is_adopted: bool,
    /// Whether an adopted group was given back to the kernel.
    released: bool,
}

impl Group {
    /// A group whose workers, `0..workers`, are all to be started at `now`. A worker that takes nothing from its accept
    /// queue for `stall_after` is passed over; zero turns that off.
    pub fn new(
        workers: u16,
        policy: PolicySpec,
        stall_after: Duration,
        supervision: Supervision,
        now: Instant,
    ) -> Self {
        let mut group = Self {
            program: Policy::Kernel.into(),
            hash_on: Default::default(),
            balance_factor: BalanceFactor::MAX,
            cpus: Vec::new(),
            stall_after,
            supervision,
            workers: Shared::new((0..workers).map(|id| (WorkerId(id), Worker::new(now))).collect()),
            operation: None,
            founding: true,
            is_adopted: false,
            released: false,
        };
        group.choose(policy);
        group
    }

    /// The workers by id.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, &Worker)> + Clone {
        self.workers.iter().map(|(id, worker)| (*id, worker))
    }

    /// One worker.
    ///
    /// # Errors
    ///
    /// There is no such worker.
    pub fn worker(&self, id: WorkerId) -> Result<&Worker, Refusal> {
        self.workers.get(&id).ok_or_else(|| self.no_such(id))
    }

    fn worker_mut(&mut self, id: WorkerId) -> Result<&mut Worker, Refusal> {
        if !self.workers.contains_key(&id) {
            return Err(self.no_such(id));
        }
        self.workers.get_mut(&id).ok_or(Refusal::NoSuchWorker(id, String::new()))
    }

    fn no_such(&self, id: WorkerId) -> Refusal {
        Refusal::NoSuchWorker(id, id_ranges(self.workers.keys().copied()))
    }

    /// How processes are looked after from now on; those that run keep what they were started with.
    pub fn supervise(&mut self, supervision: Supervision) {
        // Who opens the sockets is for life.
        self.supervision = Supervision { self_bound: self.supervision.self_bound, ..supervision };
    }

    /// No new connection for a worker; with `stop`, its process ends once it is drained, or after that time, and has
    /// the same time once more until it is killed.
    ///
    /// # Errors
    ///
    /// It is the last that takes new connections, unless `force`; or the policy is [`Policy::Kernel`].
    pub fn drain(
        &mut self,
        id: WorkerId,
        stop: Option<Duration>,
        force: bool,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.worker(id)?;
        if self.is_adopted && stop.is_some() {
            return Err(Refusal::NotOurs);
        }
        if self.program.policy == Policy::Kernel {
            return Err(Refusal::KernelCannotDrain);
        }
        let others = self.workers.iter().any(|(other, worker)| *other != id && worker.serves());
        if !others && !force && self.worker(id)?.wish == Wish::Serve {
            return Err(Refusal::LastWorker(id));
        }
        let worker = self.worker_mut(id)?;
        worker.wish = match stop {
            Some(timeout) => Wish::Stop { at: now + timeout, timeout },
            // Stopping is more than draining, and only `undrain` takes it back.
            None if matches!(worker.wish, Wish::Stop { .. }) => worker.wish,
            None => Wish::Drain,
        };
        Ok(())
    }

    /// New connections for a worker again. One that was stopped is started.
    ///
    /// # Errors
    ///
    /// There is no such worker.
    pub fn undrain(&mut self, id: WorkerId, now: Instant) -> Result<(), Refusal> {
        let worker = self.worker_mut(id)?;
        if worker.leaves {
            return Err(Refusal::Leaves(id));
        }
        worker.wish = Wish::Serve;
        if let Process::Down { restart_at } = &mut worker.process {
            restart_at.get_or_insert(now);
        }
        Ok(())
    }

    /// Starts a worker that was stopped, or that waits to be started again.
    ///
    /// # Errors
    ///
    /// There is no such worker, or it runs.
    pub fn start(&mut self, id: WorkerId, now: Instant) -> Result<(), Refusal> {
        self.must_be_ours()?;
        let worker = self.worker(id)?;
        if worker.pid().is_some() && !worker.is_to_stop() {
            return Err(Refusal::Runs(id, worker.state()));
        }
        self.undrain(id, now)
    }

    /// Another weight for a worker.
    ///
    /// # Errors
    ///
    /// The weight is out of [`WEIGHT_RANGE`].
    pub fn set_weight(&mut self, id: WorkerId, weight: u16) -> Result<(), Refusal> {
        let worker = self.worker_mut(id)?;
        if !WEIGHT_RANGE.contains(&weight) {
            return Err(Refusal::Weight(weight));
        }
        worker.weight = weight;
        Ok(())
    }

    /// All workers are to end now, and are killed after `grace`.
    pub fn shut_down(&mut self, grace: Duration, now: Instant) {
        self.abandon_operation(now);
        for worker in self.workers.values_mut() {
            worker.wish = Wish::Stop { at: now, timeout: grace };
            if let Process::Stopping { kill_at: Some(kill_at), .. } = &mut worker.process {
                *kill_at = (*kill_at).min(now + grace);
            }
        }
    }

    /// The group goes: no new connections, and each worker ends once its connections are done, or after `grace`; it
    /// then has that time once more until it is killed.
    pub fn leave(&mut self, grace: Duration, now: Instant) {
        self.abandon_operation(now);
        if self.program.policy == Policy::Kernel {
            // The kernel's own hash would go on giving new connections to workers that end. Any program refuses them.
            self.program = Policy::Hash.into();
        }
        for worker in self.workers.values_mut() {
            worker.wish = Wish::Stop { at: now + grace, timeout: grace };
        }
    }

    /// Another time after which a worker that takes nothing is passed over.
    pub const fn set_stall_after(&mut self, stall_after: Duration) {
        self.stall_after = stall_after;
    }

    /// Whether no process runs and no socket is open any more.
    pub fn is_gone(&self) -> bool {
        self.released
            || self
                .workers
                .values()
                .all(|worker| !worker.open && matches!(worker.process, Process::Down { .. }))
    }

    /// A worker's socket was made.
    pub fn opened(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.open = true;
        }
    }

    /// A worker's socket was closed.
    pub fn closed(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.open = false;
        }
    }

    /// A worker's process was started.
    pub fn started(&mut self, id: WorkerId, pid: u32, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.started(pid, &self.supervision, now);
        }
    }

    /// A worker's process ended, or could not be started, or its socket could not be made. `last_words` are the last
    /// lines that it wrote to standard error.
    pub fn ended(&mut self, id: WorkerId, reason: String, last_words: Vec<String>, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.ended(reason, last_words, now);
        }
    }

    /// A worker's process said something of itself.
    pub fn notified(&mut self, id: WorkerId, notice: Notice, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.notified(notice, &self.supervision, now);
        }
    }

    /// Makes the transitions that are due, and says what is to be done for them: at most [`STARTS_A_TURN`] starts, and
    /// the others are due still.
    ///
    /// `look` tells what can be seen of a worker from outside.
    pub fn advance(&mut self, now: Instant, look: impl Fn(WorkerId) -> Seen) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut starts = 0;
        loop {
            let others = self.program.policy != Policy::Kernel && self.workers.values().any(Worker::serves);
            for (id, worker) in self.workers.iter_mut() {
                worker.look(look(*id), &self.supervision, now);
                let may_start = starts < STARTS_A_TURN;
                let due = worker.advance(*id, &self.supervision, others, may_start, now);
                starts += due.iter().filter(|action| matches!(action, Action::Start(_))).count();
                actions.extend(due);
            }
            self.founding &= self.workers.values().any(|worker| worker.state() == WorkerState::Starting);
            if !self.advance_operation(now) {
                return actions;
            }
        }
    }

    /// The next moment at which a transition is due by itself.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let workers = self.workers.values().filter_map(|worker| worker.next_deadline(now));
        let operation = self.operation.iter().filter(|operation| operation.ended.is_none());
        let settle = operation
            .flat_map(|operation| operation.under_way.keys())
            .filter_map(|id| self.workers.get(id)?.settles_at(self.supervision.ready, now));
        workers.chain(settle).min()
    }

    /// Whether a worker is to accept its first connection, while others serve.
    pub fn is_on_trial(&self, id: WorkerId) -> bool {
        self.supervision.ready == Ready::Accept
            && self.workers.get(&id).is_some_and(Worker::is_starting)
            && self.workers.values().any(Worker::serves)
    }

    /// Whether a worker is on trial, so that [`advance`](Self::advance) should be called often.
    pub fn is_trying(&self) -> bool {
        self.supervision.ready == Ready::Accept && self.workers.values().any(Worker::is_starting)
    }

    /// Whether a worker is finishing its connections, so that [`advance`](Self::advance) should be called often.
    pub fn is_draining(&self) -> bool {
        self.workers.values().any(|worker| worker.is_draining() && !worker.idle)
    }

    /// Whether a worker is stalled.
    pub fn has_stalled(&self) -> bool {
        self.workers.values().any(|worker| worker.stalls.since.is_some())
    }

    /// What the kernel's side should look like.
    ///
    /// A stalled worker stays a member: the programs pass it over while it lasts, and no table changes for that.
    pub fn desired(&self) -> State {
        let members = |eligible: &dyn Fn(&Worker) -> bool| -> Vec<Member> {
            self.workers
                .iter()
                .filter(|(_, worker)| worker.open && eligible(worker))
                .map(|(id, worker)| Member { slot: id.0, weight: worker.weight })
                .collect()
        };
        let mut eligible = members(&|worker| worker.is_eligible(self.supervision.ready));
        if eligible.is_empty() {
            // Those who will be back serve what waits in their queues then: better than to feed one that drains.
            eligible = members(&|worker| worker.wish == Wish::Serve);
        }
        let mut staying = self.workers.values().filter(|worker| !worker.leaves).peekable();
        State {
            program: self.program,
            hash_on: self.hash_on,
            balance_factor: self.balance_factor,
            cpus: self.workers.keys().filter_map(|id| Some((id.0, self.cpu(*id)?))).collect(),
            sockets: self.workers.iter().filter(|(_, worker)| worker.open).map(|(id, _)| id.0).collect(),
            members: eligible,
            // The user took every worker out, and knows of it.
            refuse: staying.peek().is_some() && staying.all(|worker| worker.wish != Wish::Serve),
            stall_after: self.stall_after,
            founding: self.founding,
        }
    }
}

#[cfg(test)]
mod tests;
