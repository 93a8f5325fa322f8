//! `run`

use std::{
    collections::BTreeMap,
    path::{self, PathBuf},
    pin::Pin,
};

use anyhow::Context as _;
use clap::Args;
use tokio::{sync::watch, task::JoinSet};

use super::{
    env::Env,
    failure::WrongUsage,
    logging, signals,
    start_lines::{self, StartLines},
};
use crate::{
    config::{
        flags::{DaemonFlags, DaemonSettings, GroupFlags, SpecError},
        source::{Configured, Loaded, Source, control_path},
        values,
    },
    control::{access::Access, metrics, server},
    daemon,
    state::StateFile,
};

/// Start the workers of groups, and steer their connections until Ctrl-C
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Run the groups that this file describes, instead of one that options describe
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    config: Option<PathBuf>,
    /// The group's name
    #[arg(long, value_name = "GROUP", default_value = "default", value_parser = values::group_name)]
    name: String,
    #[command(flatten)]
    group: GroupFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Run {
    /// `control` is the control socket that the command line names.
    pub(super) async fn run(self, control: Option<PathBuf>, env: &mut Env<'_>) -> anyhow::Result<()> {
        let (loaded, source) = self.load(control)?;
        serve(loaded, source, env).await
    }

    /// What is to be run, and the file that says so.
    fn load(self, control: Option<PathBuf>) -> anyhow::Result<(Loaded, Option<Source>)> {
        let Self { config, name, group, daemon: flags } = self;
        Ok(if let Some(path) = config {
            let source = Source {
                path: path::absolute(path).context("cannot find the working folder")?,
                control,
                flags,
            };
            (source.load()?, Some(source))
        } else {
            let spec = group.spec(name).map_err(wrong)?;
            let control = control_path(control);
            (Loaded { control, daemon: flags.settings(), groups: vec![spec] }, None)
        })
    }
}

/// Whether the command line was wrong, or what it names is not there.
pub(super) fn wrong(error: SpecError) -> anyhow::Error {
    match error {
        SpecError::Policy(_) | SpecError::NotPinned | SpecError::Weights { .. } => {
            WrongUsage(error.to_string()).into()
        }
        SpecError::Command(_) => error.into(),
    }
}

/// Runs a daemon until it is told to end. `source` is what can be read again.
pub(super) async fn serve(loaded: Loaded, source: Option<Source>, env: &mut Env<'_>) -> anyhow::Result<()> {
    let configured = source.map(|source| Configured::new(source, &loaded));
    let Loaded { control, daemon, groups } = loaded;
    let DaemonSettings { pin_dir, control_group, control_readonly_group, metrics, log_format, bpf_log } =
        daemon;
    logging::init(log_format, bpf_log)?;
    let control = path::absolute(control).context("cannot find the working folder")?;
    let executable = std::env::current_exe().context("cannot find the own program file")?;

    daemon::check(&groups)?;
    // A signal that comes during the start waits until the daemon can clean up after itself.
    let signals = signals::take().context("cannot handle signals")?;
    // First of all, so that a second daemon is refused before it has touched anything.
    let access = Access { control: control_group, readonly: control_readonly_group };
    let socket = server::bind(&control, access)?;
    let state_file = StateFile::of(&control).context("cannot find out which boot this is")?;
    let state = state_file.read()?;
    let metrics_socket = match metrics {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    let (daemon, handle) = daemon::start(daemon::Options {
        groups: groups.clone(),
        configured,
        earlier: daemon::Earlier { state, sockets: BTreeMap::new() },
        state_file,
        settings: daemon::Settings { pin_dir, bpf_log, executable, control: control.clone() },
    })?;

    let mut servers = Servers::new();
    if let Some(socket) = metrics_socket {
        servers.spawn(|end| metrics::serve(socket, handle.clone(), end));
    }
    servers.spawn(|end| server::serve(socket, handle, end));
    let lines = StartLines {
        groups: &groups,
        workers: &|spec| daemon.workers(&spec.name),
        control: &control,
        invocation: &invocation(),
    }
    .to_string();
    if let Err(e) = env.out.write_all(lines.as_bytes()).and_then(|()| env.out.flush()) {
        tracing::warn!(error = %e, "cannot print the start lines");
    }

    // The control socket stays until everything else is gone: `status` shows who still has connections, and a
    // second daemon keeps out.
    daemon.run(signals).await;
    servers.end().await
}

fn invocation() -> String {
    start_lines::invocation(
        std::env::args_os().next().as_deref(),
        std::env::current_dir().ok().as_deref(),
        std::env::var_os("SUDO_USER").is_some(),
    )
}

/// What answers while the daemon runs. All of them are told to end together.
struct Servers {
    end: watch::Sender<()>,
    tasks: JoinSet<()>,
}

impl Servers {
    fn new() -> Self {
        Self { end: watch::Sender::new(()), tasks: JoinSet::new() }
    }

    /// Runs a server. It gets the future that tells it to end.
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        server: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) -> F,
    ) {
        let mut end = self.end.subscribe();
        self.tasks.spawn(server(Box::pin(async move {
            // An error means that the sender is gone, which is how the end is told.
            drop(end.changed().await);
        })));
    }

    async fn end(mut self) -> anyhow::Result<()> {
        drop(self.end);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a server failed")?;
        }
        Ok(())
    }
}
