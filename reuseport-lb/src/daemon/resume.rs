//! Going on with a group that an earlier daemon has left.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::OwnedFd,
    sync::Arc,
    time::Instant,
};

use super::{
    Settings,
    creation::{check_address, cpus, load, open_netns, supervision},
    error::GroupError,
    events::Events,
    owners, process,
    recover::{self, Recovered, recover},
    runner::Runner,
    socket::{Found, Socket},
};
use crate::{
    adopt,
    chain::chain,
    config::{GroupSpec, Sockets},
    datapath::{Applied, TakenOver},
    group::WorkerId,
    state::{Asked, GroupState, ProcessState},
    worker::{Process, Signal, descriptors::OpenFiles},
};

impl Runner {
    /// Goes on with a group that an earlier daemon has left. The sockets to which this process has a handle already are
    /// taken out of `handed`.
    ///
    /// # Errors
    ///
    /// See [`GroupError`]. The group goes on without a daemon then, as before.
    pub(super) fn resume(
        spec: GroupSpec,
        settings: &Arc<Settings>,
        open_files: OpenFiles,
        events: Events,
        earlier: GroupState,
        handed: &mut BTreeMap<u64, OwnedFd>,
    ) -> Result<Self, GroupError> {
        let netns = open_netns(&spec)?;
        let datapath = load(&spec, settings, &events, &netns, Some(&earlier.pins))?;
        let expected = recover::sockets(&earlier, &datapath.slots());
        // Where workers open their sockets themselves, one may have done so since its daemon died.
        let is_ours = |listener: &adopt::Listener, owners: &[adopt::Owner]| {
            let of_a_worker = |owner: &adopt::Owner| {
                earlier.processes.values().any(|process| adopt::descends(owner.pid, process.pid))
            };
            expected.contains_key(&listener.cookie)
                || spec.sockets == Sockets::SelfBound && owners.iter().any(of_a_worker)
        };
        check_address(&spec, &netns, is_ours)?;
        let recovered = netns
            .within(|| recover(&earlier, &expected, &spec, handed))
            .flatten()
            .map_err(GroupError::Recover)?;
        let GroupState { group, configured, .. } = earlier;
        let found = |id| recovered.found(id);
        let group =
            group.resume(spec.stall_after, supervision(&spec), found, Instant::now()).pinned_to(cpus(&spec)?);

        let in_halves = datapath.moves_sockets();
        let ring = datapath.ring();
        let taken_over = datapath.taken_over().cloned().unwrap_or_default();
        let applied = Applied::resume(datapath, spec.workers, &ring);
        let mut runner = Self::new(spec, settings, open_files, events, netns, group, applied)?;
        runner.take(recovered);
        let Self { applied, group, listeners, .. } = &mut runner;
        applied.take_over(&group.desired(), in_halves, |slot| listeners.get(&WorkerId(slot))?.handle())?;
        if runner.follows() {
            // Others may have come since.
            drop(runner.follow().map_err(GroupError::Sockets)?);
        }
        runner.follow_configuration(&configured);
        let TakenOver { kept, replaced, counting_kept } = taken_over;
        tracing::info!(
            group = runner.spec.name,
            workers = runner.group.workers().filter(|(_, worker)| worker.pid().is_some()).count(),
            sockets = runner.listeners.len(),
            kept = kept.join(" "),
            replaced = replaced.join(" "),
            counting_kept,
            "taken over from an earlier daemon"
        );
        Ok(runner)
    }

    fn take(&mut self, recovered: Recovered) {
        let Recovered { made, seen, processes } = recovered;
        self.listeners.extend(made.into_iter().map(|(id, socket)| (id, Socket::Made(socket))));
        for (id, (listener, owner)) in seen {
            let is_adopted = self.group.is_adopted();
            let watch = is_adopted.then(|| owners::watch(self.events.clone(), id, owner.pid)).flatten();
            let found = Found { listener, owner, fresh: None, watch };
            self.listeners.insert(id, Socket::Found(found));
        }
        for (id, mut process) in processes {
            process.read_on(&self.spec.process.output, &self.spec.name, id);
            let watched = process::watch(self.events.clone(), id, process);
            self.processes.insert(id, watched);
        }
    }

    /// Makes the group what the configuration asks for, where that has changed since it asked for `before`.
    fn follow_configuration(&mut self, before: &Asked) {
        let asked = self.spec.clone();
        let wanted = before.wanted(&self.present(), &asked);
        match self.reconfigure(wanted) {
            Ok(_) => self.spec = asked,
            Err(error) => {
                tracing::error!(group = self.spec.name, %error, "cannot become what the configuration says now");
            }
        }
    }

    /// What is to be written down of the group.
    pub(super) fn state(&self) -> GroupState {
        GroupState {
            name: self.spec.name.clone(),
            listen: self.spec.listen,
            leaving: false,
            configured: Asked::of(&self.spec),
            pins: self.applied.datapath().record().clone(),
            group: self.group.clone(),
            sockets: self.listeners.iter().map(|(id, socket)| (*id, socket.cookie())).collect(),
            processes: self.processes.iter().map(|(id, process)| (*id, process.identity)).collect(),
        }
    }
}

/// Deals with a group that is not in the configuration. One that only had to finish is told to end. One that was to
/// serve is not, since to forget it would leave it to nobody.
pub(super) fn let_go(group: &GroupState) -> Result<(), GroupError> {
    for ProcessState { pid, started_at } in group.processes.values() {
        let Some(process) = Process::find(*pid, *started_at).map_err(GroupError::Recover)? else { continue };
        if !group.leaving {
            return Err(GroupError::Left(group.listen));
        }
        tracing::info!(
            group = group.name,
            pid,
            "ending a worker of a group that an earlier daemon had removed"
        );
        process.signal(Signal::TERM).map_err(GroupError::Recover)?;
    }
    if let Err(error) = group.pins.clear() {
        tracing::warn!(
            group = group.name,
            error = chain(&error),
            "cannot remove the pins of an earlier daemon"
        );
    }
    Ok(())
}

/// Who holds each of these sockets, by inode.
pub(super) fn holders(inodes: &[u32]) -> HashMap<u32, Vec<adopt::Owner>> {
    let owners = if inodes.is_empty() { vec![] } else { adopt::owners(inodes) };
    inodes.iter().map(|inode| (*inode, adopt::held(&owners, *inode))).collect()
}
