//! The one task that owns everything: it takes requests and events, and hands each to the group that it is about.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    GroupName, Reply, Request, RequestError, Settings, Signal,
    events::{Event, EventQueue, Key},
    manager::Manager,
    runner::Runner,
    upgrade::Upgrade,
};
use crate::{
    config::source::Configured,
    control::{ReloadRequest, Status, TakenOver},
    group::WorkerId,
    privileges::Privileges,
    state::{GroupState, StateFile},
    worker::output,
};

/// The daemon, with everything it owns.
pub struct Daemon {
    /// The groups there are, by name.
    pub(super) groups: BTreeMap<String, Runner>,
    /// Groups that have been removed or replaced, until they have finished.
    pub(super) leaving: Vec<Runner>,
    pub(super) configured: Option<Configured>,
    pub(super) settings: Arc<Settings>,
    pub(super) events: EventQueue,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) started: Instant,
    pub(super) ending: bool,
    pub(super) manager: Manager,
    pub(super) state_file: StateFile,
    pub(super) privileges: Privileges,
    /// How many daemons have had these groups, this one included.
    pub(super) generation: u64,
    pub(super) taken_over: Option<TakenOver>,
    pub(super) upgrade: Upgrade,
    /// Why it did not become another program.
    pub(super) upgrade_error: Option<String>,
}

/// What is to happen when a daemon does not run any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The end: everything has ended.
    End,
    /// It is to become this program; see [`Daemon::exec`].
    Become(PathBuf),
}

impl Daemon {
    /// The workers that a group has.
    pub fn workers(&self, group: &str) -> Vec<WorkerId> {
        self.groups
            .get(group)
            .map(|runner| runner.group.workers().map(|(id, _)| id).collect())
            .unwrap_or_default()
    }

    /// Runs until it has been told to end and everything has ended, or until it is to become another program.
    ///
    /// The first [`Signal::Stop`] ends the workers in peace, within their groups' grace periods; the second at once.
    /// Cancel-safe: it can be run again.
    pub async fn run(&mut self, signals: &mut mpsc::Receiver<Signal>) -> Next {
        self.report();
        while !(self.ending && self.all_groups().all(Runner::is_gone)) {
            let groups = self.all_groups().filter_map(Runner::next_wake);
            let wake = groups.chain(self.manager.next_wake()).min();
            tokio::select! {
                Some(request) = self.requests.recv() => {
                    self.answer(request);
                    // Who asked does not wait for the look at all workers.
                    tokio::task::yield_now().await;
                }
                Some((key, event)) = self.events.next() => {
                    self.happened(key, event);
                    // What came with it costs no further look at all workers, and no further state to write.
                    while let Some((key, event)) = self.events.waiting() {
                        self.happened(key, event);
                    }
                }
                Some(signal) = signals.recv() => self.signalled(signal),
                tried = self.upgrade.tried() => {
                    if let Some(binary) = self.tried(tried) {
                        return Next::Become(binary);
                    }
                }
                () = sleep_until(wake) => {}
            }
            self.advance();
            self.report();
        }
        self.state_file.remove();
        output::flush().await;
        tracing::info!("all workers have ended");
        Next::End
    }

    fn signalled(&mut self, signal: Signal) {
        match signal {
            Signal::Stop => self.end(),
            Signal::Reload if self.configured.is_none() => {
                tracing::info!("SIGHUP ignored: the daemon was started without --config");
                // A service manager that sent it waits for the end of a reload.
                self.manager.reloading();
            }
            // The log tells what came of it.
            Signal::Reload => drop(self.reload(false)),
        }
    }

    /// The groups there are, and those that leave.
    pub(super) fn all_groups(&self) -> impl Iterator<Item = &Runner> {
        self.groups.values().chain(&self.leaving)
    }

    fn all_groups_mut(&mut self) -> impl Iterator<Item = &mut Runner> {
        self.groups.values_mut().chain(&mut self.leaving)
    }

