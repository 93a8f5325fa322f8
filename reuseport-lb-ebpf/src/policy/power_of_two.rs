use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, programs::SkReuseportContext};
use reuseport_lb_ebpf::{flow::mix, least_loaded};

use super::{Bank, Policy, rehash};
use crate::{key::Arrival, load::Loads, summing::Sums};

/// The less loaded of two workers picked at random (Mitzenmacher, "The Power of Two Choices in Randomized Load
/// Balancing").
pub(crate) struct PowerOfTwo {
    bank: Bank,
    sums: Sums,
    random: u64,
}

impl Policy for PowerOfTwo {
    #[inline(always)]
    fn prepare(_: &SkReuseportContext, _: Arrival, bank: Bank, loads: Loads) -> Option<Self> {
        // SAFETY: the helper takes nothing.
        let random = mix(u64::from(unsafe { bpf_get_prandom_u32() }));
        Some(Self { bank, sums: bank.sums(loads)?, random })
    }

    #[inline(always)]
    fn choice(&self) -> Option<u32> {
        self.lesser_of_two(self.random)
    }

    #[inline(always)]
    fn alternative(&self, attempt: u32) -> Option<u32> {
        self.lesser_of_two(rehash(self.random, attempt))
    }

    #[inline(always)]
    fn selected(&self, slot: u32) {
        self.sums.selected(slot);
    }
}

impl PowerOfTwo {
    #[inline(always)]
    fn lesser_of_two(&self, random: u64) -> Option<u32> {
        let first = self.bank.share(random)?;
        // The lower half of the random word is as good as the upper one.
        let second = self.bank.share(random << 32)?;
        Some(if self.weighted_load(first) <= self.weighted_load(second) { first } else { second })
    }

    /// The load that the worker would have with one more connection, by its weight.
    ///
    /// With the connection and not without: among idle workers the heavier one then comes first.
    #[inline(always)]
    fn weighted_load(&self, slot: u32) -> i64 {
        (i64::from(self.sums.worker(slot)) + 1) * least_loaded::cost(self.bank.constant(slot))
    }
}
