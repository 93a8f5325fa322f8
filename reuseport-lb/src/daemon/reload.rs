//! Another configuration while everything runs: the difference only, all of it or nothing.

use std::{collections::BTreeMap, io, time::Instant};

use super::{Daemon, GroupError, RequestError, StartError, creation, runner::Runner, socket::Socket, start};
use crate::{
    chain::chain,
    config::{
        GroupSpec, Sockets,
        difference::{self, Change, difference},
        settings::Applies,
        source::{Configured, ReloadError},
    },
    control::ReloadStatus,
    group::{Group, Refusal, WorkerId},
    netns::Netns,
};

impl From<StartError> for RequestError {
    fn from(error: StartError) -> Self {
        Self::Failed(chain(&error))
    }
}

impl From<ReloadError> for RequestError {
    fn from(error: ReloadError) -> Self {
        let text = chain(&error);
        match error {
            ReloadError::File(_) => Self::Invalid(text),
            ReloadError::Fixed { .. } => Self::Refused(text),
        }
    }
}

/// What is to be done with the groups there are. Nothing of it has been done.
struct Plan {
    /// Groups that are to be made; some take the place of an old one.
    fresh: Vec<GroupSpec>,
    /// Groups that stay, and become like this.
    changed: Vec<GroupSpec>,
    /// Groups that go, by name; some since a new one takes their place.
    leaving: Vec<String>,
}

impl Daemon {
    /// Makes the groups what the configuration file says now; with `dry_run` it only says what would be changed.
    ///
    /// # Errors
    ///
    /// Nothing has changed then.
    pub(super) fn reload(&mut self, dry_run: bool) -> Result<ReloadStatus, RequestError> {
        if !dry_run {
            self.manager.reloading();
        }
        let reloaded = self.try_reload(dry_run);
        match &reloaded {
            Ok(ReloadStatus { dry_run: true, .. }) => {}
            Ok(ReloadStatus { changes, .. }) if changes.is_empty() => {
                tracing::info!("reloaded: nothing to change");
            }
            Ok(ReloadStatus { changes, .. }) => {
                for change in changes {
                    tracing::info!("reloaded: {change}");
                }
            }
            Err(error) => tracing::error!(%error, "cannot reload, nothing has changed"),
        }
        reloaded
    }

    fn try_reload(&mut self, dry_run: bool) -> Result<ReloadStatus, RequestError> {
        if self.ending {
            return Err(RequestError::Refused("the daemon is shutting down".into()));
        }
        let wanted = self.configured.as_ref().map(Configured::read_again).transpose()?.ok_or_else(|| {
            RequestError::Refused("there is no file to read: the daemon was started without --config".into())
        })?;
        let present: Vec<_> = self.groups.values().map(Runner::present).collect();
        let changes = difference(&present, &wanted);
        let plan = plan(&present, wanted, &changes)?;
        self.look_for_obstacles(&plan)?;
        if !dry_run {
            self.carry_out(plan)?;
        }
        Ok(ReloadStatus { dry_run, changes })
    }

    /// Finds what can be found without doing anything.
    fn look_for_obstacles(&self, Plan { fresh, changed, leaving: _ }: &Plan) -> Result<(), RequestError> {
        self.privileges
            .suffice(&fresh.iter().chain(changed).collect::<Vec<_>>())
            .map_err(|given_up| RequestError::Refused(given_up.to_string()))?;
        let all: Vec<_> = fresh.iter().chain(changed).cloned().collect();
        start::possible(&all)?;
        for spec in changed {
            self.groups.get(&spec.name).map_or(Ok(()), |runner| runner.rehearse(spec))?;
        }
        for spec in fresh {
            let GroupSpec { name, listen, netns, .. } = spec;
            // The old groups' sockets stay until their connections are done.
            if let Some(owner) = self.owner_of(spec) {
                return Err(RequestError::Refused(format!(
                    "group {name}: {listen} is still group {owner}'s; remove that one first, and reload again when \
                     it has gone"
                )));
            }
            let why = |why| StartError { group: name.clone(), why };
            let space = Netns::open(netns.as_deref()).map_err(|source| {
                why(GroupError::Netns { path: netns.clone().unwrap_or_default(), source })
            })?;
            creation::check_address(spec, &space, |_, _| false).map_err(why)?;
        }
        Ok(())
    }

