//! Moments as they are written down: another process understands them too, as long as the host does not restart.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// The same moment by both clocks. Both are the kernel's monotonic one, and the standard library does not tell.
static BASE: LazyLock<(Instant, Duration)> = LazyLock::new(|| {
    let now = clock_gettime(ClockId::Monotonic);
    let since_boot = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    (Instant::now(), since_boot)
});

/// Nothing that is written down lies further away: what does was never written by a daemon.
const FURTHEST: Duration = Duration::from_secs(3 * 365 * 24 * 60 * 60);

/// Writes down when `moment` is, in nanoseconds since boot. For `#[serde(with = …)]`.
pub(crate) fn serialize<S: Serializer>(moment: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    since_boot(*moment).serialize(serializer)
}

/// Reads what [`serialize`] wrote.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Instant, D::Error> {
    at(u64::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("a moment that cannot be"))
}

fn since_boot(moment: Instant) -> u64 {
    let (base, since_boot) = *BASE;
    let moment = match moment.checked_duration_since(base) {
        Some(later) => since_boot.saturating_add(later),
        None => since_boot.saturating_sub(base.saturating_duration_since(moment)),
    };
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

fn at(nanoseconds: u64) -> Option<Instant> {
    let (base, since_boot) = *BASE;
    let moment = Duration::from_nanos(nanoseconds);
    match moment.checked_sub(since_boot) {
        Some(later) if later > FURTHEST => None,
        Some(later) => base.checked_add(later),
        None => base.checked_sub(since_boot - moment),
    }
}

/// The same for a moment that may not be.
pub(crate) mod option {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        moment: &Option<Instant>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        moment.map(since_boot).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Instant>, D::Error> {
        let cannot_be = || D::Error::custom("a moment that cannot be");
        Option::<u64>::deserialize(deserializer)?
            .map(|nanoseconds| at(nanoseconds).ok_or_else(cannot_be))
            .transpose()
    }
}

/// The same for how long something takes, in nanoseconds.
pub(crate) mod span {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let span = Duration::from_nanos(u64::deserialize(deserializer)?);
        if span <= FURTHEST { Ok(span) } else { Err(D::Error::custom("a time that nobody waits for")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_comes_back_as_it_was() {
        let now = Instant::now();
        let hour = Duration::from_secs(3_600);
        for moment in [now, now + hour, now.checked_sub(Duration::from_millis(1)).unwrap()] {
            assert_eq!(at(since_boot(moment)), Some(moment));
        }
    }

    #[test]
    fn what_was_never_written_is_refused() {
        assert_eq!(at(u64::MAX), None);
        assert!(at(0).is_none_or(|boot| boot < Instant::now()));
    }
}
