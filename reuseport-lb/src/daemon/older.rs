//! Connections that adopted servers had before the daemon came.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::AsFd as _,
};

use super::{
    runner::Runner,
    socket::{Found, Socket},
};
use crate::{
    adopt::{self, Connection, Owner},
    chain::chain,
    datapath::{self, Datapath as _},
    group::WorkerId,
};

/// Why connections are not counted.
#[derive(Debug, thiserror::Error)]
enum OlderError {
    #[error("cannot list them")]
    List(#[from] io::Error),
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
}

impl Runner {
    /// Counts the connections that are open already, each for the worker whose process has it.
    ///
    /// Those that still wait in an accept queue are nobody's yet, and are not counted.
    pub(super) fn count_older(&mut self) {
        if !self.applied.datapath().counts_connections() {
            return;
        }
        let group = self.spec.name.clone();
        match self.try_count_older() {
            Ok((0, _)) => {}
            Ok((counted, 0)) => tracing::info!(group, counted, "connections from before are counted"),
            Ok((counted, uncounted)) => tracing::warn!(
                group,
                counted,
                uncounted,
                "connections from before are not counted; that takes Linux 6.12, and a process that can be seen"
            ),
            Err(error) => {
                tracing::warn!(group, error = chain(&error), "connections from before are not counted");
            }
        }
    }

    /// How many were there, and how many of them could not be counted.
    fn try_count_older(&mut self) -> Result<(usize, usize), OlderError> {
        let listen = self.spec.listen;
        let mut connections = self.netns.within(|| adopt::connections(listen.port()))??;
        let ip = listen.ip().to_canonical();
        connections.retain(|connection| ip.is_unspecified() || connection.local.to_canonical() == ip);
        if connections.is_empty() {
            return Ok((0, 0));
        }
        let found = self.listeners.iter().filter_map(|(id, socket)| match socket {
            Socket::Found(Found { listener, owner, .. }) => Some((*id, listener.inode, owner.pid)),
            Socket::Made(_) => None,
        });
        let sockets: Vec<(WorkerId, u32, u32)> = found.collect();
        let inodes = connections.iter().map(|connection| connection.inode);
        let inodes: Vec<u32> = inodes.chain(sockets.iter().map(|(_, inode, _)| *inode)).collect();
        let mut held: HashMap<u32, Vec<Owner>> = HashMap::new();
        for owner in adopt::owners(&inodes) {
            held.entry(owner.inode).or_default().push(owner);
        }

        let workers = Workers::of(&sockets, &held);
        let mut given: BTreeMap<WorkerId, usize> = BTreeMap::new();
        let mut lost = 0;
        for Connection { inode, cookie, .. } in &connections {
            let holders = held.get(inode).map_or(&[][..], Vec::as_slice);
            let among = workers.that_have(holders);
            // A process that accepts from several sockets does not show from which.
            let worker = among.iter().min_by_key(|id| given.get(id).copied().unwrap_or_default());
            let handle = adopt::take(*inode, *cookie, holders);
            let (Some(worker), Ok(handle)) = (worker, handle) else {
                lost += 1;
                continue;
            };
            *given.entry(*worker).or_default() += 1;
            self.applied.datapath_mut().mark_older(handle.as_fd(), worker.0)?;
        }
        let uncounted = self.applied.datapath_mut().count_older(&self.netns)? + lost;
        Ok((connections.len().saturating_sub(uncounted), uncounted))
    }
}

/// The workers by process.
struct Workers {
    /// Whose connections a process takes.
    taking: HashMap<u32, Vec<WorkerId>>,
    /// Whose sockets a process holds.
    holding: HashMap<u32, Vec<WorkerId>>,
}

impl Workers {
    /// `sockets` are the workers, each with the inode of its socket and the process that takes its connections.
    fn of(sockets: &[(WorkerId, u32, u32)], held: &HashMap<u32, Vec<Owner>>) -> Self {
        let (mut taking, mut holding) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for (id, inode, pid) in sockets {
            taking.entry(*pid).or_default().push(*id);
            for holder in held.get(inode).into_iter().flatten() {
                holding.entry(holder.pid).or_default().push(*id);
            }
        }
        Self { taking, holding }
    }

    /// Those that a connection may be of which these processes have: those whose connections one of them takes, or else those
    /// whose sockets one of them holds.
    fn that_have(&self, holders: &[Owner]) -> &[WorkerId] {
        [&self.taking, &self.holding]
            .into_iter()
            .find_map(|workers| holders.iter().find_map(|holder| workers.get(&holder.pid)))
            .map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(inode: u32, pid: u32) -> Owner {
        Owner { inode, pid, parent: 1, descriptor: 3, command: "server".into() }
    }

    #[test]
    fn a_connection_is_of_the_worker_whose_process_has_it() {
        let [a, b, c] = [0, 1, 2].map(WorkerId);
        // As nginx: everybody has all sockets, and takes from one. Process 9 takes from two, and process 10 is none's.
        let sockets = [(a, 100, 7), (b, 101, 8), (c, 102, 9), (WorkerId(3), 103, 9)];
        let all = |inode: u32| (inode, vec![owner(inode, 6), owner(inode, 7), owner(inode, 8)]);
        let workers = Workers::of(&sockets, &[100, 101].map(all).into());
        assert_eq!(workers.that_have(&[owner(1, 7)]), [a]);
        assert_eq!(workers.that_have(&[owner(1, 6), owner(1, 8)]), [b]);
        assert_eq!(workers.that_have(&[owner(1, 9)]), [c, WorkerId(3)]);
        assert_eq!(workers.that_have(&[owner(1, 6)]), [a, b]);
        assert_eq!(workers.that_have(&[owner(1, 10)]), []);
        assert_eq!(workers.that_have(&[]), []);
    }
}
