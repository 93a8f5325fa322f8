//! What the kernel says, to compare with what the daemon says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt, fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use procfs::{
    FromReadSI,
    net::{TcpNetEntries, TcpNetEntry, TcpState},
    process::{FDTarget, Process as Proc},
};
use rustix::process::Signal;
use tokio::time::sleep;

use super::ledger::Kill;
use crate::{PATIENCE, eventually, process::Process};

/// The TCP sockets of the thread's network namespace.
fn sockets() -> Vec<TcpNetEntry> {
    TcpNetEntries::from_file("/proc/thread-self/net/tcp", procfs::current_system_info())
        .expect("the table of TCP sockets")
        .0
}

/// The inodes of the sockets that a process has open; none when it has ended.
fn inodes(pid: u32) -> HashSet<u64> {
    let process = i32::try_from(pid).ok().and_then(|pid| Proc::new(pid).ok());
    let descriptors = process.and_then(|process| process.fd().ok()).into_iter().flatten().flatten();
    descriptors
        .filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect()
}

/// The clients' ends of the connections that a process has accepted and not closed.
fn accepted(pid: u32) -> HashSet<SocketAddr> {
    let inodes = inodes(pid);
    let mut clients = HashSet::new();
    // The kernel hands out the table in pieces, between which sockets come and go. A second look finds what a first one
    // may have missed.
    for _ in 0..2 {
        clients.extend(
            sockets()
                .into_iter()
                .filter(|socket| socket.state != TcpState::Listen && inodes.contains(&socket.inode))
                .map(|socket| socket.remote_address),
        );
    }
    clients
}

/// How many established connections each of these processes has accepted.
pub(super) fn established(pids: &[u32]) -> Vec<u64> {
    let owners: HashMap<u64, usize> = pids
        .iter()
        .enumerate()
        .flat_map(|(index, pid)| inodes(*pid).into_iter().map(move |inode| (inode, index)))
        .collect();
    let mut counts = vec![0; pids.len()];
    for socket in sockets().into_iter().filter(|socket| socket.state == TcpState::Established) {
        if let Some(index) = owners.get(&socket.inode) {
            counts[*index] += 1;
        }
    }
    counts
}

/// Waits until the thread's namespace has no TCP socket any more but those that wait out their time.
pub(super) async fn no_socket_is_left() {
    eventually("no socket is left over", async || {
        let left: Vec<_> =
            sockets().into_iter().filter(|socket| socket.state != TcpState::TimeWait).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// Kills a process at a moment at which it is known what it has accepted: it is stopped first, so that neither it nor
/// the kernel for it changes anything until it is killed. None when the process ended by itself.
pub(super) async fn kill(pid: u32) -> Option<Kill> {
    let process = Process::find(pid)?;
    process.signal(Signal::STOP);
    if !stopped(&process).await {
        return None;
    }
    let held = accepted(pid);
    let at = Instant::now();
    process.signal(Signal::KILL);
    let given_up = at + PATIENCE;
    while !process.ends_within(Duration::ZERO) {
        assert!(Instant::now() < given_up, "process {pid} outlives SIGKILL");
        sleep(Duration::from_millis(1)).await;
    }
    Some(Kill { pid, at, gone: Instant::now(), held })
}

/// Waits until a process is stopped that was sent the signal. Says whether it has not ended by itself.
pub(super) async fn stopped(process: &Process) -> bool {
    let given_up = Instant::now() + PATIENCE;
    while !is_stopped(process.pid) {
        if process.ends_within(Duration::ZERO) {
            return false;
        }
        assert!(Instant::now() < given_up, "process {} does not stop", process.pid);
        sleep(Duration::from_millis(1)).await;
    }
    true
}

/// Whether all threads of a process are stopped by a signal.
fn is_stopped(pid: u32) -> bool {
    let process = i32::try_from(pid).ok().and_then(|pid| Proc::new(pid).ok());
    let mut tasks = process.and_then(|process| process.tasks().ok()).into_iter().flatten().peekable();
    tasks.peek().is_some()
        && tasks.all(|task| task.and_then(|task| task.stat()).is_ok_and(|stat| stat.state == 'T'))
}

/// What the daemon holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vitals {
    /// Its descriptors, by what they are.
    pub(super) descriptors: BTreeMap<String, usize>,
    /// Its own memory, without that of files, in KiB.
    pub(super) memory_kib: u64,
}

impl Vitals {
    /// Those of the process with this number.
    pub(super) fn of(pid: u32) -> Self {
        let process = Proc::new(i32::try_from(pid).expect("a process id")).expect("the daemon's process");
        let mut descriptors = BTreeMap::new();
        for descriptor in process.fd().expect("the daemon's descriptors").flatten() {
            let name = match descriptor.target {
                FDTarget::Socket(_) => "socket".to_owned(),
                FDTarget::Pipe(_) => "pipe".to_owned(),
                FDTarget::AnonInode(name) => name,
                FDTarget::Net(_) => "network namespace".to_owned(),
                FDTarget::Path(path) => path.display().to_string(),
                other => format!("{other:?}"),
            };
            *descriptors.entry(name).or_default() += 1;
        }
        let status = process.status().expect("the daemon's status");
        Self { descriptors, memory_kib: status.rssanon.expect("a kernel that counts RssAnon") }
    }

    /// Whether there are more of any kind.
    pub(super) fn has_more_descriptors(&self, before: &Self) -> bool {
        self.descriptors.iter().any(|(kind, count)| before.descriptors.get(kind).is_none_or(|of| count > of))
    }
}

impl fmt::Display for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} descriptors, {} KiB", self.descriptors.values().sum::<usize>(), self.memory_kib)
    }
}

/// Programs and maps, by the kernel's numbers, which it does not use again for long.
#[derive(Debug, Default)]
pub(super) struct Bpf {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Bpf {
    /// Adds those that a process has open, and the maps of those programs.
    pub(super) fn add(&mut self, pid: u32) {
        let folder = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        for text in folder.filter_map(|entry| fs::read_to_string(entry.path()).ok()) {
            let number = |name: &str| {
                let value = text.lines().find_map(|line| line.strip_prefix(name))?;
                value.trim().parse::<u32>().ok()
            };
            self.programs.extend(number("prog_id:"));
            self.maps.extend(number("map_id:"));
        }
        for program in aya::programs::loaded_programs().flatten() {
            if self.programs.contains(&program.id()) {
                self.maps.extend(program.map_ids().ok().flatten().into_iter().flatten());
            }
        }
    }

    /// How many have been added.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.programs.len(), self.maps.len())
    }

    /// Waits until the kernel has none of them any more.
    pub(super) async fn are_gone(&self) {
        eventually("the kernel has none of the daemon's programs and maps", async || {
            let programs = aya::programs::loaded_programs().flatten().map(|program| program.id());
            let programs: Vec<_> = programs.filter(|id| self.programs.contains(id)).collect();
            let maps = aya::maps::loaded_maps().flatten().map(|map| map.id());
            let maps: Vec<_> = maps.filter(|id| self.maps.contains(id)).collect();
            if programs.is_empty() && maps.is_empty() {
                Ok(())
            } else {
                Err(format!("programs {programs:?}, maps {maps:?}"))
            }
        })
        .await;
    }
}
