//! Whether a worker takes the connections that it is given.
//!
//! The accept queue tells, and it can be read in the kernel at the moment of the choice. What was established less
//! what waits is what the worker has accepted: while that stands still and connections wait, the worker is stalled.

use crate::{
    limits::{IDLE_LOOK_MS, LOOK_MS},
    worker::{FULL, Load, STALLED},
};

/// After how many milliseconds the accept queue of a worker is looked at again, for a stall time: a quarter of it.
///
/// Looking costs four reads of kernel memory, about as much as the whole selection, so it is not done each time. A
/// stall is then seen after 1 to 1.25 times the stall time, and its end within a quarter of it.
pub const fn look_after_ms(stall_after_ms: u32) -> u32 {
    if stall_after_ms == NEVER { LOOK_MS } else { stall_after_ms >> 2 }
}

/// The stall time that never comes.
pub const NEVER: u32 = u32::MAX;

/// An accept queue at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// How many connections wait.
    pub depth: u32,
    /// How many may wait: at more, the kernel drops handshakes.
    pub backlog: u32,
    /// How many handshakes the listening socket holds, which will join the queue.
    pub handshakes: u32,
}

/// What a look at the accept queue says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The new [`Load::accepted`].
    pub accepted: u64,
    /// The new [`Load::progress_at_ms`].
    pub progress_at_ms: u32,
    /// The new [`Load::look_after_ms`].
    pub look_after_ms: u32,
    /// The new [`Load::unfit`].
    pub unfit: u32,
    /// How many more connections the queue has room for; below zero when it is full.
    pub room: i32,
}

/// Whether what the last look saw still holds: it is not too old, and the queue cannot have filled since.
#[inline(always)]
pub const fn is_recent(load: &Load, now_ms: u32) -> bool {
    has_room(load) && now_ms.wrapping_sub(load.checked_at_ms) <= load.look_after_ms
}

/// Whether it holds although it is older, since the worker is idle. Less often looked at, it is only so that its
/// handshakes go on to count.
///
/// Whoever has no connection has none that waits, unless it was reset while it waited; those are seen once they fill
/// the queue.
#[inline(always)]
pub const fn is_idle(load: &Load, now_ms: u32) -> bool {
    has_room(load)
        && !load.is_stalled()
        && load.is_idle()
        && now_ms.wrapping_sub(load.checked_at_ms) <= IDLE_LOOK_MS
}

/// Whether the queue has room for what was given since the last look, even if the worker has taken nothing.
#[inline(always)]
const fn has_room(load: &Load) -> bool {
    load.room_until.wrapping_sub(load.selected as u32).cast_signed() >= 0
}

