//! The service manager that started the daemon, if one did: systemd, or whoever else speaks its [notify protocol].
//!
//! Everything is told by the owner task itself. So a daemon that says nothing to its watchdog is one whose owner hangs.
//!
//! [notify protocol]: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How much longer than the longest grace period the end may take: to close sockets and remove pins.
const END_MARGIN: Duration = Duration::from_secs(10);

/// The way to the service manager. Without one, nothing is said and nothing is due.
pub(super) struct Manager {
    present: bool,
    watchdog: Option<Watchdog>,
    ready: bool,
    status: String,
}

/// A service manager that wants to hear from us again and again.
struct Watchdog {
    every: Duration,
    next: Instant,
}

impl Manager {
    /// The one that the environment names.
    pub(super) fn from_environment() -> Self {
        let present = std::env::var_os("NOTIFY_SOCKET").is_some();
        let watchdog = sd_notify::watchdog_enabled().filter(|_| present);
        Self {
            present,
            // At half the time, as systemd's own manual has it.
            watchdog: watchdog.map(|limit| Watchdog { every: limit / 2, next: Instant::now() }),
            ready: false,
            status: String::new(),
        }
    }

    /// Whether there is one.
    pub(super) const fn is_present(&self) -> bool {
        self.present
    }

    /// Tells what there is to see, and that the daemon serves, each when it is new.
    pub(super) fn update(&mut self, serves: bool, status: String) {
        let is_ready = serves && !self.ready;
        if is_ready {
            self.ready = true;
            self.status = status;
            self.tell(&[NotifyState::Ready, NotifyState::Status(&self.status)]);
        } else if self.status != status {
            self.status = status;
            self.tell(&[NotifyState::Status(&self.status)]);
        }
    }

    /// The configuration is about to be read again. [`update`](Self::update) tells the end of it.
    pub(super) fn reloading(&mut self) {
        if !self.present {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "cannot read the monotonic clock"),
        }
        self.ready = false;
    }

    /// The daemon ends, and that may take so long.
    pub(super) fn stopping(&self, grace: Duration) {
        let micros = u32::try_from((grace + END_MARGIN).as_micros()).unwrap_or(u32::MAX);
        self.tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
    }

    /// When the watchdog is to hear from us next.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.watchdog.as_ref().map(|watchdog| watchdog.next)
    }

    /// The owner task is alive.
    pub(super) fn alive(&mut self, now: Instant) {
        let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.next <= now) else { return };
        watchdog.next = now + watchdog.every;
        self.tell(&[NotifyState::Watchdog]);
    }

    fn tell(&self, what: &[NotifyState<'_>]) {
        if !self.present {
            return;
        }
        if let Err(error) = sd_notify::notify(what) {
            tracing::warn!(%error, "the service manager cannot be told");
        }
    }
}
