//! The listening sockets that the daemon makes, and keeps a handle on.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use socket2::{Domain, Protocol, Socket, Type};

/// A worker's listening socket.
///
/// The daemon's handle is what keeps the accept queue alive when the worker dies.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    cookie: u64,
    backlog: i32,
    is_narrow: bool,
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
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        socket.listen(backlog)?;
        Ok(Self { socket, cookie, backlog, is_narrow: false })
    }

    /// Listens with an accept queue of this length. What is in the queue stays.
    pub(super) fn set_backlog(&mut self, backlog: u32) -> io::Result<()> {
        self.backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        if self.is_narrow { Ok(()) } else { self.socket.listen(self.backlog) }
    }

    /// Lets no more than one connection wait to be accepted, or again as many as the backlog says.
    pub(super) fn set_narrow(&mut self, is_narrow: bool) -> io::Result<()> {
        if self.is_narrow != is_narrow {
            // The kernel takes one more than that, and drops the handshakes of others, which are sent again.
            self.socket.listen(if is_narrow { 0 } else { self.backlog })?;
            self.is_narrow = is_narrow;
        }
        Ok(())
    }

    /// A socket that was made by an earlier daemon.
    pub(super) fn resume(socket: OwnedFd, backlog: u32) -> io::Result<Self> {
        let cookie = rustix::net::sockopt::socket_cookie(&socket)?;
        let mut listener = Self { socket: socket.into(), cookie, backlog: 0, is_narrow: false };
        // The daemon may have died while it kept the queue short.
        listener.set_backlog(backlog)?;
        Ok(listener)
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
