//! A listening socket, and workers on it.

use std::{
    ffi::OsString,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use reuseport_lb::{
    config::{ProcessSettings, WorkerCommand, worker::Output},
    group::WorkerId,
    worker::{ExitStatus, Launch, Process, StartError},
};
use tokio::{runtime::Runtime, time::timeout};

use crate::namespace::BOUND;

/// The binary under test.
pub(crate) const EXECUTABLE: &str = env!("CARGO_BIN_EXE_reuseport-lb");

/// What the daemon would be.
pub(crate) struct Stage {
    pub(crate) runtime: Runtime,
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Stage {
    pub(crate) fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = TcpListener::bind("127.0.0.1:8080")?;
        let address = listener.local_addr()?;
        Ok(Self { runtime, listener, address })
    }

    /// Starts worker `id` on the socket. Its process is killed when the test ends.
    pub(crate) fn start(&self, id: u16, command: &WorkerCommand) -> Result<Guarded> {
        Ok(Guarded(self.try_start(Path::new(EXECUTABLE), id, command)?))
    }

    pub(crate) fn try_start(
        &self,
        executable: &Path,
        id: u16,
        command: &WorkerCommand,
    ) -> Result<Process, StartError> {
        let _entered = self.runtime.enter();
        let socket = self.listener.as_fd();
        Process::start(&Launch {
            executable,
            command,
            worker: WorkerId(id),
            group: "default",
            socket: Some(socket),
            open_files: None,
            settings: &ProcessSettings { output: Output::Inherit, ..ProcessSettings::default() },
            notify: None,
            watchdog: None,
            cpu: None,
        })
    }

    /// Starts the built-in worker.
    pub(crate) fn demo(&self, id: u16) -> Result<Guarded> {
        self.start(id, &WorkerCommand::BuiltIn)
    }

    /// Starts a shell command.
    pub(crate) fn shell(&self, script: &str, args: &[&Path]) -> Result<Guarded> {
        let before = ["-c", script, "sh"].into_iter().map(OsString::from);
        let args = before.chain(args.iter().map(OsString::from)).collect();
        self.start(7, &WorkerCommand::Program { program: "/bin/sh".into(), args })
    }

    /// Waits for a worker's end.
    pub(crate) fn end(&self, worker: &mut Process) -> Result<ExitStatus> {
        self.runtime
            .block_on(async { timeout(BOUND, worker.exited()).await })
            .context("the worker runs on")?
            .context("wait")
    }
}

/// A worker that does not outlive its test, not even a failing one.
#[derive(Debug)]
pub(crate) struct Guarded(Process);

impl std::ops::Deref for Guarded {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.0
    }
}

impl std::ops::DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Nothing is left to tell it to.
        drop(self.0.kill());
    }
}
