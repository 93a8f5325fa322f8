//! Scenario `control`: how long commands take, and what the daemon itself takes.

use std::{
    fmt,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use reuseport_lb::{
    control::DrainRequest,
    datapath::Datapath as _,
    group::WorkerId,
    policy::{Local, Member, Policy, ring::Ring, shares},
};
use reuseport_lb_tests::{Netns, binary};
use serde::{Deserialize, Serialize};

use crate::{
    Scale,
    cluster::{Cluster, in_netns},
    generator::{self, Load, Pace},
    goals::Goal,
    group,
    machine::Machine,
    process::{CpuShare, Memory, Syscalls},
    samples::Summary,
    tables,
    traffic::Listeners,
};

/// The group in which the daemon's own needs are measured.
const FEW: u16 = 4;
const IN_FLIGHT: usize = 16;

/// The result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) workers: u16,
    pub(crate) rounds: u32,
    /// From sending the request to having read the answer, which comes when the kernel has the change, in ms.
    pub(crate) switch_ms: Summary,
    pub(crate) drain_ms: Summary,
    pub(crate) weight_ms: Summary,
    /// Of `reuseport-lb policy …`, from starting the process to its end.
    pub(crate) command_ms: Summary,
    pub(crate) status_ms: Summary,
    /// Filling the ring and the shares anew and committing them, in this process, in ms: a worker leaves or comes back.
    pub(crate) rebuild_ms: Summary,
    /// Without committing them.
    pub(crate) compute_ms: Summary,
    /// The same as [`Self::rebuild_ms`], and until no program reads the tables from before: what a drain waits for, and a
    /// change that follows at once.
    pub(crate) grace_ms: Summary,
    pub(crate) daemons: Vec<DaemonReport>,
}

/// What a daemon takes, and how long another one takes to follow it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DaemonReport {
    pub(crate) resources: Resources,
    /// From starting a daemon after the death of another to its first answer, with the workers taken over, in ms.
    pub(crate) take_over_ms: Summary,
    /// Of `reuseport-lb upgrade`, to the same version, from starting the process to its end.
    pub(crate) upgrade_ms: Summary,
}

/// What a daemon takes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Resources {
    pub(crate) workers: u16,
    pub(crate) idle_cpu_percent: f64,
    pub(crate) idle_memory: Memory,
    pub(crate) idle_syscalls_per_second: f64,
    pub(crate) load: Option<UnderLoad>,
}

/// What a daemon takes while its group takes connections.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct UnderLoad {
    pub(crate) connections: u64,
    pub(crate) cpu_percent: f64,
    pub(crate) memory: Memory,
    pub(crate) syscalls: u64,
    /// What it takes to ask for the status once: the count does count.
    pub(crate) syscalls_of_status: u64,
}

/// Measures commands in the largest group, and what the daemon takes in it and in a small one.
pub(crate) fn measure(scale: Scale, object: &Path) -> Result<Report> {
    let workers = scale.of(1024, 1024, 64);
    let (rounds, successions) = (scale.rounds(100, 50), scale.rounds(11, 5));
    let watch = scale.of(Duration::from_secs(10), Duration::from_secs(3), Duration::from_millis(500));
    eprintln!("bench: the daemon, {FEW} workers");
    let few = in_netns(async |netns| {
        let (report, cluster) = daemon(&netns, FEW, watch, object).await?;
        succeeded(report, cluster, successions).await
    })?;
    eprintln!("bench: commands, {workers} workers");
    let (many, commands) = in_netns(async |netns| {
        let (report, cluster) = daemon(&netns, workers, watch, object).await?;
        let commands = commands(&cluster, rounds).await?;
        Ok((succeeded(report, cluster, successions).await?, commands))
    })?;
    eprintln!("bench: tables, {workers} workers");
    let [rebuild_ms, compute_ms, grace_ms] = Netns::new().within(|| rebuild(workers, rounds))?;
    let [switch_ms, drain_ms, weight_ms, command_ms, status_ms] = commands.map(Summary::of);
    Ok(Report {
        machine: Machine::here()?,
        workers,
        rounds,
        switch_ms,
        drain_ms,
        weight_ms,
        command_ms,
        status_ms,
        rebuild_ms,
        compute_ms,
        grace_ms,
        daemons: vec![few, many],
    })
}

