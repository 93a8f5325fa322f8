//! Scenario `events`: what happens to connections while the operator, or an accident, changes the group.

use std::{
    fmt,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use reuseport_lb::{
    control::{DrainRequest, GroupStatus},
    group::{WorkerId, WorkerState},
    policy::Policy,
};
use reuseport_lb_tests::{GroupExt as _, Netns};
use rustix::process::{Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::{
    Scale,
    cluster::{Cluster, in_netns},
    generator::{self, Account, Load, Pace},
    goals::Goal,
    machine::Machine,
    tables,
    workers::Workers,
};

const WORKERS: u16 = 4;
const IN_FLIGHT: usize = 16;
/// How many connections come between one event and the next, where the daemon's answer is all there is to wait for.
const BETWEEN: u64 = 100;
/// About as long as the daemon waits before it starts a worker again.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What is done to the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// Another policy.
    Switch,
    /// Another weight for a worker.
    Weigh,
    /// A worker is drained, and back again.
    Drain,
    /// A worker is drained and stopped, and started again.
    Restart,
    /// A worker is killed, and the daemon starts it again.
    Kill,
    /// A worker is killed that nobody watches, and its socket with it; then it is started again.
    KillAlone,
}

impl Event {
    const ALL: [Self; 6] =
        [Self::Switch, Self::Weigh, Self::Drain, Self::Restart, Self::Kill, Self::KillAlone];

    const fn describe(self) -> &'static str {
        match self {
            Self::Switch => "policy switched",
            Self::Weigh => "weight changed",
            Self::Drain => "worker drained and back",
            Self::Restart => "worker drained, stopped and started",
            Self::Kill => "worker killed",
            Self::KillAlone => "worker killed, without reuseport-lb",
        }
    }

    /// Whether a process dies with connections that it has accepted, which nobody can save.
    const fn kills(self) -> bool {
        matches!(self, Self::Kill | Self::KillAlone)
    }
}

/// The result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) seconds: f64,
    pub(crate) events: Vec<EventReport>,
}

/// The result for one kind of event.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventReport {
    pub(crate) event: Event,
    pub(crate) times: u32,
    pub(crate) connections: u64,
    pub(crate) failed: u64,
    pub(crate) p99_us: f64,
}

/// Puts a group under load, and lets one kind of event happen again and again; then the next kind.
pub(crate) fn measure(scale: Scale) -> Result<Report> {
    let time = scale.of(Duration::from_secs(4), Duration::from_secs(2), Duration::from_millis(500));
    let mut events = Vec::new();
    for event in Event::ALL {
        eprintln!("bench: under load: {}", event.describe());
        events.push(in_netns(async |netns| {
            let (account, times) = match event {
                Event::KillAlone => alone(time).await?,
                _ => supervised(&netns, event, time).await?,
            };
            Ok(EventReport {
                event,
                times,
                connections: account.answered() + account.failed(),
                failed: account.failed(),
                p99_us: account.times.value_at_quantile(0.99) as f64 / 1_000.0,
            })
        })?);
    }
    Ok(Report { machine: Machine::here()?, seconds: time.as_secs_f64(), events })
}

fn load(time: Duration) -> Load {
    Load {
        server: (Ipv4Addr::UNSPECIFIED, 0).into(),
        pace: Pace::Closed { in_flight: IN_FLIGHT },
        time,
        warm_up: Duration::ZERO,
        patience: Duration::from_secs(5),
        keep: None,
    }
}

/// Runs the load on threads of its own, in the caller's namespace, while `events` makes things happen until the time is
/// over.
async fn under_load(load: Load, events: impl AsyncFnOnce(Instant) -> Result<u32>) -> Result<(Account, u32)> {
    let end = Instant::now() + load.time;
    let generator = std::thread::spawn(move || generator::run(&load));
    let times = events(end).await;
    let Ok(account) = generator.join() else { bail!("the generator panicked") };
    Ok((account?, times?))
}

