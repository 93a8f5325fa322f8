//! How the daemon comes to be: what it needs, and what it makes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use super::{
    Daemon, Handle,
    error::{GroupError, StartError},
    events::EventQueue,
    manager::Manager,
    resume::{belongs_to, let_go, taken_over},
    runner::Runner,
    upgrade::Upgrade,
};
use crate::{
    config::{BpfLogLevel, GroupSpec, Sockets, source::Configured},
    datapath::{self, Missing},
    handover::Incoming,
    privileges::{self, Privileges},
    state::{State, StateFile},
    worker::descriptors::OpenFiles,
};

/// What the daemon is started with.
#[derive(Debug)]
pub struct Options {
    /// The groups. Each has a name of its own.
    pub groups: Vec<GroupSpec>,
    /// The file that describes them, if one does.
    pub configured: Option<Configured>,
    /// What an earlier daemon has left.
    pub earlier: Earlier,
    /// Where the state is written.
    pub state_file: StateFile,
    /// What holds for all of them.
    pub settings: Settings,
}

/// What an earlier daemon has left, to go on with.
#[derive(Debug, Default)]
pub struct Earlier {
    /// What it wrote down.
    pub state: Option<State>,
    /// What it has handed over itself.
    pub handed: Incoming,
}

/// What holds for all groups of a daemon.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder for pins, on a BPF file system. Each group has a folder of its own in it.
    pub pin_dir: PathBuf,
    /// What the BPF programs log, through the `log` facade; none costs nothing.
    pub bpf_log: Option<BpfLogLevel>,
    /// This program's own file, to start workers with.
    pub executable: PathBuf,
    /// The control socket. The sockets that workers send notices to are made beside it.
    pub control: PathBuf,
    /// The limit of open files that workers are given back.
    pub open_files: OpenFiles,
}

/// Sees whether this process on this kernel can run the groups, and warns of what will be worse than it could be.
///
/// # Errors
///
/// [`GroupError::Missing`]: it cannot.
pub fn check(groups: &[GroupSpec]) -> Result<(), StartError> {
    for missing in possible(groups)? {
        tracing::warn!("{missing}");
    }
    Ok(())
}

/// What is missing, and makes the groups worse than they could be.
///
/// # Errors
///
/// [`GroupError::Missing`]: it makes them impossible.
pub(super) fn possible(groups: &[GroupSpec]) -> Result<Vec<Missing>, StartError> {
    let missing = datapath::check_requirements();
    for spec in groups {
        let GroupSpec { name, policy, sockets, .. } = spec;
        // Without BTF no program tells of sockets that come and go.
        let follows = *sockets != Sockets::HandedOver;
        let is_fatal = |missing: &&Missing| match missing {
            // Or nobody who leaves would ever be seen to be gone.
            Missing::Cgroup => policy.program().compares_loads() || *sockets == Sockets::Adopted,
            Missing::Btf => follows,
            _ => missing.is_fatal(),
        };
        if let Some(missing) = missing.iter().find(is_fatal) {
            return Err(StartError { group: name.clone(), why: GroupError::Missing(missing.clone()) });
        }
        let lacks = privileges::missing(spec);
        if !lacks.is_empty() {
            let why = GroupError::Missing(Missing::Capabilities(lacks));
            return Err(StartError { group: name.clone(), why });
        }
    }
    Ok(missing)
}

/// Makes the groups, all of them or none, and starts their workers: when this returns, they take connections.
///
/// The caller has been through [`check`]. Must be called on the runtime that [`Daemon::run`] will run on.
///
/// # Errors
///
/// See [`StartError`]; nothing is left behind then.
pub fn start(options: Options) -> Result<(Daemon, Handle), StartError> {
    let Options { groups: specs, configured, earlier, state_file, settings } = options;
    let settings = Arc::new(settings);
    settings.open_files.raise(specs.iter().map(|spec| spec.workers));
    let Earlier { state, mut handed } = earlier;
    let is_upgrade = handed.is_something();
    let (generation, version, given_up, mut left) = state.map_or_else(Default::default, |state| {
        (state.generation, Some(state.version), state.given_up, state.groups)
    });
    let specs: Vec<_> = specs
        .into_iter()
        .map(|spec| {
            let earlier = left.iter().position(|group| belongs_to(group, &spec));
            let earlier = earlier.map(|index| left.swap_remove(index));
            (spec, earlier)
        })
        .collect();
    for group in left {
        let_go(&group).map_err(|why| StartError { group: group.name, why })?;
    }
    let mut events = EventQueue::new();
    let mut groups = BTreeMap::new();
    for (spec, earlier) in specs {
        let name = spec.name.clone();
        let events = events.further_group();
        let runner = match earlier {
            Some(earlier) => Runner::resume(spec, &settings, events, earlier, &mut handed),
            None => Runner::start(spec, &settings, events),
        };
        groups.insert(name.clone(), runner.map_err(|why| StartError { group: name, why })?);
    }
    // Before there is another thread or process.
    let specs: Vec<_> = groups.values().map(|runner| &runner.spec).collect();
    // One that was started anew has what it was started with.
    let given_up = if is_upgrade { given_up } else { BTreeSet::new() };
    let privileges = Privileges::reduce(&specs, &given_up).map_err(|why| {
        let group = groups.keys().next().cloned().unwrap_or_default();
        StartError { group, why: GroupError::Privileges(why) }
    })?;
    for runner in groups.values_mut() {
        runner.applied.datapath_mut().settle_in();
    }
    let taken_over = version.map(|version| taken_over(version, &groups));
    let (handle, requests) = Handle::new();
    let mut daemon = Daemon {
        groups,
        leaving: Vec::new(),
        configured,
        settings,
        events,
        requests,
        started: Instant::now(),
        ending: false,
        manager: Manager::from_environment(),
        state_file,
        privileges,
        generation: generation + 1,
        taken_over,
        upgrade: Upgrade::None,
        upgrade_error: None,
    };
    // No worker runs before all groups stand, so that there is none to end when one of them cannot be.
    daemon.advance();
    Ok((daemon, handle))
}
