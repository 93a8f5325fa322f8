//! The daemon becomes another program: a newer version of itself, as a rule.
//!
//! That one is first tried out as a process beside: it says whether it understands command line, configuration and
//! state, and whether the kernel takes its programs. So what can fail fails while nothing has changed. Then the state
//! is written, and the program is run in place of this one, with the same process id and so with the same children. It
//! takes over as it would from a daemon that was killed, only that all sockets and pipes are handed to it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{process::Command, task::JoinHandle, time::timeout};

use super::{Daemon, Rehearsal, Reply, RequestError, creation::pin_name, runner::Runner, socket::Socket};
use crate::{
    control::{UpgradeRequest, UpgradeStatus},
    handover::{self, Kind, Outgoing},
};

/// The hidden command by which a program is tried out: `upgrade-check --format N --control PATH -- ARG…`, with the
/// daemon's own arguments.
const CHECK_COMMAND: &str = "upgrade-check";

/// How long the other program may take to say whether it can go on. Loading its programs takes longest.
const TRIAL_PATIENCE: Duration = Duration::from_secs(45);

/// How far an upgrade is.
#[derive(Default)]
pub(super) enum Upgrade {
    /// There is none.
    #[default]
    None,
    /// The other program is tried out.
    Trying(Trial),
    /// The daemon is about to become it.
    Becoming,
}

/// A program that is tried out.
pub(super) struct Trial {
    binary: PathBuf,
    reply: Reply<UpgradeStatus>,
    answer: JoinHandle<Result<Rehearsal, String>>,
}

impl Upgrade {
    /// Waits until it is known whether the other program can go on. Cancel-safe.
    pub(super) async fn tried(&mut self) -> Result<Rehearsal, String> {
        match self {
            Self::Trying(Trial { answer, .. }) => {
                answer.await.unwrap_or_else(|error| Err(format!("cannot be tried out: {error}")))
            }
            Self::None | Self::Becoming => std::future::pending().await,
        }
    }
}

impl Daemon {
    /// Begins to try the other program out.
    pub(super) fn begin_upgrade(&mut self, request: UpgradeRequest, reply: Reply<UpgradeStatus>) {
        if let Err(refused) = self.may_upgrade() {
            drop(reply.send(Err(refused)));
            return;
        }
        self.upgrade_error = None;
        let binary = request.binary.unwrap_or_else(|| self.settings.executable.clone());
        let answer = tokio::spawn(try_out(binary.clone(), self.settings.control.clone()));
        self.upgrade = Upgrade::Trying(Trial { binary, reply, answer });
    }

    /// Whether the daemon may become another program, with everything written down that this one needs.
    fn may_upgrade(&mut self) -> Result<(), RequestError> {
        if !matches!(self.upgrade, Upgrade::None) {
            return Err(RequestError::Refused("an upgrade is under way".into()));
        }
        if self.ending {
            return Err(RequestError::Refused("the daemon is shutting down".into()));
        }
        if let Some(leaving) = self.leaving.first() {
            let name = &leaving.spec.name;
            return Err(RequestError::Refused(format!("group {name} is leaving; wait until it has gone")));
        }
        self.save().map_err(|error| {
            RequestError::Failed(format!("cannot write {}: {error}", self.state_file.path().display()))
        })
    }

    /// The other program has been tried out. Gives it when this one is to become it.
    pub(super) fn tried(&mut self, tried: Result<Rehearsal, String>) -> Option<PathBuf> {
        let Upgrade::Trying(Trial { binary, reply, answer: _ }) = std::mem::take(&mut self.upgrade) else {
            return None;
        };
        let path = binary.display();
        let fit = tried.map_err(|why| RequestError::Failed(format!("{path}: {why}")));
        // Things may have changed meanwhile.
        let fit = fit.and_then(|fit| self.may_upgrade().map(|()| fit));
        match fit {
            Ok(Rehearsal { version, maps_replaced }) => {
                let maps_replaced = maps_replaced.into_iter().collect::<Vec<_>>().join(" ");
                tracing::info!(binary = %path, version, maps_replaced, "becoming another version");
                self.manager.reloading();
                let generation = self.generation + 1;
                drop(reply.send(Ok(UpgradeStatus { binary: binary.clone(), version, generation })));
                self.upgrade = Upgrade::Becoming;
                Some(binary)
            }
            Err(error) => {
                tracing::error!(%error, "cannot upgrade, nothing has changed");
                drop(reply.send(Err(error)));
                None
            }
        }
    }

