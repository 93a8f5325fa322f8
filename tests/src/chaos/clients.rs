//! Clients on other hosts, which connect without pause and do different things.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::ledger::{Failure, Kind, Ledger};
use crate::{Answer, Client, Connection, PATIENCE};

/// When a connection has failed for want of an answer. Above what a worker is stopped for, and the ten seconds after
/// which the daemon tries again at last to start one.
const ANSWER_LIMIT: Duration = PATIENCE;

/// How long a client waits at most before and between requests, and asks a worker to take for one, in milliseconds. A
/// connection of several requests stays far below the 30 s that a worker may take to finish.
const LONGEST_MS: u64 = 1_500;

/// How many requests a client makes on one connection, at most.
const MOST_REQUESTS: u32 = 5;

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    turns: Arc<Semaphore>,
    number: u32,
    _tasks: JoinSet<()>,
}

impl Clients {
    /// Starts `each` of every one of `clients`.
    pub(super) fn start(clients: &[Client], each: u32, rng: &mut Rng, ledger: &Arc<Mutex<Ledger>>) -> Self {
        let number = each * u32::try_from(clients.len()).expect("a handful of clients");
        let turns = Arc::new(Semaphore::new(number as usize));
        let mut tasks = JoinSet::new();
        for client in clients {
            for _ in 0..each {
                tasks.spawn(run(client.clone(), rng.fork(), Arc::clone(&turns), Arc::clone(ledger)));
            }
        }
        Self { turns, number, _tasks: tasks }
    }

    /// Waits until no connection is open, and lets none begin as long as the returned value lives.
    pub(super) async fn pause(&self) -> OwnedSemaphorePermit {
        // Whoever began just now may take up to the limit.
        timeout(ANSWER_LIMIT * 2, Arc::clone(&self.turns).acquire_many_owned(self.number))
            .await
            .expect("all connections end, one way or the other")
            .expect("nobody closes the semaphore")
    }
}

async fn run(client: Client, mut rng: Rng, turns: Arc<Semaphore>, ledger: Arc<Mutex<Ledger>>) {
    loop {
        let turn = turns.acquire().await.expect("nobody closes the semaphore");
        let kind = match rng.u32(..10) {
            0 => Kind::Late,
            1 | 2 => Kind::Long,
            3 => Kind::Kept,
            _ => Kind::Short,
        };
        let mut seen = Seen::default();
        let started = Instant::now();
        let result = timeout(ANSWER_LIMIT, one(kind, &client, &mut rng, &mut seen)).await;
        let ended = Instant::now();
        let error = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("not done within {ANSWER_LIMIT:?}")),
        };
        {
            let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
            match error {
                None => ledger.served(kind),
                Some(error) => {
                    let Seen { source, answer, idle } = seen;
                    let pid = answer.map(|answer| answer.pid);
                    ledger.failed(Failure { kind, source, pid, started, ended, idle, error });
                }
            }
        }
        drop(turn);
        sleep(Duration::from_millis(rng.u64(..30))).await;
    }
}

/// What a client knows of its connection, also when that fails.
#[derive(Debug, Default)]
struct Seen {
    source: Option<SocketAddr>,
    answer: Option<Answer>,
    idle: bool,
}

impl Seen {
    /// Notes an answer. All of one connection are from the same process.
    fn answered(&mut self, answer: Answer) -> io::Result<()> {
        let before = self.answer.get_or_insert_with(|| answer.clone());
        if *before == answer {
            return Ok(());
        }
        Err(io::Error::other(format!("{before:?} answered before, now {answer:?}")))
    }

    /// Waits without a request, and notes when the server closes meanwhile.
    async fn wait(&mut self, connection: &Connection, rng: &mut Rng) -> io::Result<()> {
        if connection.idle(time(rng)).await? {
            return Ok(());
        }
        self.idle = true;
        Err(io::Error::other("closed while it was idle"))
    }
}

/// One connection from beginning to end.
async fn one(kind: Kind, client: &Client, rng: &mut Rng, seen: &mut Seen) -> io::Result<()> {
    let mut connection = client.connect().await?;
    seen.source = Some(connection.source());
    let mut path = "/".to_owned();
    let mut more = 0;
    match kind {
        Kind::Short => {}
        Kind::Late => seen.wait(&connection, rng).await?,
        Kind::Long => path = format!("/slow?ms={}", time(rng).as_millis()),
        Kind::Kept => more = rng.u32(1..MOST_REQUESTS),
    }
    for left in (0..=more).rev() {
        let asked = if left == 0 { connection.ask_last(&path).await } else { connection.ask(&path).await };
        match asked {
            Ok(answer) => seen.answered(answer)?,
            Err(error) => {
                // The server closed while the request was on its way.
                seen.idle = seen.answer.is_some() && connection.was_refused(&error).await;
                return Err(error);
            }
        }
        if left > 0 {
            seen.wait(&connection, rng).await?;
        }
    }
    Ok(())
}

fn time(rng: &mut Rng) -> Duration {
    Duration::from_millis(rng.u64(..LONGEST_MS))
}
