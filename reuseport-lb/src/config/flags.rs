//! The settings of a group and of the daemon, as the command line has them. The keys of the configuration file are
//! made from the same declarations.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, thread, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    BpfLogLevel, CommandNotFound, GroupSpec, MAX_WORKERS, ProcessSettings, Sockets, UserGroup, WorkerCommand,
    values, worker::WorkerFlags,
};
use crate::{
    group::{Refusal, Supervision},
    policy::{BalanceFactor, HashOn, Policy, PolicySpec},
};

/// listen(2) takes an `int`.
const MAX_BACKLOG: i64 = i32::MAX as i64;

/// Where pins are when nobody says anything else.
const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/reuseport-lb";

/// The settings of one group, all but its name.
#[derive(Clone, Debug, Args)]
pub struct GroupFlags {
    // Not a doc comment, to which brackets are links.
    #[arg(long, help = "Where to listen: ADDRESS:PORT, [ADDRESS]:PORT, :PORT or PORT", value_name = "ADDRESS", default_value = "0.0.0.0:8080", value_parser = values::listen_address)]
    listen: SocketAddr,
    /// How many workers to start, 1 to 1,024 [default: one a CPU, two at least]
    #[arg(long, value_name = "N", value_parser = values::workers)]
    workers: Option<u16>,
    /// The weights of workers 0, 1, 2 and so on, 1 to 256 each; those that are not listed have 1
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = values::weight)]
    weights: Vec<u16>,
    #[command(flatten)]
    steering: SteeringFlags,
    /// Pin each worker to one CPU: that of its number, modulo the CPUs there are
    #[arg(long)]
    pin_workers: bool,
    /// How long the workers may take to finish when the group ends
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    grace: Duration,
    /// The length of each worker's accept queue; net.core.somaxconn limits it
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=MAX_BACKLOG))]
    backlog: u32,
    /// The workers open their sockets themselves, with SO_REUSEPORT, at the address of --listen
    #[arg(long, requires = "command")]
    self_bind: bool,
    /// Start no workers, and steer the processes that listen there: what the command adopt does
    #[arg(long, conflicts_with_all = ["workers", "weights", "pin_workers", "self_bind", "command"])]
    adopt: bool,
    #[command(flatten)]
    worker: WorkerFlags,
    /// What each worker runs; it gets its listening socket as file descriptor 3, as from systemd [default: a
    /// built-in server for trying and testing]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl GroupFlags {
    /// The group that these settings describe.
    ///
    /// # Errors
    ///
    /// See [`SpecError`].
    pub fn spec(self, name: String) -> Result<GroupSpec, SpecError> {
        let Self {
            listen,
            workers,
            weights,
            steering,
            pin_workers,
            grace,
            backlog,
            self_bind,
            adopt,
            worker,
            command,
        } = self;
        if adopt {
            return steering.adopt(name, listen);
        }
        let policy = steering.policy(pin_workers)?;
        let SteeringFlags { hash_seed, stall_after, netns, .. } = steering;
        let workers = workers.unwrap_or_else(default_workers);
        if weights.len() > usize::from(workers) {
            return Err(SpecError::Weights { weights: weights.len(), workers });
        }
        let command = WorkerCommand::find(&command).map_err(SpecError::Command)?;
        let (supervision, process) = worker.settings(&command);
        Ok(GroupSpec {
            name,
            listen,
            netns,
            sockets: if self_bind { Sockets::SelfBound } else { Sockets::HandedOver },
            workers,
            weights: GroupSpec::only_needed(weights),
            policy,
            pin_workers,
            command,
            supervision,
            process,
            grace,
            backlog,
            stall_after,
            hash_seed,
        })
    }
}