/// Judges a worker by its accept queue.
#[inline(always)]
pub const fn judge(
    load: &Load,
    queue: Queue,
    now_ms: u32,
    look_after_ms: u32,
    stall_after_ms: u32,
) -> Verdict {
    let accepted = load.established.saturating_sub(queue.depth as u64);
    let first_look = load.checked_at_ms == 0;
    // A connection joins the queue a moment before it is counted as established, so `accepted` may seem to go back
    // by one; only going on is progress.
    let progress = first_look || queue.depth == 0 || accepted > load.accepted;
    let progress_at_ms = if progress { now_ms } else { load.progress_at_ms };
    // Without progress since, the worker is stalled then.
    let left_ms = stall_after_ms.saturating_sub(now_ms.wrapping_sub(progress_at_ms));
    let stalled = left_ms == 0;
    let room = queue.backlog as i64 - queue.depth as i64 - queue.handshakes as i64;
    let full = room < 0;
    Verdict {
        accepted: if accepted > load.accepted { accepted } else { load.accepted },
        progress_at_ms,
        // The look that sees the stall is due the moment that it is one.
        look_after_ms: if progress || stalled || look_after_ms < left_ms {
            look_after_ms
        } else {
            left_ms - 1
        },
        unfit: if stalled { STALLED } else { 0 } | if full { FULL } else { 0 },
        room: if room > i32::MAX as i64 { i32::MAX } else { room as i32 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HANDSHAKE_MS;

    const STALL_AFTER_MS: u32 = 50;
    const BACKLOG: u32 = 128;

    const fn queue(depth: u32, handshakes: u32) -> Queue {
        Queue { depth, backlog: BACKLOG, handshakes }
    }

    const fn judged(load: &Load, queue: Queue, now_ms: u32) -> Verdict {
        judge(load, queue, now_ms, look_after_ms(STALL_AFTER_MS), STALL_AFTER_MS)
    }

    /// A worker whose queue is looked at from time to time.
    #[derive(Default)]
    struct Observed(Load);

    impl Observed {
        fn new() -> Self {
            Self::default()
        }

        /// After `established` connections altogether, `depth` of them wait. Says whether it is stalled.
        fn look(&mut self, now_ms: u32, established: u64, depth: u32) -> bool {
            self.0.established = established;
            self.0.selected = established;
            let verdict = judged(&self.0, queue(depth, 0), now_ms);
            self.0.accepted = verdict.accepted;
            self.0.progress_at_ms = verdict.progress_at_ms;
            self.0.look_after_ms = verdict.look_after_ms;
            self.0.room_until = (self.0.selected as u32).wrapping_add_signed(verdict.room);
            self.0.checked_at_ms = now_ms;
            self.0.unfit = verdict.unfit;
            self.0.is_stalled()
        }
    }

    #[test]
    fn a_worker_that_takes_nothing_is_stalled_after_the_stall_time() {
        let mut worker = Observed::new();
        assert!(!worker.look(1_000, 10, 0));
        assert!(!worker.look(1_020, 11, 1));
        assert!(!worker.look(1_049, 12, 2));
        assert!(worker.look(1_050, 13, 3));
        assert!(worker.look(2_000, 13, 3));
    }

    #[test]
    fn one_accept_is_the_end_of_a_stall() {
        let mut worker = Observed::new();
        worker.look(1_000, 10, 0);
        assert!(worker.look(1_100, 20, 10));
        assert!(!worker.look(1_110, 20, 9));
    }

    #[test]
    fn stalls_may_be_ignored() {
        let load = Load { accepted: 10, established: 20, checked_at_ms: 1_000, ..Load::default() };
        assert!(judge(&load, queue(10, 0), 2_000_000, 12, NEVER).unfit == 0);
    }

    #[test]
    fn idleness_is_no_stall() {
        let mut worker = Observed::new();
        worker.look(1_000, 10, 0);
        assert!(!worker.look(90_000, 10, 0));
        assert!(!worker.look(90_010, 11, 1));
    }

    #[test]
    fn a_busy_worker_with_a_long_queue_is_not_stalled() {
        let mut worker = Observed::new();
        for step in 0..100 {
            assert!(!worker.look(1_000 + step * 40, 100 + u64::from(step), 50));
        }
    }

    #[test]
    fn the_first_look_starts_the_clock() {
        assert!(!Observed::new().look(90_000, 5, 5));
    }

    #[test]
    fn a_count_that_seems_to_go_back_is_no_progress() {
        let mut worker = Observed::new();
        worker.look(1_000, 10, 0);
        worker.look(1_020, 20, 10);
        assert!(!worker.look(1_040, 20, 11));
        assert!(worker.look(1_060, 21, 11));
    }

    #[test]
    fn a_queue_is_full_when_the_kernel_would_drop() {
        let judged = |depth, handshakes| judged(&Load::default(), queue(depth, handshakes), 1);
        assert_eq!((judged(128, 0).unfit, judged(128, 0).room), (0, 0));
        assert_eq!((judged(129, 0).unfit, judged(129, 0).room), (FULL, -1));
        assert_eq!((judged(100, 29).unfit, judged(100, 8).room), (FULL, 20));
        let endless = Queue { backlog: u32::MAX, ..queue(0, 0) };
        assert_eq!(judge(&Load::default(), endless, 1, 12, STALL_AFTER_MS).room, i32::MAX);
    }

    #[test]
    fn a_look_is_due_when_the_last_is_old_or_the_queue_may_be_full() {
        let mut worker = Observed::new();
        worker.look(1_000, 100, BACKLOG - 10);
        let given = |more: u64| Load { selected: 100 + more, ..worker.0 };
        assert!(is_recent(&given(0), 1_012));
        assert!(!is_recent(&given(0), 1_013));
        assert!(is_recent(&given(10), 1_000));
        assert!(!is_recent(&given(11), 1_000));
    }

    #[test]
    fn a_slot_that_was_never_looked_at_is_due() {
        assert!(!is_recent(&Load::default(), 1_000));
    }

    #[test]
    fn numbers_of_32_bits_go_round() {
        let load = Load { room_until: 3, look_after_ms: 12, checked_at_ms: u32::MAX - 3, ..Load::default() };
        assert!(is_recent(&Load { selected: (1 << 32) - 2, ..load }, 8));
        assert!(!is_recent(&Load { selected: (1 << 32) + 4, ..load }, 8));
        assert!(!is_recent(&Load { selected: (1 << 32) - 2, ..load }, 9));
    }

    #[test]
    fn a_look_is_due_the_moment_that_the_stall_time_is_over() {
        let mut worker = Observed::new();
        worker.look(1_000, 10, 0);
        worker.look(1_048, 12, 2);
        assert!(is_recent(&worker.0, 1_049));
        assert!(!is_recent(&worker.0, 1_050));
        assert!(worker.look(1_050, 12, 2));
        assert!(is_recent(&worker.0, 1_051), "it is known to be stalled");
    }

    #[test]
    fn an_idle_worker_is_looked_at_before_its_handshakes_cease_to_count() {
        let mut worker = Observed::new();
        worker.look(1_000, 100, 0);
        let idle = Load { closed: 100, ..worker.0 };
        assert!(is_idle(&idle, 1_000 + HANDSHAKE_MS / 2));
        assert!(!is_idle(&idle, 1_000 + HANDSHAKE_MS));
        // One that has a connection, has one in its handshake, takes none, or may have a queue full of dead ones.
        for load in [
            Load { closed: 99, ..idle },
            Load { selected: 101, ..idle },
            Load { unfit: STALLED, ..idle },
            Load { room_until: 99, ..idle },
        ] {
            assert!(!is_idle(&load, 1_013), "{load:?}");
        }
    }
}
