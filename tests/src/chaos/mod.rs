//! Everything that happens to a group in a year, within minutes: any action at any moment, under load from several hosts.
//!
//! What happens, and in what order, depends on a seed alone; when, and what it meets, on the machine as well. Between
//! rounds all is brought back to rest, and then must be true:
//!
//! * every connection was served, or lost with a worker that was killed, or idle when its server ended ([`ledger`] has the
//!   exact rules);
//! * the daemon's counters are the kernel's numbers of open connections, and 0 when none is open;
//! * the daemon has the same descriptors as before, and little more memory.
//!
//! In the end it is told to stop, and nothing of it is left: no process, socket, file, pin, program or map.

pub mod action;
mod clients;
pub mod ledger;
mod machine;

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fastrand::Rng;
use reuseport_lb::{
    control::{GroupStatus, OperationState},
    group::WorkerState,
};
use rustix::process::Signal;
use tokio::{task::JoinSet, time::sleep};

use self::{
    action::{Action, Configuration, GROUP},
    clients::Clients,
    ledger::Ledger,
    machine::{Bpf, Vitals},
};
use crate::{Client, Daemon, GroupExt, Launch, Netns, connections, eventually, hold, process::Process};

/// How many hosts have clients.
const HOSTS: u8 = 3;
/// How many clients each has.
const CLIENTS_EACH: u32 = 16;
/// How long a round takes before all is brought to rest.
const ROUND: Duration = Duration::from_secs(12);
/// The longest time between two actions, in milliseconds.
const LONGEST_PAUSE_MS: u64 = 500;

/// How much more memory than after its first round the daemon may have at rest, in KiB.
///
/// Less than 100 KiB more was seen in runs of a few minutes, in steps, since allocators keep what was once in use. The
/// margin is for a moment of many requests, each with its buffers, that the first round did not have. A leak of one KiB
/// for each action or connection is above it after some minutes.
const MEMORY_MARGIN_KIB: u64 = 4 * 1_024;

/// The variables that [`Plan::from_env`] reads: seconds, and the seed.
pub const SECONDS_VARIABLE: &str = "REUSEPORT_LB_CHAOS_SECONDS";
/// See [`SECONDS_VARIABLE`].
pub const SEED_VARIABLE: &str = "REUSEPORT_LB_CHAOS_SEED";

/// The time in which a plan is carried out at most, beyond its duration: the last rest, and the end.
pub const REST: Duration = Duration::from_secs(300);

/// How long, and in which order.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// When no further round begins.
    pub duration: Duration,
    /// What the order of the actions depends on.
    pub seed: u64,
}

