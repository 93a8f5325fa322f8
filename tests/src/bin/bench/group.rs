//! A group whose programs can be exchanged: the project's own, and one that does nothing.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, SkReuseport, SockOps},
};
use reuseport_lb::{
    datapath::{self, Datapath as _, KernelDatapath, Selection},
    policy::{BalanceFactor, HashOn, Local, Member, Policy, Program, ring::Ring, shares},
    worker::affinity,
};

use socket2::Socket;

use crate::traffic::{Close, Listeners};

/// The selection program that does nothing.
pub(crate) const SELECT_NOTHING: &str = "select_nothing";
/// The tracepoint program that does nothing.
pub(crate) const TRACK_NOTHING: &str = "track_nothing";

/// Any seed will do: the ports of the clients are different each time.
const SEED: u64 = 0x5eed_5eed_5eed_5eed;
/// The daemon's own default, so that the price of looking at accept queues is in the figures.
const STALL_AFTER: Duration = Duration::from_millis(50);
/// The one that the documentation recommends.
const BALANCE_FACTOR: f64 = 1.25;

/// Loads what a daemon loads for a group of these sockets, all eligible and of the same weight. No selection program
/// runs before one is attached; the one that counts connections does.
pub(crate) fn load(sockets: &[Socket]) -> Result<KernelDatapath> {
    let workers = u16::try_from(sockets.len()).context("too many workers")?;
    let pins = format!("/sys/fs/bpf/reuseport-lb-bench-{}", std::process::id());
    let mut datapath = KernelDatapath::load(Path::new(&pins), SEED, None, Policy::Kernel.into(), None)?;
    for (slot, socket) in (0..workers).zip(sockets) {
        datapath.insert(slot, socket.as_fd())?;
    }
    let members: Vec<Member> = (0..workers).map(|slot| Member { slot, weight: 1 }).collect();
    let mut ring = Ring::new(Ring::size_for(workers));
    ring.rebuild(&members);
    let mut schedule = Vec::new();
    shares::schedule(&members, &mut schedule);
    commit(&mut datapath, &members, &schedule, &pinned_by_turns(&members)?, &ring)?;
    Ok(datapath)
}

/// For each CPU that this process may use its part of the members, as with `--pin-workers`.
fn pinned_by_turns(members: &[Member]) -> Result<Local> {
    let cpus = affinity::allowed().context("the CPUs of this process")?;
    let pinned = members.iter().zip(cpus.iter().cycle()).map(|(member, cpu)| (member.slot, *cpu)).collect();
    Ok(Local::new(members, &pinned))
}

/// Lets the programs pick among `members`, as a daemon does by default.
pub(crate) fn commit(
    datapath: &mut KernelDatapath,
    members: &[Member],
    shares: &[u16],
    local: &Local,
    ring: &Ring,
) -> Result<()> {
    Ok(datapath.commit(&Selection {
        members,
        shares,
        ring: ring.as_slice(),
        local,
        balance_factor: BalanceFactor::try_from(BALANCE_FACTOR)?,
        hash_on: [HashOn::Flow; 2],
        refuse: false,
        stall_after: STALL_AFTER,
    })?)
}

/// Takes away what [`load`] has loaded, so that it can be loaded again: a socket fits into one map only, and the kernel
/// takes its time to free one.
pub(crate) fn unload(mut datapath: KernelDatapath, sockets: &[Socket]) -> Result<()> {
    for (slot, _) in (0..).zip(sockets) {
        datapath.remove(slot)?;
    }
    Ok(())
}

/// A group of listening sockets, with everything loaded.
pub(crate) struct Group {
    listeners: Listeners,
    datapath: KernelDatapath,
    baseline: Ebpf,
}

impl Group {
    /// Makes a group of `workers` sockets in the thread's network namespace, all eligible and of the same weight.
    ///
    /// Both tracepoint programs run from now on, and no selection program.
    pub(crate) fn new(workers: u16, baseline: &Path) -> Result<Self> {
        let listeners = Listeners::new(workers)?;

        let datapath = load(listeners.sockets())?;

        let mut baseline = EbpfLoader::new()
            .btf(None)
            .load_file(baseline)
            .with_context(|| format!("cannot load {}", baseline.display()))?;
        let tracker: &mut SockOps = baseline.program_mut(TRACK_NOTHING).context(TRACK_NOTHING)?.try_into()?;
        tracker.load()?;
        tracker.attach(datapath::cgroup_root().context("cgroup v2")?, CgroupAttachMode::Single)?;
        let selector: &mut SkReuseport =
            baseline.program_mut(SELECT_NOTHING).context(SELECT_NOTHING)?.try_into()?;
        selector.load()?;
        Ok(Self { listeners, datapath, baseline })
    }

    /// Lets the program that does nothing run for the group.
    pub(crate) fn attach_nothing(&mut self) -> Result<()> {
        let selector: &SkReuseport =
            self.baseline.program(SELECT_NOTHING).context(SELECT_NOTHING)?.try_into()?;
        selector.attach(any_socket(&self.listeners)?).context(SELECT_NOTHING)
    }

    /// Lets one of the project's programs run for the group.
    pub(crate) fn attach(&mut self, program: Program) -> Result<()> {
        Ok(self.datapath.attach(program, any_socket(&self.listeners)?)?)
    }

    /// Makes, takes and closes `n` connections.
    pub(crate) fn connections(&self, n: u32, close: Close) -> Result<()> {
        self.listeners.connections(n, close)
    }
}

/// A program is attached to the whole group, by any of its sockets.
fn any_socket(listeners: &Listeners) -> Result<BorrowedFd<'_>> {
    Ok(listeners.sockets().first().context("a group without sockets")?.as_fd())
}
