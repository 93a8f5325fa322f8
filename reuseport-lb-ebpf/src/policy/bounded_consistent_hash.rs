use aya_ebpf::programs::SkReuseportContext;
use reuseport_lb_ebpf::{balance::Bound, flow::scale, limits::MAX_WORKERS, tables::HashUser};

use super::{Bank, NO_SLOT, Policy, opaque, rehash, some};
use crate::{key::Arrival, load::Loads, summing::Sums};

/// How many choices a flow has by its hash. Where no flow is much heavier than the others, few workers are full, and one
/// of these is not. Where one source has most of the connections, most workers are full, and a search begins.
const CHOICES: u32 = 6;

/// How many of the attempts keep the bound when the choice is stalled. Then the bound gives way: a worker that is too
/// full is better than one that takes nothing.
const BOUNDED_ATTEMPTS: u32 = 4;

/// As [`ConsistentHash`](super::ConsistentHash), but no worker holds more than its part of all connections times the
/// balance factor: a flow whose worker is full has a second choice, a third, and so on, always the same.
pub(crate) struct BoundedConsistentHash {
    bank: Bank,
    loads: Loads,
    sums: Sums,
    bound: Bound,
    hash: u64,
}

impl Policy for BoundedConsistentHash {
    #[inline(always)]
    fn prepare(ctx: &SkReuseportContext, arrival: Arrival, bank: Bank, loads: Loads) -> Option<Self> {
        let hash = bank.flow_hash(ctx, arrival, HashUser::ConsistentHash)?;
        let sums = bank.sums(loads)?;
        // What becomes no connection takes no room.
        let bound = if matches!(arrival, Arrival::Stray) { Bound::NONE } else { bank.bound(sums.group()) };
        Some(Self { bank, loads, sums, bound, hash })
    }

    #[inline(always)]
    fn choice(&self) -> Option<u32> {
        self.bank.ring(self.hash)
    }

    #[inline(always)]
    fn reconsider(&self, choice: u32) -> Option<u32> {
        if self.has_room(choice) {
            return Some(choice);
        }
        // It is passed over in any case, but whether it is stalled should show.
        let _ = self.loads.takes_connections(choice, self.bank.look_after_ms(), self.bank.stall_after_ms());
        self.further_choice()
    }

    #[inline(always)]
    fn alternative(&self, attempt: u32) -> Option<u32> {
        self.bank.ring(rehash(self.hash, CHOICES + attempt))
    }

    #[inline(always)]
    fn admits(&self, attempt: u32, slot: u32) -> bool {
        attempt >= BOUNDED_ATTEMPTS || self.has_room(slot)
    }

    #[inline(always)]
    fn selected(&self, slot: u32) {
        self.sums.selected(slot);
        self.sums.selected_in_group();
    }
}

impl BoundedConsistentHash {
    /// The first of the flow's further choices that has room.
    #[inline(always)]
    fn further_choice(&self) -> Option<u32> {
        for choice in 1..CHOICES {
            let slot = self.bank.ring(rehash(self.hash, choice))?;
            if self.has_room(slot) {
                return Some(slot);
            }
        }
        // Further hashes would find the full workers again. All members, one after the other, are certain to find one
        // that has room, if only by one. Where it is stalled, the flow's first choice is as good as any.
        some(find_room(self.hash)).or_else(|| self.bank.ring(self.hash))
    }

    #[inline(always)]
    fn has_room(&self, slot: u32) -> bool {
        self.bound.admits(self.loads.get(slot), self.bank.weight(slot))
    }
}

/// The first member from the place of a flow's `hash` among them on that has room and is neither stalled nor full;
/// [`NO_SLOT`] when there is none.
#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn find_room(hash: u64) -> u32 {
    let (Some(bank), Some(loads)) = (Bank::active(), Loads::now()) else { return NO_SLOT };
    let Some(sums) = bank.sums(loads) else { return NO_SLOT };
    let bound = bank.bound(sums.group());
    let len = bank.members_len();
    let start = scale(rehash(hash, CHOICES), len);
    for step in 0..MAX_WORKERS {
        // LLVM would count down from the smaller of the two limits, which the verifier loses sight of.
        if opaque(step) >= len {
            break;
        }
        let slot = bank.member_around(start + step);
        let excess = bound.excess(loads.balance(slot), bank.weight(slot));
        // Without a branch of its own: what has an excess, and what is unfit, is not negative.
        if excess & (i64::from(loads.unfit(slot)) - 1) < 0 {
            return slot;
        }
    }
    NO_SLOT
}
