//! Scenarios `slow`, `hung` and `tail`: four workers, one of which is not well.
//!
//! Clients come at random moments at a fixed rate, whatever became of those before, and their time counts from the moment
//! at which they came. A client that gives up counts with the time for which it was patient.

use std::{
    fmt,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use rustix::{
    event::Timespec,
    process::{Pid, Signal, kill_process},
    thread::{ClockId, clock_nanosleep_relative},
};
use serde::{Deserialize, Serialize};

use crate::{
    Scale,
    cluster::{Cluster, in_netns},
    generator::{Account, Load, Pace, new_histogram},
    goals::Goal,
    machine::Machine,
    samples::Summary,
    steering::Steering,
    tables,
};

const WORKERS: u16 = 4;
/// The one that is not well.
const PATIENT: u16 = 3;
/// The rate at which clients come: far below what three workers can take.
const PER_SECOND: f64 = 2_000.0;
/// The time of a request at the slow worker.
const SLOW: &str = "20ms";
/// When the worker is stopped, from the start of the load.
const STOP_AFTER: Duration = Duration::from_millis(400);
/// For how long it is stopped.
const STOPPED: Duration = Duration::from_secs(2);

/// What is wrong with the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Illness {
    /// Each request takes long.
    Slow,
    /// It does nothing for a while.
    Hung,
    /// Some requests take long, and a few very long.
    Tail,
}

impl Illness {
    const ALL: [Self; 3] = [Self::Slow, Self::Hung, Self::Tail];

    /// The name.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Hung => "hung",
            Self::Tail => "tail",
        }
    }

    /// What it is, in words.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Slow => {
                format!("One worker of {WORKERS} takes {SLOW} for each request, one after the other")
            }
            Self::Hung => format!("One worker of {WORKERS} is stopped (SIGSTOP) for {} s", STOPPED.as_secs()),
            Self::Tail => format!(
                "The requests of one worker of {WORKERS} have a heavy tail: Pareto, exponent 1.1, from 0.2 to 500 ms, \
                 1.2 ms on average"
            ),
        }
    }

    fn arguments(self) -> Vec<String> {
        match self {
            Self::Slow => vec!["--slow".into(), format!("{PATIENT}={SLOW}")],
            Self::Hung => vec![],
            Self::Tail => vec!["--tail".into(), PATIENT.to_string()],
        }
    }

    fn load(self) -> Load {
        let (time, patience) = match self {
            Self::Slow => (Duration::from_millis(1_200), Duration::from_secs(1)),
            // Longer than the stop, so that it is felt in full.
            Self::Hung => (STOP_AFTER + STOPPED + STOP_AFTER, Duration::from_secs(5)),
            Self::Tail => (Duration::from_millis(1_500), Duration::from_secs(1)),
        };
        Load {
            server: (Ipv4Addr::UNSPECIFIED, 0).into(),
            pace: Pace::Open { per_second: PER_SECOND },
            time,
            warm_up: Duration::ZERO,
            patience,
            keep: None,
        }
    }
}

/// The result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) per_second: f64,
    pub(crate) illnesses: Vec<IllnessReport>,
}

/// The result for one illness.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct IllnessReport {
    pub(crate) illness: Illness,
    pub(crate) contenders: Vec<Contender>,
}

/// The result for one who picks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Contender {
    pub(crate) steering: String,
    pub(crate) is_policy: bool,
    /// Of all rounds.
    pub(crate) connections: u64,
    /// Given up or broken, of all rounds.
    pub(crate) failed: u64,
    pub(crate) p50_ms: Summary,
    pub(crate) p99_ms: Summary,
    pub(crate) p999_ms: Summary,
    /// The part of the answers that the worker gave which is not well.
    pub(crate) share: Summary,
    /// Connections of a round that a stopped worker got and answered only when it went on, or never.
    pub(crate) caught: Option<Summary>,
    /// Those of them that began later than [`SEEN`] after the stop.
    pub(crate) caught_late: Option<Summary>,
}

