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
mod deeds;
pub mod ledger;
mod machine;
mod rest;

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::{task::JoinSet, time::sleep};

use self::{
    action::{Action, Configuration},
    clients::Clients,
    ledger::Ledger,
    machine::{Bpf, Vitals},
};
use crate::{Client, Daemon, Launch, Netns, process::Process};

/// How many hosts have clients.
const HOSTS: u8 = 3;
/// How many clients each has.
const CLIENTS_EACH: u32 = 16;
/// How long a round takes before all is brought to rest.
const ROUND: Duration = Duration::from_secs(12);
/// The longest time between two actions, in milliseconds.
const LONGEST_PAUSE_MS: u64 = 500;

/// How much more memory than after the first round of its kind the daemon may have at rest, in KiB.
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
    /// What the environment asks for; else two minutes, and a seed of chance.
    pub fn from_env() -> Self {
        let number = |name: &str| {
            let value = env::var(name).ok()?;
            Some(value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
        };
        Self {
            duration: Duration::from_secs(number(SECONDS_VARIABLE).unwrap_or(120)),
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
    // So that the kernel's own choice, policy `kernel`, loses nothing either when a socket is closed.
    netns.sysctl("net.ipv4.tcp_migrate_req", "1");
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
        plan,
        begin,
        ledger,
        log: Vec::new(),
        configuration: Configuration::REST,
        frozen: BTreeMap::new(),
    };
    let mut bpf = Bpf::default();
    // By whether the daemon has taken over from another one: it then has a program less open.
    let mut first: BTreeMap<bool, Vitals> = BTreeMap::new();
    let mut rounds = 0;
    while begin.elapsed() < duration {
        let end = Instant::now() + ROUND;
        while Instant::now() < end {
            chaos.act(Action::draw(&mut rng)).await;
            sleep(Duration::from_millis(rng.u64(..LONGEST_PAUSE_MS))).await;
        }
        chaos.thaw();
        let pause = clients.pause().await;
        chaos.accounts().await;
        chaos.rest().await;
        chaos.compare_counts(&hosts).await;
        bpf.add(chaos.daemon.process().pid);
        let has_taken_over = chaos.daemon.status().await.generation > 1;
        let vitals = chaos.compare_vitals(first.get(&has_taken_over)).await;
        rounds += 1;
        println!(
            "chaos: {:4.0}s, round {rounds}: {} actions, daemon: {vitals}; {}",
            begin.elapsed().as_secs_f64(),
            chaos.log.len(),
            chaos.ledger()
        );
        first.entry(has_taken_over).or_insert(vitals);
        drop(pause);
    }
    let pause = clients.pause().await;
    chaos.daemon.idle().await;
    chaos.accounts().await;
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
    plan: Plan,
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
        eprintln!("chaos: what happened:\n{text}");
        eprintln!("chaos: {}", self.ledger());
        let Plan { seed, duration } = self.plan;
        let minutes = duration.as_secs().div_ceil(60);
        eprintln!("chaos: the same once more: cargo xtask chaos --minutes {minutes} --seed {seed}");
    }
}
