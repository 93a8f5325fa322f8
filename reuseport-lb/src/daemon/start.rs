//! How the daemon comes to be: what it needs, and what it makes.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Instant};

use super::{
    Daemon, Handle,
    events::{Event, EventQueue, Events},
    listener::Listener,
    manager::Manager,
    runner::{Logged, Runner},
};
use crate::{
    adopt,
    config::{BpfLogLevel, GroupSpec},
    datapath::{self, Applied, Datapath as _, KernelDatapath, Missing},
    group::{Group, Supervision, WorkerId},
    worker::descriptors::OpenFiles,
};

/// What the daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The groups. Each has a name of its own.
    pub groups: Vec<GroupSpec>,
    /// What holds for all of them.
    pub settings: Settings,
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
}

/// Why the daemon did not start. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[error("cannot start group {group}")]
pub struct StartError {
    /// The first group that could not be started.
    pub group: String,
    /// Why.
    #[source]
    pub why: GroupError,
}

/// Why a group cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The kernel or the process lacks something essential.
    #[error("{0}")]
    Missing(Missing),
    /// Somebody else listens there.
    #[error("{0}; stop it, or choose another address with --listen")]
    Taken(adopt::Conflict),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", explain(.error))]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why. It is told already, so it is no source of its own.
        error: io::Error,
    },
    /// The sockets of the host could not be listed.
    #[error("cannot list the listening sockets")]
    Sockets(#[source] io::Error),
    /// The kernel refused a part of the datapath.
    #[error("cannot set up the datapath")]
    Datapath(#[from] datapath::Error),
    /// What the programs tell could not be read.
    #[error("cannot read the news of the BPF programs")]
    Log(#[source] io::Error),
}

/// What went wrong with an address, in the words of somebody who chose it.
pub(super) fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            "this host has no such address; `ip address` lists those it has".into()
        }
        io::ErrorKind::AddrInUse => "the address is in use; `ss -ltnp` shows by whom".into(),
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE, run it as root (sudo)".into()
        }
        _ => error.to_string(),
    }
}

/// Sees whether this process on this kernel can run the groups, and warns of what will be worse than it could be.
///
/// # Errors
///
/// [`GroupError::Missing`]: it cannot.
pub fn check(groups: &[GroupSpec]) -> Result<(), StartError> {
    let missing = datapath::check_requirements();
    for GroupSpec { name, policy, .. } in groups {
        let is_fatal = |missing: &&Missing| {
            missing.is_fatal() || **missing == Missing::Btf && policy.name.compares_loads()
        };
        if let Some(missing) = missing.iter().find(is_fatal) {
            return Err(StartError { group: name.clone(), why: GroupError::Missing(missing.clone()) });
        }
    }
    for missing in missing {
        tracing::warn!("{missing}");
    }
    Ok(())
}

/// Makes the groups, all of them or none, and starts their workers: when this returns, they take connections.
///
/// The caller has been through [`check`]. Must be called on the runtime that [`Daemon::run`] will run on.
///
/// # Errors
///
/// See [`StartError`]; nothing is left behind then.
pub fn start(options: Options) -> Result<(Daemon, Handle), StartError> {
    let Options { groups: specs, settings } = options;
    let settings = Arc::new(settings);
    let open_files = OpenFiles::now();
    open_files.raise(specs.iter().map(|spec| spec.workers));
    let mut events = EventQueue::new();
    let mut groups = BTreeMap::new();
    for spec in specs {
        let name = spec.name.clone();
        let runner = Runner::start(spec, &settings, open_files, events.further_group())
            .map_err(|why| StartError { group: name.clone(), why })?;
        groups.insert(name, runner);
    }
    let (handle, requests) = Handle::new();
    let mut daemon = Daemon {
        groups,
        events,
        requests,
        open_files,
        started: Instant::now(),
        ending: false,
        manager: Manager::from_environment(),
    };
    // No worker runs before all groups stand, so that there is none to end when one of them cannot be.
    daemon.advance();
    Ok((daemon, handle))
}

impl Runner {
    /// Makes the group without its processes: it takes connections, and they wait for the workers that the first
    /// [`advance`](Self::advance) starts.
    ///
    /// # Errors
    ///
    /// See [`GroupError`]; nothing is left behind then.
    pub(super) fn start(
        spec: GroupSpec,
        settings: &Arc<Settings>,
        open_files: OpenFiles,
        events: Events,
    ) -> Result<Self, GroupError> {
        // The kernel would let a socket of the same user into a foreign group, and share its connections with us.
        if let Some(conflict) = adopt::conflicts(spec.listen).map_err(GroupError::Sockets)?.into_iter().next()
        {
            return Err(GroupError::Taken(conflict));
        }
        let datapath = load(&spec, settings, &events)?;

        // As late as possible: until the program is attached, the kernel picks who gets a connection.
        let mut listeners = BTreeMap::new();
        for id in (0..spec.workers).map(WorkerId) {
            let listener = Listener::open(spec.listen, spec.backlog)
                .map_err(|error| GroupError::Listen { address: spec.listen, error })?;
            listeners.insert(id, listener);
        }
        let mut group =
            Group::new(spec.workers, spec.policy, spec.stall_after, Supervision::default(), Instant::now());
        for id in listeners.keys() {
            group.opened(*id);
        }
        let mut runner = Self {
            applied: Applied::new(datapath, spec.workers),
            settings: Arc::clone(settings),
            open_files,
            group,
            listeners,
            processes: BTreeMap::new(),
            events,
            logged: Logged { policy: spec.policy, workers: BTreeMap::new() },
            spec,
        };
        runner.apply()?;
        runner.applied.datapath_mut().settle_in();
        Ok(runner)
    }
}

fn load(spec: &GroupSpec, settings: &Settings, events: &Events) -> Result<KernelDatapath, GroupError> {
    let pins = settings.pin_dir.join(pin_name(spec).map_err(GroupError::Sockets)?);
    let mut datapath = KernelDatapath::load(&pins, spec.hash_seed, settings.bpf_log, None)?;
    if settings.bpf_log.is_some() {
        datapath.forward_log().map_err(GroupError::Log)?;
    }
    if !spec.stall_after.is_zero() && !datapath.sees_stalls() {
        tracing::warn!("stalled workers are not seen: the kernel's BTF does not say where accept queues are");
    }
    let events = events.clone();
    datapath.report_stalls(move || events.send(Event::Stalls)).map_err(GroupError::Log)?;
    Ok(datapath)
}

/// A group's name among the pins: what the kernel knows it by, so that no two daemons use the same.
fn pin_name(spec: &GroupSpec) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt as _;

    let netns = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    // The BPF file system refuses names with dots.
    let address = spec.listen.to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    Ok(format!("tcp-{address}-{netns}"))
}