/// When a stop must have been seen: the stall time and a quarter, and as much again for a machine with other work.
const SEEN: Duration = Duration::from_millis(125);

/// Measures one illness after the other.
pub(crate) fn measure(scale: Scale) -> Result<Report> {
    let rounds = scale.rounds(3, 1);
    let mut illnesses = Vec::new();
    for illness in Illness::ALL {
        eprintln!("bench: {}", illness.describe().to_lowercase());
        let steerings = if scale.smoke {
            vec![Steering::KernelCounted, Steering::Policy(reuseport_lb::policy::Policy::LeastLoaded)]
        } else {
            Cluster::steerings()
        };
        illnesses.push(in_netns(async |netns| {
            let arguments = illness.arguments();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let mut cluster = Cluster::with_peers(&netns, WORKERS, &arguments).await?;
            let mut entrants: Vec<Entrant> = steerings.into_iter().map(Entrant::new).collect();
            for _ in 0..rounds {
                for entrant in &mut entrants {
                    entrant.round(illness, &mut cluster).await?;
                }
            }
            cluster.stop().await;
            Ok(IllnessReport { illness, contenders: entrants.into_iter().map(Entrant::report).collect() })
        })?);
    }
    Ok(Report { machine: Machine::here()?, rounds, per_second: PER_SECOND, illnesses })
}

/// One contender, while it is measured.
struct Entrant {
    steering: Steering,
    times: Histogram<u64>,
    failed: u64,
    /// In the order of [`QUANTILES`].
    quantiles: [Vec<f64>; 3],
    shares: Vec<f64>,
    caught: Vec<f64>,
    caught_late: Vec<f64>,
}

const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

impl Entrant {
    fn new(steering: Steering) -> Self {
        Self {
            steering,
            times: new_histogram(),
            failed: 0,
            quantiles: Default::default(),
            shares: Vec::new(),
            caught: Vec::new(),
            caught_late: Vec::new(),
        }
    }

    async fn round(&mut self, illness: Illness, cluster: &mut Cluster) -> Result<()> {
        // What the last one left behind is gone, and no worker counts as stalled any more.
        cluster.settle().await;
        let account = match illness {
            Illness::Slow | Illness::Tail => cluster.load(self.steering, illness.load()).await?,
            Illness::Hung => {
                let pid = cluster.pid(PATIENT).await?;
                let stop = thread::spawn(move || stop_for_a_while(pid));
                let account = cluster.load(self.steering, illness.load()).await;
                let Ok(stop) = stop.join() else { bail!("the thread that stops a worker panicked") };
                let (account, (stopped, went_on)) = (account?, stop?);
                self.count_caught(&account, stopped, went_on);
                account
            }
        };
        for (quantile, samples) in QUANTILES.into_iter().zip(&mut self.quantiles) {
            samples.push(account.times.value_at_quantile(quantile) as f64 / 1e6);
        }
        let sick = account.by_worker.get(usize::from(PATIENT)).copied().unwrap_or_default();
        self.shares.push(sick as f64 / account.by_worker.iter().sum::<u64>() as f64);
        self.failed += account.failed();
        self.times.add(account.times).context("histogram")
    }

    fn count_caught(&mut self, account: &Account, stopped: Instant, went_on: Instant) {
        let caught = account.long.iter().filter(|(worker, begun, time)| {
            *worker == PATIENT && *begun < went_on && *begun + *time >= went_on
        });
        let late = caught.clone().filter(|(_, begun, _)| *begun > stopped + SEEN).count();
        self.caught.push((caught.count() as u64 + account.failed()) as f64);
        self.caught_late.push(late as f64);
    }

