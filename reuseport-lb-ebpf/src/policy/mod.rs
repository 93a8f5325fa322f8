//! The policies: each picks the slot to try first, and others in case that one's socket is gone.

use aya_ebpf::programs::SkReuseportContext;
use reuseport_lb_ebpf::{
    balance::Bound,
    flow::{mix, scale},
    limits::{MAX_CPUS, MAX_SHARES, MAX_WORKERS, SEARCH},
    tables::{self, HashUser, Header, Part, RING_ROOM},
};

use crate::{
    key::{self, Arrival},
    load::Loads,
    maps::TABLES,
    summing::Sums,
};

mod bounded_consistent_hash;
mod consistent_hash;
mod cpu_local;
mod hash;
mod least_loaded;
mod power_of_two;
mod random;
mod round_robin;

pub(crate) use bounded_consistent_hash::BoundedConsistentHash;
pub(crate) use consistent_hash::ConsistentHash;
pub(crate) use cpu_local::CpuLocal;
pub(crate) use hash::Hash;
pub(crate) use least_loaded::LeastLoaded;
pub(crate) use power_of_two::PowerOfTwo;
pub(crate) use random::Random;
pub(crate) use round_robin::RoundRobin;

/// Stands for no slot, where a function can return nothing but a number.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// A slot that a global function returned, which can return nothing but a number. LLVM knows the range of what it returns,
/// and the verifier does not.
#[inline(always)]
fn some(slot: u32) -> Option<u32> {
    let slot = opaque(slot);
    (slot != NO_SLOT).then_some(slot)
}

/// A rule that picks a slot.
pub(crate) trait Policy: Sized {
    /// Gets ready to pick for this run; none when the packet cannot be read.
    fn prepare(ctx: &SkReuseportContext, arrival: Arrival, bank: Bank, loads: Loads) -> Option<Self>;

    /// The slot to try first; none when the tables hold nothing to pick from.
    fn choice(&self) -> Option<u32>;

    /// The slot to try first instead of the `choice` where the policy does not admit that.
    #[inline(always)]
    fn reconsider(&self, choice: u32) -> Option<u32> {
        Some(choice)
    }

    /// The slot to try at an attempt from 1 on, when the worker or the socket of the one before would not have it.
    fn alternative(&self, attempt: u32) -> Option<u32>;

    /// Whether the policy lets the worker in `slot`, the candidate of an attempt, have one more connection.
    #[inline(always)]
    fn admits(&self, _attempt: u32, _slot: u32) -> bool {
        true
    }

    /// The worker in `slot` has got the connection.
    #[inline(always)]
    fn selected(&self, _slot: u32) {}
}

/// The bank in use.
#[derive(Clone, Copy)]
pub(crate) struct Bank {
    header: *const Header,
    tables: *const tables::Bank,
}

impl Bank {
    /// The bank that was committed last.
    #[inline(always)]
    pub(crate) fn active() -> Option<Self> {
        let tables = TABLES.get_ptr(0)?;
        // SAFETY: an element of the map. The word is read at once and bounded before it is used.
        unsafe {
            let active = ((&raw const (*tables).active).read_volatile() & 1) as usize;
            Some(Self {
                header: (&raw const (*tables).headers).cast::<Header>().add(active),
                tables: (&raw const (*tables).banks).cast::<tables::Bank>().add(active),
            })
        }
    }

    /// What is read of the bank first.
    #[inline(always)]
    fn header(&self) -> &Header {
        // SAFETY: a map's element, of plain integers; user space writes it only while the bank is idle.
        unsafe { &*self.header }
    }

    /// How many workers are eligible.
    #[inline(always)]
    pub(crate) fn members_len(self) -> u32 {
        self.header().members_len
    }

    /// Whether connections are refused while no worker is eligible.
    #[inline(always)]
    pub(crate) fn refuses(self) -> bool {
        self.header().refuse != 0
    }

    /// After how long a worker that takes nothing is passed over.
    #[inline(always)]
    pub(crate) fn stall_after_ms(self) -> u32 {
        self.header().stall_after_ms
    }

    /// After how long the accept queue of a worker is looked at again.
    #[inline(always)]
    pub(crate) fn look_after_ms(self) -> u32 {
        self.header().look_after_ms
    }

    /// A member by its index below `members_len`.
    #[inline(always)]
    pub(crate) fn member(self, index: u32) -> Option<u32> {
        let index = below(index, MAX_WORKERS)?;
        // SAFETY: the index is within the array.
        Some(u32::from(unsafe { *(&raw const (*self.tables).members).cast::<u16>().add(index) }))
    }

    /// A member by its index, which goes on behind the last one with the first again, below twice `members_len`.
    #[inline(always)]
    pub(crate) fn member_around(self, index: u32) -> u32 {
        // SAFETY: the mask keeps the index within the array, whose length is a power of two.
        u32::from(unsafe {
            *(&raw const (*self.tables).members).cast::<u16>().add((index & (2 * MAX_WORKERS - 1)) as usize)
        })
    }

