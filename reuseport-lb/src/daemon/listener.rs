//! The listening sockets that the daemon makes, and keeps a handle on.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use socket2::{Domain, Protocol, Socket, Type};

/// A worker's listening socket.
///
/// The daemon's handle is what keeps the accept queue alive when the worker dies.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    cookie: u64,
}

impl Listener {
    /// Makes a socket that listens on `address` together with the others of its group. `[::]` takes IPv4 too.
    pub(super) fn open(address: SocketAddr, backlog: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // As servers do, so that connections which linger in TIME_WAIT keep nobody from binding the address again.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if let IpAddr::V6(ip) = address.ip() {
            socket.set_only_v6(!ip.is_unspecified())?;
        }
        socket.bind(&address.into())?;
        let cookie = rustix::net::sockopt::socket_cookie(&socket)?;
        let listener = Self { socket, cookie };
        listener.set_backlog(backlog)?;
        Ok(listener)
    }

    /// Listens with an accept queue of this length. What is in the queue stays.
    pub(super) fn set_backlog(&self, backlog: u32) -> io::Result<()> {
        self.socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))
    }

    /// The kernel's name for the socket.
    pub(super) const fn cookie(&self) -> u64 {
        self.cookie
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
