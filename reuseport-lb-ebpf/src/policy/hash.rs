use aya_ebpf::programs::SkReuseportContext;
use reuseport_lb_ebpf::tables::HashUser;

use super::{Bank, Policy, rehash};
use crate::{key::Arrival, load::Loads};

/// The flow's hash over the eligible workers, by weight.
pub(crate) struct Hash {
    bank: Bank,
    hash: u64,
}

impl Policy for Hash {
    #[inline(always)]
    fn prepare(ctx: &SkReuseportContext, arrival: Arrival, bank: Bank, _: Loads) -> Option<Self> {
        Some(Self { bank, hash: bank.flow_hash(ctx, arrival, HashUser::Hash)? })
    }

    #[inline(always)]
    fn choice(&self) -> Option<u32> {
        self.bank.share(self.hash)
    }

    #[inline(always)]
    fn alternative(&self, attempt: u32) -> Option<u32> {
        self.bank.share(rehash(self.hash, attempt))
    }
}
