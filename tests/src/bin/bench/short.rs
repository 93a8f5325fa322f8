//! Scenario `short`: many short connections.
//!
//! What the machine does besides changes from second to second, far more than steering does. So each slice of a
//! contender lies between two slices of the kernel's own hash, a fraction of a second long, and is compared with these
//! two alone; what is reported is the median of these ratios.

use std::{fmt, net::SocketAddr, os::fd::AsFd as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use comfy_table::Table;
use hdrhistogram::Histogram;
use reuseport_lb::datapath::{Datapath as _, KernelDatapath};
use reuseport_lb_ebpf::outcome::Outcome;
use reuseport_lb_tests::Netns;
use serde::{Deserialize, Serialize};

use crate::{
    Scale,
    generator::{self, Account, Load, Pace, new_histogram},
    goals::Goal,
    group,
    machine::Machine,
    peers::Peer,
    samples::{Interval, Summary},
    steering::{Proxy, Steering, attach_classic, detach},
    tables,
    workers::Workers,
};

/// The sizes of the groups.
const WORKERS: [u16; 3] = [2, 8, 64];
/// How many connections are under way, for each CPU.
const IN_FLIGHT: usize = 8;
/// How long one contender has before it is the next one's turn.
const SLICE: Duration = Duration::from_millis(120);
/// What is not counted of that: caches are those of the contender before.
const WARM_UP: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// The result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: u32,
    pub(crate) slice_ms: u64,
    pub(crate) in_flight: usize,
    pub(crate) groups: Vec<GroupReport>,
}

/// The result for one size of group.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GroupReport {
    pub(crate) workers: u16,
    pub(crate) contenders: Vec<Contender>,
}

/// The result for one who picks. The first one is the kernel, against itself: that ratio shows how much is noise.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Contender {
    pub(crate) steering: String,
    pub(crate) is_policy: bool,
    pub(crate) connections: u64,
    pub(crate) failed: u64,
    pub(crate) per_second: Summary,
    /// Of all rounds together, in µs, to the first byte.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// Connections a second, relative to the slices before and after, which are the kernel's hash; while connections
    /// are counted if this one counts them too.
    pub(crate) rate_ratio: Interval,
    /// The same for the 99th percentile.
    pub(crate) p99_ratio: Interval,
    /// Relative to the kernel's hash while nothing is loaded: the product of what the policy costs and what counting
    /// costs.
    pub(crate) rate_to_kernel: Interval,
    /// The same for the 99th percentile.
    pub(crate) p99_to_kernel: Interval,
}

/// Measures all groups, one after the other.
pub(crate) fn measure(scale: Scale) -> Result<Report> {
    let rounds = scale.rounds(20, 5);
    let mut groups = Vec::new();
    for workers in scale.sizes(&WORKERS) {
        eprintln!("bench: short connections, {workers} workers");
        groups.push(Netns::new().within(|| measure_group(*workers, rounds))?);
    }
    Ok(Report {
        machine: Machine::here()?,
        rounds,
        slice_ms: u64::try_from(SLICE.as_millis())?,
        in_flight: in_flight()?,
        groups,
    })
}

fn in_flight() -> Result<usize> {
    Ok(IN_FLIGHT * std::thread::available_parallelism().context("cannot count the CPUs")?.get())
}

fn measure_group(workers: u16, rounds: u32) -> Result<GroupReport> {
    let entrants = |steerings: &[Steering]| steerings.iter().copied().map(Entrant::new).collect::<Vec<_>>();
    let (with, without) = Steering::all().into_iter().partition::<Vec<_>, _>(|steering| steering.counts());
    let (mut with, mut without) = (entrants(&with[1..]), entrants(&without));
    let mut counted = Entrant::new(Steering::KernelCounted);
    let mut stage = Stage::new(workers)?;
    // Everything is loaded, connected and warm once before it counts.
    for entrant in without.iter().chain(&with) {
        stage.slice(entrant.steering)?;
    }
    for round in 0..rounds as usize {
        let loaded = stage.block(Steering::KernelCounted, &mut with, round)?;
        let unloaded = stage.block(Steering::Kernel, &mut without, round)?;
        let again = stage.slice(Steering::KernelCounted)?;
        // What counting costs shows where it is taken away, and where it comes back.
        counted.compare(loaded.1, &unloaded.0, &unloaded.0)?;
        counted.compare(again, &unloaded.1, &unloaded.1)?;
    }
    let counted = counted.report(None);
    let mut contenders: Vec<Contender> = without.into_iter().map(|entrant| entrant.report(None)).collect();
    let policies: Vec<Contender> = with.into_iter().map(|entrant| entrant.report(Some(&counted))).collect();
    contenders.splice(1..1, [counted].into_iter().chain(policies));
    Ok(GroupReport { workers, contenders })
}

