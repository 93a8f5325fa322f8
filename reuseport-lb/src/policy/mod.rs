//! The policies, and the tables that they pick from.
//!
//! Pure: weights in, tables out. Nothing in here knows a kernel, a process or a command.

use std::cmp::Reverse;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

mod hash_on;
mod local;
mod maglev;
pub mod ring;
pub mod shares;
mod spec;

pub use hash_on::{HashOn, InvalidHashOn};
pub use local::Local;
pub use spec::{BalanceFactor, InvalidBalanceFactor, PolicySpec, Program};

/// The rule that picks the worker for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The kernel's own hash; no program runs
    Kernel,
    /// Hash of the flow over the eligible workers
    Hash,
    /// Hash to a worker that changes for as few clients as possible when workers come and go
    ConsistentHash,
    /// The worker with the least load
    LeastLoaded,
    /// The less loaded of two workers picked at random
    PowerOfTwo,
    /// One worker after the other
    RoundRobin,
    /// Any worker
    Random,
    /// A worker that is pinned to the CPU which took the packet
    CpuLocal,
}

impl Policy {
    /// The policy's name on the command line, in JSON and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Hash => "hash",
            Self::ConsistentHash => "consistent-hash",
            Self::LeastLoaded => "least-loaded",
            Self::PowerOfTwo => "power-of-two",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::CpuLocal => "cpu-local",
        }
    }

    /// Whether the policy hashes something of the packet, so that `--hash-on` has a meaning.
    pub const fn hashes(self) -> bool {
        matches!(self, Self::Hash | Self::ConsistentHash)
    }

    /// Whether the policy can keep every worker's load within a [`BalanceFactor`].
    pub const fn balances(self) -> bool {
        matches!(self, Self::ConsistentHash)
    }

    /// Whether the policy compares the load of workers, and so needs their connections counted.
    pub const fn compares_loads(self) -> bool {
        matches!(self, Self::LeastLoaded | Self::PowerOfTwo)
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A worker that may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// The worker's index in the socket array, below
    /// [`MAX_WORKERS`](reuseport_lb_ebpf::limits::MAX_WORKERS).
    pub slot: u16,
    /// Its share of the new connections, relative to the weights of the others; 1 to 256.
    pub weight: u16,
}

/// Shares out `seats` among `members` by weight, and puts the share of `members[i]` into `shares[i]`.
///
/// The method is that of the largest remainder: everyone gets the whole part of the exact share, and what is left
/// goes, one each, to those with the largest fractions. Where fractions are equal the lower slot is served first,
/// so the result depends on the set alone. Nobody goes empty: a weight of 0 does not exist, so a member
/// whose exact share is below one gets one.
///
/// Each share differs by less than one from the exact `seats * weight / sum(weights)`. There is one exception:
/// when the members with less than one seat are more than rounding can serve (hundreds of workers, half of them
/// 256 times as heavy as the other half), those get one each, and the others share the rest by the same method.
///
/// # Panics
///
/// When there are more members than seats, or when all weights are 0.
fn apportion(members: &[Member], seats: u32, shares: &mut Vec<u32>) {
    shares.clear();
    if members.is_empty() {
        return;
    }
    assert!(members.len() <= seats as usize, "{} members do not fit {seats} seats", members.len());

    let mut pool = u64::from(seats);
    let mut weights: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    // Members lighter than this have one seat outside the pool.
    let mut lightest = 0;
    while members
        .iter()
        .map(|member| u64::from(member.weight))
        .filter(|weight| *weight >= lightest)
        .map(|weight| (weight * pool / weights).max(1))
        .sum::<u64>()
        > pool
    {
        // At least one more member is below this now. The heaviest never is, since the pool has a seat for each.
        lightest = weights.div_ceil(pool);
        (pool, weights) = (u64::from(seats), 0);
        for weight in members.iter().map(|member| u64::from(member.weight)) {
            if weight < lightest {
                pool -= 1;
            } else {
                weights += weight;
            }
        }
    }

    let mut fractions = Vec::with_capacity(members.len());
    let mut left = u64::from(seats);
    for (index, member) in members.iter().enumerate() {
        let weight = u64::from(member.weight);
        let mut share = 1;
        if weight >= lightest && weight * pool >= weights {
            share = weight * pool / weights;
            fractions.push((Reverse(weight * pool % weights), member.slot, index));
        }
        left -= share;
        // Not more than `seats`, which is a u32.
        shares.push(share as u32);
    }
    fractions.sort_unstable();
    for (_, _, index) in fractions.into_iter().take(left as usize) {
        shares[index] += 1;
    }
}

#[cfg(test)]
mod tests;
