//! What happens to the groups without being asked for, on its way to the owner task.

use reuseport_lb_ebpf::listen::ListenEvent;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{group::WorkerId, worker::notify::Message};

/// Which group an event is about. Unlike its name, it is never given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u64);

/// Something that happened to a group.
#[derive(Debug)]
pub(super) enum Event {
    /// A worker's process has ended.
    Exited {
        /// The worker.
        worker: WorkerId,
        /// The process id that it had.
        pid: u32,
        /// How it ended.
        reason: String,
        /// The last lines that it wrote to standard error.
        last_words: Vec<String>,
    },
    /// Somebody, perhaps a worker, said something by the notify protocol.
    Notice {
        /// What, and who.
        message: Message,
        /// There are only so many of these at a time.
        _permit: OwnedSemaphorePermit,
    },
    /// A listening socket has come or gone, in a group whose sockets are others' to open.
    Listening(ListenEvent),
    /// The process that took the connections of an adopted socket has ended.
    OwnerEnded {
        /// The worker.
        worker: WorkerId,
        /// The process.
        pid: u32,
    },
    /// Some workers have begun or ceased to be stalled; the datapath knows which.
    Stalls,
}

/// Where the events of one group go. Each task that watches something of the group has a clone.
#[derive(Clone, Debug)]
pub(super) struct Events {
    key: Key,
    // Unbounded, since the owner task never waits for those who send: a worker ends once, and a stall begins once.
    sender: mpsc::UnboundedSender<(Key, Event)>,
}

impl Events {
    /// The group that the events are about.
    pub(super) const fn key(&self) -> Key {
        self.key
    }

    /// Tells the owner task. When it is gone, nobody wants to know.
    pub(super) fn send(&self, event: Event) {
        drop(self.sender.send((self.key, event)));
    }
}

/// The owner task's end: the events of all groups.
#[derive(Debug)]
pub(super) struct EventQueue {
    // Kept, so that groups can be added, and so that the queue never ends.
    sender: mpsc::UnboundedSender<(Key, Event)>,
    receiver: mpsc::UnboundedReceiver<(Key, Event)>,
    next_key: u64,
}

impl EventQueue {
    /// An empty queue.
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver, next_key: 0 }
    }

    /// The way for the events of a further group.
    pub(super) fn further_group(&mut self) -> Events {
        let key = Key(self.next_key);
        self.next_key += 1;
        Events { key, sender: self.sender.clone() }
    }

    /// The next event, if it is there already.
    pub(super) fn waiting(&mut self) -> Option<(Key, Event)> {
        self.receiver.try_recv().ok()
    }

    /// The next event. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<(Key, Event)> {
        self.receiver.recv().await
    }
}