    /// Tells the service manager how things are.
    fn report(&mut self) {
        if !self.manager.is_present() {
            return;
        }
        // Before it is another version, there is nothing new to tell.
        if !self.ending && !matches!(self.upgrade, Upgrade::Becoming) {
            let serves = self.groups.values().all(Runner::serves);
            self.manager.update(serves, self.summary());
        }
        self.manager.alive(Instant::now());
    }

    /// One line for `systemctl status`.
    fn summary(&self) -> String {
        let groups = self.groups.len();
        let (active, all) = self
            .groups
            .values()
            .map(Runner::active_of_all)
            .fold((0, 0), |sum, group| (sum.0 + group.0, sum.1 + group.1));
        format!("{groups} group{}, {active} of {all} workers active", if groups == 1 { "" } else { "s" })
    }

    /// Ends: in peace the first time, at once when asked again.
    fn end(&mut self) {
        let grace = self.all_groups().map(Runner::grace).max().unwrap_or_default();
        self.manager.stopping(if self.ending { Duration::ZERO } else { grace });
        let at_once = self.ending;
        for runner in self.all_groups_mut() {
            runner.end(at_once);
        }
        self.ending = true;
    }

    fn happened(&mut self, key: Key, event: Event) {
        // What a group leaves behind when it goes may still report.
        if let Some(runner) = self.all_groups_mut().find(|runner| runner.key() == key) {
            runner.happened(event);
        }
    }

    pub(super) fn advance(&mut self) {
        for runner in self.all_groups_mut() {
            runner.advance();
        }
        // With a group go its programs, maps and pins.
        for gone in self.leaving.extract_if(.., |runner| runner.is_gone()) {
            tracing::info!(group = gone.spec.name, "the group has gone");
        }
        self.save_or_tell();
    }

    fn save_or_tell(&mut self) {
        if let Err(error) = self.save() {
            let path = self.state_file.path().display();
            tracing::error!(%path, %error, "cannot write the state; without it, no other daemon can take over");
        }
    }