/// One contender, while it is measured.
struct Entrant {
    steering: Steering,
    times: Histogram<u64>,
    per_second: Vec<f64>,
    failed: u64,
    rate_ratios: Vec<f64>,
    p99_ratios: Vec<f64>,
}

impl Entrant {
    fn new(steering: Steering) -> Self {
        Self {
            steering,
            times: new_histogram(),
            per_second: Vec::new(),
            failed: 0,
            rate_ratios: Vec::new(),
            p99_ratios: Vec::new(),
        }
    }

    /// Takes in a slice of this one, and compares it with the slices of another one before and after it.
    fn compare(&mut self, slice: Account, before: &Account, after: &Account) -> Result<()> {
        let ratio =
            |figure: fn(&Account) -> f64| figure(&slice) / f64::midpoint(figure(before), figure(after));
        self.rate_ratios.push(ratio(Account::per_second));
        self.p99_ratios.push(ratio(|account| account.times.value_at_quantile(0.99) as f64));
        self.per_second.push(slice.per_second());
        self.failed += slice.failed();
        self.times.add(slice.times).context("histogram")
    }

    /// The result. What this one was compared with may itself have been compared with the kernel.
    fn report(self, compared_with: Option<&Contender>) -> Contender {
        let quantile = |quantile| self.times.value_at_quantile(quantile) as f64 / 1_000.0;
        let (rate_ratio, p99_ratio) = (Interval::of(self.rate_ratios), Interval::of(self.p99_ratios));
        let (rate_to_kernel, p99_to_kernel) = match compared_with {
            None => (rate_ratio, p99_ratio),
            Some(other) => (rate_ratio.times(other.rate_ratio), p99_ratio.times(other.p99_ratio)),
        };
        Contender {
            steering: self.steering.to_string(),
            is_policy: matches!(self.steering, Steering::Policy(_)),
            connections: self.times.len(),
            failed: self.failed,
            per_second: Summary::of(self.per_second),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            rate_ratio,
            p99_ratio,
            rate_to_kernel,
            p99_to_kernel,
        }
    }
}

/// The workers, and all that can be put before them.
struct Stage {
    size: u16,
    datapath: Option<KernelDatapath>,
    haproxy: Option<Peer>,
    nginx: Option<Peer>,
    workers: Workers,
}

impl Stage {
    fn new(size: u16) -> Result<Self> {
        let workers = Workers::start(size)?;
        Ok(Self {
            size,
            datapath: None,
            haproxy: Peer::start_if_installed(Proxy::Haproxy, size)?,
            nginx: Peer::start_if_installed(Proxy::Nginx, size)?,
            workers,
        })
    }

    /// Lets `steering` pick, and nothing else be loaded than what it takes, and says where to connect to.
    fn steer(&mut self, steering: Steering) -> Result<SocketAddr> {
        let sockets = self.workers.sockets();
        let any = sockets.first().context("a group without sockets")?;
        detach(any)?;
        match steering.policy() {
            None => {
                if let Some(datapath) = self.datapath.take() {
                    group::unload(datapath, sockets)?;
                }
                if steering == Steering::ClassicBpf {
                    attach_classic(any, self.size)?;
                }
            }
            Some(policy) => {
                let datapath = match &mut self.datapath {
                    Some(datapath) => datapath,
                    none => none.insert(group::load(sockets)?),
                };
                datapath.attach(policy.into(), any.as_fd())?;
            }
        }
        Ok(match steering {
            Steering::Proxy(proxy) => {
                let peer = match proxy {
                    Proxy::Haproxy => &self.haproxy,
                    Proxy::Nginx => &self.nginx,
                };
                peer.as_ref().context("no proxy was started")?.address()
            }
            _ => self.workers.address(),
        })
    }

