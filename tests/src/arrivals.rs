//! Connections that arrive whether earlier ones have been answered or not.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::task::JoinSet;

use crate::{Client, within};

/// One connection.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Just before `connect`.
    pub started: Instant,
    /// When it was established.
    pub established: Instant,
    /// When the answer was there.
    pub answered: Instant,
    /// Who answered.
    pub worker: u16,
}

/// Connections that a client makes one after the other, each for one request, without waiting for answers.
#[derive(Debug)]
pub struct Arrivals {
    client: Client,
    waiting: JoinSet<()>,
    answered: Arc<Mutex<Vec<Arrival>>>,
    made: usize,
}

impl Arrivals {
    /// None yet.
    pub fn of(client: Client) -> Self {
        Self { client, waiting: JoinSet::new(), answered: Arc::default(), made: 0 }
    }

    /// Makes `n` connections more. Every one is established before the next is begun.
    pub async fn make(&mut self, n: usize) {
        for _ in 0..n {
            let started = Instant::now();
            let mut connection =
                within("a connection is established", self.client.connect()).await.expect("a connection");
            let established = Instant::now();
            let answers = Arc::clone(&self.answered);
            self.waiting.spawn(async move {
                let worker = connection.ask("/").await.expect("an answer").worker;
                connection.reset();
                let arrival = Arrival { started, established, answered: Instant::now(), worker };
                answers.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
            });
            self.made += 1;
            tokio::task::yield_now().await;
        }
    }

    /// Those that are answered so far, in the order of their answers.
    pub fn answered(&self) -> Vec<Arrival> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until all are answered.
    pub async fn finish(mut self) -> Vec<Arrival> {
        while let Some(task) = within("an answer comes", self.waiting.join_next()).await {
            task.expect("a task that does not panic");
        }
        let arrivals = self.answered();
        assert_eq!(arrivals.len(), self.made, "every connection was answered");
        arrivals
    }
}
