//! Load: connections without pause, and an account of every single one.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{Client, PATIENCE, within};

/// When a connection without an answer counts as failed. Above every [`PATIENCE`], so that no test ends before it.
const ANSWER_LIMIT: Duration = PATIENCE.saturating_mul(2);

/// A client that connects again and again, with a fixed number of connections in flight.
#[derive(Debug)]
pub struct Load {
    mode: watch::Sender<Mode>,
    progress: watch::Sender<Progress>,
    records: Arc<Mutex<Vec<Record>>>,
    tasks: JoinSet<()>,
}

/// Makes `n` connections, `in_flight` at a time, each for one request.
pub async fn connections(client: &Client, n: usize, in_flight: usize) -> Account {
    let mut load = Load::paused(client, in_flight, n);
    load.resume();
    // However long all of them take together: each goes on or is given up.
    while let Some(task) = load.tasks.join_next().await {
        task.expect("a task that does not panic");
    }
    load.stop().await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Run,
    Pause,
    Stop,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// How many may still be started.
    left: usize,
    in_flight: usize,
    done: usize,
}

/// What became of one connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// Just before `connect`.
    pub started: Instant,
    /// When the answer was complete, or the error was seen.
    pub ended: Instant,
    /// The worker that answered, or why none did.
    pub result: Result<u16, String>,
}

impl Load {
    /// Starts with `in_flight` connections at a time, each for one request.
    pub fn start(client: &Client, in_flight: usize) -> Self {
        let load = Self::paused(client, in_flight, usize::MAX);
        load.resume();
        load
    }

    fn paused(client: &Client, in_flight: usize, at_most: usize) -> Self {
        let mut load = Self {
            mode: watch::Sender::new(Mode::Pause),
            progress: watch::Sender::new(Progress { left: at_most, ..Progress::default() }),
            records: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..in_flight {
            let (client, mode, progress) = (client.clone(), load.mode.subscribe(), load.progress.clone());
            load.tasks.spawn(run(client, mode, progress, Arc::clone(&load.records)));
        }
        load
    }

    /// Waits until `n` connections more than now are done.
    pub async fn more(&self, n: usize) {
        let goal = self.progress.borrow().done + n;
        let mut progress = self.progress.subscribe();
        within("the load gets on", progress.wait_for(|progress| progress.done >= goal))
            .await
            .expect("a sender");
    }

    /// Starts no further connection, and waits until those in flight are done.
    pub async fn pause(&self) {
        self.mode.send_replace(Mode::Pause);
        let mut progress = self.progress.subscribe();
        within("the load is idle", progress.wait_for(|progress| progress.in_flight == 0))
            .await
            .expect("a sender");
    }

    /// Goes on after [`Load::pause`].
    pub fn resume(&self) {
        self.mode.send_replace(Mode::Run);
    }

    /// Finishes what is in flight, and gives the account of everything.
    pub async fn stop(mut self) -> Account {
        self.mode.send_replace(Mode::Stop);
        while let Some(task) = within("the load has stopped", self.tasks.join_next()).await {
            task.expect("a task that does not panic");
        }
        let records = std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner));
        Account { records }
    }
}

async fn run(
    client: Client,
    mut mode: watch::Receiver<Mode>,
    progress: watch::Sender<Progress>,
    records: Arc<Mutex<Vec<Record>>>,
) {
    loop {
        // No sender means that the test has dropped the load.
        if !mode.wait_for(|mode| *mode != Mode::Pause).await.is_ok_and(|mode| *mode == Mode::Run) {
            return;
        }
        let start = |progress: &mut Progress| {
            let more = progress.left > 0;
            if more {
                progress.left -= 1;
                progress.in_flight += 1;
            }
            more
        };
        if !progress.send_if_modified(start) {
            return;
        }
        let started = Instant::now();
        let result = match timeout(ANSWER_LIMIT, client.ask("/")).await {
            Ok(Ok(answer)) => Ok(answer.worker),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {ANSWER_LIMIT:?}")),
        };
        let record = Record { started, ended: Instant::now(), result };
        records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        progress.send_modify(|progress| {
            progress.in_flight -= 1;
            progress.done += 1;
        });
    }
}

/// What became of all connections of a load.
#[derive(Debug)]
pub struct Account {
    /// One record a connection, by the time at which they ended.
    pub records: Vec<Record>,
}

impl Account {
    /// How many connections there were.
    pub fn total(&self) -> u64 {
        self.records.len() as u64
    }

    /// The workers of the answered connections.
    pub fn answers(&self) -> impl Iterator<Item = u16> {
        self.records.iter().filter_map(|record| record.result.clone().ok())
    }

    /// The workers of the answered connections that started after `when`.
    pub fn started_after(&self, when: Instant) -> impl Iterator<Item = u16> {
        self.records
            .iter()
            .filter(move |record| record.started > when)
            .filter_map(|record| record.result.clone().ok())
    }

    /// The connections that failed.
    pub fn failures(&self) -> Vec<&Record> {
        self.records.iter().filter(|record| record.result.is_err()).collect()
    }

    /// Panics unless every connection was answered, and there were some.
    pub fn assert_nothing_failed(&self) {
        let failures = self.failures();
        assert!(
            failures.is_empty(),
            "{} of {} connections failed: {failures:#?}",
            failures.len(),
            self.total()
        );
        assert!(self.total() > 0, "there was no load");
    }
}
