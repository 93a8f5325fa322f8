//! How a group comes to be: what is in its way, and what it is made of.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use super::{
    Settings,
    changes::Logged,
    error::GroupError,
    events::{Event, Events},
    following::Following,
    notices::Notices,
    runner::Runner,
    socket::Socket,
};
use crate::{
    adopt,
    chain::chain,
    config::{GroupSpec, Sockets},
    datapath::{self, Applied, Attachment, KernelDatapath, PinRecord},
    group::{Group, Supervision, WorkerId},
    handover::{Incoming, Kind},
    netns::Netns,
    policy::Program,
    worker::affinity,
};

impl Settings {
    /// Where the workers of a group send their notices. `pin_name` and not the group's name tells groups apart, since a
    /// group that is replaced goes on beside the new one of that name.
    fn notify_path(&self, pin_name: &str) -> PathBuf {
        let mut path = self.control.clone().into_os_string();
        path.push(format!(".{pin_name}.notify"));
        path.into()
    }
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
        events: Events,
    ) -> Result<Self, GroupError> {
        let netns = open_netns(&spec)?;
        let left_over = check_address(&spec, &netns, |_, _| false)?;
        let cpus = cpus(&spec)?;
        let datapath = load(&spec, settings, &events, &netns, spec.policy.program(), None)?;
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
        let mut runner = Self::new(spec, settings, events, netns, group, applied, &mut Incoming::default())?;
        runner.gather(left_over)?;
        Ok(runner)
    }

    /// A group without sockets and processes.
    pub(super) fn new(
        spec: GroupSpec,
        settings: &Arc<Settings>,
        events: Events,
        netns: Netns,
        group: Group,
        applied: Applied<KernelDatapath>,
        handed: &mut Incoming,
    ) -> Result<Self, GroupError> {
        let pin_name = pin_name(&spec, &netns);
        let path = settings.notify_path(&pin_name);
        let notices = (spec.sockets != Sockets::Adopted)
            .then(|| Notices::listen(&path, events.clone(), handed.take(&Kind::Notices(pin_name))))
            .transpose()
            .map_err(|source| GroupError::Notify { path, source })?;
        Ok(Self {
            settings: Arc::clone(settings),
            logged: Logged { policy: group.policy(), workers: BTreeMap::new() },
            group,
            applied,
            netns,
            listeners: BTreeMap::new(),
            following: Following::default(),
            notices,
            processes: BTreeMap::new(),
            events,
            has_more_to_do: false,
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
                self.count_older();
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
    ours: impl Fn(&adopt::Listener, &[adopt::Owner]) -> bool,
) -> Result<Option<Attachment>, GroupError> {
    let listen = spec.listen;
    let within = |error| GroupError::Sockets(error);
    if spec.sockets != Sockets::Adopted {
        // The kernel would let a socket of the same user into a foreign group, and share its connections with us.
        let conflicts = netns.within(|| adopt::conflicts(listen)).flatten().map_err(within)?;
        return conflicts
            .into_iter()
            .find(|conflict| !ours(&conflict.listener, &conflict.owners))
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
    for member in &members {
        let Some(program) = attached.get(&member.cookie) else { continue };
        // Without CAP_SYS_ADMIN a program has no name, but what we know of its sockets is enough.
        let is_left_over = program.is_left_over() || program.holders.is_empty() && ours(member, &[]);
        if !is_left_over {
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
    program: Program,
    earlier: Option<&PinRecord>,
) -> Result<KernelDatapath, GroupError> {
    let pins = settings.pin_dir.join(pin_name(spec, netns));
    let mut datapath = KernelDatapath::load(&pins, spec.hash_seed, settings.bpf_log, program, earlier)?;
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
pub(super) fn pin_name(spec: &GroupSpec, netns: &Netns) -> String {
    // The BPF file system refuses names with dots.
    let address = spec.listen.to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    format!("tcp-{address}-{}", netns.inode())
}
