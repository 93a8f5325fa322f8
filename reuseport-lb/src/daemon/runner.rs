//! One group with everything that it owns: it watches its processes, and keeps the kernel's side as the group wants
//! it.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    RequestError, Settings,
    changes::Logged,
    error::explain,
    events::{Event, Events, Key},
    following::Following,
    listener::Listener,
    notices::Notices,
    process::{self, Order, Watched},
    socket::Socket,
};
use crate::{
    chain::chain,
    config::GroupSpec,
    control::{DrainRequest, OperationStatus, RestartRequest, ScaleRequest, WorkerStatus},
    datapath::{self, Applied, KernelDatapath},
    group::{Action, Group, Refusal, RestartPlan, Wish, Worker, WorkerId, WorkerState},
    netns::Netns,
    policy::PolicySpec,
    worker::{Launch, Process, StartError, notify::Message},
};

/// How often the connections of a draining worker are looked at. It reads two words of shared memory.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// How often a stalled worker is looked at. The programs see the end of a stall by themselves, but only when there is
/// a connection to pick a worker for.
const STALL_POLL: Duration = Duration::from_millis(100);

/// How often a worker is looked at that is to accept its first connection. The fewer connections come to it until
/// then, the better.
const TRIAL_POLL: Duration = Duration::from_millis(5);

/// How long a worker that is stopped may take when the request does not say.
const DEFAULT_STOP: Duration = Duration::from_secs(30);

/// One group, with everything it owns.
pub(super) struct Runner {
    pub(super) spec: GroupSpec,
    pub(super) settings: Arc<Settings>,
    pub(super) group: Group,
    pub(super) applied: Applied<KernelDatapath>,
    pub(super) netns: Netns,
    pub(super) listeners: BTreeMap<WorkerId, Socket>,
    pub(super) following: Following,
    // None where the workers are not ours to start.
    pub(super) notices: Option<Notices>,
    pub(super) processes: BTreeMap<WorkerId, Watched>,
    pub(super) events: Events,
    pub(super) logged: Logged,
    /// Whether [`advance`](Self::advance) has broken off.
    pub(super) has_more_to_do: bool,
}

impl Runner {
    /// Which group's events are for it.
    pub(super) const fn key(&self) -> Key {
        self.events.key()
    }

    /// Whether no process runs and no socket is open any more.
    pub(super) fn is_gone(&self) -> bool {
        self.group.is_gone()
    }

