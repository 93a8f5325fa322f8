//! The short life between the daemon's fork and the worker's own program.
//!
//! `LISTEN_PID` must be the process id of the program that takes the socket, or that program ignores it. The daemon
//! cannot know the id before the fork, and may not touch the environment between fork and exec. So it starts itself
//! with a hidden command, which knows its own id, and becomes the program by `exec`: the id stays. What else has to be
//! done in the new process is done here, too: limits, folder, user.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{self, Command},
};

use caps::CapSet;
use clap::Args;
use nix::{
    sys::signal::SigSet,
    unistd::{Gid, Uid, getegid, geteuid, setgid, setgroups, setsid, setuid},
};

use super::{affinity, descriptors};

/// What the process is to be when it becomes the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Become {
    /// The soft limit of open files, where the daemon has raised its own
    #[arg(long)]
    pub open_files: Option<u64>,
    /// Both limits of open files
    #[arg(long)]
    pub rlimit_nofile: Option<u64>,
    /// The CPU to be pinned to
    #[arg(long)]
    pub cpu: Option<u16>,
    /// The working folder
    #[arg(long)]
    pub chdir: Option<PathBuf>,
    /// The user's id
    #[arg(long, requires = "gid")]
    pub uid: Option<u32>,
    /// The group's id
    #[arg(long, requires = "uid")]
    pub gid: Option<u32>,
    /// The ids of all groups
    #[arg(long, value_delimiter = ',', requires = "uid")]
    pub groups: Vec<u32>,
}

/// Why the program is not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The limit of open files cannot be had.
    #[error("cannot limit open files to {0}")]
    Limit(u64, #[source] io::Error),
    /// The CPU is offline, or not for this process.
    #[error("cannot pin it to CPU {0}")]
    Cpu(u16, #[source] io::Error),
    /// There is no such folder, or it may not be entered.
    #[error("cannot enter {}", .0.display())]
    Folder(PathBuf, #[source] io::Error),
    /// The daemon may not make processes of this user.
    #[error("cannot become user {0}")]
    User(u32, #[source] io::Error),
    /// The daemon's privileges cannot be taken from it.
    #[error("cannot give up the daemon's capabilities")]
    Privileges(#[source] caps::errors::CapsError),
    /// The program is missing, or cannot be run.
    #[error("cannot start {}", .0.display())]
    Program(OsString, #[source] io::Error),
}

impl Become {
    /// As the arguments of the hidden command.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let Self { open_files, rlimit_nofile, cpu, chdir, uid, gid, groups } = self;
        let number = |name: &str, n: u64| OsString::from(format!("--{name}={n}"));
        let mut arguments = Vec::new();
        arguments.extend(open_files.map(|n| number("open-files", n)));
        arguments.extend(rlimit_nofile.map(|n| number("rlimit-nofile", n)));
        arguments.extend(cpu.map(|cpu| number("cpu", cpu.into())));
        if let Some(folder) = chdir {
            arguments.extend(["--chdir".into(), folder.into()]);
        }
        arguments.extend(uid.map(|id| number("uid", id.into())));
        arguments.extend(gid.map(|id| number("gid", id.into())));
        if !groups.is_empty() {
            let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
            arguments.push(format!("--groups={}", groups.join(",")).into());
        }
        arguments
    }

    fn apply(&self) -> Result<(), ExecError> {
        let Self { open_files, rlimit_nofile, cpu, chdir, uid, gid, groups } = self;
        if let Some(before) = *open_files {
            descriptors::restore_limit(before).map_err(|error| ExecError::Limit(before, error))?;
        }
        if let Some(limit) = *rlimit_nofile {
            descriptors::set_limit(limit).map_err(|error| ExecError::Limit(limit, error))?;
        }
        if let Some(cpu) = *cpu {
            affinity::pin(cpu).map_err(|error| ExecError::Cpu(cpu, error))?;
        }
        if let Some(folder) = chdir {
            std::env::set_current_dir(folder).map_err(|error| ExecError::Folder(folder.clone(), error))?;
        }
        if let Some((uid, gid)) = uid.zip(*gid) {
            become_user(uid, gid, groups).map_err(|error| ExecError::User(uid, error.into()))?;
        }
        Ok(())
    }
}

/// Whether the daemon is this user already, so that nothing is to be done: one without privileges may name its own.
pub(crate) fn is_user(uid: u32, gid: u32) -> bool {
    geteuid().as_raw() == uid && getegid().as_raw() == gid && uid != 0
}

/// Groups first: afterwards it is not permitted any more.
fn become_user(uid: u32, gid: u32, groups: &[u32]) -> nix::Result<()> {
    if is_user(uid, gid) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&groups.iter().copied().map(Gid::from_raw).collect::<Vec<_>>())?;
    setgid(gid)?;
    setuid(uid)
}

/// Lets nothing of the daemon's capabilities get through to the program.
fn give_back() -> Result<(), ExecError> {
    caps::clear(None, CapSet::Ambient)
        .and_then(|()| caps::clear(None, CapSet::Inheritable))
        .map_err(ExecError::Privileges)
}

/// Becomes `program` with `args`, with `LISTEN_PID`, and `WATCHDOG_PID` where there is a watchdog, set to the present
/// process id.
///
/// Signal mask and `SIGPIPE` are put back to what a program expects. Returns only if that failed, with the reason.
pub fn exec(program: &OsStr, args: &[OsString], to_be: &Become) -> ExecError {
    // A session of its own, and with it a process group. A group alone would not do: when the daemon dies, the kernel sends
    // SIGHUP to the groups of its session that have nobody left who looks after them, if a member is stopped. It fails
    // only in a process that leads a group already.
    let _ = setsid();
    // Some wait in the daemon until it reads them. It fails for no set.
    let _ = SigSet::empty().thread_set_mask();
    // Root's privileges are the user's, and end with it. Another user has them from the daemon's ambient set.
    let is_lent = !geteuid().is_root();
    if let Err(error) = to_be.apply().and_then(|()| if is_lent { give_back() } else { Ok(()) }) {
        return error;
    }
    let id = process::id().to_string();
    // `Command` looks the program up on PATH unless its name has a slash; the daemon gives a full path.
    let mut command = Command::new(program);
    command.args(args).env("LISTEN_PID", &id);
    if std::env::var_os("WATCHDOG_USEC").is_some() {
        command.env("WATCHDOG_PID", &id);
    }
    ExecError::Program(program.to_owned(), command.exec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_missing_from_broken() {
        let why = |program: &str| match exec(program.as_ref(), &[], &Become::default()) {
            ExecError::Program(_, error) => error.kind(),
            other => panic!("{other:?}"),
        };
        assert_eq!(why("/nonexistent/program"), io::ErrorKind::NotFound);
        assert_eq!(why("/etc/passwd"), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_folder_that_has_gone_is_named() {
        let to_be = Become { chdir: Some("/nonexistent".into()), ..Become::default() };
        let error = exec("/bin/true".as_ref(), &[], &to_be);
        assert_eq!(error.to_string(), "cannot enter /nonexistent");
    }
}