async fn daemon(
    netns: &Arc<Netns>,
    workers: u16,
    watch: Duration,
    object: &Path,
) -> Result<(Resources, Cluster)> {
    let cluster = Cluster::start(netns, workers, &[]).await?;
    cluster.set_policy(Policy::LeastLoaded).await?;
    // What it does in its first second is not what it does when it is idle.
    cluster.daemon.has_loaded_all().await;
    let pid = cluster.daemon.process().pid;
    let syscalls = Syscalls::of(pid, object)?;

    let (count, share) = (syscalls.count()?, CpuShare::from_now_on(pid)?);
    tokio::time::sleep(watch).await;
    let idle_cpu_percent = share.percent()?;
    let idle_syscalls_per_second = (syscalls.count()? - count) as f64 / watch.as_secs_f64();
    let idle_memory = Memory::of(pid)?;

    let load = if workers == FEW { Some(under_load(&cluster, pid, watch, &syscalls).await?) } else { None };
    let report = Resources { workers, idle_cpu_percent, idle_memory, idle_syscalls_per_second, load };
    Ok((report, cluster))
}

/// Lets one daemon follow another, and ends the last one.
async fn succeeded(resources: Resources, mut cluster: Cluster, rounds: u32) -> Result<DaemonReport> {
    let (mut take_over, mut upgrade) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        cluster.daemon.kill().await;
        take_over.push(cluster.daemon.start_again(&[]).await.as_secs_f64() * 1_000.0);
        let start = Instant::now();
        cluster.daemon.tell(&["upgrade"]).await;
        upgrade.push(ms(start));
    }
    let restarts: u64 = cluster.daemon.group().await.workers.iter().map(|worker| worker.restarts).sum();
    ensure!(restarts == 0, "{restarts} workers were started again");
    cluster.stop().await;
    Ok(DaemonReport { resources, take_over_ms: Summary::of(take_over), upgrade_ms: Summary::of(upgrade) })
}

async fn under_load(cluster: &Cluster, pid: u32, watch: Duration, syscalls: &Syscalls) -> Result<UnderLoad> {
    let (before, share) = (syscalls.count()?, CpuShare::from_now_on(pid)?);
    let account = generator::run(&Load {
        server: cluster.daemon.listen(),
        pace: Pace::Closed { in_flight: IN_FLIGHT },
        time: watch,
        warm_up: Duration::ZERO,
        patience: Duration::from_secs(5),
        keep: None,
    })?;
    let (cpu_percent, memory) = (share.percent()?, Memory::of(pid)?);
    let after = syscalls.count()?;
    let outcomes = cluster.daemon.group().await.outcomes;
    ensure!(outcomes.selected >= account.answered(), "the program has not picked for all: {outcomes:?}");
    let syscalls_of_status = syscalls.count()? - after;
    ensure!(syscalls_of_status > 0, "the daemon has answered and made no system call: the count is wrong");
    Ok(UnderLoad {
        connections: account.answered(),
        cpu_percent,
        memory,
        syscalls: after - before,
        syscalls_of_status,
    })
}

/// The times in ms of: a switch, a drain, a weight, a command, a status. All kinds in turn.
async fn commands(cluster: &Cluster, rounds: u32) -> Result<[Vec<f64>; 5]> {
    let mut times: [Vec<f64>; 5] = Default::default();
    let policies = [Policy::Hash, Policy::ConsistentHash];
    for round in 0..rounds {
        let policy = policies[round as usize % policies.len()];
        let id = WorkerId(u16::try_from(round)?);
        let start = Instant::now();
        cluster.set_policy(policy).await?;
        times[0].push(ms(start));

        let start = Instant::now();
        cluster.client.drain(None, id, DrainRequest::default()).await.context("drain")?;
        times[1].push(ms(start));
        cluster.client.undrain(None, id).await.context("undrain")?;

        let start = Instant::now();
        cluster.client.set_weight(None, id, 2).await.context("weight")?;
        times[2].push(ms(start));
        cluster.client.set_weight(None, id, 1).await.context("weight")?;

        if round % 4 == 0 {
            let start = Instant::now();
            let mut command = Command::new(binary());
            command.arg("policy").arg("--control").arg(cluster.daemon.control()).arg(Policy::Random.as_str());
            let output =
                tokio::process::Command::from(command).output().await.context("reuseport-lb policy")?;
            times[3].push(ms(start));
            ensure!(output.status.success(), "reuseport-lb policy: {}", output.status);
        }

        let start = Instant::now();
        cluster.client.status().await.context("status")?;
        times[4].push(ms(start));
    }
    Ok(times)
}

