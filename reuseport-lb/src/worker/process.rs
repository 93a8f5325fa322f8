//! One running worker.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, WaitId, WaitIdOptions, kill_process_group, pidfd_open, pidfd_send_signal, waitid,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

pub use rustix::process::Signal;

use super::{
    DEMO_COMMAND, EXEC_COMMAND, GROUP_VARIABLE, WORKER_VARIABLE,
    exit::ExitStatus,
    launcher::Become,
    output::{LastWords, Streams},
};
use crate::{
    config::{
        ProcessSettings, WorkerCommand,
        worker::{Output, RunAs, Variable},
    },
    group::WorkerId,
    handover::{self, Incoming, Kind},
};

/// Where `LISTEN_FDS` begins to count.
const LISTEN_FDS_START: i32 = 3;

/// What the daemon may have been told by its own service manager, and what is not meant for its workers.
const NOT_FOR_WORKERS: [&str; 7] = [
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    handover::VARIABLE,
];

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
    /// Its listening socket, of which the caller keeps its own handle; none when it opens one by itself.
    pub socket: Option<BorrowedFd<'a>>,
    /// Its soft limit of open files, where it is not the daemon's own; see [`descriptors`](super::descriptors).
    pub open_files: Option<u64>,
    /// What else it is given.
    pub settings: &'a ProcessSettings,
    /// Where it may say how it is; see [`notify`](super::notify).
    pub notify: Option<&'a Path>,
    /// How often it has to.
    pub watchdog: Option<Duration>,
    /// The CPU that it is to be pinned to; none leaves it where the daemon may run.
    pub cpu: Option<u16>,
}

