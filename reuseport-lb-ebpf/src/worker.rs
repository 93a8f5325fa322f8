//! What is counted of a worker.

use crate::{
    assert_layout,
    health::NEVER,
    limits::{HANDSHAKE_MS, MAX_WORKERS},
};

/// What the programs know of one worker: a cache line of its own, since programs on all CPUs change it, and all of
/// it in this one, since a line that is not in the cache costs more than everything that is done with it.
///
/// The counters only grow, by atomic additions; what is between them is what counts.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections that the policy gave to the worker.
    pub selected: u64,
    /// Connections that were established, or moved here afterwards.
    pub established: u64,
    /// Those of them that were closed, or moved away.
    pub closed: u64,
    /// Connections that had left the accept queue when it was last looked at.
    pub accepted: u64,
    /// Connections that came here because the socket which they waited on was closed, as a number of 32 bits.
    pub migrated_in: u32,
    /// Connections that were given to the worker and will never be established, as a number of 32 bits: the
    /// handshake died, or moved away, or the packet was one sent again. See [`Load::pending_at`].
    pub abandoned: u32,
    /// When the accept queue was last looked at, in milliseconds of the monotonic clock, as all times here.
    pub checked_at_ms: u32,
    /// When the worker was last seen to take a connection, or to have none to take.
    pub progress_at_ms: u32,
    /// For how many milliseconds after that look what it saw holds, unless [`room_until`](Self::room_until) ends that.
    pub look_after_ms: u32,
    /// Up to which [`selected`](Self::selected), as a number of 32 bits, the accept queue cannot be full: it has room for
    /// all that are given until then, even if the worker takes none.
    pub room_until: u32,
    /// Why the worker should not be given connections, by the last look: [`STALLED`], [`FULL`], both or neither.
    pub unfit: u32,
    /// Open connections that came from a listener of this slot and have moved to another one: what their socket storage
    /// says is not where they are. As a number of 32 bits.
    pub moved_out: u32,
}

/// In [`Load::unfit`]: the worker takes nothing from an accept queue that is not empty.
pub const STALLED: u32 = 1;
/// In [`Load::unfit`]: one more connection would have found the accept queue full.
pub const FULL: u32 = 2;

assert_layout!(Load, size: 64, align: 64, fields: {
    selected: u64,
    established: u64,
    closed: u64,
    accepted: u64,
    migrated_in: u32,
    abandoned: u32,
    checked_at_ms: u32,
    progress_at_ms: u32,
    look_after_ms: u32,
    room_until: u32,
    unfit: u32,
    moved_out: u32,
});

impl Load {
    /// Connections that are open.
    #[inline(always)]
    pub const fn active(&self) -> u64 {
        // Read one after the other while other CPUs count, so the later one may be ahead.
        self.established.saturating_sub(self.closed)
    }

    /// Whether the worker has taken nothing from an accept queue that is not empty.
    #[inline(always)]
    pub const fn is_stalled(&self) -> bool {
        self.unfit & STALLED != 0
    }

    /// Whether it has no connection and no handshake, if the last look is not too old to know.
    #[inline(always)]
    pub const fn is_idle(&self) -> bool {
        self.established == self.closed && self.given() == self.abandoned
    }

    /// Connections still in their handshake.
    ///
    /// What was given to the worker is established in the end, or abandoned. How many are abandoned shows when the
    /// listening socket is looked at, which knows the handshakes that it holds ([`Load::abandoned_of`]). So what
    /// this says is right for as long as the look is not too old: a worker that was not looked at for
    /// [`HANDSHAKE_MS`] was not picked for as long, and has none.
    #[inline(always)]
    pub const fn pending_at(&self, now_ms: u32) -> u64 {
        if now_ms.wrapping_sub(self.checked_at_ms) > HANDSHAKE_MS {
            return 0;
        }
        let pending = self.given().wrapping_sub(self.abandoned).cast_signed();
        if pending < 0 { 0 } else { pending as u64 }
    }