async fn supervised(netns: &Arc<Netns>, event: Event, time: Duration) -> Result<(Account, u32)> {
    let cluster = Cluster::start(netns, WORKERS, &["--pin"]).await?;
    cluster.set_policy(Policy::ConsistentHash).await?;
    let load = Load { server: cluster.daemon.listen(), ..load(time) };
    let result = under_load(load, async |end| {
        let mut times = 0;
        while Instant::now() < end {
            let id = WorkerId(u16::try_from(times % u32::from(WORKERS))?);
            cause(&cluster, event, times, id, end).await?;
            times += 1;
        }
        Ok(times)
    })
    .await?;
    cluster.stop().await;
    Ok(result)
}

/// Lets the event happen once, and waits until its effect is there, and for more of the load, which comes until `end`.
async fn cause(cluster: &Cluster, event: Event, times: u32, id: WorkerId, end: Instant) -> Result<()> {
    let active = |group: &GroupStatus| group.all_active();
    match event {
        Event::Switch => {
            let policies = crate::steering::policies();
            cluster.set_policy(policies[times as usize % policies.len()]).await?;
            go_on(cluster, end).await;
        }
        Event::Weigh => {
            let weight = 1 + u16::try_from(times % 5)?;
            cluster.client.set_weight(None, id, weight).await.context("weight")?;
            go_on(cluster, end).await;
        }
        Event::Drain => {
            cluster.client.drain(None, id, DrainRequest::default()).await.context("drain")?;
            go_on(cluster, end).await;
            cluster.client.undrain(None, id).await.context("undrain")?;
            go_on(cluster, end).await;
        }
        Event::Restart => {
            let stop = DrainRequest { stop: true, ..DrainRequest::default() };
            cluster.client.drain(None, id, stop).await.context("drain")?;
            cluster
                .daemon
                .wait("the worker has ended", |group| group.worker(id.0).state == WorkerState::Down)
                .await;
            cluster.client.undrain(None, id).await.context("undrain")?;
            cluster.daemon.wait("the worker is back", active).await;
        }
        Event::Kill => {
            let restarts = cluster.daemon.group().await.worker(id.0).restarts;
            kill_process(cluster.pid(id.0).await?, Signal::KILL).context("SIGKILL")?;
            let back = |group: &GroupStatus| group.worker(id.0).restarts > restarts && group.all_active();
            cluster.daemon.wait("the worker is back", back).await;
        }
        Event::KillAlone => bail!("that takes workers without a daemon"),
    }
    Ok(())
}

/// Waits until some more connections have been picked for, or there will be no more.
async fn go_on(cluster: &Cluster, end: Instant) {
    let before = cluster.daemon.group().await.outcomes.selected;
    let more = |group: &GroupStatus| group.outcomes.selected >= before + BETWEEN || Instant::now() >= end;
    cluster.daemon.wait("connections go on", more).await;
}

/// Workers that own their sockets, as servers do that bind for themselves.
async fn alone(time: Duration) -> Result<(Account, u32)> {
    let mut workers = Workers::start(WORKERS)?;
    workers.let_go();
    let load = Load { server: workers.address(), ..load(time) };
    under_load(load, async |end| {
        let mut times = 0;
        while Instant::now() < end {
            workers.replace(u16::try_from(times % u32::from(WORKERS))?)?;
            times += 1;
            tokio::time::sleep(BACK_OFF).await;
        }
        Ok(times)
    })
    .await
}

impl Report {
    /// Nothing may fail but what a killed process has taken with it.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let peaceful = self.events.iter().filter(|report| !report.event.kills());
        peaceful
            .map(|EventReport { event, connections, failed, .. }| {
                Goal::at_most(
                    format!("under load, {}: failed connections", event.describe()),
                    0.0,
                    *failed as f64,
                    "",
                )
                .with(format!("of {connections}"))
            })
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, seconds, events } = self;
        writeln!(
            f,
            "{machine}; {WORKERS} workers, {IN_FLIGHT} connections under way for {seconds} s, policy consistent-hash. Each \
             connection is accounted for. What a killed worker has accepted fails with it.\n"
        )?;
        let mut table =
            tables::new(["under load", "times", "connections", "failed", "failed, each time", "p99 µs"]);
        for EventReport { event, times, connections, failed, p99_us } in events {
            table.add_row([
                event.describe().to_owned(),
                times.to_string(),
                connections.to_string(),
                failed.to_string(),
                format!("{:.1}", *failed as f64 / f64::from((*times).max(1))),
                format!("{p99_us:.0}"),
            ]);
        }
        writeln!(f, "{table}")
    }
}
