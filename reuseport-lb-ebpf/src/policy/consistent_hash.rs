use aya_ebpf::programs::SkReuseportContext;
use reuseport_lb_ebpf::tables::HashUser;

use super::{Bank, Policy, rehash};
use crate::{key::Arrival, load::Loads};

/// The flow's place in the ring, of which only the fewest possible entries change when workers come and go.
pub(crate) struct ConsistentHash {
    bank: Bank,
    hash: u64,
}

impl Policy for ConsistentHash {
    #[inline(always)]
    fn prepare(ctx: &SkReuseportContext, arrival: Arrival, bank: Bank, _: Loads) -> Option<Self> {
        Some(Self { bank, hash: bank.flow_hash(ctx, arrival, HashUser::ConsistentHash)? })
    }

    #[inline(always)]
    fn choice(&self) -> Option<u32> {
        self.bank.ring(self.hash)
    }

    #[inline(always)]
    fn alternative(&self, attempt: u32) -> Option<u32> {
        self.bank.ring(rehash(self.hash, attempt))
    }
}
