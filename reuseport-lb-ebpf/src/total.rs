//! The load of the whole group, for the program that bounds each worker's by it.
//!
//! A sum over all workers for each connection would cost what a scan costs. So the sum is taken now and then, and what
//! comes and goes in between is added to it. Additions of other CPUs while the sum is taken may be lost; the next sum
//! has them.

use reuseport_lb_ebpf::{balance, limits::MAX_WORKERS};

use crate::{
    load::{self, Loads},
    maps::TOTAL,
    policy::opaque,
};

/// After how many milliseconds the sum is taken anew. A sum over 1,024 workers takes some microseconds, so this is a
/// few ten-thousandths of one CPU, and for longer than this nothing is counted wrong.
const SUM_AGAIN_MS: u32 = 100;

/// The load of the whole group.
#[derive(Clone, Copy)]
pub(crate) struct Total(*mut balance::Total);

impl Total {
    /// The one that there is.
    #[inline(always)]
    pub(crate) fn get() -> Option<Self> {
        TOTAL.get_ptr_mut(0).map(Self)
    }

    /// The load of all `slots_len` workers together.
    #[inline(always)]
    pub(crate) fn load(self, loads: Loads, slots_len: u32) -> u64 {
        // SAFETY: an element of the map, which lives as long as the program. Each word is read at once.
        let (load, summed_at_ms) = unsafe {
            ((&raw const (*self.0).load).read_volatile(), (&raw const (*self.0).summed_at_ms).read_volatile())
        };
        if loads.now_ms().wrapping_sub(summed_at_ms) < SUM_AGAIN_MS {
            // A lost addition whose subtraction then came must not look like a huge load.
            return if load.cast_signed() < 0 { 0 } else { load };
        }
        let mut sum = 0_i64;
        for slot in 0..MAX_WORKERS {
            if opaque(slot) >= slots_len {
                break;
            }
            sum += loads.balance(slot);
        }
        let sum = if sum < 0 { 0 } else { sum.cast_unsigned() };
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.0).load).write_volatile(sum);
            (&raw mut (*self.0).summed_at_ms).write_volatile(loads.now_ms());
        }
        sum
    }

    /// One connection more.
    #[inline(always)]
    pub(crate) fn selected(self) {
        // SAFETY: an element of the map.
        unsafe { load::add(&raw mut (*self.0).load, 1) };
    }

    /// One connection less.
    #[inline(always)]
    pub(crate) fn closed() {
        let Some(Self(total)) = Self::get() else { return };
        // SAFETY: an element of the map.
        unsafe {
            if (&raw const (*total).counting).read_volatile() != 0 {
                load::add(&raw mut (*total).load, 1_u64.wrapping_neg());
            }
        }
    }
}
