use aya_ebpf::programs::SkReuseportContext;
use reuseport_lb_ebpf::{
    flow::{mix, scale},
    least_loaded,
    limits::{MAX_SCAN, SAMPLES},
};

use super::{Bank, Policy};
use crate::{key::Arrival, load::Loads};

/// From one random number to the next, of which the upper half is used: a multiplicative generator (Steele, Vigna,
/// "Computationally Easy, Spectrally Good Multipliers for Congruential Pseudorandom Number Generators", 2021).
const STEP: u64 = 0xf135_7aea_2e62_a9c5;

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
        let mut best = u64::MAX;
        if len <= MAX_SCAN {
            for index in 0..MAX_SCAN {
                if index >= len {
                    break;
                }
                best = lesser(best, self.key(self.bank.member_around(index)));
            }
        } else {
            let mut random = self.hash;
            for _ in 0..SAMPLES {
                best = lesser(best, self.key(self.bank.share(random)?));
                random = random.wrapping_mul(STEP);
            }
        }
        Some(least_loaded::slot_of(best))
    }
}

impl LeastLoaded {
    /// What the workers are compared by.
    #[inline(always)]
    fn key(&self, slot: u32) -> u64 {
        least_loaded::key(self.loads.balance(slot), self.bank.cost(slot), slot, self.hash)
    }
}

#[inline(always)]
const fn lesser(one: u64, other: u64) -> u64 {
    if one < other { one } else { other }
}