/// How and where a group is steered, whoever starts its workers.
#[derive(Clone, Debug, Args)]
pub struct SteeringFlags {
    /// The rule that picks the worker for a new connection
    #[arg(long, value_enum, default_value_t = Policy::ConsistentHash)]
    policy: Policy,
    /// What the policy hashes: flow, source, or a prefix of the source, source/24,/64 for IPv4 and IPv6 [default: flow]
    #[arg(long, value_name = "WHAT", value_parser = values::hash_on)]
    hash_on: Option<HashOn>,
    /// Let no worker hold more than so many times the mean of open connections: 1.25; for consistent-hash [default: no
    /// bound]
    #[arg(long, value_name = "FACTOR", value_parser = values::balance_factor)]
    balance_factor: Option<BalanceFactor>,
    /// The seed of the flow hash; hosts with the same seed and workers pick alike
    #[arg(long, value_name = "N", default_value = "0", value_parser = values::hash_seed)]
    hash_seed: u64,
    /// How long a worker may take nothing from a waiting queue until it is passed over; 0 turns that off
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = values::duration)]
    stall_after: Duration,
    /// The network namespace of the group: a process in it, a path, or a name that `ip netns` lists [default: the
    /// daemon's own]
    #[arg(long, value_name = "PID|PATH|NAME", value_parser = values::netns)]
    netns: Option<PathBuf>,
}

impl SteeringFlags {
    fn policy(&self, pin_workers: bool) -> Result<PolicySpec, SpecError> {
        let Self { policy, hash_on, balance_factor, .. } = *self;
        if policy == Policy::CpuLocal && !pin_workers {
            return Err(SpecError::NotPinned);
        }
        values::policy(policy, hash_on, balance_factor).map_err(SpecError::Policy)
    }

    /// A group whose workers are the processes that listen at an address.
    ///
    /// # Errors
    ///
    /// The policy does not take a setting, or needs workers that are pinned.
    pub fn adopt(self, name: String, listen: SocketAddr) -> Result<GroupSpec, SpecError> {
        let policy = self.policy(false)?;
        let Self { hash_seed, stall_after, netns, .. } = self;
        Ok(GroupSpec {
            name,
            listen,
            netns,
            sockets: Sockets::Adopted,
            workers: 0,
            weights: Vec::new(),
            policy,
            pin_workers: false,
            supervision: Supervision::default(),
            process: ProcessSettings::default(),
            command: WorkerCommand::BuiltIn,
            grace: Duration::ZERO,
            backlog: 0,
            stall_after,
            hash_seed,
        })
    }
}

/// Settings that can be each by itself and make no group together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The policy does not take this setting.
    #[error("{0}")]
    Policy(values::UnfitSetting),
    /// The policy needs `--pin-workers`.
    #[error("{}", Refusal::NotPinned)]
    NotPinned,
    /// There are more weights than workers.
    #[error("{weights} weights are too many for {workers} workers")]
    Weights {
        /// How many weights.
        weights: usize,
        /// How many workers.
        workers: u16,
    },
    /// There is no such command.
    #[error("cannot run the worker command: {0}")]
    Command(CommandNotFound),
}

impl SpecError {
    /// The setting that is at fault.
    pub const fn setting(&self) -> &'static str {
        match self {
            Self::Policy(unfit) => unfit.setting(),
            Self::NotPinned => "policy",
            Self::Weights { .. } => "weights",
            Self::Command(_) => "command",
        }
    }
}

/// One a CPU, but two at least: with one there is nothing to steer.
fn default_workers() -> u16 {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cpus).unwrap_or(MAX_WORKERS).clamp(2, MAX_WORKERS)
}

