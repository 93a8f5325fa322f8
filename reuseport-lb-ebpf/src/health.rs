//! Whether a worker takes the connections that it is given.
//!
//! The accept queue tells, and it can be read in the kernel at the moment of the choice. What was established less
//! what waits is what the worker has accepted: while that stands still and connections wait, the worker is stalled.

use crate::{
    limits::{IDLE_LOOK_MS, LOOK_MS},
    worker::Load,
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
    /// The new [`Load::stalled`], as a truth value.
    pub stalled: bool,
    /// Whether one more connection would find the queue full.
    pub full: bool,
}

/// Whether the accept queue must be looked at before the worker is chosen: the last look is too old, the queue may have
/// filled since, or the worker is stalled unless it has taken something since.
///
/// Whoever has no connection has none that waits, unless it was reset while it waited; those are seen once they fill
/// the queue. So an idle worker is looked at only so often that its handshakes go on to count.
#[inline(always)]
pub const fn is_due(load: &Load, now_ms: u32, look_after_ms: u32, stall_after_ms: u32) -> bool {
    let pending = load.pending_at(now_ms);
    // Nobody can have left the queue twice, so no more than this can wait in it now.
    let at_most = load.established.saturating_sub(load.accepted).saturating_add(pending);
    let idle = load.active() + pending == 0 && load.stalled == 0;
    let look_after_ms = if idle { IDLE_LOOK_MS } else { look_after_ms };
    // A worker that had taken something at the last look, or had nothing to take, made progress then.
    let overdue = load.stalled == 0
        && load.progress_at_ms != load.checked_at_ms
        && now_ms.wrapping_sub(load.progress_at_ms) >= stall_after_ms;
    overdue || now_ms.wrapping_sub(load.checked_at_ms) > look_after_ms || at_most > load.backlog as u64
}

