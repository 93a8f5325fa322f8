//! The one task that owns the group: it answers requests, watches processes, and keeps the kernel's side as the
//! group wants it.

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinSet};

use super::{
    GroupName, Reply, Request, RequestError,
    listener::Listener,
    process::{self, Exit, Order, Orders},
    start::explain,
};
use crate::{
    chain::chain,
    config::GroupSpec,
    control::DrainRequest,
    datapath::{self, Applied, Datapath as _, KernelDatapath},
    group::{Action, Group, Refusal, Seen, WorkerId, WorkerState},
    policy::PolicySpec,
    worker::{Launch, Process},
};

/// How often the connections of a draining worker are looked at. It reads two words of shared memory.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// How often a stalled worker is looked at. The programs see the end of a stall by themselves, but only when there is
/// a connection to pick a worker for.
const STALL_POLL: Duration = Duration::from_millis(100);

/// How long a worker that is stopped may take when the request does not say.
const DEFAULT_STOP: Duration = Duration::from_secs(30);

/// The daemon, with everything it owns.
pub struct Daemon {
    pub(super) spec: GroupSpec,
    pub(super) group: Group,
    pub(super) applied: Applied<KernelDatapath>,
    pub(super) listeners: BTreeMap<WorkerId, Listener>,
    pub(super) started: Instant,
    pub(super) executable: PathBuf,
    pub(super) worker_open_files: Option<u64>,
    pub(super) processes: BTreeMap<WorkerId, Orders>,
    pub(super) exits: JoinSet<Exit>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) stalls: mpsc::Receiver<()>,
    pub(super) logged: Logged,
    pub(super) ending: bool,
}

impl Daemon {
    /// Runs until it has been told to end and everything has ended.
    ///
    /// The first message on `stop` ends the workers in peace, within the group's grace period; the second at once.
    pub async fn run(mut self, mut stop: mpsc::Receiver<()>) {
        while !(self.ending && self.group.is_gone()) {
            let wake = self.next_wake();
            tokio::select! {
                Some(request) = self.requests.recv() => self.answer(request),
                Some(exit) = self.exits.join_next() => self.exited(exit),
                Some(()) = stop.recv() => self.end(),
                // `advance` looks who it is.
                Some(()) = self.stalls.recv() => {}
                () = sleep_until(wake) => {}
            }
            self.advance();
        }
        tracing::info!("all workers have ended");
    }

    fn next_wake(&self) -> Option<Instant> {
        let drain = self.group.is_draining().then(|| Instant::now() + DRAIN_POLL);
        let stall = self.group.has_stalled().then(|| Instant::now() + STALL_POLL);
        [drain, stall, self.group.next_deadline()].into_iter().flatten().min()
    }

    /// Ends: in peace the first time, at once when asked again.
    fn end(&mut self) {
        let grace = if self.ending { Duration::ZERO } else { self.spec.grace };
        tracing::info!(grace = %humantime::format_duration(grace), "shutting down");
        self.ending = true;
        self.group.shut_down(grace, Instant::now());
    }

    fn answer(&mut self, request: Request) {
        // Who asked may have gone away meanwhile; what was asked is done all the same.
        fn send<T>(reply: Reply<T>, answer: Result<T, RequestError>) {
            drop(reply.send(answer));
        }
        let now = Instant::now();
        match request {
            Request::Status(reply) => send(reply, self.status()),
            Request::SetPolicy(name, policy, reply) => {
                let changed = self.change(&name, |group| group.set_policy(policy));
                send(reply, changed.and_then(|()| self.group_status()));
            }
            Request::Drain(name, id, drain, reply) => {
                let DrainRequest { stop, timeout_ms, force } = drain;
                let timeout = stop.then(|| timeout_ms.map_or(DEFAULT_STOP, Duration::from_millis));
                let changed = self.change(&name, |group| group.drain(id, timeout, force, now));
                // A program that runs at this moment may still pick by the old tables. The promise is that none does
                // once the answer is there.
                let settled = changed.and_then(|()| Ok(self.applied.settle()?));
                send(reply, settled.and_then(|()| self.worker_status(id)));
            }
            Request::Undrain(name, id, reply) => {
                let changed = self.change(&name, |group| group.undrain(id, now));
                self.advance();
                send(reply, changed.and_then(|()| self.worker_status(id)));
            }
            Request::SetWeight(name, id, weight, reply) => {
                let changed = self.change(&name, |group| group.set_weight(id, weight));
                send(reply, changed.and_then(|()| self.worker_status(id)));
            }
            Request::Shutdown(reply) => {
                self.end();
                send(reply, Ok(()));
            }
        }
    }

    /// Changes the group and the kernel's side, or neither.
    fn change(
        &mut self,
        name: &GroupName,
        change: impl FnOnce(&mut Group) -> Result<(), Refusal>,
    ) -> Result<(), RequestError> {
        if let Some(name) = name
            && *name != self.spec.name
        {
            let known = &self.spec.name;
            return Err(RequestError::NotFound(format!("no group {name}; there is {known}")));
        }
        if self.ending {
            return Err(RequestError::Refused("the daemon is shutting down".into()));
        }
        let before = self.group.clone();
        change(&mut self.group)?;
        self.apply().inspect_err(|_| self.group = before)?;
        Ok(())
    }

