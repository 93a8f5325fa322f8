//! What a daemon writes down, so that another one can go on where it left off.
//!
//! The kernel keeps most of it: sockets, programs, maps, counters. Written down is what the kernel does not know: which
//! worker a process and a socket belong to, and what the user has wished since the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

pub use file::{ReadError, StateFile};

use crate::{
    config::GroupSpec,
    datapath::PinRecord,
    group::{Group, WorkerId},
    policy::PolicySpec,
};

mod change;
mod file;

/// The version of what is written down. It changes when an older daemon would misunderstand it; fields may come in
/// without that.
pub const FORMAT: u32 = 2;

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of the daemon that wrote it.
    pub version: String,
    /// Which boot it is about: process ids, cookies and pins mean nothing in another one.
    pub boot: String,
    /// The inode of the network namespace that the daemon was in.
    pub network_namespace: u64,
    /// How many daemons have had these groups, one after the other.
    pub generation: u64,
    /// The capabilities that were given up at the start of it, or of a daemon that it was upgraded from.
    #[serde(default)]
    pub given_up: BTreeSet<String>,
    /// The groups.
    pub groups: Vec<GroupState>,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupState {
    /// The group's name.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it was taken out of the configuration, and only finishes.
    #[serde(default)]
    pub leaving: bool,
    /// What the configuration asked for, to see whether that has changed since.
    pub configured: Asked,
    /// What is pinned.
    pub pins: PinRecord,
    /// The workers, and what was wished of them.
    pub group: Group,
    /// The cookie of each worker's socket.
    pub sockets: BTreeMap<WorkerId, u64>,
    /// Each worker's process.
    pub processes: BTreeMap<WorkerId, ProcessState>,
}

/// What the configuration asked for, of those things that commands change too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The policy.
    pub policy: PolicySpec,
    /// The number of workers.
    pub workers: u16,
    /// Their weights.
    pub weights: Vec<u16>,
}

impl Asked {
    /// What a group asks for.
    pub fn of(spec: &GroupSpec) -> Self {
        Self { policy: spec.policy, workers: spec.workers, weights: spec.weights.clone() }
    }

    /// What a group is to be that was asked to be this and is `present` now, now that `spec` is asked: what was changed
    /// by commands stays, unless the configuration has changed there.
    pub fn wanted(&self, present: &GroupSpec, spec: &GroupSpec) -> GroupSpec {
        let Self { policy, workers, weights } = self;
        let GroupSpec { policy: new_policy, workers: new_workers, weights: new_weights, .. } = spec;
        GroupSpec {
            policy: if policy == new_policy { present.policy } else { *new_policy },
            workers: if workers == new_workers { present.workers } else { *new_workers },
            weights: if weights == new_weights { present.weights.clone() } else { new_weights.clone() },
            ..spec.clone()
        }
    }
}

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// Its id.
    pub pid: u32,
    /// When it began, in clock ticks since boot. No two processes have both in common.
    pub started_at: u64,
}

impl State {
    /// What of it cannot be.
    ///
    /// # Errors
    ///
    /// In words.
    fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        let mut cookies = BTreeSet::new();
        let mut pids = BTreeSet::new();
        for GroupState { name, leaving, group, sockets, processes, .. } in &self.groups {
            if !leaving && !names.insert(name) {
                return Err(format!("group {name} is there twice"));
            }
            group.check().map_err(|why| format!("group {name}: {why}"))?;
            if let Some(id) = sockets.keys().chain(processes.keys()).find(|id| group.worker(**id).is_err()) {
                return Err(format!("group {name} has no worker {id}, and yet something of it"));
            }
            if sockets.values().any(|cookie| !cookies.insert(cookie)) {
                return Err(format!("a socket of group {name} is there twice"));
            }
            if processes.values().any(|process| process.pid == 0 || !pids.insert(process.pid)) {
                return Err(format!("a process of group {name} is there twice"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
