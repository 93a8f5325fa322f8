//! A worker's listening socket: one that the daemon made, or one that it found in another process.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use tokio::task::AbortHandle;

use super::listener::Listener;
use crate::adopt::{self, Owner};

/// The listening socket of one worker.
#[derive(Debug)]
pub(super) enum Socket {
    /// Made by the daemon, which keeps it open.
    Made(Listener),
    /// Found in another process, which it must die with: the daemon keeps no handle on it.
    Found(Found),
}

/// A socket of another process.
#[derive(Debug)]
pub(super) struct Found {
    /// The socket as it was found.
    pub(super) listener: adopt::Listener,
    /// The process that takes its connections, as far as that can be seen.
    pub(super) owner: Owner,
    /// A handle, for as long as the socket is being registered.
    pub(super) fresh: Option<OwnedFd>,
    /// Watches the process.
    pub(super) watch: Option<AbortHandle>,
}

impl Drop for Found {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

/// A descriptor for a socket, for the moment.
#[derive(Debug)]
pub(super) enum Handle<'a> {
    Kept(BorrowedFd<'a>),
    Taken(OwnedFd),
}

impl AsFd for Handle<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Kept(kept) => *kept,
            Self::Taken(taken) => taken.as_fd(),
        }
    }
}

impl Socket {
    /// Listens with an accept queue of this length, where the daemon made it.
    pub(super) fn set_backlog(&mut self, backlog: u32) -> io::Result<()> {
        match self {
            Self::Made(listener) => listener.set_backlog(backlog),
            Self::Found(_) => Ok(()),
        }
    }

    /// The kernel's name for the socket.
    pub(super) const fn cookie(&self) -> u64 {
        match self {
            Self::Made(listener) => listener.cookie(),
            Self::Found(found) => found.listener.cookie,
        }
    }

    /// A handle on it, or none when it is gone meanwhile.
    pub(super) fn handle(&self) -> Option<Handle<'_>> {
        match self {
            Self::Made(listener) => Some(Handle::Kept(listener.as_fd())),
            Self::Found(Found { fresh: Some(fresh), .. }) => Some(Handle::Kept(fresh.as_fd())),
            Self::Found(Found { listener, owner, .. }) => {
                let inodes = [listener.inode];
                let take = |owners: &[Owner]| adopt::take(listener.inode, listener.cookie, owners);
                take(&adopt::owners_among([owner.pid], &inodes))
                    .or_else(|_| take(&adopt::owners(&inodes)))
                    .map(Handle::Taken)
                    .ok()
            }
        }
    }
}
