//! What is counted of a worker.

use crate::{
    assert_layout,
    limits::{EPOCH_SHIFT, MAX_WORKERS},
};

/// The load of one worker, changed with atomic additions by programs on all CPUs: a cache line of its own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections that are established and not yet closed.
    pub active: u64,
    /// Selections still in their handshake, by the parity of the epoch of their selection.
    pub pending: [u64; 2],
    /// The epoch that the entry of `pending` belongs to.
    pub pending_epoch: [u64; 2],
    /// Fills the cache line.
    pub reserved: [u64; 3],
}

assert_layout!(Load, size: 64, align: 64, fields: {
    active: u64,
    pending: [u64; 2],
    pending_epoch: [u64; 2],
    reserved: [u64; 3],
});

impl Load {
    /// The selections still in their handshake, at `epoch`. What was selected before the previous epoch is taken
    /// for dead.
    ///
    /// Signed in between: when an epoch begins, two CPUs may both set its count to zero, and lose an addition whose
    /// subtraction then comes. That error ends with the epoch.
    #[inline(always)]
    pub const fn pending_at(&self, epoch: u64) -> u64 {
        let mut sum = 0_i64;
        if self.pending_epoch[0].wrapping_add(1) >= epoch {
            sum += self.pending[0].cast_signed();
        }
        if self.pending_epoch[1].wrapping_add(1) >= epoch {
            sum += self.pending[1].cast_signed();
        }
        if sum < 0 { 0 } else { sum.cast_unsigned() }
    }
}

/// The epoch at a time of `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub const fn epoch(monotonic_ns: u64) -> u64 {
    monotonic_ns >> EPOCH_SHIFT
}

/// The value of the one element of map `WORKERS`: the load by slot.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// By slot.
    pub loads: [Load; MAX_WORKERS as usize],
}

assert_layout!(Workers, size: 64 * MAX_WORKERS as usize, align: 64, fields: {
    loads: [Load; MAX_WORKERS as usize],
});

/// The connections that a worker was given; one copy a CPU, since no program reads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selections {
    /// By the policy.
    pub selected: u64,
    /// Because the socket that they waited on was closed.
    pub migrated_in: u64,
}

assert_layout!(Selections, size: 16, align: 8, fields: { selected: u64, migrated_in: u64 });

/// What a socket remembers: a listener by the daemon's hand, a child as a copy of its listener's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The slot of the listener.
    pub slot: u32,
    /// 1 while the connection counts as active, else 0: no state can be counted twice, or down before up.
    pub counted: u32,
}

assert_layout!(Owner, size: 8, align: 4, fields: { slot: u32, counted: u32 });

#[cfg(test)]
mod tests {
    use super::*;

    fn load(pending: [u64; 2], pending_epoch: [u64; 2]) -> Load {
        Load { pending, pending_epoch, ..Load::default() }
    }

    #[test]
    fn pending_counts_this_epoch_and_the_last() {
        assert_eq!(load([3, 4], [10, 11]).pending_at(11), 7);
    }

    #[test]
    fn pending_forgets_what_is_older() {
        assert_eq!(load([3, 4], [10, 11]).pending_at(12), 4);
        assert_eq!(load([3, 4], [10, 11]).pending_at(13), 0);
        assert_eq!(load([0, 0], [0, 0]).pending_at(1_000), 0);
    }

    #[test]
    fn a_lost_addition_never_shows_as_a_huge_load() {
        assert_eq!(load([1_u64.wrapping_neg(), 0], [10, 9]).pending_at(10), 0);
    }
}
