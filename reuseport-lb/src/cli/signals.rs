//! Signals to the daemon.

use std::io;

use tokio::{
    signal::unix::{self, SignalKind, signal},
    sync::mpsc,
};

use crate::daemon::Signal;

/// From now on SIGINT, SIGTERM and SIGHUP do not kill the process; each one sends a message instead. The first of
/// SIGINT and SIGTERM asks for an orderly end, the second for an immediate one. SIGHUP asks for a reload.
///
/// SIGPIPE is ignored already, by the standard library.
///
/// # Errors
///
/// The kernel refused a signal handler.
pub(super) fn take() -> io::Result<mpsc::Receiver<Signal>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, signals) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut stops = 0_u32;
        loop {
            let name = tokio::select! {
                Some(()) = unix::Signal::recv(&mut interrupt) => "SIGINT",
                Some(()) = unix::Signal::recv(&mut terminate) => "SIGTERM",
                Some(()) = unix::Signal::recv(&mut hangup) => {
                    // Where several wait already, one of them will read what there is to read.
                    let _ = sender.try_send(Signal::Reload);
                    continue;
                }
                else => return,
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
