use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, programs::SkReuseportContext};
use reuseport_lb_ebpf::flow::mix;

use super::{Bank, Policy, rehash};
use crate::{key::Arrival, load::Loads};

/// Any worker, by weight.
pub(crate) struct Random {
    bank: Bank,
    random: u64,
}

impl Policy for Random {
    #[inline(always)]
    fn prepare(_: &SkReuseportContext, _: Arrival, bank: Bank, _: Loads) -> Option<Self> {
        // SAFETY: the helper takes nothing.
        Some(Self { bank, random: mix(u64::from(unsafe { bpf_get_prandom_u32() })) })
    }

    #[inline(always)]
    fn choice(&self) -> Option<u32> {
        self.bank.share(self.random)
    }

    #[inline(always)]
    fn alternative(&self, attempt: u32) -> Option<u32> {
        self.bank.share(rehash(self.random, attempt))
    }
}