    /// The group, leaving or not, whose sockets are in the way of another one's.
    fn owner_of(&self, other: &GroupSpec) -> Option<&str> {
        let mut owners = self.all_groups().map(|runner| &runner.spec).filter(|spec| spec.overlaps(other));
        owners.next().map(|spec| spec.name.as_str())
    }

    fn carry_out(&mut self, Plan { fresh, changed, leaving }: Plan) -> Result<(), RequestError> {
        let kept = self.groups.values().map(|runner| runner.spec.workers);
        self.settings.open_files.raise(kept.chain(fresh.iter().chain(&changed).map(|spec| spec.workers)));
        // First what may fail: new groups, which go when they are dropped, ...
        let mut made = Vec::new();
        for spec in fresh {
            let group = spec.name.clone();
            let runner = Runner::start(spec, &self.settings, self.events.further_group());
            made.push(runner.map_err(|why| StartError { group, why })?);
        }
        // ... then changes of those that are there, which are taken back.
        let mut done: BTreeMap<String, Before> = BTreeMap::new();
        for spec in changed {
            let Some(runner) = self.groups.get_mut(&spec.name) else { continue };
            let name = spec.name.clone();
            match runner.reconfigure(spec) {
                Ok(before) => drop(done.insert(name, before)),
                Err(error) => {
                    for (name, before) in done {
                        if let Some(runner) = self.groups.get_mut(&name) {
                            runner.restore(before);
                        }
                    }
                    return Err(error);
                }
            }
        }
        // From here on nothing fails.
        for runner in &mut made {
            runner.applied.datapath_mut().settle_in();
        }
        for name in leaving {
            if let Some(mut runner) = self.groups.remove(&name) {
                runner.leave();
                self.leaving.push(runner);
            }
        }
        self.groups.extend(made.into_iter().map(|runner| (runner.spec.name.clone(), runner)));
        Ok(())
    }
}

/// What is to be done to get from `present` to `wanted`.
fn plan(present: &[GroupSpec], wanted: Vec<GroupSpec>, changes: &[Change]) -> Result<Plan, RequestError> {
    if let Some(fixed) = changes.iter().find(|change| change.applies() == Some(Applies::Never)) {
        return Err(RequestError::Refused(format!(
            "{fixed}: that cannot change while the group runs; nothing has changed"
        )));
    }
    let mut plan = Plan { fresh: Vec::new(), changed: Vec::new(), leaving: Vec::new() };
    let mut present: BTreeMap<_, _> = present.iter().map(|spec| (spec.name.as_str(), spec)).collect();
    for spec in wanted {
        match present.remove(spec.name.as_str()) {
            None => plan.fresh.push(spec),
            Some(before) if difference::needs_new_group(before, &spec) => {
                plan.leaving.push(spec.name.clone());
                plan.fresh.push(spec);
            }
            Some(before) if *before == spec => {}
            Some(_) => plan.changed.push(spec),
        }
    }
    plan.leaving.extend(present.into_keys().map(ToOwned::to_owned));
    Ok(plan)
}

/// How a group was before a change.
pub(super) struct Before {
    group: Group,
    spec: GroupSpec,
    /// Whose sockets the change has opened.
    opened: Vec<WorkerId>,
}

impl Runner {
    /// What the group is at present, whatever commands have made of it since it was started.
    pub(super) fn present(&self) -> GroupSpec {
        let Self { spec, group, .. } = self;
        if group.is_adopted() {
            return GroupSpec { policy: group.policy(), ..spec.clone() };
        }
        // Where the ids have a gap, nobody is there whose weight could be another one.
        let weight = |id| group.worker(id).map_or_else(|_| spec.weight(id), |worker| worker.weight);
        let weights = (0..group.size()).map(WorkerId).map(weight);
        GroupSpec {
            workers: group.size(),
            policy: group.policy(),
            weights: GroupSpec::only_needed(weights.collect()),
            ..spec.clone()
        }
    }

