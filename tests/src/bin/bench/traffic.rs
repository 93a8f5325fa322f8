//! Connections over loopback, as fast as one thread makes and takes them.

use std::{
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    fd::OwnedFd,
    net::{SocketFlags, accept_with},
};
use socket2::{Domain, SockRef, Socket, Type};

/// How many connections are made before they are taken: few enough that no worker waits for longer than a moment.
const BATCH: u32 = 64;
/// The accept queue has room for a whole batch, wherever it goes.
const BACKLOG: i32 = 1024;
/// How long connections that are established may take to be found in an accept queue.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// How a client ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// By a reset, which leaves nothing behind, so that ports are never used up.
    Reset,
    /// By the exchange of FINs, as clients do.
    Orderly,
}

/// The listening sockets of one group, and a thread's loop that empties their accept queues.
#[derive(Debug)]
pub(crate) struct Listeners {
    sockets: Vec<Socket>,
    address: SocketAddr,
    epoll: OwnedFd,
}

impl Listeners {
    /// Makes a group of `n` sockets in the thread's network namespace, on a free port of 127.0.0.1.
    pub(crate) fn new(n: u16) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create")?;
        let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut sockets = Vec::with_capacity(n.into());
        for slot in 0..n {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("socket")?;
            socket.set_reuse_port(true).context("SO_REUSEPORT")?;
            socket.set_nonblocking(true).context("O_NONBLOCK")?;
            socket.bind(&address.into()).context("bind")?;
            socket.listen(BACKLOG).context("listen")?;
            address = socket.local_addr()?.as_socket().context("an internet address")?;
            epoll::add(&epoll, &socket, epoll::EventData::new_u64(slot.into()), epoll::EventFlags::IN)
                .context("epoll_ctl")?;
            sockets.push(socket);
        }
        Ok(Self { sockets, address, epoll })
    }

    /// The sockets, in the order of their slots.
    pub(crate) fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// Makes, takes and closes `n` connections.
    pub(crate) fn connections(&self, n: u32, close: Close) -> Result<()> {
        let mut left = n;
        while left > 0 {
            let batch = left.min(BATCH);
            let mut clients = Vec::with_capacity(BATCH as usize);
            for _ in 0..batch {
                let client = TcpStream::connect(self.address).context("connect")?;
                if close == Close::Reset {
                    SockRef::from(&client).set_linger(Some(Duration::ZERO)).context("SO_LINGER")?;
                }
                clients.push(client);
            }
            let accepted = self.accept(batch)?;
            // The client first: the side that closes first has the port in TIME_WAIT, and that is the client's way.
            drop(clients);
            drop(accepted);
            left -= batch;
        }
        Ok(())
    }

    /// Takes exactly `n` connections out of the accept queues.
    fn accept(&self, n: u32) -> Result<Vec<OwnedFd>> {
        let mut accepted = Vec::with_capacity(BATCH as usize);
        let mut ready = Vec::with_capacity(BATCH as usize);
        while accepted.len() < n as usize {
            ready.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut ready), Some(&PATIENCE)).context("epoll_wait")?;
            if ready.is_empty() {
                bail!("{} of {n} connections are in no accept queue", n as usize - accepted.len());
            }
            for event in &ready {
                let listener = self.sockets[event.data.u64() as usize].as_fd();
                loop {
                    match accept_with(listener, SocketFlags::CLOEXEC) {
                        Ok(connection) => accepted.push(connection),
                        Err(rustix::io::Errno::AGAIN) => break,
                        Err(error) => return Err(error).context("accept"),
                    }
                }
            }
        }
        Ok(accepted)
    }
}
