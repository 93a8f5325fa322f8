//! The kernel's side of a group: the programs, their maps, and the order in which they are changed.
//!
//! This is the only module that knows aya, and the only one with `unsafe`. It carries out what it is told and knows
//! no reason for it.

use std::{io, os::fd::BorrowedFd, path::PathBuf, time::Duration};

pub use apply::Applied;
pub use attached::{Attachment, attached};
pub use cgroup::root as cgroup_root;
pub use kernel::KernelDatapath;
pub use requirements::{CAPABILITIES, Missing, check as check_requirements};
use reuseport_lb_ebpf::outcome::Outcomes;
pub use takeover::{PinRecord, TakenOver, rehearse};
pub use verifier::{Verified, verify};

use crate::policy::{BalanceFactor, HashOn, Local, Member, Program};

mod apply;
mod attached;
mod cgroup;
#[cfg(test)]
mod fake;
mod grace;
mod kernel;
mod memory;
mod news;
mod object;
mod offsets;
mod older;
mod pins;
mod programs;
mod requirements;
mod tables;
mod takeover;
mod trackers;
mod verifier;
mod watch;

/// What the programs pick from, to be committed as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// The eligible workers.
    pub members: &'a [Member],
    /// The slots by weight, as [`shares::schedule`](crate::policy::shares::schedule) orders them.
    pub shares: &'a [u16],
    /// The ring of consistent hashing; see [`Ring`](crate::policy::ring::Ring).
    pub ring: &'a [u16],
    /// The workers of each CPU, for policy `cpu-local`.
    pub local: &'a Local,
    /// How far above the mean loads may be, for the program that bounds them.
    pub balance_factor: BalanceFactor,
    /// What policy `hash` and policy `consistent-hash` hash.
    pub hash_on: [HashOn; 2],
    /// Whether connections are refused when there are no members.
    pub refuse: bool,
    /// After how long without an accept a worker with a queue is passed over; zero for never.
    pub stall_after: Duration,
}

/// The load of one slot, and what it was given since the maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotLoad {
    /// Open connections.
    pub active: u64,
    /// All connections that there ever were, those in the accept queue included.
    pub established: u64,
    /// Selections in their handshake.
    pub pending: u64,
    /// Whether the worker took nothing from its accept queue when the programs last looked at it.
    pub stalled: bool,
    /// Connections given by the policy.
    pub selected: u64,
    /// Connections that migrated here.
    pub migrated_in: u64,
}

/// What the kernel can be told about one group.
pub trait Datapath {
    /// Puts a listening socket of the group into a slot that is empty.
    fn insert(&mut self, slot: u16, socket: BorrowedFd<'_>) -> Result<(), Error>;

    /// Empties a slot. An empty slot is fine: closing its socket empties it too.
    fn remove(&mut self, slot: u16) -> Result<(), Error>;

    /// The slot, which is empty, is to be another worker's: nothing is to remind of the one that had it.
    fn forget(&mut self, slot: u16) -> Result<(), Error>;

    /// Makes `selection` what the programs pick from, from one packet to the next.
    fn commit(&mut self, selection: &Selection<'_>) -> Result<(), Error>;

    /// Lets `program` pick for the group that `socket` is in; that of
    /// [`Policy::Kernel`](crate::policy::Policy::Kernel) takes the program away.
    fn attach(&mut self, program: Program, socket: BorrowedFd<'_>) -> Result<(), Error>;

    /// Waits until no program runs any more that began before the last commit or attachment.
    fn settle(&mut self) -> Result<(), Error>;

    /// Whether open connections are counted. They are not where there is no cgroup v2.
    fn counts_connections(&self) -> bool;

    /// The load of a slot, at this moment.
    fn load(&self, slot: u16) -> SlotLoad;

    /// What became of the programs' runs since the maps were made.
    fn outcomes(&self) -> Result<Outcomes, Error>;
}

/// Why the kernel's side could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object with the programs could not be loaded.
    #[error("cannot load the BPF programs")]
    Load(#[source] Box<aya::EbpfError>),
    /// The object lacks something, so it is not the one of this version.
    #[error("the BPF object has no {0}")]
    Lacks(&'static str),
    /// A program was refused or could not be attached.
    #[error("program {name}")]
    Program {
        /// The program.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A map could not be read or written.
    #[error("map {name}")]
    Map {
        /// The map.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The running kernel's types could not be read.
    #[error("the kernel's BTF")]
    Btf(#[from] aya::BtfError),
    /// A pin could not be made.
    #[error("cannot pin to {}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("{call}")]
    System {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A slot was to be filled, and there is no socket for it.
    #[error("no socket for slot {0}")]
    NoSocket(u16),
    /// A socket is in an array that cannot be reached, so it cannot be steered.
    #[error(
        "the socket of slot {0} is in a map that cannot be reached, since an earlier daemon's pins were removed; end \
         its workers and start again"
    )]
    Unreachable(u16),
    /// A policy that compares loads, on a host where they are not counted.
    #[error(
        "policy {0} compares open connections, which cannot be counted here, since there is no cgroup v2"
    )]
    NotCounted(Program),
}

impl Error {
    /// Whether a socket was refused since it is in the socket array of another program.
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    fn map(name: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { name, source: Box::new(source) }
    }

    fn program(name: &'static str) -> impl FnOnce(aya::programs::ProgramError) -> Self {
        move |source| Self::Program { name, source: Box::new(source) }
    }

    fn system(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { call, source }
    }
}
