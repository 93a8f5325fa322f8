//! A place where every port is free.

use std::{
    panic::resume_unwind,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};

/// Longer than anything here takes on a busy machine.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// One test at a time: a fork copies every descriptor of the process until its exec, so tests that run side by side
/// would hold one another's sockets for a moment.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test in a fresh network namespace whose loopback device is up. The namespace ends with the test.
pub(crate) fn in_namespace(test: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // A thread's namespace stays its own, and is inherited by the processes that it starts.
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace (are you root?)")?;
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("ip")?;
        ensure!(up.success(), "ip link set lo up: {up}");
        test()
    });
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Waits until `condition` gives something.
#[expect(clippy::disallowed_methods, reason = "the bounded wait that the ban asks for")]
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        ensure!(started.elapsed() < BOUND, "waited too long until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
