//! Going on with a group that an earlier daemon has left.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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
    control,
    datapath::{Applied, TakenOver},
    group::WorkerId,
    handover::Incoming,
    state::{Asked, GroupState, ProcessState},
    worker::{Process, Signal},
};

impl Runner {
    /// Goes on with a group that an earlier daemon has left. What that has handed over of the group is taken out of
    /// `handed`.
    ///
    /// # Errors
    ///
    /// See [`GroupError`]. The group goes on without a daemon then, as before.
    pub(super) fn resume(
        spec: GroupSpec,
        settings: &Arc<Settings>,
        events: Events,
        earlier: GroupState,
        handed: &mut Incoming,
    ) -> Result<Self, GroupError> {
        let netns = open_netns(&spec)?;
        let program = earlier.group.policy().program();
        let datapath = load(&spec, settings, &events, &netns, program, Some(&earlier.pins))?;
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
        // The socket for notices is among what is handed over; otherwise a new one is made now.
        let heard = handed.is_something();
        let group = group
            .resume(spec.stall_after, supervision(&spec), heard, found, Instant::now())
            .pinned_to(cpus(&spec)?);

        let in_halves = datapath.moves_sockets();
        let ring = datapath.ring();
        let taken_over = datapath.taken_over().cloned().unwrap_or_default();
        let applied = Applied::resume(datapath, spec.workers, &ring);
        let mut runner = Self::new(spec, settings, events, netns, group, applied, handed)?;
        runner.take(recovered, handed);
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
            workers = runner.running(),
            sockets = runner.listeners.len(),
            kept = kept.join(" "),
            replaced = replaced.join(" "),
            counting_kept,
            "taken over from an earlier daemon"
        );
        Ok(runner)
    }

    fn take(&mut self, recovered: Recovered, handed: &mut Incoming) {
        let Recovered { made, seen, processes } = recovered;
        self.listeners.extend(made.into_iter().map(|(id, socket)| (id, Socket::Made(socket))));
        for (id, (listener, owner)) in seen {
            let is_adopted = self.group.is_adopted();
            let watch = is_adopted.then(|| owners::watch(self.events.clone(), id, owner.pid)).flatten();
            let found = Found { listener, owner, fresh: None, watch };
            self.listeners.insert(id, Socket::Found(found));
        }
        for (id, mut process) in processes {
            process.read_on(&self.spec.process.output, &self.spec.name, id, handed);
            let watched = process::watch(self.events.clone(), id, process);
            self.processes.insert(id, watched);
        }
    }

    /// How many workers have a process.
    fn running(&self) -> usize {
        self.group.workers().filter(|(_, worker)| worker.pid().is_some()).count()
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
            processes: self.processes.iter().map(|(id, process)| (*id, process.identity())).collect(),
        }
    }
}

/// Whether what was written down of a group is to be gone on with as the group that `spec` describes.
pub(super) fn belongs_to(earlier: &GroupState, spec: &GroupSpec) -> bool {
    !earlier.leaving && earlier.name == spec.name && earlier.listen == spec.listen
}

/// What is told of all groups together. `version` is that of the daemon before.
pub(super) fn taken_over(version: String, groups: &BTreeMap<String, Runner>) -> control::TakenOver {
    let replaced = groups.values().filter_map(|runner| runner.applied.datapath().taken_over());
    let replaced: BTreeSet<_> = replaced.flat_map(|taken| taken.replaced.iter().cloned()).collect();
    control::TakenOver {
        version,
        workers: groups.values().map(Runner::running).sum(),
        maps_replaced: replaced.into_iter().collect(),
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
