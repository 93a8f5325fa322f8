//! What the log says when something has become different.

use std::collections::BTreeMap;

use super::runner::Runner;
use crate::{
    datapath::Datapath as _,
    group::{WorkerId, WorkerState},
    policy::PolicySpec,
};

/// What the log has said so far.
pub(super) struct Logged {
    pub(super) policy: PolicySpec,
    pub(super) workers: BTreeMap<WorkerId, (WorkerState, u16)>,
}

impl Runner {
    /// One line for each thing that is different from the last time.
    pub(super) fn log_changes(&mut self) {
        let group = &self.spec.name;
        let policy = self.group.policy();
        let before = std::mem::replace(&mut self.logged.policy, policy);
        if before != policy {
            tracing::info!(group, "policy {before} -> {policy}");
        }
        self.logged.workers.retain(|id, _| self.group.worker(*id).is_ok());
        for (id, worker) in self.group.workers() {
            let (state, weight) = (worker.state(), worker.weight);
            let Some((state_before, weight_before)) = self.logged.workers.insert(id, (state, weight)) else {
                continue;
            };
            if state_before != state {
                let load = self.applied.datapath().load(id.0);
                tracing::info!(
                    group,
                    worker = id.0,
                    pid = worker.pid(),
                    active = load.active,
                    stalls = worker.stalls.count,
                    stalled_seconds = worker.stalls.total.as_secs_f64(),
                    "worker {state_before} -> {state}"
                );
            }
            if weight_before != weight {
                tracing::info!(group, worker = id.0, "weight {weight_before} -> {weight}");
            }
        }
    }
}