    pub(super) fn apply(&mut self) -> Result<(), datapath::Error> {
        let Self { applied, group, listeners, .. } = self;
        let desired = group.desired();
        applied.apply(&desired, |slot| Some(listeners.get(&WorkerId(slot))?.as_fd()))
    }

    /// Does what is due, until nothing is, and says what has changed.
    pub(super) fn advance(&mut self) {
        loop {
            let look = self.look();
            let actions = self.group.advance(Instant::now(), |id| look.get(&id).copied().unwrap_or_default());
            if let Err(error) = self.apply() {
                tracing::error!(error = chain(&error), "the datapath is not as it should be");
            }
            for action in &actions {
                self.carry_out(*action);
            }
            if actions.is_empty() {
                break;
            }
        }
        self.log_changes();
    }

    /// What can be seen of the workers from outside.
    fn look(&self) -> BTreeMap<WorkerId, Seen> {
        let datapath = self.applied.datapath();
        let mut seen: BTreeMap<WorkerId, Seen> = self
            .group
            .workers()
            .map(|(id, _)| {
                let load = datapath.load(id.0);
                let idle = datapath.counts_connections() && load.active == 0 && load.pending == 0;
                (id, Seen { idle, stalled: load.stalled })
            })
            .collect();
        if seen.values().any(|seen| seen.stalled) {
            // Without new connections no program looks again, and the worker may have emptied its queue meanwhile.
            match self.queues() {
                Ok(queues) => {
                    for (id, seen) in &mut seen {
                        let queue =
                            self.listeners.get(id).and_then(|listener| queues.get(&listener.cookie()));
                        seen.stalled &= queue.is_some_and(|queue| queue.depth > 0);
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot read the accept queues"),
            }
        }
        seen
    }

    fn carry_out(&mut self, action: Action) {
        let now = Instant::now();
        match action {
            Action::Open(id) => match Listener::open(self.spec.listen, self.spec.backlog) {
                Ok(listener) => {
                    self.listeners.insert(id, listener);
                    self.group.opened(id);
                }
                Err(error) => self.group.ended(id, format!("cannot listen: {}", explain(&error)), now),
            },
            Action::Start(id) => self.start_worker(id),
            Action::Terminate(id) => self.order(id, Order::Terminate),
            Action::Kill(id) => self.order(id, Order::Kill),
            Action::Close(id) => {
                // No table names it any more, since its worker is not eligible. Closing moves its queue, by the
                // program, to workers that are.
                self.listeners.remove(&id);
                self.group.closed(id);
            }
        }
    }

    fn start_worker(&mut self, id: WorkerId) {
        // Without a socket it will be tried again, together with the socket.
        let Some(listener) = self.listeners.get(&id) else { return };
        let launch = Launch {
            executable: &self.executable,
            command: &self.spec.command,
            worker: id,
            group: &self.spec.name,
            socket: listener.as_fd(),
            open_files: self.worker_open_files,
        };
        match Process::start(&launch) {
            Ok(process) => {
                self.group.started(id, process.pid(), Instant::now());
                self.processes.insert(id, process::watch(&mut self.exits, id, process));
            }
            Err(error) => {
                let error = chain(&error);
                self.group.ended(id, error, Instant::now());
            }
        }
    }

    fn order(&mut self, id: WorkerId, order: Order) {
        if let Some(orders) = self.processes.get(&id) {
            // Its task has ended when the process has, and then nothing is to be ordered.
            let _ = orders.send(order);
        }
    }

    fn exited(&mut self, exit: Result<Exit, tokio::task::JoinError>) {
        match exit {
            Ok((id, pid, reason)) => {
                tracing::info!(worker = id.0, pid, "worker process {reason}");
                self.processes.remove(&id);
                self.group.ended(id, reason, Instant::now());
            }
            Err(error) => tracing::error!(%error, "a worker is not watched any more"),
        }
    }

    /// One line for each thing that is different from the last time.
    fn log_changes(&mut self) {
        let policy = self.group.policy();
        let before = std::mem::replace(&mut self.logged.policy, policy);
        if before != policy {
            tracing::info!("policy {before} -> {policy}");
        }
        for (id, worker) in self.group.workers() {
            let (state, weight) = (worker.state(), worker.weight);
            let Some((state_before, weight_before)) = self.logged.workers.insert(id, (state, weight)) else {
                continue;
            };
            if state_before != state {
                let load = self.applied.datapath().load(id.0);
                tracing::info!(
                    worker = id.0,
                    pid = worker.pid(),
                    active = load.active,
                    "worker {state_before} -> {state}"
                );
            }
            if weight_before != weight {
                tracing::info!(worker = id.0, "weight {weight_before} -> {weight}");
            }
        }
    }
}

/// What the log has said so far.
pub(super) struct Logged {
    pub(super) policy: PolicySpec,
    pub(super) workers: BTreeMap<WorkerId, (WorkerState, u16)>,
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
