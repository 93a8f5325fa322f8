//! The policies, and the tables that they pick from.
//!
//! Pure: weights in, tables out. Nothing in here knows a kernel, a process or a command.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub mod ring;
pub mod shares;

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
        }
    }

    /// Whether the policy hashes something of the packet, so that `--hash-on` has a meaning.
    pub const fn hashes(self) -> bool {
        matches!(self, Self::Hash | Self::ConsistentHash)
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What of a packet is hashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashOn {
    /// Source and destination, address and port
    #[default]
    Flow,
    /// The source address alone, so that a client keeps its worker over any source port
    Source,
}

impl HashOn {
    /// The name on the command line, in JSON and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Source => "source",
        }
    }
}

impl std::fmt::Display for HashOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A policy together with what it hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySpec {
    /// The policy.
    pub name: Policy,
    /// What it hashes; without a meaning for a policy that does not hash.
    #[serde(default)]
    pub hash_on: HashOn,
}
