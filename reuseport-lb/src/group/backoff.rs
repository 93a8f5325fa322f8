//! How long to wait before a worker that ended is started again.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The delay after the first end: short, since a crash once in a while should cost next to nothing, and long enough
/// that a program which fails at once does not take a whole CPU.
const FIRST: Duration = Duration::from_millis(100);

/// The longest delay: a worker is back soon after whatever broke it was repaired.
const LONGEST: Duration = Duration::from_secs(10);

/// A worker that ran this long did start well, so its end is a new story.
const STABLE: Duration = Duration::from_secs(10);

/// The restarts of one worker: 100 ms at first, twice as long each time, 10 s at most; and from the start again once
/// it has run for 10 s.
///
/// Pure: it reads no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A worker that has not ended yet.
    pub(super) const fn new() -> Self {
        Self { failures: 0 }
    }

    /// Whether the worker has failed again soon after it had failed.
    pub(super) const fn is_loop(self) -> bool {
        self.failures >= 2
    }

    /// The worker that was started at `started` ended at `ended`. Gives the time to wait from `ended`.
    pub(super) fn delay(&mut self, started: Instant, ended: Instant) -> Duration {
        if ended.saturating_duration_since(started) >= STABLE {
            self.failures = 0;
        }
        let delay = 2_u32.checked_pow(self.failures).map_or(LONGEST, |factor| FIRST.saturating_mul(factor));
        self.failures = self.failures.saturating_add(1);
        delay.min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays_ms(backoff: &mut Backoff, uptime: Duration, times: usize) -> Vec<u128> {
        let started = Instant::now();
        (0..times).map(|_| backoff.delay(started, started + uptime).as_millis()).collect()
    }

    #[test]
    fn doubles_up_to_the_cap() {
        let delays = delays_ms(&mut Backoff::new(), Duration::ZERO, 10);
        assert_eq!(delays, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn the_second_failure_makes_a_loop() {
        let mut backoff = Backoff::new();
        let mut is_loop = |uptime| {
            delays_ms(&mut backoff, uptime, 1);
            backoff.is_loop()
        };
        assert!(!is_loop(Duration::ZERO));
        assert!(is_loop(Duration::ZERO));
        assert!(!is_loop(STABLE));
    }

    #[test]
    fn never_overflows() {
        let mut backoff = Backoff { failures: u32::MAX - 1 };
        assert_eq!(delays_ms(&mut backoff, Duration::ZERO, 3), [10_000, 10_000, 10_000]);
        assert_eq!(backoff.failures, u32::MAX);
    }

    #[test]
    fn a_long_life_starts_from_the_beginning() {
        let mut backoff = Backoff::new();
        delays_ms(&mut backoff, Duration::from_millis(9_999), 5);
        assert_eq!(backoff.failures, 5);
        assert_eq!(delays_ms(&mut backoff, Duration::from_secs(10), 2), [100, 100]);
        assert_eq!(backoff.failures, 1);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_is_a_short_life() {
        let now = Instant::now();
        let mut backoff = Backoff::new();
        backoff.delay(now + Duration::from_secs(60), now);
        assert_eq!(backoff.failures, 1);
    }
}
