//! Every policy in groups of every size, up to the largest: each connection is steered, and the spread is what the
//! policy's name says.

use reuseport_lb::policy::{Policy, PolicySpec};
use reuseport_lb_ebpf::limits::{MAX_SCAN, SAMPLES};
use reuseport_lb_tests::{
    chance::{difference, heaviest, plausible_among},
    in_netns,
    steered::{Steered, tally},
};

const SOURCE: [u8; 4] = [127, 0, 0, 1];

fn each_policy_with(workers: u16) {
    in_netns(async move |_| {
        let mut group = Steered::new(workers);
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
                Policy::CpuLocal if group.local().is_empty() => fair(&counts, &equal, policy),
                Policy::CpuLocal => {
                    let local = group.local();
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
async fn consistent_hash(group: &mut Steered, n: usize, connections: usize) {
    let plain = PolicySpec::from(Policy::ConsistentHash);
    let bounded = PolicySpec { balance_factor: Some(Steered::balance_factor()), ..plain };
    let sources: Vec<[u8; 4]> =
        (0..connections).map(|i| [127, 1, (i / 250) as u8, 1 + (i % 250) as u8]).collect();
    let counts = tally(n, &group.slots(plain, &sources).await);
    let shares = tally(n, group.ring());
    for ((slot, count), share) in counts.iter().enumerate().zip(&shares) {
        let chance = *share as f64 / group.ring().len() as f64;
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