    /// Open connections and handshakes, at a moment at which all is counted. While other CPUs count, it may be off by what
    /// they count, and even below zero.
    ///
    /// Without a branch, for loops over all workers: the verifier follows every path through them.
    #[inline(always)]
    pub const fn balance_at(&self, now_ms: u32) -> i64 {
        let age_ms = now_ms.wrapping_sub(self.checked_at_ms) as i64;
        // All ones while handshakes count, then none.
        let handshakes = (age_ms - HANDSHAKE_MS as i64 - 1) >> 63;
        let pending = self.given().wrapping_sub(self.abandoned).cast_signed() as i64;
        self.established.wrapping_sub(self.closed).cast_signed() + (pending & handshakes)
    }

    /// What [`Load::abandoned`] must be for [`Load::pending_at`] to say `handshakes`.
    ///
    /// Other CPUs count meanwhile. When `established` was read first, then `handshakes`, then the rest, what is in
    /// between can only make this too large, and the pending too few: never does a worker seem to have handshakes
    /// that are over.
    #[inline(always)]
    pub const fn abandoned_of(&self, handshakes: u32) -> u32 {
        self.given().wrapping_sub(handshakes)
    }

    /// Connections that were given to the worker and are not established, as a number of 32 bits.
    #[inline(always)]
    const fn given(&self) -> u32 {
        (self.selected.wrapping_sub(self.established) as u32).wrapping_add(self.migrated_in)
    }
}

/// Milliseconds, near enough to compare with a limit: a shift by 20 bits in place of a division.
#[inline(always)]
pub const fn milliseconds(ns: u64) -> u32 {
    (ns >> 20) as u32
}

/// A stall time in the milliseconds of [`milliseconds`]: at least one, unless it is zero, which means
/// [never](crate::health::NEVER).
pub const fn stall_milliseconds(stall_after: core::time::Duration) -> u32 {
    if stall_after.is_zero() {
        return NEVER;
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

    const NOW_MS: u32 = 1_000_000;

    fn load(selected: u64, migrated_in: u32, established: u64, abandoned: u32) -> Load {
        Load { selected, migrated_in, established, abandoned, checked_at_ms: NOW_MS, ..Load::default() }
    }

    #[test]
    fn pending_is_what_was_given_and_has_not_ended() {
        assert_eq!(load(10, 2, 7, 1).pending_at(NOW_MS), 4);
        let wrapped = load((1 << 40) + 1, u32::MAX, (1 << 40) - 5, 2);
        assert_eq!(wrapped.pending_at(NOW_MS), 3);
    }

    #[test]
    fn a_look_corrects_what_is_pending() {
        let mut load = load(10, 2, 7, 0);
        load.abandoned = load.abandoned_of(3);
        assert_eq!(load.pending_at(NOW_MS), 3);
        load.established += 3;
        assert_eq!(load.pending_at(NOW_MS), 0);
    }

    #[test]
    fn what_was_seen_between_two_counts_never_shows_as_a_huge_load() {
        assert_eq!(load(10, 0, 9, 2).pending_at(NOW_MS), 0);
    }

    #[test]
    fn the_balance_is_the_load_when_nobody_counts() {
        for (now_ms, load) in [
            (NOW_MS, load(10, 2, 7, 1)),
            (NOW_MS + HANDSHAKE_MS, Load { closed: 3, ..load(10, 0, 7, 1) }),
            (NOW_MS + HANDSHAKE_MS + 1, Load { closed: 3, ..load(10, 0, 7, 1) }),
            (NOW_MS, load((1 << 40) + 1, u32::MAX, (1 << 40) - 5, 2)),
        ] {
            assert_eq!(load.balance_at(now_ms) as u64, load.active() + load.pending_at(now_ms), "{load:?}");
        }
        assert_eq!(Load { closed: 2, established: 1, selected: 1, ..Load::default() }.balance_at(0), -1);
    }

    #[test]
    fn handshakes_age() {
        assert_eq!(load(3, 0, 0, 0).pending_at(NOW_MS + HANDSHAKE_MS), 3);
        assert_eq!(load(3, 0, 0, 0).pending_at(NOW_MS + HANDSHAKE_MS + 1), 0);
    }

    #[test]
    fn active_is_what_was_not_closed() {
        assert_eq!(Load { established: 5, closed: 3, ..Load::default() }.active(), 2);
        assert_eq!(Load { established: 5, closed: 6, ..Load::default() }.active(), 0);
    }
}
