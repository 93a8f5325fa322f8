//! `run`

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{self, Path, PathBuf},
    slice, thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::sync::oneshot;

use super::{
    env::Env,
    failure::WrongUsage,
    logging::{self, LogFormat},
    signals,
    start_lines::{self, StartLines},
};
use crate::{
    config::{BpfLogLevel, GroupSpec, MAX_WORKERS, WorkerCommand, values},
    control::server,
    daemon,
    policy::{HashOn, Policy},
};

/// Start the workers of a group, and steer its connections until Ctrl-C
#[derive(Debug, Args)]
pub(super) struct Run {
    // Not a doc comment, to which brackets are links.
    #[arg(long, help = "Where to listen: ADDRESS:PORT, [ADDRESS]:PORT, :PORT or PORT", value_name = "ADDRESS", default_value = "0.0.0.0:8080", value_parser = values::listen_address)]
    listen: SocketAddr,
    /// How many workers to start, 1 to 1,024 [default: one a CPU, two at least]
    #[arg(long, value_name = "N", value_parser = values::workers)]
    workers: Option<u16>,
    /// The rule that picks the worker for a new connection
    #[arg(long, value_enum, default_value_t = Policy::ConsistentHash)]
    policy: Policy,
    /// What the policy hashes [default: flow]
    #[arg(long, value_enum, value_name = "WHAT")]
    hash_on: Option<HashOn>,
    /// The seed of the flow hash; hosts with the same seed and workers pick alike
    #[arg(long, value_name = "N", default_value = "0", value_parser = values::hash_seed)]
    hash_seed: u64,
    /// The group's name
    #[arg(long, value_name = "GROUP", default_value = "default", value_parser = values::group_name)]
    name: String,
    /// How long the workers may take to finish when the daemon ends
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    grace: Duration,
    /// How long a worker may take nothing from a waiting queue until it is passed over; 0 turns that off
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = values::duration)]
    stall_after: Duration,
    /// The length of each worker's accept queue; net.core.somaxconn limits it
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=MAX_BACKLOG))]
    backlog: u32,
    /// Where BPF programs and maps are pinned
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/reuseport-lb")]
    pin_dir: PathBuf,
    /// How log lines look
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// From which level on the BPF programs log
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = BpfLog::Off)]
    bpf_log: BpfLog,
    /// What each worker runs; it gets its listening socket as file descriptor 3, as from systemd [default: a
    /// built-in server for trying and testing]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// listen(2) takes an `int`.
const MAX_BACKLOG: i64 = i32::MAX as i64;

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

impl Run {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let spec = self.spec()?;
        logging::init(self.log_format, self.bpf_log.level())?;
        let control = path::absolute(control).context("cannot find the working folder")?;
        let executable = std::env::current_exe().context("cannot find the own program file")?;

        daemon::check(slice::from_ref(&spec))?;
        // A signal that comes during the start waits until the daemon can clean up after itself.
        let stop = signals::stop_requests().context("cannot handle signals")?;
        // First of all, so that a second daemon is refused before it has touched anything.
        let socket = server::bind(&control)?;
        let (daemon, handle) = daemon::start(daemon::Options {
            groups: vec![spec.clone()],
            settings: daemon::Settings { pin_dir: self.pin_dir, bpf_log: self.bpf_log.level(), executable },
        })?;

        let (end_server, server_ends) = oneshot::channel::<()>();
        let server = tokio::spawn(server::serve(socket, handle, async {
            // An error means that the sender is gone, which is how the end is told.
            drop(server_ends.await);
        }));
        let lines = StartLines { spec: &spec, control: &control, invocation: &invocation() }.to_string();
        if let Err(e) = env.out.write_all(lines.as_bytes()).and_then(|()| env.out.flush()) {
            tracing::warn!(error = %e, "cannot print the start lines");
        }

        // The control socket stays until everything else is gone: `status` shows who still has connections, and a
        // second daemon keeps out.
        daemon.run(stop).await;
        drop(end_server);
        server.await.context("the control server failed")
    }

    fn spec(&self) -> anyhow::Result<GroupSpec> {
        Ok(GroupSpec {
            name: self.name.clone(),
            listen: self.listen,
            workers: self.workers.unwrap_or_else(default_workers),
            policy: values::policy(self.policy, self.hash_on).map_err(|e| WrongUsage(e.to_string()))?,
            command: WorkerCommand::find(&self.command).context("cannot run the worker command")?,
            grace: self.grace,
            backlog: self.backlog,
            stall_after: self.stall_after,
            hash_seed: self.hash_seed,
        })
    }
}

/// One a CPU, but two at least: with one there is nothing to steer.
fn default_workers() -> u16 {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cpus).unwrap_or(MAX_WORKERS).clamp(2, MAX_WORKERS)
}

fn invocation() -> String {
    start_lines::invocation(
        std::env::args_os().next().as_deref(),
        std::env::current_dir().ok().as_deref(),
        std::env::var_os("SUDO_USER").is_some(),
    )
}