/// Judges a worker by its accept queue.
#[inline(always)]
pub const fn judge(load: &Load, queue: Queue, now_ms: u32, stall_after_ms: u32) -> Verdict {
    let accepted = load.established.saturating_sub(queue.depth as u64);
    let first_look = load.checked_at_ms == 0;
    // A connection joins the queue a moment before it is counted as established, so `accepted` may seem to go back
    // by one; only going on is progress.
    let progress = first_look || queue.depth == 0 || accepted > load.accepted;
    let progress_at_ms = if progress { now_ms } else { load.progress_at_ms };
    Verdict {
        accepted: if accepted > load.accepted { accepted } else { load.accepted },
        progress_at_ms,
        stalled: now_ms.wrapping_sub(progress_at_ms) >= stall_after_ms,
        full: queue.depth as u64 + queue.handshakes as u64 > queue.backlog as u64,
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

    /// A worker whose queue is looked at from time to time.
    struct Observed(Load);

    impl Observed {
        fn new() -> Self {
            Self(Load { backlog: BACKLOG, ..Load::default() })
        }

        /// After `established` connections altogether, `depth` of them wait.
        fn look(&mut self, now_ms: u32, established: u64, depth: u32) -> Verdict {
            self.0.established = established;
            let verdict = judge(&self.0, queue(depth, 0), now_ms, STALL_AFTER_MS);
            self.0.accepted = verdict.accepted;
            self.0.progress_at_ms = verdict.progress_at_ms;
            self.0.checked_at_ms = now_ms;
            self.0.stalled = verdict.stalled.into();
            verdict
        }
    }

    #[test]
    fn a_worker_that_takes_nothing_is_stalled_after_the_stall_time() {
        let mut worker = Observed::new();
        assert!(!worker.look(1_000, 10, 0).stalled);
        assert!(!worker.look(1_020, 11, 1).stalled);
        assert!(!worker.look(1_049, 12, 2).stalled);
        assert!(worker.look(1_050, 13, 3).stalled);
        assert!(worker.look(2_000, 13, 3).stalled);
    }

    #[test]
    fn one_accept_is_the_end_of_a_stall() {
        let mut worker = Observed::new();
        worker.look(1_000, 10, 0);
        assert!(worker.look(1_100, 20, 10).stalled);
        assert!(!worker.look(1_110, 20, 9).stalled);
    }

    #[test]
    fn stalls_may_be_ignored() {
        let load = Load { accepted: 10, established: 20, checked_at_ms: 1_000, ..Load::default() };
        assert!(!judge(&load, queue(10, 0), 2_000_000, NEVER).stalled);
    }

    #[test]
    fn idleness_is_no_stall() {
        let mut worker = Observed::new();
        worker.look(1_000, 10, 0);
        assert!(!worker.look(90_000, 10, 0).stalled);
        assert!(!worker.look(90_010, 11, 1).stalled);
    }

    #[test]
    fn a_busy_worker_with_a_long_queue_is_not_stalled() {
        let mut worker = Observed::new();
        for step in 0..100 {
            assert!(!worker.look(1_000 + step * 40, 100 + u64::from(step), 50).stalled);
        }
    }

    #[test]
    fn the_first_look_starts_the_clock() {
        assert!(!Observed::new().look(90_000, 5, 5).stalled);
    }

    #[test]
    fn a_count_that_seems_to_go_back_is_no_progress() {
        let mut worker = Observed::new();
        worker.look(1_000, 10, 0);
        worker.look(1_020, 20, 10);
        assert!(!worker.look(1_040, 20, 11).stalled);
        assert!(worker.look(1_060, 21, 11).stalled);
    }

    #[test]
    fn a_queue_is_full_when_the_kernel_would_drop() {
        let judge =
            |depth, handshakes| judge(&Load::default(), queue(depth, handshakes), 1, STALL_AFTER_MS).full;
        assert!(!judge(128, 0));
        assert!(judge(129, 0));
        assert!(judge(100, 29));
    }

    #[test]
    fn a_look_is_due_when_the_last_is_old_or_the_queue_may_be_full() {
        let load = Load {
            established: 100,
            accepted: 90,
            checked_at_ms: 1_000,
            progress_at_ms: 1_000,
            backlog: 20,
            ..Load::default()
        };
        let handshakes = |pending: u64| Load { selected: 100 + pending, ..load };
        let look_after_ms = look_after_ms(STALL_AFTER_MS);
        assert!(!is_due(&handshakes(0), 1_012, look_after_ms, STALL_AFTER_MS));
        assert!(is_due(&handshakes(0), 1_013, look_after_ms, STALL_AFTER_MS));
        assert!(!is_due(&handshakes(10), 1_000, look_after_ms, STALL_AFTER_MS));
        assert!(is_due(&handshakes(11), 1_000, look_after_ms, STALL_AFTER_MS));
    }

    #[test]
    fn a_look_is_due_the_moment_that_the_stall_time_is_over() {
        let mut worker = Observed::new();
        worker.look(1_000, 10, 0);
        worker.look(1_048, 12, 2);
        let is_due = |worker: &Observed, now_ms| is_due(&worker.0, now_ms, 12, STALL_AFTER_MS);
        assert!(!is_due(&worker, 1_049));
        assert!(is_due(&worker, 1_050));
        assert!(worker.look(1_050, 12, 2).stalled);
        assert!(!is_due(&worker, 1_051), "it is known to be stalled");
    }

    #[test]
    fn an_idle_worker_is_looked_at_before_its_handshakes_cease_to_count() {
        let look_after_ms = look_after_ms(STALL_AFTER_MS);
        let idle = Load {
            selected: 100,
            established: 100,
            closed: 100,
            accepted: 100,
            checked_at_ms: 1_000,
            progress_at_ms: 1_000,
            backlog: 20,
            ..Load::default()
        };
        assert!(!is_due(&idle, 1_000 + HANDSHAKE_MS / 2, look_after_ms, STALL_AFTER_MS));
        assert!(is_due(&idle, 1_000 + HANDSHAKE_MS, look_after_ms, STALL_AFTER_MS));
        // One that has a connection, has one in its handshake, takes none, or may have a queue full of dead ones.
        for load in [
            Load { closed: 99, ..idle },
            Load { selected: 101, ..idle },
            Load { stalled: 1, ..idle },
            Load { accepted: 79, ..idle },
        ] {
            assert!(is_due(&load, 1_013, look_after_ms, STALL_AFTER_MS), "{load:?}");
        }
    }
}
