use aya_ebpf::programs::SkReuseportContext;
use reuseport_lb_ebpf::{
    flow::{mix, scale},
    limits::{MAX_SCAN, SAMPLES},
};

use super::{Bank, Policy};
use crate::{key::Arrival, load::Loads};

/// The worker with the least load for its weight: of all in a group of up to [`MAX_SCAN`], of [`SAMPLES`] in a
/// larger one.
pub(crate) struct LeastLoaded {
    bank: Bank,
    loads: Loads,
    /// The kernel's hash of the connection, which decides between equal loads.
    hash: u64,
}

impl Policy for LeastLoaded {
    #[inline(always)]
    fn prepare(ctx: &SkReuseportContext, _: Arrival, bank: Bank, loads: Loads) -> Option<Self> {
        Some(Self { bank, loads, hash: mix(u64::from(ctx.hash())) })
    }

    #[inline(always)]
    fn candidate(&self, attempt: u32) -> Option<u32> {
        let len = self.bank.members_len();
        if attempt > 0 {
            // The load of a worker whose socket is gone says nothing, so any other will do.
            return self.bank.member(scale(mix(self.hash.wrapping_add(u64::from(attempt))), len));
        }
        let mut best = Best::none();
        if len <= MAX_SCAN {
            for index in 0..MAX_SCAN {
                if index >= len {
                    break;
                }
                self.compare(&mut best, self.bank.member(index)?);
            }
        } else {
            for sample in 0..SAMPLES {
                self.compare(&mut best, self.bank.share(mix(self.hash.wrapping_add(u64::from(sample))))?);
            }
        }
        Some(best.slot)
    }
}

impl LeastLoaded {
    #[inline(always)]
    fn compare(&self, best: &mut Best, slot: u32) {
        let load = self.bank.weighted_load(self.loads, slot);
        // Short connections all tie at zero. A rank by flow and slot breaks ties for each connection anew, so that
        // none of the workers is favoured.
        let rank = (self.hash ^ u64::from(slot)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if load < best.load || load == best.load && rank < best.rank {
            *best = Best { load, rank, slot };
        }
    }
}

struct Best {
    load: u64,
    rank: u64,
    slot: u32,
}

impl Best {
    #[inline(always)]
    const fn none() -> Self {
        Self { load: u64::MAX, rank: u64::MAX, slot: 0 }
    }
}
