use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, programs::SkReuseportContext};
use reuseport_lb_ebpf::flow::mix;

use super::{Bank, Policy, rehash};
use crate::{key::Arrival, load::Loads};

/// The less loaded of two workers picked at random (Mitzenmacher, "The Power of Two Choices in Randomized Load
/// Balancing").
pub(crate) struct PowerOfTwo {
    bank: Bank,
    loads: Loads,
    random: u64,
}

impl Policy for PowerOfTwo {
    #[inline(always)]
    fn prepare(_: &SkReuseportContext, _: Arrival, bank: Bank, loads: Loads) -> Option<Self> {
        // SAFETY: the helper takes nothing.
        let random = mix(u64::from(unsafe { bpf_get_prandom_u32() }));
        Some(Self { bank, loads, random })
    }

    #[inline(always)]
    fn candidate(&self, attempt: u32) -> Option<u32> {
        let random = rehash(self.random, attempt);
        let first = self.bank.share(random)?;
        // The lower half of the random word is as good as the upper one.
        let second = self.bank.share(random << 32)?;
        let (one, other) =
            (self.bank.weighted_load(self.loads, first), self.bank.weighted_load(self.loads, second));
        Some(if one <= other { first } else { second })
    }
}
