//! The notices of a group's workers, on their way to the owner task.

use std::{
    io,
    path::{Path, PathBuf},
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
    path: PathBuf,
    _task: JoinSet<()>,
}

impl Notices {
    /// Makes the socket, and passes on what comes.
    pub(super) fn listen(path: &Path, events: Events) -> io::Result<Self> {
        let socket = NotifySocket::bind(path)?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            let waiting = Arc::new(Semaphore::new(WAITING));
            loop {
                let Ok(permit) = Arc::clone(&waiting).acquire_owned().await else {
                    unreachable!("the semaphore is never closed");
                };
                match socket.receive().await {
                    Ok(message) => events.send(Event::Notice { message, _permit: permit }),
                    Err(error) => {
                        tracing::error!(%error, "notices of workers are not received any more");
                        return;
                    }
                }
            }
        });
        Ok(Self { path: path.to_owned(), _task: task })
    }

    /// Where workers send them.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
