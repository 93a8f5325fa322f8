//! A daemon that is no daemon: it keeps a [`Status`], changes it as it is asked, and touches nothing else.

use std::{path::PathBuf, sync::Arc};

use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    config::{difference::Change, settings::Applies},
    control::{
        AtWorker, Connections, DrainRequest, FailedWorker, GroupStatus, Mode, OperationState,
        OperationStatus, Outcomes, Protocol, ReloadRequest, ReloadStatus, RestartRequest, ScaleRequest,
        Stalls, Status, TakenOver, UpgradeRequest, UpgradeStatus, WorkerStatus, access::Access,
        client::Client, server,
    },
    daemon::{GroupName, Handle, Request, RequestError},
    group::{Kind, Stage, WorkerId, WorkerState},
    policy::{Policy, PolicySpec},
};

/// A fake daemon behind a real server, on a socket in a temporary folder.
pub(crate) struct FakeDaemon {
    folder: tempfile::TempDir,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl FakeDaemon {
    /// With one group, `default`, of three workers; see [`status`].
    pub(crate) fn start() -> Self {
        Self::start_with(status())
    }

    pub(crate) fn start_with(status: Status) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = server::bind(&folder.path().join("control.sock"), Access::default())
            .expect("the folder is empty");
        let (end, ended) = oneshot::channel();
        let (handle, is_shut_down) = Self::answer(status);
        let server = tokio::spawn(server::serve(Arc::new(socket), handle, async {
            tokio::select! {
                _ = ended => {}
                _ = is_shut_down => {}
            }
        }));
        Self { folder, server: Some((end, server)) }
    }

    /// The way to a fake daemon without a socket.
    pub(crate) fn handle(status: Status) -> Handle {
        Self::answer(status).0
    }

    /// Answers requests, until the daemon is told to shut down, which the second value then tells.
    fn answer(status: Status) -> (Handle, oneshot::Receiver<()>) {
        let (handle, mut requests) = Handle::new();
        let (shut_down, is_shut_down) = oneshot::channel();
        tokio::spawn(async move {
            let mut state = State { status, shut_down: Some(shut_down) };
            while let Some(request) = requests.recv().await {
                state.answer(request);
            }
        });
        (handle, is_shut_down)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.socket())
    }

    /// Ends the server and waits for it.
    pub(crate) async fn stop(&mut self) {
        if let Some((end, server)) = self.server.take() {
            drop(end);
            server.await.expect("the server does not panic");
        }
    }
}

/// Three workers: 0 idle, 1 with five connections, 2 down.
pub(crate) fn status() -> Status {
    let worker = |id, pid, state, active, restarts| WorkerStatus {
        id: WorkerId(id),
        pid,
        state,
        reason: None,
        last_words: Vec::new(),
        status: None,
        reloading: false,
        weight: 1,
        cpu: None,
        connections: Connections { active, selected_total: 10, ..Connections::default() },
        restarts,
        stalls: Stalls::default(),
    };
    Status {
        version: "0.1.0".into(),
        pid: std::process::id(),
        uptime_seconds: 1.5,
        generation: 1,
        taken_over: None,
        upgrade_error: None,
        leaving: vec![],
        groups: vec![GroupStatus {
            name: "default".into(),
            protocol: Protocol::Tcp,
            listen: "0.0.0.0:8080".parse().expect("an address"),
            mode: Mode::Supervised,
            policy: Policy::ConsistentHash.into(),
            workers: vec![
                worker(0, Some(100), WorkerState::Active, 0, 0),
                worker(1, Some(101), WorkerState::Active, 5, 0),
                WorkerStatus {
                    reason: Some("exit status 1".into()),
                    ..worker(2, None, WorkerState::Down, 0, 3)
                },
            ],
            operation: None,
            outcomes: Outcomes { selected: 30, ..Outcomes::default() },
        }],
    }
}

struct State {
    status: Status,
    shut_down: Option<oneshot::Sender<()>>,
}

impl State {
    fn answer(&mut self, request: Request) {
        // A client that has gone does not get its answer, which is its own affair.
        match request {
            Request::Status(reply) => {
                self.tick();
                drop(reply.send(Ok(self.status.clone())));
            }
            Request::SetPolicy(group, policy, reply) => drop(reply.send(self.group(&group).map(|group| {
                group.policy = policy;
                policy
            }))),
            Request::Drain(group, id, request, reply) => drop(reply.send(self.drain(&group, id, request))),
            Request::Undrain(group, id, reply) => drop(reply.send(self.worker(&group, id).map(|worker| {
                worker.state = WorkerState::Active;
                worker.pid.get_or_insert(102);
                worker.clone()
            }))),
            Request::Start(group, id, reply) => drop(reply.send(self.start(&group, id))),
            Request::Restart(group, request, reply) => drop(reply.send(self.restart(&group, request))),
            Request::CancelRestart(group, reply) => drop(reply.send(self.cancel_restart(&group))),
            Request::Scale(group, request, reply) => drop(reply.send(self.scale(&group, request))),
            Request::SetWeight(group, id, weight, reply) => {
                drop(reply.send(self.worker(&group, id).map(|worker| {
                    worker.weight = weight;
                    worker.clone()
                })));
            }
            Request::Reload(request, reply) => drop(reply.send(Ok(self.reload(request)))),
            Request::Upgrade(request, reply) => drop(reply.send(self.upgrade(request))),
            Request::Detach(reply) | Request::Shutdown(reply) => {
                drop(reply.send(Ok(())));
                drop(self.shut_down.take());
            }
        }
    }

