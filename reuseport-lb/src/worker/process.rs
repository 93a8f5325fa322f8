//! One running worker.

use std::{
    fmt, io,
    os::{
        fd::BorrowedFd,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::{Pid, kill_process, kill_process_group};

pub use rustix::process::Signal;

use super::{DEMO_COMMAND, EXEC_COMMAND, GROUP_VARIABLE, WORKER_VARIABLE};
use crate::{config::WorkerCommand, group::WorkerId};

/// Where `LISTEN_FDS` begins to count.
const LISTEN_FDS_START: i32 = 3;

/// What the daemon may have been told by its own service manager, and what is not meant for its workers.
const NOT_FOR_WORKERS: [&str; 4] = ["LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// What a worker is started with.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The `reuseport-lb` binary.
    pub executable: &'a Path,
    /// What the worker runs.
    pub command: &'a WorkerCommand,
    /// The worker's number.
    pub worker: WorkerId,
    /// The name of its group.
    pub group: &'a str,
    /// Its listening socket. The caller keeps its own handle.
    pub socket: BorrowedFd<'a>,
    /// Its limit of open files, where it is not the daemon's own; see [`descriptors`](super::descriptors).
    pub open_files: Option<u64>,
}

/// Why a worker could not be started. No process is left behind, unless the kernel had memory for the process and then
/// none for watching it.
///
/// A program that is missing or cannot be run is not among these: the process then says so and ends with status 1,
/// see [`launcher`](super::launcher).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket could not be given to the new process.
    #[error("cannot hand over the worker's socket")]
    Socket(#[source] io::Error),
    /// There is no new process: out of processes or memory, or the binary is gone.
    #[error("cannot run {}", executable.display())]
    Spawn {
        /// What should have been run.
        executable: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// One running worker.
///
/// The worker outlives this value: dropping it does not signal the process, and its zombie is taken away by the
/// runtime when it ends.
///
/// Tokio watches the process by a pidfd: no thread, no `SIGCHLD`. Minimum kernel version: 5.10 (`PIDFD_NONBLOCK`);
/// before that it falls back to `SIGCHLD`.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    child: tokio::process::Child,
}

impl Process {
    /// Starts a worker in a process group of its own, so that Ctrl-C at the daemon's terminal does not reach it.
    ///
    /// Standard input is `/dev/null`; standard output and error are the daemon's. The socket is file descriptor 3,
    /// which is all that the daemon hands over: its own descriptors are close-on-exec.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn start(launch: &Launch<'_>) -> Result<Self, StartError> {
        let Launch { executable, command, worker, group, socket, open_files } = *launch;
        let mapping = FdMapping {
            parent_fd: socket.try_clone_to_owned().map_err(StartError::Socket)?,
            child_fd: LISTEN_FDS_START,
        };

        let mut new = Command::new(executable);
        new.arg(EXEC_COMMAND);
        if let Some(open_files) = open_files {
            new.arg(format!("--open-files={open_files}"));
        }
        new.arg("--");
        match command {
            WorkerCommand::BuiltIn => new.arg(executable).arg(DEMO_COMMAND),
            WorkerCommand::Program { program, args } => new.arg(program).args(args),
        };
        for variable in NOT_FOR_WORKERS {
            new.env_remove(variable);
        }
        new.env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", group)
            .env(WORKER_VARIABLE, worker.to_string())
            .env(GROUP_VARIABLE, group)
            .stdin(Stdio::null())
            .process_group(0)
            .fd_mappings(vec![mapping])
            .map_err(|collision| StartError::Socket(io::Error::other(collision)))?;

        let spawn_error = |source| StartError::Spawn { executable: executable.to_owned(), source };
        let child = tokio::process::Command::from(new).spawn().map_err(spawn_error)?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        // Nobody has waited for the child yet, so it has an id.
        let pid = pid.ok_or_else(|| spawn_error(io::Error::from(io::ErrorKind::NotFound)))?;
        Ok(Self { pid, child })
    }

    /// The process id. It belongs to this worker until [`exited`](Self::exited) has returned.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// Sends a signal to the worker's first process. A worker that has ended is no error.
    ///
    /// # Errors
    ///
    /// The kernel's, such as `EPERM` when the worker has become another user.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.send(|pid| kill_process(pid, signal))
    }

    /// Kills the worker and every process that it started and that is still in its process group, at once.
    ///
    /// A server with processes of its own leaves them behind when only its first process is killed, and they go on
    /// accepting. Works until [`exited`](Self::exited) has returned.
    ///
    /// # Errors
    ///
    /// The kernel's, such as `EPERM` when all of them have become another user.
    pub fn kill(&self) -> io::Result<()> {
        self.send(|pid| kill_process_group(pid, Signal::KILL))
    }

    fn send(&self, send: impl FnOnce(Pid) -> rustix::io::Result<()>) -> io::Result<()> {
        // Until somebody has waited for the process, its id stays its own, if only as a zombie's. Only `exited` waits, and
        // it needs `&mut self`, so there is no race; afterwards the id may be another's.
        if self.child.id().is_none() {
            return Ok(());
        }
        match send(self.pid) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the end of the worker, and takes its zombie away.
    ///
    /// Cancel-safe. Once it has returned a status, it returns the same one at once.
    ///
    /// # Errors
    ///
    /// The kernel's; in particular `ECHILD` when something else has waited for the process.
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await.map(ExitStatus::from)
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal.
    Killed {
        /// The signal's number.
        signal: i32,
        /// Whether it left a core dump.
        core_dumped: bool,
    },
}

impl ExitStatus {
    /// Whether the worker ended by itself and with status 0.
    pub const fn success(self) -> bool {
        matches!(self, Self::Exited(0))
    }
}

impl From<std::process::ExitStatus> for ExitStatus {
    fn from(status: std::process::ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Killed { signal, core_dumped: status.core_dumped() },
            // A stopped or continued process, for which nobody asked.
            (None, None) => Self::Exited(status.into_raw()),
        }
    }
}

/// Such as `exited with status 3` or `killed by SIGKILL`.
impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed { signal, core_dumped } => {
                match nix::sys::signal::Signal::try_from(signal) {
                    Ok(named) => write!(f, "killed by {named}")?,
                    Err(_) => write!(f, "killed by signal {signal}")?,
                }
                if core_dumped { f.write_str(" (core dumped)") } else { Ok(()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_a_worker_ended() {
        let killed = |signal, core_dumped| ExitStatus::Killed { signal, core_dumped }.to_string();
        assert_eq!(ExitStatus::Exited(3).to_string(), "exited with status 3");
        assert_eq!(killed(9, false), "killed by SIGKILL");
        assert_eq!(killed(11, true), "killed by SIGSEGV (core dumped)");
        assert_eq!(killed(40, false), "killed by signal 40");
        assert!(ExitStatus::Exited(0).success());
        assert!(!ExitStatus::Exited(1).success());
    }
}
