use aya_ebpf::programs::SkReuseportContext;
use reuseport_lb_ebpf::{balance::Bound, flow::scale, limits::MAX_WORKERS, tables::HashUser};

use super::{Bank, Policy, opaque, rehash};
use crate::{key::Arrival, load::Loads, total::Total};

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
    total: Total,
    bound: Bound,
    hash: u64,
    choice: u32,
}

impl Policy for BoundedConsistentHash {
    #[inline(always)]
    fn prepare(ctx: &SkReuseportContext, arrival: Arrival, bank: Bank, loads: Loads) -> Option<Self> {
        let hash = bank.flow_hash(ctx, arrival, HashUser::ConsistentHash)?;
        let total = Total::get()?;
        let first = bank.ring(hash)?;
        let mut this = Self { bank, loads, total, bound: Bound::new(1_000, 1, 0), hash, choice: first };
        if matches!(arrival, Arrival::Stray) {
            // It becomes no connection, so it takes no room.
            return Some(this);
        }
        this.bound = bank.bound(total.load(loads, bank.slots_len()));
        if this.has_room(first) {
            return Some(this);
        }
        this.choice = this.further_choice()?;
        // The first choice is passed over in any case, but whether it is stalled should show.
        let _ = loads.takes_connections(first, bank.look_after_ms(), bank.stall_after_ms());
        Some(this)
    }

    #[inline(always)]
    fn candidate(&self, attempt: u32) -> Option<u32> {
        if attempt == 0 { Some(self.choice) } else { self.bank.ring(rehash(self.hash, CHOICES + attempt)) }
    }

    #[inline(always)]
    fn admits(&self, attempt: u32, slot: u32) -> bool {
        attempt == 0 || attempt >= BOUNDED_ATTEMPTS || self.has_room(slot)
    }

    #[inline(always)]
    fn selected(&self) {
        self.total.selected();
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
        self.search().or_else(|| self.bank.ring(self.hash))
    }

    #[inline(always)]
    fn has_room(&self, slot: u32) -> bool {
        self.bound.admits(self.loads.get(slot), self.bank.weight(slot))
    }

    /// The first member from the flow's place among them on that has room and is neither stalled nor full.
    #[inline(always)]
    fn search(&self) -> Option<u32> {
        let len = self.bank.members_len();
        let start = scale(rehash(self.hash, CHOICES), len);
        for step in 0..MAX_WORKERS {
            // LLVM would count down from the smaller of the two limits, which the verifier loses sight of.
            if opaque(step) >= len {
                break;
            }
            let slot = self.bank.member_around(start + step);
            let excess = self.bound.excess(self.loads.balance(slot), self.bank.weight(slot));
            // Without a branch of its own: what has an excess, and what is passed over, is not negative.
            if excess & (i64::from(self.loads.passed_over(slot)) - 1) < 0 {
                return Some(slot);
            }
        }
        None
    }
}
