//! A group with its programs and without a daemon.
//!
//! Listening sockets are enough of a worker for this; the test takes the connections itself, one after the other.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use reuseport_lb::{
    datapath::{Datapath as _, Error, KernelDatapath, Selection},
    policy::{BalanceFactor, HashOn, Local, Member, Policy, PolicySpec, Program, ring::Ring, shares},
    worker::affinity,
};
use reuseport_lb_ebpf::outcome::Outcome;

use crate::{
    eventually,
    listeners::{Ends, Listeners},
    pin_thread,
};

/// Any will do.
const SEED: u64 = 0x5eed;

/// A group, its programs, and what the tables say.
pub struct Steered {
    listeners: Listeners,
    datapath: KernelDatapath,
    members: Vec<Member>,
    ring: Ring,
    /// The slots of the workers that are pinned to the CPU which this thread runs on.
    local: Vec<u16>,
    pins: PathBuf,
}

impl Steered {
    /// A group of so many sockets, to be steered from this thread, which stays on its CPU from now on. No selection
    /// program is loaded.
    pub fn new(workers: u16) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let cpus = affinity::allowed().expect("the CPUs of this thread");
        let here = cpus[0];
        pin_thread(here);
        let listeners = Listeners::new(workers);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pins = PathBuf::from(format!("/sys/fs/bpf/reuseport-lb-steered-{}-{number}", std::process::id()));
        let mut datapath =
            KernelDatapath::load(&pins, SEED, None, Policy::Kernel.into(), None).expect("the datapath");
        for (slot, socket) in listeners.sockets() {
            datapath.insert(slot, socket).expect("an empty slot");
        }
        let members: Vec<Member> = (0..workers).map(|slot| Member { slot, weight: 1 }).collect();
        let mut ring = Ring::new(Ring::size_for(workers));
        ring.rebuild(&members);
        let local = (0..workers).filter(|slot| cpus[usize::from(*slot) % cpus.len()] == here).collect();
        let mut group = Self { listeners, datapath, members, ring, local, pins };
        let cpus: BTreeMap<u16, u16> =
            (0..workers).map(|slot| (slot, cpus[usize::from(slot) % cpus.len()])).collect();
        group.commit(&cpus);
        group
    }

    fn commit(&mut self, cpus: &BTreeMap<u16, u16>) {
        let mut schedule = Vec::new();
        shares::schedule(&self.members, &mut schedule);
        let selection = Selection {
            members: &self.members,
            shares: &schedule,
            ring: self.ring.as_slice(),
            local: &Local::new(&self.members, cpus),
            balance_factor: Self::balance_factor(),
            // Policy `hash` goes by the flow, `consistent-hash` by the source.
            hash_on: [HashOn::Flow, HashOn::SOURCE],
            refuse: false,
            stall_after: Duration::ZERO,
        };
        self.datapath.commit(&selection).expect("a commit");
    }

    /// The one that programs go by which bound loads.
    pub fn balance_factor() -> BalanceFactor {
        "1.25".parse().expect("a balance factor")
    }

    /// The ring of consistent hashing.
    pub fn ring(&self) -> &[u16] {
        self.ring.as_slice()
    }

    /// The slots of the workers that are pinned to the CPU which this thread runs on.
    pub fn local(&self) -> &[u16] {
        &self.local
    }

    /// The programs, to change what is not the test's.
    pub fn datapath(&mut self) -> &mut KernelDatapath {
        &mut self.datapath
    }

    /// Lets this program pick.
    ///
    /// # Errors
    /// As [`Datapath::attach`](reuseport_lb::datapath::Datapath::attach).
    pub fn attach(&mut self, program: Program) -> Result<(), Error> {
        let (_, any) = self.listeners.sockets().next().expect("a socket");
        self.datapath.attach(program, any)
    }

    /// Makes one connection from each of these sources, under this policy, and keeps all of them open until the last
    /// is made. Gives the slot of each.
    pub async fn slots(&mut self, policy: PolicySpec, sources: &[[u8; 4]]) -> Vec<u16> {
        self.attach(policy.program()).expect("a program");
        self.connect(sources).await
    }

    /// The same under the policy that is in force.
    pub async fn connect(&mut self, sources: &[[u8; 4]]) -> Vec<u16> {
        let before = self.datapath.outcomes().expect("outcomes");
        let (slots, ends): (Vec<u16>, Vec<Ends>) =
            sources.iter().map(|source| self.listeners.connect(*source)).unzip();

        let mut expected = before;
        expected[Outcome::Selected.index()] += sources.len() as u64;
        assert_eq!(self.datapath.outcomes().expect("outcomes"), expected, "each was steered");
        assert_eq!(self.loads(), tally(self.members.len(), &slots), "what is counted is what is open");
        ends.into_iter().for_each(Ends::reset);
        eventually("all connections are closed", async || {
            let loads = self.loads();
            if loads.iter().all(|load| *load == 0) { Ok(()) } else { Err(format!("{loads:?}")) }
        })
        .await;
        slots
    }

    fn loads(&self) -> Vec<u64> {
        let load = |member: &Member| self.datapath.load(member.slot);
        self.members.iter().map(load).map(|load| load.active + load.pending).collect()
    }
}

impl Drop for Steered {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.pins));
    }
}

/// How often each slot is among these.
pub fn tally(workers: usize, slots: &[u16]) -> Vec<u64> {
    let mut counts = vec![0; workers];
    slots.iter().for_each(|slot| counts[usize::from(*slot)] += 1);
    counts
}
