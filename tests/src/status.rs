//! Questions to a status.

use std::collections::BTreeMap;

use reuseport_lb::control::{GroupStatus, Outcomes, WorkerStatus};
use reuseport_lb::group::WorkerState;

/// What tests want to know of a group.
pub trait GroupExt {
    /// One worker.
    fn worker(&self, id: u16) -> &WorkerStatus;
    /// The process of each worker.
    fn pids(&self) -> BTreeMap<u16, Option<u32>>;
    /// Open connections of each worker.
    fn active(&self) -> Vec<u64>;
    /// Handshakes of each worker.
    fn pending(&self) -> Vec<u64>;
    /// Selections of each worker.
    fn selected(&self) -> Vec<u64>;
    /// Runs of the program: all outcomes together.
    fn runs(&self) -> u64;
    /// Whether every worker is active.
    fn all_active(&self) -> bool;
}

impl GroupExt for GroupStatus {
    fn worker(&self, id: u16) -> &WorkerStatus {
        self.workers
            .iter()
            .find(|worker| worker.id.0 == id)
            .unwrap_or_else(|| panic!("no worker {id} in {self:?}"))
    }

    fn pids(&self) -> BTreeMap<u16, Option<u32>> {
        self.workers.iter().map(|worker| (worker.id.0, worker.pid)).collect()
    }

    fn active(&self) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.connections.active).collect()
    }

    fn pending(&self) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.connections.pending).collect()
    }

    fn selected(&self) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.connections.selected_total).collect()
    }

    fn runs(&self) -> u64 {
        // Taken apart, so that a new outcome cannot be forgotten here.
        let Outcomes { selected, retried, fallback, dropped, migrated, stray, fallback_reasons: _ } =
            self.outcomes;
        selected + retried + fallback + dropped + migrated + stray
    }

    fn all_active(&self) -> bool {
        self.workers.iter().all(|worker| worker.state == WorkerState::Active)
    }
}

/// How many connections each of `workers` workers has, of a list that names the worker of each connection.
pub fn tally(workers: u16, of: impl IntoIterator<Item = u16>) -> Vec<u64> {
    let mut counts: BTreeMap<u16, u64> = (0..workers).map(|id| (id, 0)).collect();
    for worker in of {
        *counts.entry(worker).or_default() += 1;
    }
    counts.into_values().collect()
}
