//! How the daemon comes to be: what it needs, and what it makes.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use super::{
    Daemon, Handle,
    changes::Logged,
    events::{Event, EventQueue, Events},
    following::{Following, LeftOut},
    manager::Manager,
    notices::Notices,
    resume::let_go,
    runner::Runner,
    socket::Socket,
};
use crate::{
    adopt,
    chain::chain,
    config::{BpfLogLevel, GroupSpec, Sockets, source::Configured},
    datapath::{self, Applied, Attachment, KernelDatapath, Missing, PinRecord},
    group::{Group, Refusal, Supervision, WorkerId},
    netns::Netns,
    state::{GroupState, State, StateFile},
    worker::{affinity, descriptors::OpenFiles},
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
    /// Its groups' sockets, by cookie, where it has handed them over itself.
    pub sockets: BTreeMap<u64, OwnedFd>,
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
}

impl Settings {
    /// Where the workers of a group send their notices. `pin_name` and not the group's name tells groups apart, since a
    /// group that is replaced goes on beside the new one of that name.
    fn notify_path(&self, pin_name: &str) -> PathBuf {
        let mut path = self.control.clone().into_os_string();
        path.push(format!(".{pin_name}.notify"));
        path.into()
    }
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
    /// Nobody listens at the address itself, but somebody does where its connections go.
    #[error(
        "nobody listens at {listen} itself, and its connections go elsewhere: {taken}; adopt that address"
    )]
    Elsewhere {
        /// The address.
        listen: std::net::SocketAddr,
        /// Who gets its connections.
        taken: Box<adopt::Conflict>,
    },
    /// A socket of the group cannot be adopted. It would get no connections any more.
    #[error("cannot adopt {0}")]
    LeftOut(Box<LeftOut>),
    /// Another program picks among the sockets.
    #[error("{listen} is steered already, by {program}; end that first")]
    Steered {
        /// The address.
        listen: std::net::SocketAddr,
        /// Who does it.
        program: Box<Attachment>,
    },
    /// The network namespace cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Netns {
        /// What names it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", explain(.error))]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why. It is told already, so it is no source of its own.
        error: io::Error,
    },
    /// Workers would have nowhere to say how they are.
    #[error("cannot make the notify socket {}", path.display())]
    Notify {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An earlier daemon's group is not among those that are wanted, and its workers go on.
    #[error(
        "an earlier daemon has left it at {0} with workers that run, and it is not in the configuration; start with \
         that group once more and end it, or end its workers and remove the state file"
    )]
    Left(std::net::SocketAddr),
    /// What an earlier daemon has left could not be looked at.
    #[error("cannot look at what an earlier daemon has left")]
    Recover(#[source] io::Error),
    /// The sockets of the host could not be listed.
    #[error("cannot list the listening sockets")]
    Sockets(#[source] io::Error),
    /// A worker cannot have its weight.
    #[error("weights")]
    Weights(#[source] Refusal),
    /// The kernel refused a part of the datapath.
    #[error("cannot set up the datapath")]
    Datapath(#[from] datapath::Error),
    /// It is not known which CPUs there are for the workers.
    #[error("cannot find out which CPUs to pin the workers to")]
    Cpus(#[source] io::Error),
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
    for GroupSpec { name, policy, sockets, .. } in groups {
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
    let open_files = OpenFiles::now();
    open_files.raise(specs.iter().map(|spec| spec.workers));
    let Earlier { state, mut sockets } = earlier;
    let generation = state.as_ref().map_or(0, |state| state.generation) + 1;
    let mut left = state.map_or_else(Vec::new, |state| state.groups);
    let specs: Vec<_> = specs
        .into_iter()
        .map(|spec| {
            let is_same =
                |group: &GroupState| !group.leaving && group.name == spec.name && group.listen == spec.listen;
            let earlier = left.iter().position(is_same).map(|index| left.swap_remove(index));
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
            Some(earlier) => Runner::resume(spec, &settings, open_files, events, earlier, &mut sockets),
            None => Runner::start(spec, &settings, open_files, events),
        };
        groups.insert(name.clone(), runner.map_err(|why| StartError { group: name, why })?);
    }
    for runner in groups.values_mut() {
        runner.applied.datapath_mut().settle_in();
    }
    let (handle, requests) = Handle::new();
    let mut daemon = Daemon {
        groups,
        leaving: Vec::new(),
        configured,
        settings,
        events,
        requests,
        open_files,
        started: Instant::now(),
        ending: false,
        manager: Manager::from_environment(),
        state_file,
        generation,
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
        let netns = open_netns(&spec)?;
        let left_over = check_address(&spec, &netns, |_| false)?;
        let cpus = cpus(&spec)?;
        let datapath = load(&spec, settings, &events, &netns, None)?;
        let now = Instant::now();
        let group = match spec.sockets {
            Sockets::Adopted => Group::adopted(spec.policy, spec.stall_after, now),
            Sockets::HandedOver | Sockets::SelfBound => {
                let mut group =
                    Group::new(spec.workers, spec.policy, spec.stall_after, supervision(&spec), now)
                        .pinned_to(cpus);
                for id in (0..spec.workers).map(WorkerId) {
                    group.set_weight(id, spec.weight(id)).map_err(GroupError::Weights)?;
                }
                group
            }
        };
        let applied = Applied::new(datapath, spec.workers);
        let mut runner = Self::new(spec, settings, open_files, events, netns, group, applied)?;
        runner.gather(left_over)?;
        Ok(runner)
    }

    /// A group without sockets and processes.
    pub(super) fn new(
        spec: GroupSpec,
        settings: &Arc<Settings>,
        open_files: OpenFiles,
        events: Events,
        netns: Netns,
        group: Group,
        applied: Applied<KernelDatapath>,
    ) -> Result<Self, GroupError> {
        let path = settings.notify_path(&pin_name(&spec, &netns));
        let notices = (spec.sockets != Sockets::Adopted)
            .then(|| Notices::listen(&path, events.clone()))
            .transpose()
            .map_err(|source| GroupError::Notify { path, source })?;
        Ok(Self {
            settings: Arc::clone(settings),
            open_files,
            logged: Logged { policy: group.policy(), workers: BTreeMap::new() },
            group,
            applied,
            netns,
            listeners: BTreeMap::new(),
            following: Following::default(),
            notices,
            processes: BTreeMap::new(),
            events,
            spec,
        })
    }

    /// Gets the sockets that there are to be at the start, and lets the program pick among them.
    fn gather(&mut self, left_over: Option<Attachment>) -> Result<(), GroupError> {
        match self.spec.sockets {
            Sockets::HandedOver => {
                // As late as possible: until the program is attached, the kernel picks who gets a connection.
                for id in (0..self.spec.workers).map(WorkerId) {
                    let listener = self
                        .open()
                        .map_err(|error| GroupError::Listen { address: self.spec.listen, error })?;
                    self.listeners.insert(id, Socket::Made(listener));
                    self.group.opened(id);
                }
                self.apply()?;
            }
            // They come with their workers.
            Sockets::SelfBound => self.apply()?,
            Sockets::Adopted => {
                // The news are on already, so that none is missed in between.
                if let Some(program) = left_over {
                    tracing::info!(group = self.spec.name, "taking the sockets from the {program}");
                    program.empty();
                }
                let left_out = self.follow().map_err(GroupError::Sockets)?;
                if let Some(left_out) = left_out.into_iter().next() {
                    return Err(self.give_up(GroupError::LeftOut(Box::new(left_out))));
                }
                if self.listeners.is_empty() {
                    tracing::warn!(
                        group = self.spec.name,
                        "nobody listens at {} yet; sockets are taken in as they come",
                        self.spec.listen
                    );
                }
            }
        }
        Ok(())
    }

    /// Leaves everything as it was.
    fn give_up(&mut self, error: GroupError) -> GroupError {
        self.group.release();
        if let Err(error) = self.apply() {
            tracing::error!(
                group = self.spec.name,
                error = chain(&error),
                "cannot leave the group to the kernel"
            );
        }
        error
    }
}

pub(super) fn open_netns(spec: &GroupSpec) -> Result<Netns, GroupError> {
    Netns::open(spec.netns.as_deref())
        .map_err(|source| GroupError::Netns { path: spec.netns.clone().unwrap_or_default(), source })
}

/// The CPUs that workers are pinned to.
pub(super) fn cpus(spec: &GroupSpec) -> Result<Vec<u16>, GroupError> {
    if spec.pin_workers { affinity::allowed().map_err(GroupError::Cpus) } else { Ok(Vec::new()) }
}

pub(super) fn supervision(spec: &GroupSpec) -> Supervision {
    Supervision { self_bound: spec.sockets == Sockets::SelfBound, ..spec.supervision.clone() }
}

/// Sees whether somebody else is in the way, who is not one of `ours`, or has what is to be adopted. Gives the program
/// that a daemon which died has left with the sockets.
pub(super) fn check_address(
    spec: &GroupSpec,
    netns: &Netns,
    ours: impl Fn(&adopt::Conflict) -> bool,
) -> Result<Option<Attachment>, GroupError> {
    let listen = spec.listen;
    let within = |error| GroupError::Sockets(error);
    if spec.sockets != Sockets::Adopted {
        // The kernel would let a socket of the same user into a foreign group, and share its connections with us.
        let conflicts = netns.within(|| adopt::conflicts(listen)).flatten().map_err(within)?;
        return conflicts
            .into_iter()
            .find(|conflict| !ours(conflict))
            .map_or(Ok(None), |conflict| Err(GroupError::Taken(conflict)));
    }
    let adopt::Present { members, others } =
        netns.within(|| adopt::present(listen)).flatten().map_err(within)?;
    for other in others {
        if members.is_empty() && other.overlap != adopt::Overlap::Narrower {
            return Err(GroupError::Elsewhere { listen, taken: Box::new(other) });
        }
        tracing::warn!(
            group = spec.name,
            "not of this group, and goes on getting its own connections: {other}"
        );
    }
    let mut left_over = None;
    let attached =
        if members.is_empty() { HashMap::new() } else { datapath::attached(listen.port(), netns)? };
    for program in members.iter().filter_map(|member| attached.get(&member.cookie)) {
        if !program.is_left_over() {
            return Err(GroupError::Steered { listen, program: Box::new(program.clone()) });
        }
        left_over = Some(program.clone());
    }
    Ok(left_over)
}

pub(super) fn load(
    spec: &GroupSpec,
    settings: &Settings,
    events: &Events,
    netns: &Netns,
    earlier: Option<&PinRecord>,
) -> Result<KernelDatapath, GroupError> {
    let pins = settings.pin_dir.join(pin_name(spec, netns));
    let mut datapath = KernelDatapath::load(&pins, spec.hash_seed, settings.bpf_log, earlier)?;
    if settings.bpf_log.is_some() {
        datapath.forward_log().map_err(GroupError::Log)?;
    }
    let stalls = events.clone();
    datapath.report_stalls(move || stalls.send(Event::Stalls)).map_err(GroupError::Log)?;
    if spec.sockets != Sockets::HandedOver {
        let sockets = events.clone();
        let tell = move |event| sockets.send(Event::Listening(event));
        datapath.watch_listeners(spec.listen.port(), netns.inode(), tell)?;
    }
    Ok(datapath)
}

/// A group's name among the pins: what the kernel knows it by, so that no two daemons use the same.
fn pin_name(spec: &GroupSpec, netns: &Netns) -> String {
    // The BPF file system refuses names with dots.
    let address = spec.listen.to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    format!("tcp-{address}-{}", netns.inode())
}
