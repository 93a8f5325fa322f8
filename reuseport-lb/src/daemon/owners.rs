//! Who takes the connections of adopted sockets.

use std::time::Instant;

use tokio::task::AbortHandle;

use super::{
    events::{Event, Events},
    runner::Runner,
    socket::{Found, Socket},
};
use crate::{
    adopt::{self, Owner},
    group::WorkerId,
    worker::process,
};

impl Runner {
    /// Looks who takes the connections of adopted sockets now. A server that reloads hands its sockets to new processes,
    /// and nothing happens to the sockets then.
    pub(super) fn see_owners(&mut self) {
        if !self.group.is_adopted() {
            return;
        }
        // One that was not told of is found by whoever looks.
        self.following.look_soon(Instant::now());
        let stale: Vec<(WorkerId, u32)> = self
            .listeners
            .iter()
            .filter_map(|(id, socket)| match socket {
                Socket::Found(Found { listener, owner, .. }) => {
                    let still = adopt::owners_among([owner.pid], &[listener.inode]);
                    (!still.iter().any(Owner::accepts)).then_some((*id, listener.inode))
                }
                Socket::Made(_) => None,
            })
            .collect();
        if stale.is_empty() {
            return;
        }
        let inodes: Vec<u32> = stale.iter().map(|(_, inode)| *inode).collect();
        let owners = adopt::owners(&inodes);
        for (id, inode) in stale {
            let holders = adopt::held(&owners, inode);
            let (Some(now), Some(Socket::Found(found))) =
                (adopt::serving(&holders), self.listeners.get_mut(&id))
            else {
                continue;
            };
            if now.pid != found.owner.pid {
                tracing::info!(
                    group = self.spec.name,
                    worker = id.0,
                    "socket passed on: {} -> {now}",
                    found.owner
                );
                self.group.passed_on(id, now.pid);
                if let Some(watch) =
                    std::mem::replace(&mut found.watch, watch(self.events.clone(), id, now.pid))
                {
                    watch.abort();
                }
                found.owner = now.clone();
            }
        }
    }
}

/// Tells when the process ends. It may be gone already, which the sockets show.
pub(super) fn watch(events: Events, worker: WorkerId, pid: u32) -> Option<AbortHandle> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    let process = pidfd_open(Pid::from_raw(pid.cast_signed())?, PidfdFlags::NONBLOCK).ok()?;
    let process = process::watch(process).ok()?;
    let task = tokio::spawn(async move {
        // Readable for ever once the process has ended.
        if process.readable().await.is_ok() {
            events.send(Event::OwnerEnded { worker, pid });
        }
    });
    Some(task.abort_handle())
}
