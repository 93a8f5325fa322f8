//! A task for each worker's process: it passes signals on and reports the end.

use tokio::sync::mpsc;

use super::events::{Event, Events};
use crate::{
    group::WorkerId,
    state::ProcessState,
    worker::{Process, Signal, output::LastWords},
};

/// What can be sent to a process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// End, please.
    Terminate,
    /// End, with a core dump.
    Abort,
    /// End.
    Kill,
}

/// A process that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    /// What tells it from all others.
    pub(super) identity: ProcessState,
    /// What it writes.
    pub(super) output: LastWords,
    orders: mpsc::UnboundedSender<Order>,
}

impl Watched {
    /// Sends something to the process.
    pub(super) fn order(&self, order: Order) {
        // Its task has ended when the process has, and then nothing is to be ordered.
        let _ = self.orders.send(order);
    }
}

/// Watches the process of `worker` until it ends.
pub(super) fn watch(events: Events, worker: WorkerId, mut process: Process) -> Watched {
    let (orders, mut received) = mpsc::unbounded_channel();
    let output = process.last_words().clone();
    let identity = ProcessState { pid: process.pid(), started_at: process.started_at() };
    tokio::spawn(async move {
        let pid = process.pid();
        let reason = loop {
            tokio::select! {
                status = process.exited() => {
                    break status.map_or_else(|error| format!("lost: {error}"), |status| status.to_string());
                }
                Some(order) = received.recv() => {
                    let sent = match order {
                        Order::Terminate => process.signal(Signal::TERM),
                        Order::Abort => process.signal(Signal::ABORT),
                        Order::Kill => process.kill(),
                    };
                    if let Err(error) = sent {
                        tracing::error!(worker = worker.0, pid, %error, "cannot signal the worker");
                    }
                }
            }
        };
        let said = process.last_words();
        said.complete().await;
        events.send(Event::Exited { worker, pid, reason, last_words: said.lines() });
    });
    Watched { identity, output, orders }
}