    /// Whether the group would become like `spec`, as far as that can be told without doing it.
    pub(super) fn rehearse(&self, spec: &GroupSpec) -> Result<(), RequestError> {
        let mut group = self.group.clone();
        become_like(&mut group, spec, Instant::now()).map_err(|refusal| self.named(&refusal))
    }

    /// Makes the group like `spec`, or leaves it as it is. What is done about it is seen by the next
    /// [`advance`](Self::advance).
    pub(super) fn reconfigure(&mut self, spec: GroupSpec) -> Result<Before, RequestError> {
        let mut before = Before { group: self.group.clone(), spec: self.spec.clone(), opened: Vec::new() };
        let done = self.try_reconfigure(spec, &mut before);
        match done {
            Ok(()) => Ok(before),
            Err(error) => {
                self.restore(before);
                Err(error)
            }
        }
    }

    fn try_reconfigure(&mut self, spec: GroupSpec, before: &mut Before) -> Result<(), RequestError> {
        become_like(&mut self.group, &spec, Instant::now()).map_err(|refusal| self.named(&refusal))?;
        self.spec = spec;
        for socket in self.listeners.values_mut() {
            socket.set_backlog(self.spec.backlog)?;
        }
        // The sockets of further workers now, so that a failure is one of the change.
        if self.spec.sockets == Sockets::HandedOver {
            let is_further = |id: &WorkerId| before.group.worker(*id).is_err();
            let further: Vec<_> = self.group.workers().map(|(id, _)| id).filter(is_further).collect();
            for id in further {
                let listener = self.open().map_err(|error| self.cannot_listen(error))?;
                self.listeners.insert(id, Socket::Made(listener));
                self.group.opened(id);
                before.opened.push(id);
            }
        }
        self.apply()?;
        Ok(())
    }

    fn cannot_listen(&self, error: io::Error) -> StartError {
        let GroupSpec { name, listen, .. } = &self.spec;
        StartError { group: name.clone(), why: GroupError::Listen { address: *listen, error } }
    }

    /// Takes a change back.
    pub(super) fn restore(&mut self, Before { group, spec, opened }: Before) {
        self.group = group;
        self.spec = spec;
        if let Err(error) = self.apply() {
            tracing::error!(
                group = self.spec.name,
                error = chain(&error),
                "cannot undo a change that failed"
            );
        }
        // What has come to such a socket meanwhile moves to others when it is closed.
        self.listeners.retain(|id, _| !opened.contains(id));
        for socket in self.listeners.values_mut() {
            if let Err(error) = socket.set_backlog(self.spec.backlog) {
                tracing::error!(group = self.spec.name, %error, "cannot undo a change of the backlog");
            }
        }
    }

    /// The group takes no new connections, finishes those it has within the grace period, and ends.
    pub(super) fn leave(&mut self) {
        if self.group.is_adopted() {
            // Its workers go on, and the kernel picks among them.
            self.group.release();
            return;
        }
        self.group.leave(self.spec.grace, Instant::now());
        if let Err(error) = self.apply() {
            // `advance` tries again.
            tracing::error!(
                group = self.spec.name,
                error = chain(&error),
                "the group still takes connections"
            );
        }
    }

    fn named(&self, refusal: &Refusal) -> RequestError {
        RequestError::Refused(format!("group {}: {refusal}", self.spec.name))
    }
}

/// Makes the state machine of a group want what `spec` says.
fn become_like(group: &mut Group, spec: &GroupSpec, now: Instant) -> Result<(), Refusal> {
    if group.policy() != spec.policy {
        group.set_policy(spec.policy)?;
    }
    group.set_stall_after(spec.stall_after);
    if group.is_adopted() {
        return Ok(());
    }
    group.supervise(spec.supervision.clone());
    if group.size() != spec.workers {
        group.scale(spec.workers, spec.grace, now)?;
    }
    // Their number counts, and not which numbers they have: there is a gap when one was kept that was to go.
    let ids: Vec<_> = group.workers().map(|(id, _)| id).filter(|id| id.0 < spec.workers).collect();
    for id in ids {
        group.set_weight(id, spec.weight(id))?;
    }
    Ok(())
}