impl Plan {
    /// What the environment asks for; else 90 seconds, and a seed of chance.
    pub fn from_env() -> Self {
        let number = |name: &str| {
            let value = env::var(name).ok()?;
            Some(value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
        };
        Self {
            duration: Duration::from_secs(number(SECONDS_VARIABLE).unwrap_or(90)),
            seed: number(SEED_VARIABLE).unwrap_or_else(|| fastrand::u64(..)),
        }
    }
}

/// Carries the plan out and prints what happened.
///
/// # Panics
/// When something is not as it should be, with the seed, what happened and when, and which connections failed.
pub async fn run(netns: &Arc<Netns>, plan: Plan) {
    let Plan { seed, duration } = plan;
    println!("chaos: {SEED_VARIABLE}={seed} {SECONDS_VARIABLE}={}", duration.as_secs());
    let daemon = Launch::config(&Configuration::REST.to_string()).start(netns).await;
    let hosts: Vec<_> = (1..=HOSTS).map(|n| netns.join_client(n)).collect();
    let hosts: Vec<_> =
        hosts.iter().map(|(host, server)| Client::of((*server, 8080).into()).inside(host)).collect();

    let begin = Instant::now();
    let ledger = Arc::new(Mutex::new(Ledger::new(begin, |pid| Process::find(pid).is_none())));
    let mut rng = Rng::with_seed(seed);
    let clients = Clients::start(&hosts, CLIENTS_EACH, &mut rng, &ledger);
    let mut chaos = Chaos {
        daemon,
        seed,
        begin,
        ledger,
        log: Vec::new(),
        configuration: Configuration::REST,
        frozen: BTreeMap::new(),
    };
    let mut bpf = Bpf::default();
    let mut first: Option<Vitals> = None;
    let mut rounds = 0;
    while begin.elapsed() < duration {
        let end = Instant::now() + ROUND;
        while Instant::now() < end {
            chaos.act(Action::draw(&mut rng)).await;
            sleep(Duration::from_millis(rng.u64(..LONGEST_PAUSE_MS))).await;
        }
        chaos.thaw();
        let pause = clients.pause().await;
        chaos.ledger().assert_all_accounted_for();
        chaos.rest().await;
        chaos.compare_counts(&hosts).await;
        bpf.add(chaos.daemon.process().pid);
        let vitals = chaos.compare_vitals(first.as_ref()).await;
        rounds += 1;
        println!(
            "chaos: {:4.0}s, round {rounds}: {} actions, daemon: {vitals}; {}",
            begin.elapsed().as_secs_f64(),
            chaos.log.len(),
            chaos.ledger()
        );
        first.get_or_insert(vitals);
        drop(pause);
    }
    let pause = clients.pause().await;
    chaos.daemon.idle().await;
    chaos.ledger().assert_all_accounted_for();
    drop((clients, pause));
    chaos.end(&bpf).await;
}

/// What happened, and when.
#[derive(Debug)]
struct Event {
    at: Duration,
    action: Action,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    /// It was done.
    Done(String),
    /// The daemon refused it, or there was no such process.
    Refused(String),
}

/// A group to which things happen. Dropping it in a panic prints what has happened.
struct Chaos {
    daemon: Daemon,
    seed: u64,
    begin: Instant,
    ledger: Arc<Mutex<Ledger>>,
    log: Vec<Event>,
    /// The last one without a mistake.
    configuration: Configuration,
    /// The stopped processes, and what wakes each of them.
    frozen: BTreeMap<u32, JoinSet<()>>,
}

impl Chaos {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn act(&mut self, action: Action) {
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
        self.daemon.kill().await;
        sleep(time).await;
        let worker = match victim {
            Some(pid) => format!("; {:?}", self.kill_process(pid).await),
            None => String::new(),
        };
        let took = self.daemon.start_again(&[]).await;
        Outcome::Done(format!("back after {took:?}{worker}"))
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
    fn thaw(&mut self) {
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

    /// Brings back what may be drained, stopped or gone, and waits until all is as in the beginning.
    async fn rest(&mut self) {
        eventually("no operation is under way", async || {
            let group = self.daemon.group_named(GROUP).await;
            match group.operation {
                Some(operation) if operation.state == OperationState::Running => {
                    Err(format!("{operation:?}"))
                }
                _ => Ok(()),
            }
        })
        .await;
        self.configuration = Configuration::REST;
        self.daemon.configure(&self.configuration.to_string());
        self.daemon.tell(&["reload"]).await;
        eventually("the other group has gone", async || {
            let status = self.daemon.status().await;
            if status.leaving.is_empty() { Ok(()) } else { Err(format!("{status:#?}")) }
        })
        .await;
        for worker in self.daemon.group().await.workers {
            self.daemon.tell(&["undrain", &worker.id.to_string()]).await;
        }
        let workers = usize::from(Configuration::REST.workers);
        let is_whole = |group: &GroupStatus| group.workers.len() == workers && group.all_active();
        self.daemon.wait("all workers are active", is_whole).await;
        self.daemon.idle().await;
    }

    /// Opens connections from all hosts, and compares the daemon's numbers with the kernel's, while they are open and
    /// when they are closed.
    async fn compare_counts(&self, hosts: &[Client]) {
        let before = self.daemon.group().await;
        let mut held = Vec::new();
        for host in hosts {
            connections(host, 20, 4).await.assert_nothing_failed();
            held.extend(hold(host, 20).await);
        }
        eventually("the counters are the kernel's numbers", async || {
            let group = self.daemon.group().await;
            let pids: Vec<_> = group.workers.iter().filter_map(|worker| worker.pid).collect();
            let truth = machine::established(&pids);
            if group.active() == truth && truth.iter().sum::<u64>() == held.len() as u64 {
                Ok(())
            } else {
                Err(format!("{} are held, the kernel has {truth:?}\n{group:#?}", held.len()))
            }
        })
        .await;
        let closed = held.len() as u64;
        drop(held);
        let after = self.daemon.idle().await;
        assert!(
            after.outcomes.selected >= before.outcomes.selected + 2 * closed,
            "our program picked for each of them: {before:#?}\n{after:#?}"
        );
        assert_eq!(
            after.outcomes.retried, before.outcomes.retried,
            "no table names an empty slot: {after:#?}"
        );
        assert!(after.workers.iter().all(|worker| worker.state == WorkerState::Active), "{after:#?}");
    }

    /// Compares what the daemon holds with what it held after the first round.
    async fn compare_vitals(&self, first: Option<&Vitals>) -> Vitals {
        eventually("the daemon holds no more than before", async || {
            let now = Vitals::of(self.daemon.process().pid);
            match first {
                Some(first) if now.has_more_descriptors(first) => Err(format!("{first:?}, now {now:?}")),
                Some(first) if now.memory_kib > first.memory_kib + MEMORY_MARGIN_KIB => {
                    Err(format!("{first}, now {now}"))
                }
                _ => Ok(now),
            }
        })
        .await
    }

    /// Ends the daemon, sees that nothing is left, and prints what there was.
    async fn end(mut self, bpf: &Bpf) {
        let pid = self.daemon.process().pid;
        println!("chaos: seed {}, {:.0} s", self.seed, self.begin.elapsed().as_secs_f64());
        for kind in Action::KINDS {
            let of_kind = || self.log.iter().filter(|event| event.action.kind() == kind);
            let done = of_kind().filter(|event| matches!(event.outcome, Outcome::Done(_))).count();
            println!("chaos: {kind:>11}: {done:4} done, {:4} refused", of_kind().count() - done);
        }
        println!("chaos: {}", self.ledger());
        self.daemon.process().signal(Signal::TERM);
        let status = self.daemon.ended().await;
        assert!(status.success(), "SIGTERM gives {status}");
        machine::no_socket_is_left().await;
        bpf.are_gone().await;
        let (programs, maps) = bpf.len();
        assert!(programs > 0 && maps > 0, "process {pid} had programs and maps");
        println!(
            "chaos: nothing is left of {programs} programs, {maps} maps, processes, sockets, files and pins"
        );
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.thaw();
        if !std::thread::panicking() {
            return;
        }
        let mut text = String::new();
        for Event { at, action, outcome } in &self.log {
            let (word, what) = match outcome {
                Outcome::Done(what) => ("", what),
                Outcome::Refused(what) => ("refused: ", what),
            };
            writeln!(text, "{:9.3}s  {action}  {word}{what}", at.as_secs_f64()).expect("a string");
        }
        eprintln!("chaos: {SEED_VARIABLE}={}; what happened:\n{text}", self.seed);
        eprintln!("chaos: {}", self.ledger());
    }
}

fn no_process() -> Outcome {
    Outcome::Refused("no process".to_owned())
}