    /// When [`advance`](Self::advance) is to be called at last, even if nothing happens.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let drain = self.group.is_draining().then(|| Instant::now() + DRAIN_POLL);
        let stall = self.group.has_stalled().then(|| Instant::now() + STALL_POLL);
        let trial = self.group.is_trying().then(|| Instant::now() + TRIAL_POLL);
        let rest = self.has_more_to_do.then(Instant::now);
        [rest, drain, stall, trial, self.group.next_deadline(Instant::now()), self.following.look_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// How long the workers may take to finish in the end.
    pub(super) const fn grace(&self) -> Duration {
        self.spec.grace
    }

    /// Whether new connections are served, as far as the user wants them served.
    pub(super) fn serves(&self) -> bool {
        let mut workers = self.group.workers().map(|(_, worker)| worker);
        workers.clone().any(Worker::serves) || workers.all(|worker| worker.wish != Wish::Serve)
    }

    /// How many workers are active, and how many there are.
    pub(super) fn active_of_all(&self) -> (usize, usize) {
        let active = self.group.workers().filter(|(_, worker)| worker.state() == WorkerState::Active);
        (active.count(), self.group.workers().count())
    }

    /// All workers end: within the grace period, or at once. Those of others go on, and the kernel picks among them.
    pub(super) fn end(&mut self, at_once: bool) {
        if self.group.is_adopted() {
            tracing::info!(group = self.spec.name, "leaving the group to the kernel");
            self.group.release();
            return;
        }
        let grace = if at_once { Duration::ZERO } else { self.spec.grace };
        tracing::info!(group = self.spec.name, grace = %humantime::format_duration(grace), "shutting down");
        self.group.shut_down(grace, Instant::now());
    }

    /// Another policy. The answer is that alone: to describe a group of a thousand takes many times as long as to
    /// exchange its program.
    pub(super) fn set_policy(&mut self, policy: PolicySpec) -> Result<PolicySpec, RequestError> {
        self.change(|group| group.set_policy(policy))?;
        Ok(self.group.policy())
    }

    /// No new connection for a worker.
    pub(super) fn drain(&mut self, id: WorkerId, drain: DrainRequest) -> Result<WorkerStatus, RequestError> {
        let DrainRequest { stop, timeout_ms, force } = drain;
        let timeout = stop.then(|| timeout_ms.map_or(DEFAULT_STOP, Duration::from_millis));
        self.change(|group| group.drain(id, timeout, force, Instant::now()))?;
        // A program that runs at this moment may still pick by the old tables. The promise is that none does once the
        // answer is there.
        self.applied.settle()?;
        self.worker_status(id)
    }

    /// New connections for a worker again.
    pub(super) fn undrain(&mut self, id: WorkerId) -> Result<WorkerStatus, RequestError> {
        self.change(|group| group.undrain(id, Instant::now()))?;
        self.advance();
        self.worker_status(id)
    }

    /// Starts a worker that is down.
    pub(super) fn start_again(&mut self, id: WorkerId) -> Result<WorkerStatus, RequestError> {
        self.change(|group| group.start(id, Instant::now()))?;
        self.advance();
        self.worker_status(id)
    }

    /// Begins to exchange the processes of workers.
    pub(super) fn restart(&mut self, request: RestartRequest) -> Result<OperationStatus, RequestError> {
        let RestartRequest { worker, parallel, timeout_ms } = request;
        let timeout = timeout_ms.map_or(DEFAULT_STOP, Duration::from_millis);
        let plan = RestartPlan { worker, parallel: parallel.unwrap_or(1), timeout };
        self.change(|group| group.restart(plan, Instant::now()).map(drop))?;
        self.advance();
        self.operation_status()
    }

    /// Restarts no further worker.
    pub(super) fn cancel_restart(&mut self) -> Result<OperationStatus, RequestError> {
        self.change(|group| group.cancel_restart().map(drop))?;
        self.advance();
        self.operation_status()
    }

    /// Begins to make the workers more or fewer.
    pub(super) fn scale(&mut self, request: ScaleRequest) -> Result<OperationStatus, RequestError> {
        let ScaleRequest { workers, timeout_ms } = request;
        let timeout = timeout_ms.map_or(DEFAULT_STOP, Duration::from_millis);
        // Nothing is opened before the next `advance`, so that there is time to raise the limit of open files.
        self.change(|group| group.scale(workers, timeout, Instant::now()).map(drop))?;
        self.operation_status()
    }

    /// Another weight for a worker.
    pub(super) fn set_weight(&mut self, id: WorkerId, weight: u16) -> Result<WorkerStatus, RequestError> {
        self.change(|group| group.set_weight(id, weight))?;
        self.worker_status(id)
    }

    /// Changes the group and the kernel's side, or neither.
    fn change(&mut self, change: impl FnOnce(&mut Group) -> Result<(), Refusal>) -> Result<(), RequestError> {
        let before = self.group.clone();
        change(&mut self.group)?;
        self.apply().inspect_err(|_| self.group = before)?;
        Ok(())
    }

    pub(super) fn apply(&mut self) -> Result<(), datapath::Error> {
        let Self { applied, group, listeners, .. } = self;
        let desired = group.desired();
        applied.apply(&desired, |slot| listeners.get(&WorkerId(slot))?.handle())
    }

    /// Takes note of what happened.
    pub(super) fn happened(&mut self, event: Event) {
        match event {
            Event::Exited { worker, pid, reason, last_words } => {
                tracing::info!(group = self.spec.name, worker = worker.0, pid, "worker process {reason}");
                self.processes.remove(&worker);
                self.group.ended(worker, reason, last_words, Instant::now());
                if self.follows() {
                    // A successor opens a socket of its own, which takes the place of this one.
                    self.listeners.remove(&worker);
                    self.group.closed(worker);
                    self.following.look_soon(Instant::now());
                }
            }
            Event::Listening(event) => self.told(event),
            Event::OwnerEnded { worker, pid } => {
                tracing::debug!(
                    group = self.spec.name,
                    worker = worker.0,
                    pid,
                    "the process of a socket has ended"
                );
                self.see_owners();
                self.following.look_soon(Instant::now());
            }
            Event::Notice { message, _permit } => self.noticed(message),
            // `advance` looks who it is.
            Event::Stalls => {}
        }
    }

    /// A notice is the worker's whose process sent it, or whose process leads the group of the process that did.
    fn noticed(&mut self, Message { pid, group, notice }: Message) {
        let of = |pid| {
            let mut workers = self.group.workers();
            workers.find(|(_, worker)| worker.pid() == Some(pid)).map(|(id, _)| id)
        };
        match of(pid).or_else(|| of(group?)) {
            Some(worker) => self.group.notified(worker, notice, Instant::now()),
            None => tracing::debug!(group = self.spec.name, pid, "a notice of somebody who is no worker"),
        }
    }

    /// Does what is due, and says what has changed. Once processes were started, whoever waits for the owner task has a
    /// turn before the next ones.
    pub(super) fn advance(&mut self) {
        self.follow_when_due();
        self.has_more_to_do = false;
        while !self.has_more_to_do {
            let look = self.look();
            let actions = self.group.advance(Instant::now(), |id| look.get(&id).copied().unwrap_or_default());
            // A socket is in its slot before a process gets it. So the kernel knows which worker both belong to, should
            // this be the daemon's last moment.
            let (opens, others): (Vec<Action>, _) =
                actions.iter().partition(|action| matches!(action, Action::Open(_)));
            for action in opens {
                self.carry_out(action);
            }
            self.apply_or_tell();
            for action in others {
                self.carry_out(action);
            }
            // A slot is emptied before a new socket of the same worker may come into it: by their numbers alone the two
            // are the same, and the new one would never be put there.
            if actions.iter().any(|action| matches!(action, Action::Close(_))) {
                self.apply_or_tell();
            }
            if actions.is_empty() {
                break;
            }
            self.has_more_to_do = actions.iter().any(|action| matches!(action, Action::Start(_)));
        }
        self.narrow_trials();
        self.log_changes();
    }

    fn apply_or_tell(&mut self) {
        if let Err(error) = self.apply() {
            let error = chain(&error);
            tracing::error!(group = self.spec.name, error, "the datapath is not as it should be");
        }
    }

    fn carry_out(&mut self, action: Action) {
        let now = Instant::now();
        match action {
            // The worker does it itself.
            Action::Open(_) if self.follows() => {}
            Action::Open(id) => match self.open() {
                Ok(listener) => {
                    self.listeners.insert(id, Socket::Made(listener));
                    self.group.opened(id);
                }
                Err(error) => {
                    let reason = format!("cannot listen: {}", explain(&error));
                    self.group.ended(id, reason, Vec::new(), now);
                }
            },
            Action::Start(id) => self.start_worker(id),
            Action::Terminate(id) => self.order(id, Order::Terminate),
            Action::Abort(id) => self.order(id, Order::Abort),
            Action::Kill(id) => self.order(id, Order::Kill),
            Action::Close(id) => {
                // No table names it any more, since its worker is not eligible. Closing moves its queue, by the
                // program, to workers that are.
                self.listeners.remove(&id);
                self.group.closed(id);
            }
            Action::Forget(id) => {
                self.group.forget(id);
                self.logged.workers.remove(&id);
                tracing::info!(group = self.spec.name, worker = id.0, "worker has left");
                if let Err(error) = self.applied.forget(id.0) {
                    tracing::error!(
                        group = self.spec.name,
                        worker = id.0,
                        error = chain(&error),
                        "cannot reset counters"
                    );
                }
            }
        }
    }

    /// A listening socket for a worker.
    pub(super) fn open(&self) -> io::Result<Listener> {
        self.netns.within(|| Listener::open(self.spec.listen, self.spec.backlog))?
    }

    fn start_worker(&mut self, id: WorkerId) {
        let socket = match self.listeners.get(&id) {
            Some(Socket::Made(listener)) => Some(listener.as_fd()),
            _ if self.follows() => None,
            // It will be tried again, together with the socket.
            _ => return,
        };
        let launch = Launch {
            executable: &self.settings.executable,
            command: &self.spec.command,
            worker: id,
            group: &self.spec.name,
            socket,
            open_files: self.settings.open_files.for_workers(),
            settings: &self.spec.process,
            notify: self.notices.as_ref().map(Notices::path),
            watchdog: self.spec.supervision.watchdog,
            cpu: self.group.cpu(id),
        };
        let started = self.netns.within(|| Process::start(&launch)).map_err(StartError::Netns).flatten();
        match started {
            Ok(process) => {
                self.group.started(id, process.pid(), Instant::now());
                self.processes.insert(id, process::watch(self.events.clone(), id, process));
            }
            Err(error) => {
                let error = chain(&error);
                self.group.ended(id, error, Vec::new(), Instant::now());
            }
        }
    }

    fn order(&mut self, id: WorkerId, order: Order) {
        let Some(process) = self.processes.get(&id) else { return };
        if let Err(error) = process.order(order) {
            let pid = process.identity().pid;
            tracing::error!(group = self.spec.name, worker = id.0, pid, %error, "cannot signal the worker");
        }
    }
}
