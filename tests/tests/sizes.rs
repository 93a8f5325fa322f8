//! Every policy in groups of every size, up to the largest: each connection is steered, and the spread is what the
//! policy's name says.
//!
//! Listening sockets are enough of a worker for this; the test takes the connections itself, one after the other.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use reuseport_lb::{
    datapath::{Datapath as _, KernelDatapath, Selection},
    policy::{BalanceFactor, HashOn, Local, Member, Policy, PolicySpec, ring::Ring, shares},
    worker::affinity,
};
use reuseport_lb_ebpf::{
    limits::{MAX_SCAN, SAMPLES},
    outcome::Outcome,
};
use reuseport_lb_tests::{
    chance::{difference, heaviest, plausible_among},
    eventually, in_netns,
    listeners::{Ends, Listeners},
    pin_thread,
};

/// Any will do.
const SEED: u64 = 0x5eed;

const SOURCE: [u8; 4] = [127, 0, 0, 1];

/// A group, its programs, and what the tables say.
struct Group {
    listeners: Listeners,
    datapath: KernelDatapath,
    members: Vec<Member>,
    ring: Ring,
    /// The slots of the workers that are pinned to the CPU which this thread runs on.
    local: Vec<u16>,
    pins: PathBuf,
}

impl Group {
    fn new(workers: u16) -> Self {
        let cpus = affinity::allowed().expect("the CPUs of this thread");
        let here = cpus[0];
        pin_thread(here);
        let listeners = Listeners::new(workers);
        let pins = PathBuf::from(format!("/sys/fs/bpf/reuseport-lb-sizes-{}-{workers}", std::process::id()));
        let mut datapath = KernelDatapath::load(&pins, SEED, None, None).expect("the datapath");
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
            balance_factor: factor(),
            // With the bound the source is hashed, without it the flow.
            hash_on: [HashOn::Flow, HashOn::SOURCE],
            refuse: false,
            stall_after: Duration::ZERO,
        };
        self.datapath.commit(&selection).expect("a commit");
    }

    /// Makes one connection from each of these sources, under this policy, and keeps all of them open until the last
    /// is made. Gives the slot of each.
    async fn slots(&mut self, policy: PolicySpec, sources: &[[u8; 4]]) -> Vec<u16> {
        let (_, any) = self.listeners.sockets().next().expect("a socket");
        self.datapath.attach(policy.program(), any).expect("a program");
        let before = self.datapath.outcomes().expect("outcomes");
        let (slots, ends): (Vec<u16>, Vec<Ends>) =
            sources.iter().map(|source| self.listeners.connect(*source)).unzip();

        let mut expected = before;
        expected[Outcome::Selected.index()] += sources.len() as u64;
        assert_eq!(self.datapath.outcomes().expect("outcomes"), expected, "{policy}: each was steered");
        assert_eq!(
            self.loads(),
            tally(self.members.len(), &slots),
            "{policy}: what is counted is what is open"
        );
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

impl Drop for Group {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.pins));
    }
}

fn factor() -> BalanceFactor {
    "1.25".parse().expect("a balance factor")
}

fn tally(workers: usize, slots: &[u16]) -> Vec<u64> {
    let mut counts = vec![0; workers];
    slots.iter().for_each(|slot| counts[usize::from(*slot)] += 1);
    counts
}

fn each_policy_with(workers: u16) {
    in_netns(async move |_| {
        let mut group = Group::new(workers);
        let n = usize::from(workers);
        // Two for each, and as many as show something where there are few.
        let connections = (2 * n).next_multiple_of(n).max(300 / n * n);
        let sources = vec![SOURCE; connections];
        let draws = connections as u64;
        let fair = |counts: &[u64], chance: &dyn Fn(usize) -> f64, policy: Policy| {
            for (slot, count) in counts.iter().enumerate() {
                let range = plausible_among(draws, chance(slot), counts.len());
                assert!(range.contains(count), "{policy}: slot {slot} has {count}, not {range:?}");
            }
        };
        let equal = |_: usize| 1.0 / n as f64;
        for policy in [
            Policy::Hash,
            Policy::Random,
            Policy::RoundRobin,
            Policy::LeastLoaded,
            Policy::PowerOfTwo,
            Policy::CpuLocal,
        ] {
            let counts = tally(n, &group.slots(policy.into(), &sources).await);
            let most = counts.iter().max().copied().unwrap_or_default();
            match policy {
                // The one CPU that takes all packets goes round without a miss.
                Policy::RoundRobin => assert!(difference(&counts) <= 1, "{policy}: {counts:?}"),
                Policy::LeastLoaded if n <= MAX_SCAN as usize => {
                    assert!(difference(&counts) <= 1, "{policy}: {counts:?}");
                }
                Policy::LeastLoaded => {
                    assert!(most <= heaviest(draws, n as u64, SAMPLES), "{policy}: {counts:?}");
                }
                Policy::PowerOfTwo => assert!(most <= heaviest(draws, n as u64, 2), "{policy}: {counts:?}"),
                Policy::CpuLocal if group.local.is_empty() => fair(&counts, &equal, policy),
                Policy::CpuLocal => {
                    let local = &group.local;
                    let chance = |slot: usize| match local.iter().any(|local| usize::from(*local) == slot) {
                        true => 1.0 / local.len() as f64,
                        false => 0.0,
                    };
                    fair(&counts, &chance, policy);
                }
                _ => fair(&counts, &equal, policy),
            }
        }
        consistent_hash(&mut group, n, connections).await;
    });
}

/// One source a connection, by their shares of the ring; and with one source that has nine of ten connections.
async fn consistent_hash(group: &mut Group, n: usize, connections: usize) {
    let plain = PolicySpec::from(Policy::ConsistentHash);
    let bounded = PolicySpec { balance_factor: Some(factor()), ..plain };
    let sources: Vec<[u8; 4]> =
        (0..connections).map(|i| [127, 1, (i / 250) as u8, 1 + (i % 250) as u8]).collect();
    let counts = tally(n, &group.slots(plain, &sources).await);
    let shares = tally(n, group.ring.as_slice());
    for ((slot, count), share) in counts.iter().enumerate().zip(&shares) {
        let chance = *share as f64 / group.ring.as_slice().len() as f64;
        let range = plausible_among(connections as u64, chance, n);
        assert!(range.contains(count), "slot {slot} has {count}, not {range:?}");
    }

    let heavy: Vec<[u8; 4]> =
        sources.iter().enumerate().map(|(i, source)| if i % 10 == 0 { *source } else { SOURCE }).collect();
    let slots = group.slots(bounded, &heavy).await;
    for open in 1..=connections {
        // With every connection, and not only at the end.
        let slot = slots[open - 1];
        let load = slots[..open].iter().filter(|other| **other == slot).count();
        let most = (1_250 * open).div_ceil(1_000 * n);
        assert!(load <= most, "slot {slot} has {load} of {open} connections, not {most} at most");
    }
    assert_eq!(group.slots(bounded, &heavy).await, slots, "the same flows make the same choices");
}

#[test]
fn with_1() {
    each_policy_with(1);
}

#[test]
fn with_2() {
    each_policy_with(2);
}

#[test]
fn with_3() {
    each_policy_with(3);
}

#[test]
fn with_64() {
    each_policy_with(64);
}

#[test]
fn with_129() {
    each_policy_with(129);
}

#[test]
fn with_500() {
    each_policy_with(500);
}

#[test]
fn with_1024() {
    each_policy_with(1024);
}