    /// A slice of each contender, by turns with slices of `reference`, of which the first and the last are given back.
    fn block(
        &mut self,
        reference: Steering,
        entrants: &mut [Entrant],
        round: usize,
    ) -> Result<(Account, Account)> {
        let first = self.slice(reference)?;
        let mut last = None;
        for turn in 0..entrants.len() {
            // Each round begins with another one, so that none always follows the same.
            let index = (round + turn) % entrants.len();
            let entrant = &mut entrants[index];
            let slice = self.slice(entrant.steering)?;
            let after = self.slice(reference)?;
            entrant.compare(slice, last.as_ref().unwrap_or(&first), &after)?;
            last = Some(after);
        }
        Ok((first, last.context("nobody to compare with")?))
    }

    fn slice(&mut self, steering: Steering) -> Result<Account> {
        let server = self.steer(steering)?;
        let account = generator::run(&Load {
            server,
            pace: Pace::Closed { in_flight: in_flight()? },
            time: SLICE,
            warm_up: WARM_UP,
            patience: PATIENCE,
            keep: None,
        })?;
        ensure!(account.answered() > 0, "{steering} answers nothing");
        if let Some(datapath) = &self.datapath
            && matches!(steering, Steering::Policy(_))
        {
            let selected = datapath.outcomes()?[Outcome::Selected.index()];
            ensure!(selected >= account.answered(), "the program of {steering} has not run");
        }
        Ok(account)
    }
}

impl Report {
    /// Whether steering costs anything that a client can feel.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for GroupReport { workers, contenders } in &self.groups {
            let policies = || contenders.iter().filter(|contender| contender.is_policy);
            let worst_rate =
                policies().min_by(|a, b| a.rate_to_kernel.median.total_cmp(&b.rate_to_kernel.median));
            let worst_p99 =
                policies().max_by(|a, b| a.p99_to_kernel.median.total_cmp(&b.p99_to_kernel.median));
            if let (Some(rate), Some(p99)) = (worst_rate, worst_p99) {
                goals.push(
                    Goal::at_least(
                        format!("short connections, {workers} workers: rate relative to the kernel's hash, every policy"),
                        0.98,
                        rate.rate_to_kernel.median,
                        "",
                    )
                    .with(&rate.steering),
                );
                goals.push(
                    Goal::at_most(
                        format!("short connections, {workers} workers: p99 relative to the kernel's hash, every policy"),
                        1.05,
                        p99.p99_to_kernel.median,
                        "",
                    )
                    .with(&p99.steering),
                );
            }
        }
        goals
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, rounds, slice_ms, in_flight, groups } = self;
        writeln!(
            f,
            "{machine}; {rounds} rounds, {slice_ms} ms a slice, {in_flight} connections under way. The rate is the median \
             (min–max) of the slices; the percentiles are those of all slices together. A ratio is the median [95 % \
             confidence] of each slice over the two slices of the kernel's hash around it: with connections counted \
             for the policies, bare for the others. *To the bare kernel* is that times what counting costs."
        )?;
        for GroupReport { workers, contenders } in groups {
            writeln!(f, "\n{workers} workers:\n")?;
            let mut table: Table = tables::new([
                "",
                "connections/s",
                "beside the kernel",
                "to the bare kernel",
                "p50 µs",
                "p99 µs",
                "p99.9 µs",
                "p99, beside",
                "p99, to the bare",
                "failed",
            ]);
            for contender in contenders {
                let Contender {
                    steering,
                    is_policy: _,
                    connections,
                    failed,
                    per_second,
                    p50_us,
                    p99_us,
                    p999_us,
                    rate_ratio,
                    p99_ratio,
                    rate_to_kernel,
                    p99_to_kernel,
                } = contender;
                table.add_row([
                    steering.clone(),
                    per_second.to_string(),
                    rate_ratio.to_string(),
                    rate_to_kernel.to_string(),
                    format!("{p50_us:.0}"),
                    format!("{p99_us:.0}"),
                    format!("{p999_us:.0}"),
                    p99_ratio.to_string(),
                    p99_to_kernel.to_string(),
                    format!("{failed} of {}", connections + failed),
                ]);
            }
            writeln!(f, "{table}")?;
        }
        Ok(())
    }
}
