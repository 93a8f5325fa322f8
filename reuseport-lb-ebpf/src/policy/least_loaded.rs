use aya_ebpf::programs::SkReuseportContext;
use reuseport_lb_ebpf::{
    flow::{mix, scale},
    least_loaded,
    limits::{MAX_SCAN, SAMPLES},
};

use super::{Bank, NO_SLOT, Policy, opaque, rehash, some};
use crate::{key::Arrival, load::Loads, summing::Sums};

/// From one random number to the next, of which the upper half is used: a multiplicative generator (Steele, Vigna,
/// "Computationally Easy, Spectrally Good Multipliers for Congruential Pseudorandom Number Generators", 2021).
const STEP: u64 = 0xf135_7aea_2e62_a9c5;

/// The worker with the least load for its weight: of all in a group of up to [`MAX_SCAN`], of [`SAMPLES`] in a
/// larger one.
pub(crate) struct LeastLoaded {
    bank: Bank,
    sums: Sums,
    /// The kernel's hash of the connection, which decides between equal loads.
    hash: u64,
}

impl Policy for LeastLoaded {
    #[inline(always)]
    fn prepare(ctx: &SkReuseportContext, _: Arrival, bank: Bank, loads: Loads) -> Option<Self> {
        Some(Self { bank, sums: bank.sums(loads)?, hash: mix(u64::from(ctx.hash())) })
    }

    #[inline(always)]
    fn choice(&self) -> Option<u32> {
        some(least_loaded(self.hash))
    }

    #[inline(always)]
    fn alternative(&self, attempt: u32) -> Option<u32> {
        // The load of a worker whose socket is gone, or which takes nothing, says nothing, so any other will do.
        self.bank.member(scale(rehash(self.hash, attempt), self.bank.members_len()))
    }

    #[inline(always)]
    fn selected(&self, slot: u32) {
        self.sums.selected(slot);
    }
}

/// The least loaded worker; [`NO_SLOT`] never happens.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn least_loaded(hash: u64) -> u32 {
    let (Some(bank), Some(sums)) = (Bank::active(), Sums::get()) else { return NO_SLOT };
    let key = |slot| least_loaded::key(sums.worker(slot), bank.constant(slot), slot, hash);
    let len = bank.members_len();
    let mut best = least_loaded::NONE;
    if len <= MAX_SCAN {
        for index in 0..MAX_SCAN {
            if index >= len {
                break;
            }
            best = lesser(best, key(bank.member_around(index)));
        }
    } else {
        let mut random = hash;
        for sample in 0..MAX_SCAN {
            // Unrolled, they would need more room on the stack than there is.
            if opaque(sample) >= SAMPLES {
                break;
            }
            let Some(slot) = bank.share(random) else { return NO_SLOT };
            best = lesser(best, key(slot));
            random = random.wrapping_mul(STEP);
        }
    }
    least_loaded::slot_of(best)
}

/// The lesser of two keys, without a branch: the CPU would guess it wrong each time that one is less than all before.
#[inline(always)]
fn lesser(one: i64, other: i64) -> i64 {
    let difference = other.wrapping_sub(one);
    // All ones if the other is less, else none. LLVM would know what this is for and make it a branch.
    #[cfg(not(target_arch = "bpf"))]
    let mask = difference >> (i64::BITS - 1);
    #[cfg(target_arch = "bpf")]
    let mask = {
        let mut mask = difference;
        // SAFETY: shifts a register.
        unsafe { core::arch::asm!("{0} s>>= 63", inout(reg) mask, options(pure, nomem, nostack)) };
        mask
    };
    one.wrapping_add(difference & mask)
}
