//! How each action is done.

use std::time::Duration;

use reuseport_lb::{group::Process as State, state::StateFile};
use rustix::process::Signal;
use tokio::{task::JoinSet, time::sleep};

use super::{
    Chaos, Event, Outcome,
    action::{Action, Configuration, GROUP},
    machine,
};
use crate::process::Process;

impl Chaos {
    /// Does it, and notes what came of it.
    pub(super) async fn act(&mut self, action: Action) {
        let at = self.begin.elapsed();
        let outcome = match action {
            Action::Kill(id) => self.kill(id).await,
            Action::Freeze(id, time) => self.freeze(id, time).await,
            Action::Reload(configuration) => self.reload(configuration).await,
            Action::KillDaemon(id, time) => self.kill_daemon(id, time).await,
            command => self.command(&command.command().expect("all others are commands")).await,
        };
        self.log.push(Event { at, action, outcome });
    }

    async fn kill(&mut self, id: u16) -> Outcome {
        match self.process(id).await {
            Some(pid) => self.kill_process(pid).await,
            None => no_process(),
        }
    }

    async fn kill_process(&mut self, pid: u32) -> Outcome {
        // Nothing may wake it between the look at what it has accepted and its end.
        self.frozen.remove(&pid);
        let Some(kill) = machine::kill(pid).await else { return no_process() };
        let outcome = Outcome::Done(format!("process {pid} with {} connections", kill.held.len()));
        self.ledger().killed(kill);
        outcome
    }

    async fn kill_daemon(&mut self, id: Option<u16>, time: Duration) -> Outcome {
        let victim = if let Some(id) = id { self.process(id).await } else { None };
        // The new one must be able to start: a file that lacks a group which runs is refused, and a reload that was
        // refused has changed no group.
        self.configuration.other = self.daemon.status().await.groups.iter().any(|group| group.name != GROUP);
        self.daemon.configure(&self.configuration.to_string());
        self.daemon.process().signal(Signal::STOP);
        machine::stopped(self.daemon.process()).await;
        if !self.somebody_would_listen(victim) {
            self.daemon.process().signal(Signal::CONT);
            return Outcome::Refused("no worker would be left to listen".to_owned());
        }
        self.daemon.kill().await;
        sleep(time).await;
        let worker = match victim {
            Some(pid) => format!("; {:?}", self.kill_process(pid).await),
            None => String::new(),
        };
        let took = self.daemon.start_again(&[]).await;
        Outcome::Done(format!("back after {took:?}{worker}"))
    }

    /// Whether there would be a listening socket without the daemon and without this process.
    ///
    /// A worker that ends while there is no daemon takes its socket with it, and what waits there goes to the others
    /// (docs/ARCHITECTURE.md, "What each failure leaves behind"). When the last one ends, nobody listens.
    fn somebody_would_listen(&self, victim: Option<u32>) -> bool {
        let state = StateFile::of(self.daemon.control()).expect("the boot's id").read();
        let state = state.expect("a state file that is right").expect("a state file");
        let group = state.groups.iter().find(|group| group.name == GROUP && !group.leaving);
        let mut workers = group.expect("the group with the load").group.workers();
        workers.any(|(_, worker)| match worker.process {
            State::Starting { pid, .. } | State::Running { pid, .. } => {
                let lives = || Process::find(pid).is_some_and(|it| !it.ends_within(Duration::ZERO));
                worker.open && Some(pid) != victim && lives()
            }
            State::Down { .. } | State::Stopping { .. } => false,
        })
    }

    async fn freeze(&mut self, id: u16, time: Duration) -> Outcome {
        let process = self.process(id).await.and_then(Process::find);
        let Some(process) = process else { return no_process() };
        let pid = process.pid;
        process.signal(Signal::STOP);
        let mut waking = JoinSet::new();
        waking.spawn(async move {
            sleep(time).await;
            process.signal(Signal::CONT);
        });
        // An earlier one, if any, is forgotten with its task.
        self.frozen.insert(pid, waking);
        Outcome::Done(format!("process {pid}"))
    }

    /// Wakes all that are stopped.
    pub(super) fn thaw(&mut self) {
        for process in std::mem::take(&mut self.frozen).into_keys().filter_map(Process::find) {
            process.signal(Signal::CONT);
        }
    }

    async fn reload(&mut self, configuration: Configuration) -> Outcome {
        self.daemon.configure(&configuration.to_string());
        if !configuration.wrong {
            self.configuration = configuration;
        }
        if configuration.signal {
            self.daemon.process().signal(Signal::HUP);
            return Outcome::Done(String::new());
        }
        let outcome = self.command("reload").await;
        let is_done = matches!(outcome, Outcome::Done(_));
        assert!(!(configuration.wrong && is_done), "a wrong file was taken: {configuration}");
        outcome
    }

    async fn command(&self, line: &str) -> Outcome {
        let words: Vec<_> = line.split(' ').collect();
        let output = self.daemon.cli(&words).await;
        if output.status.success() {
            return Outcome::Done(String::new());
        }
        // What makes no sense at the moment is refused in the usual way; anything else is an error of ours.
        assert_eq!(output.status.code(), Some(1), "{output}");
        Outcome::Refused(output.failed_with(&[]).stderr.trim().to_owned())
    }

    /// A worker's process at this moment.
    async fn process(&self, id: u16) -> Option<u32> {
        self.daemon.group_named(GROUP).await.workers.iter().find(|worker| worker.id.0 == id)?.pid
    }
}

fn no_process() -> Outcome {
    Outcome::Refused("no process".to_owned())
}
