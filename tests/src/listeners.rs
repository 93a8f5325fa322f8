//! Listening sockets of one group without workers: the test takes what comes.

use std::{
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    net::{SocketFlags, accept_with},
};
use socket2::{Domain, Socket, Type};

use crate::PATIENCE;

/// Room for a whole batch in one queue.
const BACKLOG: i32 = 1024;

/// A group of listening sockets on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<Socket>,
    address: SocketAddr,
    epoll: OwnedFd,
}

impl Listeners {
    /// A group of `n` sockets in the thread's network namespace.
    pub fn new(n: u16) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll_create");
        let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
        let sockets = (0..n).map(|slot| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
            socket.set_reuse_port(true).expect("SO_REUSEPORT");
            socket.set_nonblocking(true).expect("O_NONBLOCK");
            socket.bind(&address.into()).expect("bind");
            socket.listen(BACKLOG).expect("listen");
            address = socket.local_addr().expect("the own address").as_socket().expect("an internet address");
            epoll::add(&epoll, &socket, epoll::EventData::new_u64(slot.into()), epoll::EventFlags::IN)
                .expect("epoll_ctl");
            socket
        });
        let sockets = sockets.collect();
        Self { sockets, address, epoll }
    }

    /// The socket of each slot.
    pub fn sockets(&self) -> impl Iterator<Item = (u16, BorrowedFd<'_>)> {
        (0..).zip(self.sockets.iter().map(|socket| socket.as_fd()))
    }

    /// Connects from any port of `source`, and says which slot has the connection, with both of its ends.
    pub fn connect(&self, source: [u8; 4]) -> (u16, Ends) {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        client.bind(&SocketAddr::from((source, 0)).into()).expect("bind");
        client.connect(&self.address.into()).expect("connect");
        let (slot, server) = self.accept();
        (slot, Ends { client: client.into(), _server: server })
    }

    /// Takes the one connection that waits.
    fn accept(&self) -> (u16, OwnedFd) {
        let patience = Timespec::try_from(PATIENCE).expect("a bound that fits a timespec");
        let mut ready = Vec::with_capacity(1);
        epoll::wait(&self.epoll, spare_capacity(&mut ready), Some(&patience)).expect("epoll_wait");
        let slot = ready.first().expect("the connection is in an accept queue").data.u64();
        let listener = &self.sockets[usize::try_from(slot).expect("a slot")];
        let slot = u16::try_from(slot).expect("a slot");
        (slot, accept_with(listener, SocketFlags::CLOEXEC).expect("accept"))
    }
}

/// Both ends of a connection. Dropping it closes them, the client's first.
#[derive(Debug)]
pub struct Ends {
    client: TcpStream,
    _server: OwnedFd,
}

impl Ends {
    /// Ends the connection at once, so that nothing is left of it, not even a port in `TIME_WAIT`.
    pub fn reset(self) {
        rustix::net::connect_unspec(&self.client).expect("connect to nowhere");
    }
}
