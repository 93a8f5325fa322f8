//! A daemon in this process, from its start to its end, or until it becomes another program.

use std::{
    env::{args_os, current_dir, current_exe, split_paths, var_os},
    io,
    path::{self, PathBuf},
    pin::Pin,
    sync::Arc,
};

use anyhow::Context as _;
use tokio::{sync::watch, task::JoinSet};

use super::{
    env::Env,
    logging, signals,
    start_lines::{self, StartLines},
};
use crate::{
    config::{
        flags::DaemonSettings,
        source::{Configured, Loaded, Source},
    },
    control::{
        access::Access,
        metrics::{self, MetricsSocket},
        server::{self, ControlSocket},
    },
    daemon::{self, Handle, Next},
    handover::{self, Kind, Outgoing},
    state::StateFile,
    worker::{descriptors::OpenFiles, output},
};

/// Runs a daemon until it is told to end. `source` is what can be read again.
pub(super) async fn serve(loaded: Loaded, source: Option<Source>, env: &mut Env<'_>) -> anyhow::Result<()> {
    let mut handed = handover::receive().context("cannot take what the version before has handed over")?;
    let is_upgrade = handed.is_something();
    let configured = source.map(|source| Configured::new(source, &loaded));
    let Loaded { control, daemon, groups } = loaded;
    let DaemonSettings { pin_dir, control_group, control_readonly_group, metrics, log_format, bpf_log } =
        daemon;
    logging::init(log_format, bpf_log)?;
    let control = path::absolute(control).context("cannot find the working folder")?;
    let executable = own_path().context("cannot find the own program file")?;
    let open_files = handed.open_files.unwrap_or_else(OpenFiles::now);

    daemon::check(&groups)?;
    // A signal that comes during the start waits until the daemon can clean up after itself.
    let mut signals = signals::take().context("cannot handle signals")?;
    // First of all, so that a second daemon is refused before it has touched anything.
    let access = Access { control: control_group, readonly: control_readonly_group };
    let control_socket = match handed.take(&Kind::Control) {
        Some(socket) => server::resume(socket, &control, access)?,
        None => server::bind(&control, access)?,
    };
    let state_file = StateFile::of(&control).context("cannot find out which boot this is")?;
    let state = state_file.read()?;
    let metrics_socket = match metrics {
        Some(address) => Some(metrics::bind(address, handed.take(&Kind::Metrics)).await?),
        None => None,
    };
    let sockets = Sockets { control: Arc::new(control_socket), metrics: metrics_socket.map(Arc::new) };
    let (mut daemon, handle) = daemon::start(daemon::Options {
        groups: groups.clone(),
        configured,
        earlier: daemon::Earlier { state, handed },
        state_file,
        settings: daemon::Settings { pin_dir, bpf_log, executable, control: control.clone(), open_files },
    })?;

    let mut servers = Servers::start(&sockets, &handle);
    // Whoever asked for an upgrade is told by the command.
    if !is_upgrade {
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
    }

    // Not before: what workers write may fill a pipe that nobody reads, and then these lines would wait for ever.
    output::begin();
    while let Next::Become(binary) = daemon.run(&mut signals).await {
        // Answers that are under way are given; who asks now waits for the next version.
        tokio::select! {
            ended = servers.end() => ended?,
            _ = daemon.run(&mut signals) => {}
        }
        output::halt().await;
        if signals.is_empty() {
            let mut outgoing = Outgoing::new(open_files);
            sockets.hand_over(&mut outgoing);
            daemon.exec(&binary, outgoing);
        }
        output::go_on();
        servers = Servers::start(&sockets, &handle);
    }
    // The control socket stays until everything else is gone: `status` shows who still has connections, and a
    // second daemon keeps out.
    drop(sockets);
    servers.end().await
}

/// The path by which this program was started. Not simply that of its file: another version may take its place there, or
/// a link may come to lead to another version.
fn own_path() -> io::Result<PathBuf> {
    let file = current_exe()?;
    let called = args_os().next().map(PathBuf::from).unwrap_or_default();
    let is_path = called.components().count() > 1;
    let folders = var_os("PATH").filter(|_| !is_path);
    let on_path = folders.iter().flat_map(split_paths).map(|folder| folder.join(&called));
    let mut paths = path::absolute(&called).into_iter().filter(|_| is_path).chain(on_path);
    let is_this = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == file);
    Ok(paths.find(is_this).unwrap_or(file))
}

fn invocation() -> String {
    start_lines::invocation(
        args_os().next().as_deref(),
        current_dir().ok().as_deref(),
        var_os("SUDO_USER").is_some(),
    )
}

/// What the daemon is asked on.
struct Sockets {
    control: Arc<ControlSocket>,
    metrics: Option<Arc<MetricsSocket>>,
}

impl Sockets {
    fn hand_over<'a>(&'a self, outgoing: &mut Outgoing<'a>) {
        outgoing.add(Kind::Control, &*self.control);
        if let Some(metrics) = &self.metrics {
            outgoing.add(Kind::Metrics, &**metrics);
        }
    }
}

/// What answers while the daemon runs. All of them are told to end together.
struct Servers {
    end: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Servers {
    fn start(Sockets { control, metrics }: &Sockets, handle: &Handle) -> Self {
        let mut servers = Self { end: watch::Sender::new(false), tasks: JoinSet::new() };
        if let Some(metrics) = metrics {
            servers.spawn(|end| metrics::serve(Arc::clone(metrics), handle.clone(), end));
        }
        servers.spawn(|end| server::serve(Arc::clone(control), handle.clone(), end));
        servers
    }

    /// Runs a server. It gets the future that tells it to end.
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        server: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>) -> F,
    ) {
        let mut end = self.end.subscribe();
        self.tasks.spawn(server(Box::pin(async move {
            // An error means that the sender is gone, and whoever should be served with it.
            drop(end.wait_for(|end| *end).await);
        })));
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        self.end.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a server failed")?;
        }
        Ok(())
    }
}
