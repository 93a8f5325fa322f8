//! A daemon that is no daemon: it keeps a [`Status`], changes it as it is asked, and touches nothing else.

use std::path::PathBuf;

use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    control::{
        Connections, DrainRequest, GroupStatus, Mode, Outcomes, Protocol, Stalls, Status, WorkerStatus,
        access::Access, client::Client, server,
    },
    daemon::{GroupName, Handle, Request, RequestError},
    group::{WorkerId, WorkerState},
    policy::{HashOn, Policy, PolicySpec},
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
        let server = tokio::spawn(server::serve(socket, handle, async {
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
        weight: 1,
        connections: Connections { active, selected_total: 10, ..Connections::default() },
        restarts,
        stalls: Stalls::default(),
    };
    Status {
        version: "0.1.0".into(),
        pid: std::process::id(),
        uptime_seconds: 1.5,
        groups: vec![GroupStatus {
            name: "default".into(),
            protocol: Protocol::Tcp,
            listen: "0.0.0.0:8080".parse().expect("an address"),
            mode: Mode::Supervised,
            policy: PolicySpec { name: Policy::ConsistentHash, hash_on: HashOn::Flow },
            workers: vec![
                worker(0, Some(100), WorkerState::Active, 0, 0),
                worker(1, Some(101), WorkerState::Active, 5, 0),
                WorkerStatus {
                    reason: Some("exit status 1".into()),
                    ..worker(2, None, WorkerState::Down, 0, 3)
                },
            ],
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
                group.clone()
            }))),
            Request::Drain(group, id, request, reply) => drop(reply.send(self.drain(&group, id, request))),
            Request::Undrain(group, id, reply) => drop(reply.send(self.worker(&group, id).map(|worker| {
                worker.state = WorkerState::Active;
                worker.pid.get_or_insert(102);
                worker.clone()
            }))),
            Request::SetWeight(group, id, weight, reply) => {
                drop(reply.send(self.worker(&group, id).map(|worker| {
                    worker.weight = weight;
                    worker.clone()
                })));
            }
            Request::Shutdown(reply) => {
                drop(reply.send(Ok(())));
                drop(self.shut_down.take());
            }
        }
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
                    worker.state = WorkerState::Down;
                }
                _ => {}
            }
        }
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
