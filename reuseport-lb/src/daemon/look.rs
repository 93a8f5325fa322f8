//! What can be seen of workers from outside: their loads and their accept queues.

use std::collections::BTreeMap;

use super::{runner::Runner, socket::Socket};
use crate::{
    datapath::Datapath as _,
    group::{Seen, WorkerId},
};

impl Runner {
    /// While others serve, only one connection waits for a worker that has yet to accept its first.
    pub(super) fn narrow_trials(&mut self) {
        for (id, socket) in &mut self.listeners {
            if let Socket::Made(listener) = socket
                && let Err(error) = listener.set_narrow(self.group.is_on_trial(*id))
            {
                tracing::warn!(group = self.spec.name, worker = id.0, %error, "cannot set the backlog");
            }
        }
    }

    /// What can be seen of the workers from outside.
    pub(super) fn look(&self) -> BTreeMap<WorkerId, Seen> {
        let datapath = self.applied.datapath();
        let mut seen: BTreeMap<WorkerId, Seen> = self
            .group
            .workers()
            .map(|(id, _)| {
                let load = datapath.load(id.0);
                let idle = datapath.counts_connections() && load.active == 0 && load.pending == 0;
                // Less what waits in the queue, below.
                let (accepted, waiting) = (load.established, load.pending > 0);
                (id, Seen { idle, stalled: load.stalled, accepted, waiting })
            })
            .collect();
        // Without new connections no program looks again, and a stalled worker may have emptied its queue meanwhile.
        if self.group.is_trying() || seen.values().any(|seen| seen.stalled) {
            match self.queues() {
                Ok(queues) => {
                    for (id, seen) in &mut seen {
                        let queue =
                            self.listeners.get(id).and_then(|listener| queues.get(&listener.cookie()));
                        let depth = queue.map_or(0, |queue| u64::from(queue.depth));
                        seen.stalled &= depth > 0;
                        seen.waiting |= depth > 0;
                        // Read one after the other, so the queue may be ahead.
                        seen.accepted = seen.accepted.saturating_sub(depth);
                    }
                }
                Err(error) => {
                    tracing::warn!(group = self.spec.name, %error, "cannot read the accept queues");
                }
            }
        }
        seen
    }
}