    /// Becomes `binary`, which gets `outgoing` and all that the groups have. Returns only when that failed; then this
    /// daemon goes on.
    pub fn exec(&mut self, binary: &Path, outgoing: Outgoing<'_>) {
        self.upgrade = Upgrade::None;
        let error = match self.may_upgrade() {
            Ok(()) => {
                let mut outgoing = outgoing;
                for runner in self.groups.values() {
                    runner.hand_over(&mut outgoing);
                }
                let error = outgoing.exec(binary, &arguments());
                format!("cannot run {}: {error}", binary.display())
            }
            Err(error) => error.to_string(),
        };
        tracing::error!(error, "cannot upgrade, nothing has changed");
        self.upgrade_error = Some(error);
    }
}

impl Runner {
    /// Hands everything over that the next daemon cannot get again, or not without further rights.
    fn hand_over<'a>(&'a self, outgoing: &mut Outgoing<'a>) {
        for socket in self.listeners.values() {
            if let Socket::Made(listener) = socket {
                outgoing.add(Kind::Listener(listener.cookie()), listener);
            }
        }
        if let Some(notices) = &self.notices {
            outgoing.add(Kind::Notices(pin_name(&self.spec, &self.netns)), notices);
        }
        for process in self.processes.values() {
            let pid = process.identity().pid;
            for (stream, pipe) in process.output().pipes() {
                outgoing.add(Kind::Output { pid, stream }, pipe);
            }
        }
    }
}

fn arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

/// Asks a program whether it can go on from here.
async fn try_out(binary: PathBuf, control: PathBuf) -> Result<Rehearsal, String> {
    let mut command = Command::new(&binary);
    command
        .arg(CHECK_COMMAND)
        .arg(format!("--format={}", handover::FORMAT))
        .arg("--daemon")
        .arg(control)
        .arg("--")
        .args(arguments())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(TRIAL_PATIENCE, command.output())
        .await
        .map_err(|_| "it does not say whether it can go on".to_owned())?
        .map_err(|error| format!("cannot be run: {error}"))?;
    understand(&output)
}

/// What a program has answered, or why it cannot go on: its own line, where it has one.
fn understand(Output { status, stdout, stderr }: &Output) -> Result<Rehearsal, String> {
    if status.success() {
        return serde_json::from_slice(stdout).map_err(|_| "is no version of reuseport-lb".to_owned());
    }
    let stderr = String::from_utf8_lossy(stderr);
    let line = stderr.lines().rfind(|line| !line.trim().is_empty());
    Err(match line.map(|line| line.strip_prefix("reuseport-lb: ").unwrap_or(line)) {
        Some(line) => format!("cannot go on from here: {line}"),
        None => format!("cannot go on from here: {status}"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn an_answer_is_one_line() {
        let told = |status: i32, stdout: &str, stderr: &str| {
            let status = std::process::ExitStatus::from_raw(status << 8);
            understand(&Output { status, stdout: stdout.into(), stderr: stderr.into() })
        };
        let fit = told(0, r#"{"version":"0.2.0","maps_replaced":["TABLES"]}"#, "").expect("an answer");
        assert_eq!((fit.version.as_str(), fit.maps_replaced.len()), ("0.2.0", 1));
        for (status, stdout, stderr, expected) in [
            (0, "", "", "is no version of reuseport-lb"),
            (0, "hello\n", "", "is no version of reuseport-lb"),
            (1, "", "", "cannot go on from here: exit status: 1"),
            (1, "", "a warning\nreuseport-lb: this: that\n\n", "cannot go on from here: this: that"),
            (2, "", "ls: cannot do this\n", "cannot go on from here: ls: cannot do this"),
        ] {
            assert_eq!(told(status, stdout, stderr), Err(expected.to_owned()));
        }
    }
}
