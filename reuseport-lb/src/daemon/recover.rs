//! What an earlier daemon has left of a group: finding its workers' sockets and processes again.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    io,
    os::fd::OwnedFd,
};

use rustix::{
    io::Errno,
    process::{PidfdGetfdFlags, pidfd_getfd},
};

use super::{listener::Listener, resume::holders};
use crate::{
    adopt,
    config::{GroupSpec, Sockets},
    group::{Found, WorkerId},
    handover::{Incoming, Kind},
    state::GroupState,
    worker::{Process, WORKER_VARIABLE},
};

/// Where a worker has its socket, unless it has put it elsewhere.
const USUAL_DESCRIPTOR: i32 = 3;

/// What is left of a group.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// The sockets that are still there and that the daemon had made.
    pub(super) made: BTreeMap<WorkerId, Listener>,
    /// The sockets that are still there and that others had opened, each with who takes its connections.
    pub(super) seen: BTreeMap<WorkerId, (adopt::Listener, adopt::Owner)>,
    /// The processes that still run, of those that the daemon had started.
    pub(super) processes: BTreeMap<WorkerId, Process>,
}

impl Recovered {
    /// What is found of a worker.
    pub(super) fn found(&self, id: WorkerId) -> Found {
        let owner = || self.seen.get(&id).map(|(_, owner)| owner.pid);
        Found {
            pid: self.processes.get(&id).map(Process::pid).or_else(owner),
            open: self.made.contains_key(&id) || self.seen.contains_key(&id),
        }
    }
}

/// The cookies of the listening sockets of a group that an earlier daemon had, each with its worker.
///
/// `slots` is what the kernel remembers of that: a socket that was made in the daemon's last moments is not in the state.
pub(super) fn sockets(state: &GroupState, slots: &BTreeMap<u64, u16>) -> BTreeMap<u64, WorkerId> {
    let remembered = slots.iter().map(|(cookie, slot)| (*cookie, WorkerId(*slot)));
    let known = |(_, id): &(u64, WorkerId)| state.group.worker(*id).is_ok();
    let mut sockets: BTreeMap<u64, WorkerId> = remembered.filter(known).collect();
    sockets.extend(state.sockets.iter().map(|(id, cookie)| (*cookie, *id)));
    sockets
}

/// Finds again what `state` tells of, and touches nothing.
///
/// `expected` are the sockets by cookie. Those that were handed over are taken out of `handed`.
///
/// # Errors
///
/// Sockets cannot be listed, a process cannot be watched, or one may not be asked for its socket.
pub(super) fn recover(
    state: &GroupState,
    expected: &BTreeMap<u64, WorkerId>,
    spec: &GroupSpec,
    handed: &mut Incoming,
) -> io::Result<Recovered> {
    let made = spec.sockets == Sockets::HandedOver;
    let mut recovered = Recovered::default();
    for (id, process) in &state.processes {
        if let Some(process) = Process::find(process.pid, process.started_at)? {
            recovered.processes.insert(*id, process);
        }
    }
    // Only sockets that are there are looked for, so a cookie that means nothing costs nothing.
    let mut there = adopt::listeners(state.listen.port())?;
    there.retain(|listener| listener.address == state.listen && expected.contains_key(&listener.cookie));
    let mut missing = HashMap::new();
    for listener in there {
        let id = expected[&listener.cookie];
        let handed = if made { handed.take(&Kind::Listener(listener.cookie)) } else { None };
        let handle = match recovered.processes.get(&id) {
            Some(process) if made && handed.is_none() => usual_place(process)?,
            _ => handed,
        };
        let is_it = |handle: &OwnedFd| {
            rustix::net::sockopt::socket_cookie(handle).is_ok_and(|cookie| cookie == listener.cookie)
        };
        match handle.filter(is_it) {
            Some(handle) => {
                recovered.made.insert(id, Listener::resume(handle, spec.backlog)?);
            }
            None => {
                missing.insert(listener.inode, (id, listener));
            }
        }
    }
    if !missing.is_empty() {
        search(&mut recovered, missing, spec)?;
    }
    Ok(recovered)
}

/// What the process has there, if anything.
fn usual_place(process: &Process) -> io::Result<Option<OwnedFd>> {
    match pidfd_getfd(process.handle(), USUAL_DESCRIPTOR, PidfdGetfdFlags::empty()) {
        Ok(handle) => Ok(Some(handle)),
        // Without its socket the worker would have to be started again.
        Err(Errno::PERM) => Err(io::Error::other(format!(
            "worker process {} does not give up its socket; this needs CAP_SYS_PTRACE",
            process.pid()
        ))),
        Err(_) => Ok(None),
    }
}

/// Looks for sockets, by inode, in all processes: the worker has it elsewhere, or nobody could write down any more
/// which process it is.
fn search(
    recovered: &mut Recovered,
    missing: HashMap<u32, (WorkerId, adopt::Listener)>,
    spec: &GroupSpec,
) -> io::Result<()> {
    let inodes: Vec<u32> = missing.keys().copied().collect();
    let mut holders = holders(&inodes);
    for (inode, (id, listener)) in missing {
        let owners = holders.remove(&inode).unwrap_or_default();
        if spec.sockets != Sockets::HandedOver {
            if let Some(owner) = adopt::serving(&owners) {
                recovered.seen.insert(id, (listener, owner.clone()));
            }
            continue;
        }
        if let Ok(handle) = adopt::take(listener.inode, listener.cookie, &owners) {
            recovered.made.insert(id, Listener::resume(handle, spec.backlog)?);
        }
        let first = owners.iter().find(|owner| is_first_process_of(owner.pid, id));
        if let (false, Some(first)) = (recovered.processes.contains_key(&id), first)
            && let Some(process) = process_of(first.pid)?
        {
            recovered.processes.insert(id, process);
        }
    }
    Ok(())
}

fn process_of(pid: u32) -> io::Result<Option<Process>> {
    let stat = i32::try_from(pid).ok().and_then(|pid| procfs::process::Process::new(pid).ok()?.stat().ok());
    stat.map_or(Ok(None), |stat| Process::find(pid, stat.starttime))
}

/// Whether a process is the one that a daemon has started as this worker, and not one that the worker has started: it
/// leads its process group, and its environment names the worker.
fn is_first_process_of(pid: u32, id: WorkerId) -> bool {
    let process = i32::try_from(pid).ok().and_then(|pid| procfs::process::Process::new(pid).ok());
    process.is_some_and(|process| {
        let leads = process.stat().is_ok_and(|stat| stat.pgrp == stat.pid);
        let names = process.environ().is_ok_and(|variables| {
            variables.get(OsStr::new(WORKER_VARIABLE)).is_some_and(|value| *value == *id.to_string())
        });
        leads && names
    })
}
