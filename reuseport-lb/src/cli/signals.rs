//! Signals that end the daemon, and one that does not.

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// From now on SIGINT and SIGTERM do not kill the process; each one sends a message instead. The first asks for an
/// orderly end, the second for an immediate one. SIGHUP does nothing.
///
/// SIGPIPE is ignored already, by the standard library.
///
/// # Errors
///
/// The kernel refused a signal handler.
pub(super) fn stop_requests() -> io::Result<mpsc::Receiver<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Two are all that have a meaning, so what does not fit may be lost.
    let (stop, stops) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut received = 0_u32;
        loop {
            let name = tokio::select! {
                Some(()) = Signal::recv(&mut interrupt) => "SIGINT",
                Some(()) = Signal::recv(&mut terminate) => "SIGTERM",
                Some(()) = Signal::recv(&mut hangup) => {
                    tracing::info!("SIGHUP ignored");
                    continue;
                }
                else => return,
            };
            received += 1;
            match received {
                1 => tracing::info!("{name}: stopping; a second one stops at once"),
                _ => tracing::info!("{name} again: stopping at once"),
            }
            // Two wait already, or nobody does: what more signals ask for is under way.
            if stop.try_send(()).is_err() {
                return;
            }
        }
    });
    Ok(stops)
}
