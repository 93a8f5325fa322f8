//! A handle on a socket of another process.

use std::{io, os::fd::OwnedFd};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::Owner;

/// Why there is no handle on a socket.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The socket, or everybody who held it, is gone.
    #[error("it is gone")]
    Gone,
    /// The processes that hold it cannot be seen.
    #[error(
        "no process that holds it can be seen; this needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, and the same process \
         namespace"
    )]
    Unseen,
    /// The kernel gives no handle.
    #[error("{owner} does not give it up: {source}; this needs CAP_SYS_PTRACE")]
    Refused {
        /// Who holds it.
        owner: Owner,
        /// Why not.
        source: io::Error,
    },
}

/// Takes a handle on the socket with this inode and cookie from one of the processes that hold it.
///
/// The socket stays open for as long as the handle does, so the caller lets go of it at once: the socket must die with
/// its owners, not with the daemon.
///
/// # Minimum kernel version
///
/// 5.6, for `pidfd_getfd`.
///
/// # Errors
///
/// See [`TakeError`]. [`TakeError::Gone`] is what happens when a server ends meanwhile.
pub fn take(inode: u32, cookie: u64, holders: &[Owner]) -> Result<OwnedFd, TakeError> {
    let mut error = TakeError::Unseen;
    for owner in holders.iter().filter(|owner| owner.inode == inode) {
        match take_from(owner) {
            // A descriptor's number may mean something else by now, and so may an inode's. A cookie never does.
            Ok(handle) if rustix::net::sockopt::socket_cookie(&handle).ok() == Some(cookie) => {
                return Ok(handle);
            }
            Ok(_) => error = TakeError::Gone,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::BADF) => error = TakeError::Gone,
            Err(source) => error = TakeError::Refused { owner: owner.clone(), source: source.into() },
        }
    }
    Err(error)
}

fn take_from(owner: &Owner) -> rustix::io::Result<OwnedFd> {
    let pid = Pid::from_raw(owner.pid.cast_signed()).ok_or(rustix::io::Errno::SRCH)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    pidfd_getfd(process, owner.descriptor, PidfdGetfdFlags::empty())
}