    /// Writes down what another daemon needs to go on from here.
    ///
    /// Not at the end: what is wished then is the daemon's end, and nothing that its successor should go on with. One
    /// that starts while this one is killed at its end finds the groups as they were before.
    pub(super) fn save(&mut self) -> io::Result<()> {
        if self.ending {
            return Ok(());
        }
        let leaving = self.leaving.iter().map(|runner| GroupState { leaving: true, ..runner.state() });
        let groups = self.groups.values().map(Runner::state).chain(leaving).collect();
        let state = self.state_file.state(self.generation, self.privileges.given_up(), groups);
        self.state_file.write(state)
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Status(reply) => drop(reply.send(self.status())),
            Request::SetPolicy(group, policy, reply) => {
                let done = self.changeable(&group).and_then(|runner| runner.set_policy(policy));
                self.reply(reply, done);
            }
            Request::Drain(group, id, drain, reply) => {
                let done = self.changeable(&group).and_then(|runner| runner.drain(id, drain));
                self.reply(reply, done);
            }
            Request::Undrain(group, id, reply) => {
                let done = self.changeable(&group).and_then(|runner| runner.undrain(id));
                self.reply(reply, done);
            }
            Request::Start(group, id, reply) => {
                let done = self.changeable(&group).and_then(|runner| runner.start_again(id));
                self.reply(reply, done);
            }
            Request::Restart(group, request, reply) => {
                let done = self.changeable(&group).and_then(|runner| runner.restart(request));
                self.reply(reply, done);
            }
            Request::CancelRestart(group, reply) => {
                let done = self.changeable(&group).and_then(Runner::cancel_restart);
                self.reply(reply, done);
            }
            Request::Scale(group, request, reply) => {
                let scaled = self.changeable(&group).and_then(|runner| runner.scale(request));
                self.raise_limit();
                self.reply(reply, scaled);
            }
            Request::SetWeight(group, id, weight, reply) => {
                let done = self.changeable(&group).and_then(|runner| runner.set_weight(id, weight));
                self.reply(reply, done);
            }
            Request::Reload(ReloadRequest { dry_run }, reply) => {
                let done = self.reload(dry_run);
                self.reply(reply, done);
            }
            Request::Upgrade(request, reply) => self.begin_upgrade(request, reply),
            Request::Detach(reply) => {
                let done = self.detach();
                drop(reply.send(done));
            }
            Request::Shutdown(reply) => {
                self.end();
                drop(reply.send(Ok(())));
            }
        }
    }

    /// Answers. What was done is written down before somebody relies on it.
    fn reply<T>(&mut self, reply: Reply<T>, answer: Result<T, RequestError>) {
        self.save_or_tell();
        // Who asked may have gone away meanwhile; what was asked is done all the same.
        drop(reply.send(answer));
    }

    /// More workers need more descriptors.
    fn raise_limit(&self) {
        let workers = |runner: &Runner| u16::try_from(runner.group.workers().count()).unwrap_or(u16::MAX);
        self.settings.open_files.raise(self.all_groups().map(workers));
    }

    fn status(&mut self) -> Result<Status, RequestError> {
        self.all_groups_mut().for_each(Runner::see_owners);
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            generation: self.generation,
            taken_over: self.taken_over.clone(),
            upgrade_error: self.upgrade_error.clone(),
            groups: self.groups.values().map(Runner::status).collect::<Result<_, _>>()?,
            leaving: self.leaving.iter().map(Runner::status).collect::<Result<_, _>>()?,
        })
    }

    /// The group that a request means, to be changed.
    fn changeable(&mut self, name: &GroupName) -> Result<&mut Runner, RequestError> {
        if self.ending {
            return Err(RequestError::Refused("the daemon is shutting down".into()));
        }
        let name = meant(name.as_deref(), self.groups.keys())?.to_owned();
        // It is one of the keys.
        self.groups.get_mut(&name).ok_or(RequestError::NotFound(name))
    }
}

/// The name of the group that a request means: the one it names, or the only one.
fn meant<'a>(
    name: Option<&'a str>,
    groups: impl ExactSizeIterator<Item = &'a String> + Clone,
) -> Result<&'a str, RequestError> {
    let all = || groups.clone().map(String::as_str).collect::<Vec<_>>().join(", ");
    match name {
        Some(name) if groups.clone().any(|group| group == name) => Ok(name),
        Some(name) => Err(RequestError::NotFound(format!("there is no group {name}; there is: {}", all()))),
        None => match (groups.len(), groups.clone().next()) {
            (1, Some(only)) => Ok(only),
            (0, _) => Err(RequestError::NotFound("the daemon has no group".into())),
            _ => Err(RequestError::Invalid(format!(
                "there is more than one group; name one with --group: {}",
                all()
            ))),
        },
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_the_only_group_is_meant() {
        let [none, one, two]: [&[&str]; 3] = [&[], &["web"], &["api", "web"]];
        let told = |name, groups: &[&str]| {
            let groups: BTreeMap<_, _> = groups.iter().map(|name| ((*name).to_owned(), ())).collect();
            meant(name, groups.keys()).map(ToOwned::to_owned).map_err(|error| error.to_string())
        };
        assert_eq!(told(None, one).as_deref(), Ok("web"));
        assert_eq!(told(Some("api"), two).as_deref(), Ok("api"));
        for (name, groups, expected) in [
            (None, two, "there is more than one group; name one with --group: api, web"),
            (Some("x"), two, "there is no group x; there is: api, web"),
            (Some("x"), one, "there is no group x; there is: web"),
            (None, none, "the daemon has no group"),
        ] {
            assert_eq!(told(name, groups).unwrap_err(), expected);
        }
    }
}
