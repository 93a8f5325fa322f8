//! The notices of a group's workers, on their way to the owner task.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use tokio::{sync::Semaphore, task::JoinSet};

use super::events::{Event, Events};
use crate::worker::notify::NotifySocket;

/// How many notices may wait for the owner task. The rest wait in the kernel, and then those who send them do.
const WAITING: usize = 64;

/// Receives the notices of one group. Dropping it ends that, and removes the socket.
#[derive(Debug)]
pub(super) struct Notices {
    socket: Arc<NotifySocket>,
    _task: JoinSet<()>,
}

impl Notices {
    /// Makes the socket, unless it was `handed` over, and passes on what comes.
    pub(super) fn listen(path: &Path, events: Events, handed: Option<OwnedFd>) -> io::Result<Self> {
        let socket = handed.map_or_else(|| NotifySocket::bind(path), |fd| NotifySocket::resume(fd, path))?;
        let socket = Arc::new(socket);
        let receiver = Arc::clone(&socket);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let waiting = Arc::new(Semaphore::new(WAITING));
            loop {
                let Ok(permit) = Arc::clone(&waiting).acquire_owned().await else {
                    unreachable!("the semaphore is never closed");
                };
                match receiver.receive().await {
                    Ok(message) => events.send(Event::Notice { message, _permit: permit }),
                    Err(error) => {
                        tracing::error!(%error, "notices of workers are not received any more");
                        return;
                    }
                }
            }
        });
        Ok(Self { socket, _task: task })
    }

    /// Where workers send them.
    pub(super) fn path(&self) -> &Path {
        self.socket.path()
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
