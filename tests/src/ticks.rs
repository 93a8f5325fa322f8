//! The clock that the programs read, which goes by ticks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{task::JoinSet, time::sleep};

/// The longest tick that a kernel is built with.
const TICK: Duration = Duration::from_millis(10);

/// Watches how far that clock lags behind: a tick, and more when the CPU that counts the ticks is kept from running while
/// another one runs.
#[derive(Debug)]
pub struct Ticks {
    longest_ns: Arc<AtomicU64>,
    _watch: JoinSet<()>,
}

impl Ticks {
    /// Watches until this is dropped.
    pub fn watch() -> Self {
        let longest_ns = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&longest_ns);
        let mut watch = JoinSet::new();
        watch.spawn(async move {
            loop {
                let lag = u64::try_from(lag().as_nanos()).expect("less than centuries");
                seen.fetch_max(lag, Ordering::Relaxed);
                sleep(Duration::from_millis(1)).await;
            }
        });
        Self { longest_ns, _watch: watch }
    }

    /// The longest so far that a time by that clock may be wrong.
    pub fn longest(&self) -> Duration {
        TICK.max(Duration::from_nanos(self.longest_ns.load(Ordering::Relaxed)))
    }
}

fn lag() -> Duration {
    let [exact, coarse] = [ClockId::Monotonic, ClockId::MonotonicCoarse]
        .map(|clock| Duration::try_from(clock_gettime(clock)).expect("a time since the start"));
    exact.saturating_sub(coarse)
}