    /// It becomes version 0.2.0, by whatever program; but `/gone` is gone when it is to be run, and `/bad` is no program.
    fn upgrade(&mut self, UpgradeRequest { binary }: UpgradeRequest) -> Result<UpgradeStatus, RequestError> {
        let binary = binary.unwrap_or_else(|| "/usr/bin/reuseport-lb".into());
        let (version, generation) = ("0.2.0".to_owned(), self.status.generation + 1);
        self.status.upgrade_error = None;
        match binary.to_str() {
            Some("/bad") => return Err(RequestError::Failed("/bad: is no version of reuseport-lb".into())),
            Some("/gone") => self.status.upgrade_error = Some("cannot run /gone: it is gone".into()),
            _ => {
                let workers = self.status.groups[0].workers.len();
                let version = std::mem::replace(&mut self.status.version, version.clone());
                self.status.taken_over =
                    Some(TakenOver { version, workers, maps_replaced: vec!["TABLES".into()] });
                self.status.generation = generation;
            }
        }
        Ok(UpgradeStatus { binary, version, generation })
    }

    /// In its file, the first group has policy random.
    fn reload(&mut self, ReloadRequest { dry_run }: ReloadRequest) -> ReloadStatus {
        let random = PolicySpec::from(Policy::Random);
        let group = &mut self.status.groups[0];
        let change = |from: PolicySpec| Change::Set {
            group: group.name.clone(),
            setting: "policy".into(),
            from: from.to_string(),
            to: random.to_string(),
            applies: Applies::Now,
        };
        let changes = if group.policy == random { vec![] } else { vec![change(group.policy)] };
        if !dry_run {
            group.policy = random;
        }
        ReloadStatus { dry_run, changes }
    }

    /// Time passes with each look at the status: a draining worker loses a connection, and ends when it was told to.
    fn tick(&mut self) {
        for worker in self.status.groups.iter_mut().flat_map(|group| &mut group.workers) {
            let connections = &mut worker.connections;
            match worker.state {
                WorkerState::Draining if connections.active == 0 => worker.state = WorkerState::Drained,
                WorkerState::Draining => connections.active -= 1,
                WorkerState::Stopping => {
                    connections.active = 0;
                    worker.pid = None;
                    worker.state = WorkerState::Down;
                }
                WorkerState::Starting => worker.state = WorkerState::Active,
                _ => {}
            }
        }
        self.status.groups.iter_mut().for_each(operate);
    }

    fn start(&mut self, group: &GroupName, id: WorkerId) -> Result<WorkerStatus, RequestError> {
        let worker = self.worker(group, id)?;
        if worker.state != WorkerState::Down {
            return Err(RequestError::Refused(format!("worker {id} runs already, it is {}", worker.state)));
        }
        (worker.pid, worker.state, worker.reason) = (Some(102), WorkerState::Starting, None);
        Ok(worker.clone())
    }

    fn restart(
        &mut self,
        group: &GroupName,
        RestartRequest { worker, parallel, timeout_ms: _ }: RestartRequest,
    ) -> Result<OperationStatus, RequestError> {
        if parallel == Some(0) {
            return Err(RequestError::Invalid("at least one worker at a time is restarted".into()));
        }
        let waiting = match worker {
            Some(id) => vec![self.worker(group, id)?.id],
            None => self.group(group)?.workers.iter().map(|worker| worker.id).collect(),
        };
        self.begin(group, Kind::Restart, waiting, vec![])
    }

    /// Those under way are back at once.
    fn cancel_restart(&mut self, group: &GroupName) -> Result<OperationStatus, RequestError> {
        let operation = self.group(group)?.operation.as_mut();
        let operation = operation.filter(|operation| operation.state == OperationState::Running);
        let operation = operation.ok_or(RequestError::Refused("no restart is under way".into()))?;
        operation.waiting.clear();
        operation.done.extend(operation.under_way.drain(..).map(|at| at.worker));
        operation.state = OperationState::Cancelled;
        Ok(operation.clone())
    }

