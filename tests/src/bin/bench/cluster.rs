//! A daemon with the benchmark's workers, and proxies before the same workers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use reuseport_lb::{
    control::client::Client,
    policy::{Policy, PolicySpec},
};
use reuseport_lb_tests::{Daemon, GroupExt as _, Launch, Netns, PATIENCE, eventually};
use rustix::{
    fd::OwnedFd,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::{
    generator::{self, Account, Load},
    peers::Peer,
    steering::{Proxy, Steering, attach_classic, detach},
};

/// The worker's own descriptor for its listening socket: where `LISTEN_FDS` begins.
const LISTENER: i32 = 3;
/// How long connections may take to be gone for good after their clients have closed them.
const SETTLE: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Cluster {
    pub(crate) daemon: Daemon,
    pub(crate) client: Client,
    size: u16,
    haproxy: Option<Peer>,
    nginx: Option<Peer>,
    /// The socket by which a classic program was attached, unknown to the daemon.
    classic: Option<OwnedFd>,
}

impl Cluster {
    /// Starts a daemon with `size` workers that get `arguments`.
    pub(crate) async fn start(netns: &Arc<Netns>, size: u16, arguments: &[&str]) -> Result<Self> {
        let exe = std::env::current_exe().context("the benchmark's own file")?;
        let exe = exe.to_str().context("the benchmark's path is no UTF-8")?;
        let command = [&[exe, "worker"], arguments].concat();
        let daemon = Launch::policy(Policy::Kernel.as_str())
            .workers(size)
            .stall_after("50ms")
            .worker_command(&command)
            .start(netns)
            .await;
        let client = Client::new(daemon.control());
        Ok(Self { daemon, client, size, haproxy: None, nginx: None, classic: None })
    }

    /// The same, with proxies.
    pub(crate) async fn with_peers(netns: &Arc<Netns>, size: u16, arguments: &[&str]) -> Result<Self> {
        let mut cluster = Self::start(netns, size, &[&["--pin", "--own-port"], arguments].concat()).await?;
        cluster.haproxy = Peer::start_if_installed(Proxy::Haproxy, size)?;
        cluster.nginx = Peer::start_if_installed(Proxy::Nginx, size)?;
        Ok(cluster)
    }

    /// Ends everything, and sees that the daemon leaves nothing behind.
    pub(crate) async fn stop(self) {
        let Self { daemon, haproxy, nginx, .. } = self;
        drop((haproxy, nginx));
        daemon.stop().await;
    }

    /// Who can pick here. The bare kernel cannot: a daemon counts connections.
    pub(crate) fn steerings() -> Vec<Steering> {
        Steering::all().into_iter().filter(|steering| *steering != Steering::Kernel).collect()
    }

    /// Lets `steering` pick, and says where to connect to.
    pub(crate) async fn steer(&mut self, steering: Steering) -> Result<SocketAddr> {
        if let Some(socket) = self.classic.take() {
            detach(&socket)?;
        }
        let policy = steering.policy().unwrap_or(Policy::Kernel);
        self.set_policy(policy).await?;
        match steering {
            Steering::ClassicBpf => {
                let socket = self.listener(0).await?;
                attach_classic(&socket, self.size)?;
                self.classic = Some(socket);
            }
            Steering::Proxy(proxy) => {
                let peer = match proxy {
                    Proxy::Haproxy => &self.haproxy,
                    Proxy::Nginx => &self.nginx,
                };
                return Ok(peer.as_ref().context("no proxy was started")?.address());
            }
            Steering::Kernel | Steering::KernelCounted | Steering::Policy(_) => {}
        }
        Ok(self.daemon.listen())
    }

    pub(crate) async fn set_policy(&self, policy: Policy) -> Result<PolicySpec> {
        let policy = PolicySpec::from(policy);
        self.client.set_policy(None, policy).await.context("cannot switch the policy")
    }

    /// A handle on the listening socket of a worker.
    async fn listener(&self, worker: u16) -> Result<OwnedFd> {
        let process = pidfd_open(self.pid(worker).await?, PidfdFlags::empty()).context("pidfd_open")?;
        pidfd_getfd(process, LISTENER, PidfdGetfdFlags::empty()).context("pidfd_getfd")
    }

    /// The process of a worker.
    pub(crate) async fn pid(&self, worker: u16) -> Result<Pid> {
        let group = self.daemon.group().await;
        let pid = group.worker(worker).pid.with_context(|| format!("worker {worker} is down"))?;
        i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")
    }

    /// Runs a load under `steering`, and sees that the program of its policy has picked for each connection.
    pub(crate) async fn load(&mut self, steering: Steering, load: Load) -> Result<Account> {
        let server = self.steer(steering).await?;
        let before = self.daemon.group().await.outcomes;
        let account = generator::run(&Load { server, ..load })?;
        ensure!(account.answered() > 0, "{steering} answers nothing");
        if matches!(steering, Steering::Policy(_)) {
            let after = self.daemon.group().await.outcomes;
            let picked = after.selected + after.retried - before.selected - before.retried;
            ensure!(picked >= account.answered(), "{steering} picked {picked} of {}", account.answered());
        }
        Ok(account)
    }

    /// Waits until all workers are active and nothing is left of the connections before. A few may never be counted
    /// down (see the known defects); so it goes on after a while.
    pub(crate) async fn settle(&self) {
        let end = tokio::time::Instant::now() + SETTLE;
        debug_assert!(SETTLE < PATIENCE, "or waiting itself would fail");
        eventually("the group is at rest", async || {
            let group = self.daemon.group().await;
            let open: u64 = group.active().iter().chain(&group.pending()).sum();
            if group.all_active() && (open == 0 || tokio::time::Instant::now() > end) {
                Ok(())
            } else {
                Err(format!("{group:?}"))
            }
        })
        .await;
    }
}

/// Runs a scenario in a network namespace of its own, on a runtime of its own.
pub(crate) fn in_netns<T>(scenario: impl AsyncFnOnce(Arc<Netns>) -> Result<T>) -> Result<T> {
    let netns = Arc::new(Netns::new());
    netns.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(scenario(Arc::clone(&netns)))
    })
}
