//! What the user asked for, as one validated value.

use std::{
    ffi::{OsStr, OsString},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;

use crate::{
    adopt,
    group::{Supervision, WorkerId},
    policy::PolicySpec,
};

pub mod difference;
pub mod file;
pub mod flags;
mod schema;
pub mod settings;
pub mod source;
pub mod values;
pub mod worker;

pub use crate::group::MAX_WORKERS;
pub use worker::ProcessSettings;

/// A group to run, with its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// The group's name, in `status` and for `--group`.
    pub name: String,
    /// Where the group listens.
    pub listen: SocketAddr,
    /// The network namespace that it is in, as a path to open, or the daemon's own.
    pub netns: Option<PathBuf>,
    /// Where its sockets come from.
    pub sockets: Sockets,
    /// How many workers it has, 1 to [`MAX_WORKERS`]; 0 where others start them.
    pub workers: u16,
    /// The weights of the first workers, the last of them not 1; all others have 1.
    pub weights: Vec<u16>,
    /// The policy at the start.
    pub policy: PolicySpec,
    /// Whether each worker is pinned to one CPU: that of its number, modulo the CPUs that the daemon may use.
    pub pin_workers: bool,
    /// What each worker runs.
    pub command: WorkerCommand,
    /// How that is looked after.
    pub supervision: Supervision,
    /// What it gets beside its socket.
    pub process: ProcessSettings,
    /// How long workers may take to finish when the group is shut down.
    pub grace: Duration,
    /// The length of each worker's accept queue.
    pub backlog: u32,
    /// After how long a worker that takes nothing from its accept queue is passed over; zero for never.
    pub stall_after: Duration,
    /// The seed of the flow hash. Hosts with the same seed and workers pick alike.
    pub hash_seed: u64,
}

/// A group of users of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserGroup {
    /// Its name, as the user wrote it.
    pub name: String,
    /// Its id.
    pub id: u32,
}

/// Where the listening sockets of a group come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sockets {
    /// The daemon makes one for each worker, and hands it over.
    #[default]
    HandedOver,
    /// Each worker opens its own with `SO_REUSEPORT`, and the daemon finds it.
    SelfBound,
    /// From processes that the daemon did not start; their sockets are the workers.
    Adopted,
}

impl std::fmt::Display for Sockets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::HandedOver => "handed-over",
            Self::SelfBound => "self-bound",
            Self::Adopted => "adopted",
        })
    }
}

impl GroupSpec {
    /// Whether the two groups would be in each other's way.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.netns == other.netns && adopt::overlaps(self.listen, other.listen)
    }

    /// The weight of a worker.
    pub fn weight(&self, worker: WorkerId) -> u16 {
        self.weights.get(usize::from(worker.0)).copied().unwrap_or(1)
    }

    /// Weights without the ones at the end, so that the same weights are always written alike.
    pub fn only_needed(mut weights: Vec<u16>) -> Vec<u16> {
        let needed = weights.iter().rposition(|weight| *weight != 1).map_or(0, |last| last + 1);
        weights.truncate(needed);
        weights
    }
}

/// What a worker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerCommand {
    /// The built-in worker, for trying and testing.
    BuiltIn,
    /// A server that takes its listening socket as systemd hands it over.
    Program {
        /// The program, found on `PATH` already.
        program: PathBuf,
        /// Its arguments.
        args: Vec<OsString>,
    },
}

impl WorkerCommand {
    /// Looks the command up: a bare name on `PATH`, anything with a `/` from the working folder. No command means
    /// the built-in worker.
    ///
    /// # Errors
    ///
    /// [`CommandNotFound`] when there is no such file, or it may not be executed.
    pub fn find(command: &[OsString]) -> Result<Self, CommandNotFound> {
        let Some((name, args)) = command.split_first() else {
            return Ok(Self::BuiltIn);
        };
        let program = which::which(name).map_err(|_| CommandNotFound::new(name))?;
        Ok(Self::Program { program, args: args.to_vec() })
    }
}

/// A worker command that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", name.display())]
pub struct CommandNotFound {
    name: OsString,
    why: &'static str,
}

impl CommandNotFound {
    fn new(name: &OsStr) -> Self {
        let is_bare = !name.as_encoded_bytes().contains(&b'/');
        let why = match Path::new(name).metadata() {
            _ if is_bare => "no such command on PATH",
            Err(_) => "no such file",
            Ok(found) if found.is_dir() => "is a folder",
            Ok(_) => "is not executable",
        };
        Self { name: name.to_owned(), why }
    }
}

/// From which level on the BPF programs log. They are silent, and pay nothing, unless one is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum BpfLogLevel {
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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn why_not(command: &str) -> String {
        WorkerCommand::find(&[command.into()]).expect_err(command).to_string()
    }

    #[test]
    fn commands_are_looked_up_before_anything_is_done() {
        assert_eq!(WorkerCommand::find(&[]), Ok(WorkerCommand::BuiltIn));
        let found = WorkerCommand::find(&["sh".into(), "-c".into()]).expect("every system has sh");
        let WorkerCommand::Program { program, args } = found else { panic!("{found:?}") };
        assert!(program.is_absolute() && program.ends_with("sh"), "{}", program.display());
        assert_eq!(args, ["-c"]);
    }

    #[test]
    fn a_command_that_cannot_run_says_why() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let plain = folder.path().join("plain");
        fs::write(&plain, "").expect("a file");
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).expect("mode 0644");

        assert_eq!(why_not("no-such-server"), "no-such-server: no such command on PATH");
        assert_eq!(why_not("./no-such-server"), "./no-such-server: no such file");
        assert_eq!(why_not(&plain.display().to_string()), format!("{}: is not executable", plain.display()));
        assert_eq!(why_not("/tmp"), "/tmp: is a folder");
    }
}