    /// A member that was not stalled or full when it was last looked at, the same for the same `choice` as long as that
    /// holds. Else the choice, when [`SEARCH`] members do not have one.
    #[inline(always)]
    fn healthy_member(self, loads: Loads, choice: u32) -> u32 {
        let len = self.members_len();
        let start = scale(mix(u64::from(choice)), len);
        for step in 0..SEARCH {
            if opaque(step) >= len {
                break;
            }
            let slot = self.member_around(start + step);
            if loads.unfit(slot) == 0 {
                return slot;
            }
        }
        choice
    }

    /// A slot of the weighted shares: the upper half of `random` decides.
    #[inline(always)]
    pub(crate) fn share(self, random: u64) -> Option<u32> {
        self.share_at(scale(random, self.header().shares_len))
    }

    /// A slot of the weighted shares, as round robin takes them.
    #[inline(always)]
    pub(crate) fn turn(self, ticket: u32) -> Option<u32> {
        self.share_at(ticket.checked_rem(self.header().shares_len)?)
    }

    #[inline(always)]
    fn share_at(self, index: u32) -> Option<u32> {
        let index = below(index, MAX_SHARES)?;
        // SAFETY: the index is within the array.
        Some(u32::from(unsafe { *(&raw const (*self.tables).shares).cast::<u16>().add(index) }))
    }

    /// Where the slots of a CPU's workers are in the list of all CPUs; an empty part where it has none.
    #[inline(always)]
    pub(crate) fn part_of(self, cpu: u32) -> Part {
        let Some(cpu) = below(cpu, MAX_CPUS) else { return Part::default() };
        // SAFETY: the index is within the array.
        unsafe { *(&raw const (*self.tables).cpus).cast::<Part>().add(cpu) }
    }

    /// A slot of that list.
    #[inline(always)]
    pub(crate) fn local(self, index: u32) -> Option<u32> {
        let index = below(index, MAX_SHARES)?;
        // SAFETY: the index is within the array.
        Some(u32::from(unsafe { *(&raw const (*self.tables).local).cast::<u16>().add(index) }))
    }

    /// The slot that the ring has for a hash.
    #[inline(always)]
    pub(crate) fn ring(self, hash: u64) -> Option<u32> {
        let index = below(scale(hash, self.header().ring_len), RING_ROOM as u32)?;
        // SAFETY: the index is within the array.
        Some(u32::from(unsafe { *(&raw const (*self.tables).ring).cast::<u16>().add(index) }))
    }

    /// The weight of the worker in `slot`.
    #[inline(always)]
    pub(crate) fn weight(self, slot: u32) -> u16 {
        // SAFETY: the mask keeps the slot within the array, whose length is a power of two.
        unsafe { *(&raw const (*self.tables).weights).cast::<u16>().add((slot & (MAX_WORKERS - 1)) as usize) }
    }

    /// How much workers may hold of `total` connections and a new one.
    #[inline(always)]
    pub(crate) fn bound(self, total: u64) -> Bound {
        let Header { balance_thousandths, weights_sum, .. } = self.header();
        Bound::new(*balance_thousandths, *weights_sum, total)
    }

    /// How many slots may have connections: all of those from 0 on.
    #[inline(always)]
    fn slots_len(self) -> u32 {
        self.header().slots_len
    }

    /// What is the same of the worker in `slot` each time that it is compared with others.
    #[inline(always)]
    pub(crate) fn constant(self, slot: u32) -> u64 {
        // SAFETY: the mask keeps the slot within the array, whose length is a power of two.
        unsafe {
            *(&raw const (*self.tables).constants).cast::<u64>().add((slot & (MAX_WORKERS - 1)) as usize)
        }
    }

    /// What the workers and the group have.
    #[inline(always)]
    pub(crate) fn sums(self, loads: Loads) -> Option<Sums> {
        Sums::now(loads, self.slots_len())
    }

    /// The flow hash for `user`.
    #[inline(always)]
    pub(crate) fn flow_hash(self, ctx: &SkReuseportContext, arrival: Arrival, user: HashUser) -> Option<u64> {
        let Header { masks, seed, .. } = self.header();
        key::hash(ctx, arrival, &masks[user as usize], *seed)
    }
}

/// See [`Bank::healthy_member`].
#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn healthy_member(choice: u32) -> u32 {
    let (Some(bank), Some(loads)) = (Bank::active(), Loads::now()) else { return choice };
    bank.healthy_member(loads, choice)
}

/// The index if it is below `len`, in a way that the verifier can follow.
///
/// LLVM would merge the comparison with what the index was computed by, and compare another register than the one
/// that becomes the offset.
#[inline(always)]
fn below(index: u32, len: u32) -> Option<usize> {
    let index = opaque(index) as usize;
    (index < len as usize).then_some(index)
}

/// The same number, of which LLVM knows nothing any more, but the verifier does.
///
/// The assembly moves it to itself: one that is empty would leave two entries of line information for one instruction,
/// and the verifier refuses that.
#[inline(always)]
pub(crate) fn opaque(number: u32) -> u32 {
    #[cfg_attr(not(target_arch = "bpf"), expect(unused_mut, reason = "the assembly is for BPF alone"))]
    let mut number = u64::from(number);
    #[cfg(target_arch = "bpf")]
    // SAFETY: changes nothing.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack));
    }
    number as u32
}

/// The hash for an attempt after the first: they are unrelated.
#[inline(always)]
fn rehash(hash: u64, attempt: u32) -> u64 {
    mix(hash.wrapping_add(u64::from(attempt)))
}
