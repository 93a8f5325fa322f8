//! What is counted of a worker.

use crate::{
    assert_layout,
    limits::{EPOCH_SHIFT, MAX_WORKERS},
};

/// What the programs know of one worker: a cache line of its own, since programs on all CPUs change it.
///
/// The counters only grow, by atomic additions; what is between them is what counts.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections that were established, or moved here.
    pub established: u64,
    /// Those of them that were closed, or moved away.
    pub closed: u64,
    /// Selections still in their handshake, by the parity of the epoch of their selection.
    pub pending: [u64; 2],
    /// The epoch that the entry of `pending` belongs to.
    pub pending_epoch: [u32; 2],
    /// Connections that had left the accept queue when it was last looked at.
    pub accepted: u64,
    /// When the accept queue was last looked at, in milliseconds of the monotonic clock, as all times here.
    pub checked_at_ms: u32,
    /// When the worker was last seen to take a connection, or to have none to take.
    pub progress_at_ms: u32,
    /// The length of the accept queue at which it is full.
    pub backlog: u32,
    /// 1 while the worker takes nothing from an accept queue that is not empty, else 0.
    pub stalled: u32,
}

assert_layout!(Load, size: 64, align: 64, fields: {
    established: u64,
    closed: u64,
    pending: [u64; 2],
    pending_epoch: [u32; 2],
    accepted: u64,
    checked_at_ms: u32,
    progress_at_ms: u32,
    backlog: u32,
    stalled: u32,
});

impl Load {
    /// Connections that are open.
    #[inline(always)]
    pub const fn active(&self) -> u64 {
        // Read one after the other while other CPUs count, so the later one may be ahead.
        self.established.saturating_sub(self.closed)
    }

    /// The selections still in their handshake, at `epoch`. What was selected before the previous epoch is taken
    /// for dead.
    ///
    /// Signed in between: when an epoch begins, two CPUs may both set its count to zero, and lose an addition whose
    /// subtraction then comes. That error ends with the epoch.
    #[inline(always)]
    pub const fn pending_at(&self, epoch: u32) -> u64 {
        let mut sum = 0_i64;
        if epoch.wrapping_sub(self.pending_epoch[0]) <= 1 {
            sum += self.pending[0].cast_signed();
        }
        if epoch.wrapping_sub(self.pending_epoch[1]) <= 1 {
            sum += self.pending[1].cast_signed();
        }
        if sum < 0 { 0 } else { sum.cast_unsigned() }
    }
}

/// The epoch at a time of `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub const fn epoch(monotonic_ns: u64) -> u32 {
    (monotonic_ns >> EPOCH_SHIFT) as u32
}

/// Milliseconds, near enough to compare with a limit: a shift by 20 bits in place of a division.
#[inline(always)]
pub const fn milliseconds(ns: u64) -> u32 {
    (ns >> 20) as u32
}

/// A stall time in the milliseconds of [`milliseconds`]: at least one, unless it is zero.
pub const fn stall_milliseconds(stall_after: core::time::Duration) -> u32 {
    if stall_after.is_zero() {
        return 0;
    }
    let ns = stall_after.as_nanos();
    let ns = if ns > u64::MAX as u128 { u64::MAX } else { ns as u64 };
    match milliseconds(ns) {
        0 => 1,
        ms => ms,
    }
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

    fn load(pending: [u64; 2], pending_epoch: [u32; 2]) -> Load {
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
    fn active_is_what_was_not_closed() {
        assert_eq!(Load { established: 5, closed: 3, ..Load::default() }.active(), 2);
        assert_eq!(Load { established: 5, closed: 6, ..Load::default() }.active(), 0);
    }

    #[test]
    fn a_lost_addition_never_shows_as_a_huge_load() {
        assert_eq!(load([1_u64.wrapping_neg(), 0], [10, 9]).pending_at(10), 0);
    }
}
