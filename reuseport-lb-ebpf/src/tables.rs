//! The tables that the programs pick from.
//!
//! There are two banks. User space fills the idle one and commits it by one word, so a program sees a bank as a
//! whole or not at all. Everything that decides about a worker stands in the bank: who is eligible, the weights,
//! the ring, what is hashed.

use crate::{
    assert_layout,
    flow::KeyMask,
    limits::{MAX_CPUS, MAX_RING, MAX_SHARES, MAX_WORKERS},
};

/// The ring's room: [`MAX_RING`] and what it takes to end on eight bytes.
pub const RING_ROOM: usize = (MAX_RING as usize).next_multiple_of(4);

/// The cost of one connection for a worker of weight 1; see [`Bank::constants`].
///
/// A multiple of 1 to 16, so that loads of such weights compare exactly.
pub const COST_UNIT: u32 = 720_720;

/// The bits that a cost takes.
pub const COST_BITS: u32 = COST_UNIT.ilog2() + 1;

/// What a program reads of a bank first.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What each hashing program hashes, by [`HashUser`]. Each has its own, so that a change of policy together
    /// with what is hashed is a commit that the present program does not notice, and then the exchange of the
    /// program.
    pub masks: [KeyMask; HashUser::COUNT],
    /// The seed of the flow hash.
    pub seed: u64,
    /// The entries of `ring` that are in use.
    pub ring_len: u32,
    /// The entries of `shares` that are in use.
    pub shares_len: u32,
    /// The entries of `members` that are in use: the number of eligible workers.
    pub members_len: u32,
    /// What to do when there are no members: 0 leaves the choice to the kernel, 1 refuses.
    pub refuse: u32,
    /// After how many milliseconds without an accept a worker with a queue is passed over.
    pub stall_after_ms: u32,
    /// After how many milliseconds an accept queue is looked at again.
    pub look_after_ms: u32,
    /// How far above the mean a program that bounds loads lets them be, in thousandths.
    pub balance_thousandths: u32,
    /// The sum of the weights of the eligible workers.
    pub weights_sum: u32,
    /// One more than the largest slot that a table ever named.
    pub slots_len: u32,
    /// Fills up to eight bytes.
    pub reserved: u32,
}

assert_layout!(Header, size: 96, align: 8, fields: {
    masks: [KeyMask; HashUser::COUNT],
    seed: u64,
    ring_len: u32,
    shares_len: u32,
    members_len: u32,
    refuse: u32,
    stall_after_ms: u32,
    look_after_ms: u32,
    balance_thousandths: u32,
    weights_sum: u32,
    slots_len: u32,
    reserved: u32,
});

/// The tables that a policy picks from.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bank {
    /// By slot: what policies that compare workers multiply their loads by, [`COST_UNIT`] divided by the worker's weight,
    /// and break ties by. See [`least_loaded::constant`](crate::least_loaded::constant).
    pub constants: [u64; MAX_WORKERS as usize],
    /// The slots of the eligible workers, and then the same again: so that going round them takes no decision where to
    /// begin anew.
    pub members: [u16; 2 * MAX_WORKERS as usize],
    /// Each slot as often as its weight says, in an order that is also a schedule for round robin.
    pub shares: [u16; MAX_SHARES as usize],
    /// By slot: the worker's weight.
    pub weights: [u16; MAX_WORKERS as usize],
    /// By CPU: where in `local` the slots of its workers are.
    pub cpus: [Part; MAX_CPUS as usize],
    /// The slots of the workers of each CPU, by weight as in `shares`.
    pub local: [u16; MAX_SHARES as usize],
    /// The ring of consistent hashing.
    pub ring: [u16; RING_ROOM],
}

assert_layout!(Bank, size: 215_048, align: 8, fields: {
    constants: [u64; MAX_WORKERS as usize],
    members: [u16; 2 * MAX_WORKERS as usize],
    shares: [u16; MAX_SHARES as usize],
    weights: [u16; MAX_WORKERS as usize],
    cpus: [Part; MAX_CPUS as usize],
    local: [u16; MAX_SHARES as usize],
    ring: [u16; RING_ROOM],
});

/// A part of a list.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The index of its first entry.
    pub start: u16,
    /// How many entries it has.
    pub len: u16,
}

assert_layout!(Part, size: 4, align: 2, fields: { start: u16, len: u16 });

/// The programs that hash something of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HashUser {
    /// Policy `hash`.
    Hash,
    /// Policy `consistent-hash`.
    ConsistentHash,
}

impl HashUser {
    /// How many there are.
    pub const COUNT: usize = 2;
}

/// The value of the one element of map `TABLES`.
///
/// The headers stand beside the word that says which one to read: each page that a program reads from may have to be
/// looked up in the page tables, twice over in a virtual machine.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// The bank in use, 0 or 1. Writing it commits the other bank, with its header.
    pub active: u64,
    /// What is read first of each bank.
    pub headers: [Header; 2],
    /// The banks.
    pub banks: [Bank; 2],
}

assert_layout!(Tables, size: 8 + 2 * (size_of::<Header>() + size_of::<Bank>()), align: 8, fields: {
    active: u64,
    headers: [Header; 2],
    banks: [Bank; 2],
});
