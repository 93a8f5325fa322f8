//! Signals to the daemon.

use std::io;

use nix::sys::{
    signal::{SigSet, Signal as Name},
    signalfd::{SfdFlags, SignalFd},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};

use crate::daemon::Signal;

/// The signals that ask for something.
const HANDLED: [Name; 3] = [Name::SIGINT, Name::SIGTERM, Name::SIGHUP];

/// From now on SIGINT, SIGTERM and SIGHUP do not kill the process; each one sends a message instead. The first of
/// SIGINT and SIGTERM asks for an orderly end, the second for an immediate one. SIGHUP asks for a reload.
///
/// They wait in the kernel until they are read, so that none gets lost when this process becomes another version, which
/// reads those that are left. Threads that were started before must not exist, since they would be killed.
///
/// SIGPIPE is ignored already, by the standard library.
///
/// # Errors
///
/// The kernel refused to have them read.
pub(super) fn take() -> io::Result<mpsc::Receiver<Signal>> {
    let handled = SigSet::from_iter(HANDLED);
    handled.thread_block()?;
    let waiting = watch(SignalFd::with_flags(&handled, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)?;
    let (sender, signals) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut stops = 0_u32;
        while let Ok(signal) = next(&waiting).await {
            let name = match signal {
                Name::SIGHUP => {
                    // Where several wait already, one of them will read what there is to read.
                    let _ = sender.try_send(Signal::Reload);
                    continue;
                }
                name => name,
            };
            stops += 1;
            match stops {
                1 => tracing::info!("{name}: stopping; a second one stops at once"),
                _ => tracing::info!("{name} again: stopping at once"),
            }
            // Waits where reloads fill the channel, since these must not get lost. Nobody receives: all has ended.
            if sender.send(Signal::Stop).await.is_err() {
                return;
            }
        }
    });
    Ok(signals)
}

async fn next(waiting: &AsyncFd<SignalFd>) -> io::Result<Name> {
    let read = |signals: &SignalFd| signals.read_signal()?.ok_or(io::ErrorKind::WouldBlock.into());
    let read = waiting.async_io(Interest::READABLE, read).await?;
    Ok(Name::try_from(i32::try_from(read.ssi_signo).unwrap_or_default())?)
}

#[expect(
    deprecated,
    reason = "what it asks for instead is `unsafe`, for the sake of types that close or exchange their descriptor; this \
              one does neither"
)]
fn watch(signals: SignalFd) -> io::Result<AsyncFd<SignalFd>> {
    AsyncFd::with_interest(signals, Interest::READABLE)
}
