//! Scenario `spread`: how evenly 10,000 open connections lie on 16 workers.

use std::{fmt, net::Ipv4Addr, time::Duration};

use anyhow::Result;
use reuseport_lb::policy::Policy;
use serde::{Deserialize, Serialize};

use crate::{
    Scale,
    cluster::{Cluster, in_netns},
    generator::{Load, Pace},
    goals::Goal,
    machine::Machine,
    peers,
    samples::{Summary, deviation},
    steering::{Proxy, Steering},
    tables,
};

const WORKERS: u16 = 16;
const CONNECTIONS: usize = 10_000;
/// How many connections begin before the first of them is answered.
const IN_FLIGHT: usize = 64;

/// The result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) workers: u16,
    pub(crate) contenders: Vec<Contender>,
}

/// The result for one who picks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Contender {
    pub(crate) steering: String,
    pub(crate) connections: u64,
    pub(crate) failed: u64,
    /// The fullest worker less the emptiest.
    pub(crate) difference: Summary,
    pub(crate) deviation: Summary,
}

/// Opens the connections under each who picks, several times.
pub(crate) fn measure(scale: Scale) -> Result<Report> {
    let rounds = scale.rounds(3, 1);
    let connections = scale.of(CONNECTIONS, CONNECTIONS, 1_000);
    eprintln!("bench: spread of {connections} open connections");
    let contenders = in_netns(async |netns| {
        let mut cluster = Cluster::with_peers(&netns, WORKERS, &[]).await?;
        let steerings = Cluster::steerings();
        let mut results: Vec<Vec<(u64, f64)>> = vec![Vec::new(); steerings.len()];
        let mut totals = vec![(0, 0); steerings.len()];
        for _ in 0..rounds {
            for (index, steering) in steerings.iter().enumerate() {
                // One process of HAProxy has two descriptors a connection, and the machine may not allow that many.
                let connections = match steering {
                    Steering::Proxy(Proxy::Haproxy) => connections.min(usize::try_from(peers::room())?),
                    _ => connections,
                };
                let account = cluster.load(*steering, load(connections)).await?;
                let mut counts = account.by_worker.clone();
                counts.resize(WORKERS.into(), 0);
                let difference =
                    counts.iter().max().zip(counts.iter().min()).map_or(0, |(max, min)| max - min);
                results[index].push((difference, deviation(&counts)));
                totals[index] = (account.answered(), totals[index].1 + account.failed());
                drop(account);
                cluster.settle().await;
            }
        }
        cluster.stop().await;
        Ok(steerings
            .into_iter()
            .zip(results)
            .zip(totals)
            .map(|((steering, results), (connections, failed))| Contender {
                steering: steering.to_string(),
                connections,
                failed,
                difference: Summary::of(results.iter().map(|(difference, _)| *difference as f64)),
                deviation: Summary::of(results.iter().map(|(_, deviation)| *deviation)),
            })
            .collect())
    })?;
    Ok(Report { machine: Machine::here()?, rounds, workers: WORKERS, contenders })
}

fn load(connections: usize) -> Load {
    Load {
        server: (Ipv4Addr::UNSPECIFIED, 0).into(),
        pace: Pace::Closed { in_flight: IN_FLIGHT },
        time: Duration::from_secs(60),
        warm_up: Duration::ZERO,
        patience: Duration::from_secs(10),
        keep: Some(connections),
    }
}

impl Report {
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let least = Policy::LeastLoaded.as_str();
        let found = self.contenders.iter().find(|contender| contender.steering == least);
        found
            .map(|contender| {
                let what =
                    format!("{least}: spread of {} open connections, max − min", contender.connections);
                Goal::at_most(what, 1.0, contender.difference.max, "")
            })
            .into_iter()
            .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, rounds, workers, contenders } = self;
        writeln!(
            f,
            "{machine}; open connections over {workers} workers, {IN_FLIGHT} begun at a time, {rounds} rounds: median \
             (min–max).\n"
        )?;
        let mut table = tables::new(["", "open", "max − min", "standard deviation", "failed"]);
        for Contender { steering, connections, failed, difference, deviation } in contenders {
            table.add_row([
                steering.clone(),
                connections.to_string(),
                difference.to_string(),
                deviation.to_string(),
                failed.to_string(),
            ]);
        }
        writeln!(f, "{table}")
    }
}