/// Why a worker could not be started. No process is left behind.
///
/// A program that is missing or cannot be run is not among these: the process then says so and ends with status 1,
/// see [`launcher`](super::launcher).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The network namespace that it is to run in cannot be entered.
    #[error("cannot enter the network namespace")]
    Netns(#[source] io::Error),
    /// The socket could not be given to the new process.
    #[error("cannot hand over the worker's socket")]
    Socket(#[source] io::Error),
    /// There is nothing that it could write its output to.
    #[error("cannot take the worker's output")]
    Output(#[source] io::Error),
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
/// The worker outlives this value: dropping it does not signal the process. Whoever started the worker, this or an
/// earlier daemon, makes no difference but one: only its parent learns how it ended.
///
/// The process is known by a pidfd, so a process that gets its number later is never taken for it. Minimum kernel
/// version: 5.4 (`P_PIDFD`).
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    handle: AsyncFd<OwnedFd>,
    started_at: u64,
    last_words: LastWords,
    // What waits for the end and what takes the id for the process's own exclude each other.
    ended: Mutex<Option<ExitStatus>>,
}

impl Process {
    /// Starts a worker in a session and process group of its own, so that Ctrl-C at the daemon's terminal does not reach it.
    ///
    /// Standard input is `/dev/null`; standard output and error go where the settings say. The socket is file descriptor
    /// 3, which is all that the daemon hands over: its own descriptors are close-on-exec.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn start(launch: &Launch<'_>) -> Result<Self, StartError> {
        let Launch {
            executable,
            command,
            worker,
            group,
            socket,
            open_files,
            cpu,
            settings,
            notify,
            watchdog,
        } = *launch;
        let ProcessSettings { user, env, chdir, open_files: rlimit_nofile, output } = settings;
        let Streams { stdout, stderr, last_words } =
            Streams::new(output, group, worker).map_err(StartError::Output)?;
        let mapping = |socket: BorrowedFd<'_>| {
            Ok(FdMapping { parent_fd: socket.try_clone_to_owned()?, child_fd: LISTEN_FDS_START })
        };
        let mappings = socket.map(mapping).transpose().map_err(StartError::Socket)?;

        let mut new = Command::new(executable);
        let to_be = Become {
            open_files: open_files.filter(|_| rlimit_nofile.is_none()),
            rlimit_nofile: *rlimit_nofile,
            cpu,
            chdir: chdir.clone(),
            uid: user.as_ref().map(|user| user.uid),
            gid: user.as_ref().map(|user| user.gid),
            groups: user.as_ref().map(|user| user.groups.clone()).unwrap_or_default(),
        };
        new.arg(EXEC_COMMAND).args(to_be.arguments()).arg("--");
        match command {
            WorkerCommand::BuiltIn => new.arg(executable).arg(DEMO_COMMAND),
            WorkerCommand::Program { program, args } => new.arg(program).args(args),
        };
        for variable in NOT_FOR_WORKERS {
            new.env_remove(variable);
        }
        if let Some(RunAs { name, home, shell, .. }) = user {
            // As systemd does. What is not known of the user is not the daemon's either.
            for (variable, value) in [
                ("USER", name.as_ref().map(OsString::from)),
                ("LOGNAME", name.as_ref().map(OsString::from)),
                ("HOME", home.as_ref().map(OsString::from)),
                ("SHELL", shell.as_ref().map(OsString::from)),
            ] {
                match value {
                    Some(value) => new.env(variable, value),
                    None => new.env_remove(variable),
                };
            }
        }
        new.envs(env.iter().map(|Variable { name, value }| (name, value)));
        if let Some(path) = notify {
            new.env("NOTIFY_SOCKET", path);
        }
        if let Some(interval) = watchdog {
            new.env("WATCHDOG_USEC", interval.as_micros().to_string());
        }
        if mappings.is_some() {
            new.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", group);
        }
        new.env(WORKER_VARIABLE, worker.to_string())
            .env(GROUP_VARIABLE, group)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .fd_mappings(mappings.into_iter().collect())
            .map_err(|collision| StartError::Socket(io::Error::other(collision)))?;

        let spawn_error = |source| StartError::Spawn { executable: executable.to_owned(), source };
        let mut child = new.spawn().map_err(spawn_error)?;
        // Nobody has waited for the child yet, so the id is its own.
        let process = Self::open(child.id()).map_err(|error| {
            // Nobody would see it end. It has not become the worker's program yet, or only just.
            drop(child.kill().and_then(|()| child.wait()));
            spawn_error(error)
        })?;
        Ok(Self { last_words, ..process })
    }

    /// The process with this id that began at `started_at`, as [`started_at`](Self::started_at) gives it; none when it
    /// has ended, whoever has its id now.
    ///
    /// # Errors
    ///
    /// The kernel's, such as `EMFILE`.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn find(pid: u32, started_at: u64) -> io::Result<Option<Self>> {
        match Self::open(pid) {
            Ok(found) => Ok((found.started_at == started_at).then_some(found)),
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(pid: u32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed()).ok_or(Errno::SRCH)?;
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        // With the handle open, what is read of the id is of the same process, unless that has ended since; and then
        // the handle says so.
        let started_at = started_at(pid)?;
        Ok(Self {
            pid,
            handle: watch(handle)?,
            started_at,
            last_words: LastWords::unknown(),
            ended: Mutex::default(),
        })
    }

    /// The process id. It belongs to this worker until [`exited`](Self::exited) has returned.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// When the process began, in clock ticks since boot: with the id, what no other process has.
    pub const fn started_at(&self) -> u64 {
        self.started_at
    }

    /// Reads on what it writes, where an earlier daemon has started it with these settings. What that has handed over is
    /// taken out of `handed`.
    pub fn read_on(&mut self, output: &Output, group: &str, worker: WorkerId, handed: &mut Incoming) {
        let pid = self.pid();
        let pipes = [1, 2].map(|stream| handed.take(&Kind::Output { pid, stream }));
        self.last_words = LastWords::read_on(output, group, worker, pid, pipes);
    }

    /// What it writes to standard error.
    pub const fn last_words(&self) -> &LastWords {
        &self.last_words
    }

    /// The pidfd, to take descriptors from the process.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Sends a signal to the worker's first process. A worker that has ended is no error.
    ///
    /// # Errors
    ///
    /// The kernel's, such as `EPERM` when the worker has become another user.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        unless_gone(pidfd_send_signal(&self.handle, signal))
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
        let ended = self.ended();
        // The first process by its handle: whether it still is the one that is meant. After that the id names its group.
        // A child's id stays its own until `exited` has waited for it. Another's child is waited for by init, at once;
        // then the id stays taken while the group has a member, and without members there is nothing to kill.
        if ended.is_some() || pidfd_send_signal(&self.handle, Signal::KILL) == Err(Errno::SRCH) {
            return Ok(());
        }
        unless_gone(kill_process_group(self.pid, Signal::KILL))
    }

    /// Waits for the end of the worker, and takes its zombie away where it is this process's child.
    ///
    /// Cancel-safe. Once it has returned a status, it returns the same one at once.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub async fn exited(&self) -> io::Result<ExitStatus> {
        // A pidfd is readable once its process has ended, and stays so.
        drop(self.handle.readable().await?);
        let mut ended = self.ended();
        if let Some(status) = *ended {
            return Ok(status);
        }
        let status = match waitid(WaitId::PidFd(self.handle.as_fd()), WaitIdOptions::EXITED) {
            Ok(status) => status.map_or(ExitStatus::Unknown, |status| ExitStatus::from(&status)),
            Err(Errno::CHILD) => ExitStatus::Unknown,
            Err(error) => return Err(error.into()),
        };
        *ended = Some(status);
        Ok(status)
    }

    fn ended(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        // Who panicked has left a status, or none.
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pidfd that can be waited for.
#[expect(
    deprecated,
    reason = "what it asks for instead is `unsafe`, for the sake of types that close or exchange their descriptor; an \
              `OwnedFd` does neither"
)]
pub(crate) fn watch(handle: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(handle, Interest::READABLE)
}

fn unless_gone(sent: rustix::io::Result<()>) -> io::Result<()> {
    match sent {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// When a process began, in clock ticks since boot.
fn started_at(pid: Pid) -> io::Result<u64> {
    let stat = procfs::process::Process::new(pid.as_raw_pid()).and_then(|process| process.stat());
    stat.map(|stat| stat.starttime).map_err(|error| match error {
        procfs::ProcError::NotFound(_) => Errno::SRCH.into(),
        error => io::Error::other(error),
    })
}
