//! A worker's process: what it is told, and a task that reports its end.

use std::{io, sync::Arc};

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
pub(super) struct Watched(Arc<Process>);

impl Watched {
    /// What tells it from all others.
    pub(super) fn identity(&self) -> ProcessState {
        ProcessState { pid: self.0.pid(), started_at: self.0.started_at() }
    }

    /// What it writes.
    pub(super) fn output(&self) -> &LastWords {
        self.0.last_words()
    }

    /// Sends something to the process. One that has ended is no error.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn order(&self, order: Order) -> io::Result<()> {
        match order {
            Order::Terminate => self.0.signal(Signal::TERM),
            Order::Abort => self.0.signal(Signal::ABORT),
            Order::Kill => self.0.kill(),
        }
    }
}

/// Watches the process of `worker` until it ends.
pub(super) fn watch(events: Events, worker: WorkerId, process: Process) -> Watched {
    let process = Arc::new(process);
    let watched = Watched(Arc::clone(&process));
    tokio::spawn(async move {
        let status = process.exited().await;
        let reason = status.map_or_else(|error| format!("lost: {error}"), |status| status.to_string());
        let said = process.last_words();
        said.complete().await;
        events.send(Event::Exited { worker, pid: process.pid(), reason, last_words: said.lines() });
    });
    watched
}
