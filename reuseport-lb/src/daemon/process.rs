//! A task for each worker's process: it passes signals on and reports the end.

use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    group::WorkerId,
    worker::{Process, Signal},
};

/// What can be sent to a process.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// End, please.
    Terminate,
    /// End.
    Kill,
}

/// The way to a process.
pub(super) type Orders = mpsc::UnboundedSender<Order>;

/// A worker whose process has ended, its process id, and how it ended.
pub(super) type Exit = (WorkerId, u32, String);

/// Watches `process` until it ends.
pub(super) fn watch(exits: &mut JoinSet<Exit>, id: WorkerId, mut process: Process) -> Orders {
    let (orders, mut received) = mpsc::unbounded_channel();
    exits.spawn(async move {
        let pid = process.pid();
        loop {
            tokio::select! {
                status = process.exited() => {
                    let reason = status.map_or_else(|error| format!("lost: {error}"), |status| status.to_string());
                    return (id, pid, reason);
                }
                Some(order) = received.recv() => {
                    let sent = match order {
                        Order::Terminate => process.signal(Signal::TERM),
                        Order::Kill => process.kill(),
                    };
                    if let Err(error) = sent {
                        tracing::error!(worker = id.0, pid, %error, "cannot signal the worker");
                    }
                }
            }
        }
    });
    orders
}