/// What it takes to make new tables when a worker leaves or comes back, to commit them, and until no program reads those
/// from before.
fn rebuild(workers: u16, rounds: u32) -> Result<[Summary; 3]> {
    let listeners = Listeners::new(workers)?;
    let mut datapath = group::load(listeners.sockets())?;
    let all: Vec<Member> = (0..workers).map(|slot| Member { slot, weight: 1 }).collect();
    let mut ring = Ring::new(Ring::size_for(workers));
    ring.rebuild(&all);
    let mut schedule = Vec::new();
    let (mut whole, mut computing, mut grace) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut members = all.clone();
        if round % 2 == 0 {
            // Another one each time, so that no table is the one from before.
            members.remove(round as usize % all.len());
        }
        // A change that follows another one at once waits for the bank that the one before has left.
        datapath.settle()?;
        let start = Instant::now();
        ring.rebuild(&members);
        shares::schedule(&members, &mut schedule);
        computing.push(ms(start));
        group::commit(&mut datapath, &members, &schedule, &Local::default(), &ring)?;
        whole.push(ms(start));
        datapath.settle()?;
        grace.push(ms(start));
    }
    group::unload(datapath, listeners.sockets())?;
    Ok([whole, computing, grace].map(Summary::of))
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1_000.0
}

impl Report {
    /// What commands and the daemon may take.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let at = |what: &str| format!("{what}, {} workers", self.workers);
        let mut goals = vec![
            Goal::at_most(at("policy switch, over the control socket"), 1.0, self.switch_ms.median, " ms"),
            Goal::at_most(at("table rebuild and commit"), 2.0, self.rebuild_ms.median, " ms").with(format!(
                "{:.2} ms until no program reads the tables from before",
                self.grace_ms.median
            )),
        ];
        for DaemonReport { resources: daemon, take_over_ms, .. } in &self.daemons {
            let at = |what: &str| format!("daemon, {} workers: {what}", daemon.workers);
            goals.push(Goal::at_most(at("take-over"), 1_000.0, take_over_ms.median, " ms"));
            goals.push(Goal::at_most(at("CPU when idle"), 0.1, daemon.idle_cpu_percent, " %"));
            goals.push(Goal::at_most(
                at("resident memory when idle"),
                16.0,
                daemon.idle_memory.resident_mib,
                " MiB",
            ));
            if let Some(load) = &daemon.load {
                let each = load.syscalls as f64 / load.connections as f64;
                goals.push(
                    Goal::at_most(
                        at("system calls a connection"),
                        0.0,
                        (each * 1_000.0).round() / 1_000.0,
                        "",
                    )
                    .with(format!("{} for {} connections", load.syscalls, load.connections)),
                );
            }
        }
        goals
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            machine,
            workers,
            rounds,
            switch_ms,
            drain_ms,
            weight_ms,
            command_ms,
            status_ms,
            rebuild_ms,
            compute_ms,
            grace_ms,
            daemons,
        } = self;
        writeln!(f, "{machine}; {workers} workers, {rounds} times: median (min–max).\n")?;
        let mut table = tables::new(["", "ms"]);
        for (what, figure) in [
            ("policy switch, from the request to the answer", switch_ms),
            ("drain of a worker, until no program picks it any more", drain_ms),
            ("weight change", weight_ms),
            ("`reuseport-lb policy …`, the whole process", command_ms),
            ("status", status_ms),
            ("tables made anew and committed: a worker leaves or comes back", rebuild_ms),
            ("of that, making them", compute_ms),
            ("the same, until no program reads the tables from before", grace_ms),
        ] {
            table.add_row([what.to_owned(), figure.to_string()]);
        }
        writeln!(f, "{table}\n\nThe daemon:\n")?;
        let mut table = tables::new([
            "workers",
            "take-over, ms",
            "upgrade, ms",
            "CPU idle, %",
            "memory idle, MiB",
            "of that anonymous",
            "system calls idle, 1/s",
            "CPU under load, %",
            "memory under load, MiB",
            "connections",
            "system calls for them",
        ]);
        for DaemonReport { resources, take_over_ms, upgrade_ms } in daemons {
            let Resources { workers, idle_cpu_percent, idle_memory, idle_syscalls_per_second, load } =
                resources;
            let mut row = vec![
                workers.to_string(),
                take_over_ms.to_string(),
                upgrade_ms.to_string(),
                format!("{idle_cpu_percent:.3}"),
                format!("{:.1}", idle_memory.resident_mib),
                format!("{:.1}", idle_memory.anonymous_mib),
                format!("{idle_syscalls_per_second:.1}"),
            ];
            if let Some(load) = load {
                row.extend([
                    format!("{:.3}", load.cpu_percent),
                    format!("{:.1}", load.memory.resident_mib),
                    load.connections.to_string(),
                    load.syscalls.to_string(),
                ]);
            }
            table.add_row(row);
        }
        writeln!(f, "{table}")
    }
}