/// The settings of the daemon itself. Each is optional, so that it is known which ones were given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct DaemonFlags {
    /// Where BPF programs and maps are pinned [default: /sys/fs/bpf/reuseport-lb]
    #[arg(long, value_name = "PATH")]
    pin_dir: Option<PathBuf>,
    /// The users of this group may use the control socket, as root may, but for `upgrade --binary`
    #[arg(long, value_name = "GROUP", value_parser = values::user_group)]
    control_group: Option<UserGroup>,
    /// The users of this group may see by the control socket what there is, and change nothing
    #[arg(long, value_name = "GROUP", value_parser = values::user_group)]
    control_readonly_group: Option<UserGroup>,
    // Not a doc comment, as above.
    #[arg(long, help = "Serve metrics over HTTP at /metrics of this address, too: ADDRESS:PORT, or PORT of 127.0.0.1", value_name = "ADDRESS", value_parser = values::metrics_address)]
    metrics: Option<SocketAddr>,
    /// How log lines look [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// From which level on the BPF programs log [default: off]
    #[arg(long, value_enum, value_name = "LEVEL")]
    bpf_log: Option<BpfLog>,
}

impl DaemonFlags {
    /// These, and where they say nothing, others.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        let Self { pin_dir, control_group, control_readonly_group, metrics, log_format, bpf_log } = self;
        Self {
            pin_dir: pin_dir.or(others.pin_dir),
            control_group: control_group.or(others.control_group),
            control_readonly_group: control_readonly_group.or(others.control_readonly_group),
            metrics: metrics.or(others.metrics),
            log_format: log_format.or(others.log_format),
            bpf_log: bpf_log.or(others.bpf_log),
        }
    }

    /// What was given, and the defaults.
    pub fn settings(self) -> DaemonSettings {
        let Self { pin_dir, control_group, control_readonly_group, metrics, log_format, bpf_log } = self;
        DaemonSettings {
            pin_dir: pin_dir.unwrap_or_else(|| DEFAULT_PIN_DIR.into()),
            control_group,
            control_readonly_group,
            metrics,
            log_format: log_format.unwrap_or(LogFormat::Text),
            bpf_log: bpf_log.and_then(BpfLog::level),
        }
    }
}

/// The settings of the daemon itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSettings {
    /// The folder for pins, on a BPF file system.
    pub pin_dir: PathBuf,
    /// Who may use the control socket, besides root and the daemon's own user.
    pub control_group: Option<UserGroup>,
    /// Who may look by the control socket.
    pub control_readonly_group: Option<UserGroup>,
    /// Where metrics are served over TCP, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What the BPF programs log.
    pub bpf_log: Option<BpfLogLevel>,
}

impl DaemonSettings {
    /// Each with its name and its value as it is shown.
    pub(super) fn shown(&self) -> Vec<(&'static str, String)> {
        let Self { pin_dir, control_group, control_readonly_group, metrics, log_format, bpf_log } = self;
        let group = |group: &Option<UserGroup>| {
            group.as_ref().map_or_else(|| "off".into(), |group: &UserGroup| group.name.clone())
        };
        let word = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(|| "off".into(), |value| value.get_name().to_owned())
        };
        vec![
            ("pin-dir", pin_dir.display().to_string()),
            ("control-group", group(control_group)),
            ("control-readonly-group", group(control_readonly_group)),
            ("metrics", metrics.map_or_else(|| "off".into(), |address| address.to_string())),
            ("log-format", word(log_format.to_possible_value())),
            ("bpf-log", word(bpf_log.and_then(|level| level.to_possible_value()))),
        ]
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

/// [`BpfLogLevel`], or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BpfLog {
    /// Nothing, at no cost
    Off,
    /// What should not happen
    Error,
    /// What the user should know
    Warn,
    /// What changes
    Info,
    /// Each pick
    Debug,
    /// Each step of each pick
    Trace,
}

impl BpfLog {
    fn level(self) -> Option<BpfLogLevel> {
        match self {
            Self::Off => None,
            Self::Error => Some(BpfLogLevel::Error),
            Self::Warn => Some(BpfLogLevel::Warn),
            Self::Info => Some(BpfLogLevel::Info),
            Self::Debug => Some(BpfLogLevel::Debug),
            Self::Trace => Some(BpfLogLevel::Trace),
        }
    }
}
