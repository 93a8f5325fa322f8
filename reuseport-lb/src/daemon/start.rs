//! How the daemon comes to be: what it needs, and what it makes.

use std::{collections::BTreeMap, io, path::PathBuf, time::Instant};

use tokio::task::JoinSet;

use super::{Daemon, Handle, listener::Listener, owner::Logged};
use crate::{
    adopt,
    config::{BpfLogLevel, GroupSpec},
    datapath::{self, Applied, Datapath as _, KernelDatapath, Missing},
    group::{Group, WorkerId},
    policy::Policy,
    worker::descriptors,
};

/// What the daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The group.
    pub spec: GroupSpec,
    /// The folder for pins, on a BPF file system. Each group has a folder of its own in it.
    pub pin_dir: PathBuf,
    /// What the BPF programs log, through the `log` facade; none costs nothing.
    pub bpf_log: Option<BpfLogLevel>,
    /// This program's own file, to start workers with.
    pub executable: PathBuf,
}

/// Why the daemon did not start. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
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

/// Sees whether this process on this kernel can run a group with `policy`, and warns of what will be worse than it
/// could be.
///
/// # Errors
///
/// [`StartError::Missing`]: it cannot.
pub fn check(policy: Policy) -> Result<(), StartError> {
    let missing = datapath::check_requirements();
    let is_fatal =
        |missing: &&Missing| missing.is_fatal() || **missing == Missing::Btf && policy.compares_loads();
    if let Some(missing) = missing.iter().find(is_fatal) {
        return Err(StartError::Missing(missing.clone()));
    }
    for missing in missing {
        tracing::warn!("{missing}");
    }
    Ok(())
}

/// Makes the group, and starts its workers: when this returns, the group takes connections.
///
/// The caller has been through [`check`]. Must be called on the runtime that [`Daemon::run`] will run on.
///
/// # Errors
///
/// See [`StartError`]; nothing is left behind then.
pub fn start(options: Options) -> Result<(Daemon, Handle), StartError> {
    let Options { spec, pin_dir, bpf_log, executable } = options;
    // The kernel would let a socket of the same user into a foreign group, and share its connections with us.
    if let Some(conflict) = adopt::conflicts(spec.listen).map_err(StartError::Sockets)?.into_iter().next() {
        return Err(StartError::Taken(conflict));
    }
    let pins = pin_dir.join(pin_name(&spec).map_err(StartError::Sockets)?);
    let mut datapath = KernelDatapath::load(&pins, spec.hash_seed, bpf_log)?;
    if bpf_log.is_some() {
        datapath.forward_log().map_err(StartError::Log)?;
    }

    if !spec.stall_after.is_zero() && !datapath.sees_stalls() {
        tracing::warn!("stalled workers are not seen: the kernel's BTF does not say where accept queues are");
    }
    let stalls = datapath.stall_news().map_err(StartError::Log)?;

    // As late as possible: until the program is attached, the kernel picks who gets a connection.
    let worker_open_files = descriptors::raise_limit(spec.workers);
    let mut listeners = BTreeMap::new();
    for id in (0..spec.workers).map(WorkerId) {
        let listener = Listener::open(spec.listen, spec.backlog)
            .map_err(|error| StartError::Listen { address: spec.listen, error })?;
        listeners.insert(id, listener);
    }

    let now = Instant::now();
    let mut group = Group::new(spec.workers, spec.policy, spec.stall_after, now);
    for id in listeners.keys() {
        group.opened(*id);
    }
    let (handle, requests) = Handle::new();
    let logged = Logged { policy: spec.policy, workers: BTreeMap::new() };
    let mut daemon = Daemon {
        applied: Applied::new(datapath, spec.workers),
        spec,
        group,
        listeners,
        started: now,
        executable,
        worker_open_files,
        processes: BTreeMap::new(),
        exits: JoinSet::new(),
        requests,
        stalls,
        logged,
        ending: false,
    };
    daemon.apply()?;
    daemon.advance();
    Ok((daemon, handle))
}

/// A group's name among the pins: what the kernel knows it by, so that no two daemons use the same.
fn pin_name(spec: &GroupSpec) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt as _;

    let netns = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    // The BPF file system refuses names with dots.
    let address = spec.listen.to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    Ok(format!("tcp-{address}-{netns}"))
}
