//! The sums that policies compare workers by, taken now and then and kept up in between.

use reuseport_lb_ebpf::{
    least_loaded::MAX_LOAD,
    limits::MAX_WORKERS,
    sums::{self, SUM_AGAIN_MS},
};

use crate::{
    load::{self, Loads},
    maps::SUMS,
    policy::opaque,
};

/// What each worker and the group have: open connections, and handshakes in flight.
#[derive(Clone, Copy)]
pub(crate) struct Sums(*mut sums::Sums);

impl Sums {
    /// The sums over `slots_len` workers, not older than [`SUM_AGAIN_MS`].
    #[inline(always)]
    pub(crate) fn now(loads: Loads, slots_len: u32) -> Option<Self> {
        let sums = Self::get()?;
        // SAFETY: an element of the map, which lives as long as the program. The word is read at once.
        let taken_at_ms = unsafe { (&raw const (*sums.0).taken_at_ms).read_volatile() };
        if loads.now_ms().wrapping_sub(taken_at_ms) >= SUM_AGAIN_MS {
            take_sums(slots_len);
        }
        Some(sums)
    }

    /// The sums as they are.
    #[inline(always)]
    pub(crate) fn get() -> Option<Self> {
        SUMS.get_ptr_mut(0).map(Self)
    }

    /// What the group has.
    #[inline(always)]
    pub(crate) fn group(self) -> u64 {
        // SAFETY: as in `now`.
        let sum = unsafe { (&raw const (*self.0).group).read_volatile() };
        if sum < 0 { 0 } else { sum.cast_unsigned() }
    }

    /// What the worker in `slot` has.
    #[inline(always)]
    pub(crate) fn worker(self, slot: u32) -> i32 {
        // SAFETY: as in `now`.
        unsafe { worker(self.0, slot).read_volatile() }
    }

    /// One connection more for the worker in `slot`.
    #[inline(always)]
    pub(crate) fn selected(self, slot: u32) {
        // SAFETY: a word of an element of the map.
        unsafe { load::add_short(worker(self.0, slot).cast(), 1) };
    }

    /// One more for the group, where that is of interest: all CPUs write this one word.
    #[inline(always)]
    pub(crate) fn selected_in_group(self) {
        // SAFETY: as in `selected`.
        unsafe { load::add((&raw mut (*self.0).group).cast(), 1) };
    }

    /// One connection less, whichever program runs.
    #[inline(always)]
    pub(crate) fn closed(slot: u32) {
        let Some(Self(sums)) = Self::get() else { return };
        // SAFETY: as in `selected`.
        unsafe {
            if (&raw const (*sums).needed).read_volatile() != 0 {
                load::add_short(worker(sums, slot).cast(), 1_u32.wrapping_neg());
                load::add((&raw mut (*sums).group).cast(), 1_u64.wrapping_neg());
            }
        }
    }
}

#[inline(always)]
fn worker(sums: *mut sums::Sums, slot: u32) -> *mut i32 {
    // SAFETY: the mask keeps the slot within the array, whose length is a power of two.
    unsafe { (&raw mut (*sums).workers).cast::<i32>().add((slot & (MAX_WORKERS - 1)) as usize) }
}

/// Takes the sums over `slots_len` workers anew.
///
/// A global function: the verifier follows it once, whoever calls it. Such a one must return a number.
#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn take_sums(slots_len: u32) -> u32 {
    let (Some(sums), Some(loads)) = (SUMS.get_ptr_mut(0), Loads::now()) else { return 0 };
    let mut group = 0;
    for slot in 0..MAX_WORKERS {
        if opaque(slot) >= slots_len {
            break;
        }
        let sum = loads.balance(slot);
        group += sum;
        // SAFETY: as in `Sums::selected`; only programs of this group write here, and each writes whole words.
        unsafe { worker(sums, slot).write_volatile(if sum > MAX_LOAD { MAX_LOAD } else { sum } as i32) };
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*sums).group).write_volatile(group);
        (&raw mut (*sums).taken_at_ms).write_volatile(loads.now_ms());
    }
    0
}