    fn scale(
        &mut self,
        group: &GroupName,
        ScaleRequest { workers, timeout_ms: _ }: ScaleRequest,
    ) -> Result<OperationStatus, RequestError> {
        if !(1..=1024).contains(&workers) {
            return Err(RequestError::Invalid(format!("{workers} workers cannot be")));
        }
        let group_status = self.group(group)?;
        let mut under_way = Vec::new();
        for worker in group_status.workers.iter_mut().filter(|worker| worker.id.0 >= workers) {
            worker.state = WorkerState::Stopping;
            under_way.push(AtWorker { worker: worker.id, stage: Stage::Going });
        }
        for id in (0..workers).map(WorkerId) {
            if group_status.workers.iter().all(|worker| worker.id != id) {
                let template = group_status.workers[0].clone();
                let worker = WorkerStatus { id, pid: Some(200), state: WorkerState::Starting, ..template };
                group_status.workers.push(worker);
                under_way.push(AtWorker { worker: id, stage: Stage::Coming });
            }
        }
        self.begin(group, Kind::Scale, vec![], under_way)
    }

    fn begin(
        &mut self,
        group: &GroupName,
        kind: Kind,
        waiting: Vec<WorkerId>,
        under_way: Vec<AtWorker>,
    ) -> Result<OperationStatus, RequestError> {
        let state = OperationState::Running;
        let operation = OperationStatus {
            id: 1,
            kind,
            state,
            seconds: 0.5,
            done: vec![],
            under_way,
            waiting,
            failed: vec![],
        };
        self.group(group)?.operation = Some(operation.clone());
        Ok(operation)
    }

    fn drain(
        &mut self,
        group: &GroupName,
        id: WorkerId,
        DrainRequest { stop, timeout_ms, force }: DrainRequest,
    ) -> Result<WorkerStatus, RequestError> {
        let eligible = |worker: &&WorkerStatus| worker.state == WorkerState::Active && worker.id != id;
        let is_last = self.group(group)?.workers.iter().filter(eligible).count() == 0;
        if is_last && !force {
            return Err(RequestError::Refused(format!("worker {id} is the last one; --force drains it")));
        }
        let worker = self.worker(group, id)?;
        worker.state = match (stop, timeout_ms) {
            (true, Some(_)) => WorkerState::Stopping,
            (true, None) => return Err(RequestError::Invalid("no time-out came with stop".into())),
            (false, _) => WorkerState::Draining,
        };
        Ok(worker.clone())
    }

    fn group(&mut self, name: &GroupName) -> Result<&mut GroupStatus, RequestError> {
        let is_meant = |group: &&mut GroupStatus| name.as_ref().is_none_or(|name| *name == group.name);
        self.status.groups.iter_mut().find(is_meant).ok_or_else(|| {
            RequestError::NotFound(format!("there is no group {}", name.as_deref().unwrap_or("-")))
        })
    }

    fn worker(&mut self, group: &GroupName, id: WorkerId) -> Result<&mut WorkerStatus, RequestError> {
        let workers = &mut self.group(group)?.workers;
        workers
            .iter_mut()
            .find(|worker| worker.id == id)
            .ok_or_else(|| RequestError::NotFound(format!("there is no worker {id}")))
    }
}

/// The operation takes a step. Worker 2, which was down for a reason, does not come back from a restart.
fn operate(group: &mut GroupStatus) {
    let GroupStatus { operation: Some(operation), workers, .. } = group else { return };
    if operation.state != OperationState::Running {
        return;
    }
    for AtWorker { worker: id, stage } in std::mem::take(&mut operation.under_way) {
        let Some(worker) = workers.iter_mut().find(|worker| worker.id == id) else { continue };
        let again = match (stage, worker.state) {
            (Stage::Leaving, WorkerState::Down) => {
                (worker.pid, worker.state) = (Some(300 + u32::from(id.0)), WorkerState::Starting);
                worker.reason = None;
                Some(Stage::Coming)
            }
            (Stage::Coming, WorkerState::Active) if id.0 == 2 && operation.kind == Kind::Restart => {
                (worker.pid, worker.state) = (None, WorkerState::Down);
                worker.reason = Some("exit status 1".into());
                worker.last_words = vec!["boom".into()];
                operation.failed.push(FailedWorker { worker: id, reason: "exit status 1".into() });
                None
            }
            (Stage::Coming, WorkerState::Active) | (Stage::Going, WorkerState::Down) => {
                operation.done.push(id);
                None
            }
            _ => Some(stage),
        };
        operation.under_way.extend(again.map(|stage| AtWorker { worker: id, stage }));
    }
    if operation.kind == Kind::Scale && operation.under_way.is_empty() {
        workers.retain(|worker| worker.state != WorkerState::Down || !operation.done.contains(&worker.id));
    }
    if operation.under_way.is_empty() && !operation.waiting.is_empty() && operation.failed.is_empty() {
        let id = operation.waiting.remove(0);
        if let Some(worker) = workers.iter_mut().find(|worker| worker.id == id) {
            worker.state = WorkerState::Stopping;
            operation.under_way.push(AtWorker { worker: id, stage: Stage::Leaving });
        }
    }
    if operation.under_way.is_empty() {
        operation.waiting.clear();
        let failed = !operation.failed.is_empty();
        operation.state = if failed { OperationState::Failed } else { OperationState::Done };
    }
}
