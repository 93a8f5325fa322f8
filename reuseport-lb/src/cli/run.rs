//! `run`

use std::{
    path::{self, Path},
    pin::Pin,
    slice,
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
        values,
    },
    control::{metrics, server},
    daemon,
};

/// Start the workers of a group, and steer its connections until Ctrl-C
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The group's name
    #[arg(long, value_name = "GROUP", default_value = "default", value_parser = values::group_name)]
    name: String,
    #[command(flatten)]
    group: GroupFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Run {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        let Self { name, group, daemon } = self;
        let spec = group.spec(name).map_err(|error| match error {
            SpecError::HashOn(_) => WrongUsage(error.to_string()).into(),
            SpecError::Command(_) => anyhow::Error::from(error),
        })?;
        let DaemonSettings { pin_dir, metrics, log_format, bpf_log } = daemon.settings();
        logging::init(log_format, bpf_log)?;
        let control = path::absolute(control).context("cannot find the working folder")?;
        let executable = std::env::current_exe().context("cannot find the own program file")?;

        daemon::check(slice::from_ref(&spec))?;
        // A signal that comes during the start waits until the daemon can clean up after itself.
        let stop = signals::stop_requests().context("cannot handle signals")?;
        // First of all, so that a second daemon is refused before it has touched anything.
        let socket = server::bind(&control)?;
        let metrics_socket = match metrics {
            Some(address) => Some(metrics::bind(address).await?),
            None => None,
        };
        let (daemon, handle) = daemon::start(daemon::Options {
            groups: vec![spec.clone()],
            settings: daemon::Settings { pin_dir, bpf_log, executable },
        })?;

        let mut servers = Servers::new();
        if let Some(socket) = metrics_socket {
            servers.spawn(|end| metrics::serve(socket, handle.clone(), end));
        }
        servers.spawn(|end| server::serve(socket, handle, end));
        let lines = StartLines { spec: &spec, control: &control, invocation: &invocation() }.to_string();
        if let Err(e) = env.out.write_all(lines.as_bytes()).and_then(|()| env.out.flush()) {
            tracing::warn!(error = %e, "cannot print the start lines");
        }

        // The control socket stays until everything else is gone: `status` shows who still has connections, and a
        // second daemon keeps out.
        daemon.run(stop).await;
        servers.end().await
    }
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
