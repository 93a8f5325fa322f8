//! Whether what workers write is read at present.
//!
//! Before the daemon becomes another program, all who read put down what they have begun; what is not read waits in the
//! pipes.

use std::sync::LazyLock;

use tokio::{sync::watch, time::timeout};

use super::writer::{FLUSH_PATIENCE, flush};

static IS_READ: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(true));

/// Each stream that is being read has a receiver of it.
static READERS: LazyLock<watch::Sender<()>> = LazyLock::new(watch::Sender::default);

/// One stream that is being read.
pub(super) struct Reading {
    is_read: watch::Receiver<bool>,
    reader: Option<watch::Receiver<()>>,
}

/// Begins to read a stream.
pub(super) fn begin() -> Reading {
    Reading { is_read: IS_READ.subscribe(), reader: Some(READERS.subscribe()) }
}

impl Reading {
    /// Waits until nothing is to be read any more. Cancel-safe.
    pub(super) async fn halted(&mut self) {
        // The sender is never gone.
        drop(self.is_read.wait_for(|is_read| !is_read).await);
    }

    /// All that was read is passed on. Waits until more is wanted.
    pub(super) async fn go_on(&mut self) {
        self.reader = None;
        drop(self.is_read.wait_for(|is_read| *is_read).await);
        self.reader = Some(READERS.subscribe());
    }
}

/// Reads no more of what workers write, until [`go_on`], and waits until all that was read is written, but not long.
pub async fn halt() {
    IS_READ.send_replace(false);
    // Whoever cannot pass on what he has read waits for the same slow reader as `flush`, which tells of it.
    drop(timeout(FLUSH_PATIENCE, READERS.closed()).await);
    flush().await;
}

/// Reads on after [`halt`].
pub fn go_on() {
    IS_READ.send_replace(true);
}
