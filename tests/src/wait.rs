//! Waiting for a condition, with a bound.

use std::{fmt::Display, time::Duration};

use tokio::time::{Instant, sleep, timeout};

/// How long a condition may take to come true.
///
/// Only a failing test waits that long. It is far above what any step takes, since the tests share few cores with
/// each other and with whatever else the machine does.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a condition is looked at. Short enough not to be felt, long enough to leave the cores to the daemon.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks again and again until `probe` gives a value, and panics with `what` and the last reason after [`PATIENCE`].
pub async fn eventually<T, E: Display>(what: &str, mut probe: impl AsyncFnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(reason) if Instant::now() > end => {
                panic!("waited {PATIENCE:?} in vain until {what}; at last: {reason}")
            }
            Err(_) => sleep(INTERVAL).await,
        }
    }
}

/// Waits for `future`, and panics with `what` after [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain until {what}"),
    }
}