    fn report(self) -> Contender {
        let [p50_ms, p99_ms, p999_ms] = self.quantiles.map(Summary::of);
        let optional = |samples: Vec<f64>| (!samples.is_empty()).then(|| Summary::of(samples));
        Contender {
            steering: self.steering.to_string(),
            is_policy: matches!(self.steering, Steering::Policy(_)),
            connections: self.times.len(),
            failed: self.failed,
            p50_ms,
            p99_ms,
            p999_ms,
            share: Summary::of(self.shares),
            caught: optional(self.caught),
            caught_late: optional(self.caught_late),
        }
    }
}

/// Stops a process, lets it go on, and says when.
fn stop_for_a_while(pid: Pid) -> Result<(Instant, Instant)> {
    sleep(STOP_AFTER)?;
    let stopped = Instant::now();
    kill_process(pid, Signal::STOP).context("SIGSTOP")?;
    let slept = sleep(STOPPED);
    let went_on = Instant::now();
    kill_process(pid, Signal::CONT).context("SIGCONT")?;
    slept.map(|()| (stopped, went_on))
}

fn sleep(time: Duration) -> Result<()> {
    match clock_nanosleep_relative(ClockId::Monotonic, &Timespec::try_from(time)?) {
        rustix::thread::NanosleepRelativeResult::Ok => Ok(()),
        other => bail!("nanosleep: {other:?}"),
    }
}

impl Report {
    /// Whether a hung worker is noticed.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let hung = self.illnesses.iter().filter(|report| report.illness == Illness::Hung);
        for IllnessReport { contenders, .. } in hung {
            let kernel = contenders.iter().find(|contender| !contender.is_policy);
            let policies = || contenders.iter().filter(|contender| contender.is_policy);
            let worst = policies().max_by(|a, b| a.p99_ms.median.total_cmp(&b.p99_ms.median));
            if let (Some(kernel), Some(worst)) = (kernel, worst) {
                let ratio = worst.p99_ms.median / kernel.p99_ms.median;
                goals.push(
                    Goal::at_most(
                        "a hung worker of four: p99 relative to the kernel's hash, every policy",
                        0.1,
                        ratio,
                        "",
                    )
                    .with(&worst.steering),
                );
            }
            let mut caught = |what: &str, figure: fn(&Contender) -> Option<Summary>| {
                let all =
                    policies().filter_map(|contender| Some((figure(contender)?.median, &contender.steering)));
                if let Some((most, steering)) = all.max_by(|a, b| a.0.total_cmp(&b.0)) {
                    goals.push(
                        Goal::at_most(format!("{what}, every policy"), HANDFUL, most, "").with(steering),
                    );
                }
            };
            caught("connections caught by a hung worker after it was seen", |contender| {
                contender.caught_late
            });
            caught("connections caught by a hung worker altogether", |contender| contender.caught);
        }
        goals
    }
}

/// As many connections as a handful.
const HANDFUL: f64 = 5.0;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, rounds, per_second, illnesses } = self;
        writeln!(f, "{machine}; {per_second} clients a second, {rounds} rounds: median (min–max).")?;
        for IllnessReport { illness, contenders } in illnesses {
            writeln!(f, "\n{}:\n", illness.describe())?;
            let mut header = vec!["", "p50 ms", "p99 ms", "p99.9 ms", "share of this worker, %", "failed"];
            if *illness == Illness::Hung {
                header.extend(["caught", "caught late"]);
            }
            let mut table = tables::new(header);
            for contender in contenders {
                let Contender {
                    steering,
                    is_policy: _,
                    connections,
                    failed,
                    p50_ms,
                    p99_ms,
                    p999_ms,
                    share,
                    caught,
                    caught_late,
                } = contender;
                let mut row = vec![
                    steering.clone(),
                    p50_ms.to_string(),
                    p99_ms.to_string(),
                    p999_ms.to_string(),
                    format!("{:.1}", share.median * 100.0),
                    format!("{failed} of {connections}"),
                ];
                row.extend(caught.iter().chain(caught_late).map(Summary::to_string));
                table.add_row(row);
            }
            writeln!(f, "{table}")?;
        }
        Ok(())
    }
}
