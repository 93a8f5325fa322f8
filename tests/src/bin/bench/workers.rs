//! Workers that the benchmark starts itself, on a group that it makes itself.

use std::{
    net::SocketAddr,
    process::{Child, Command},
};

use anyhow::{Context as _, Result};
use reuseport_lb::worker::WORKER_VARIABLE;
use socket2::{Domain, Socket, Type};

/// The backlog of each socket: the daemon's own default.
const BACKLOG: i32 = 4096;

/// The listening sockets of one group, each with a worker process. Dropping it kills the processes.
#[derive(Debug)]
pub(crate) struct Workers {
    sockets: Vec<Socket>,
    processes: Vec<Child>,
    address: SocketAddr,
}

impl Workers {
    /// Starts `n` workers in the thread's network namespace, on a free port of 127.0.0.1; each is pinned to a CPU and
    /// also listens on a port of its own.
    pub(crate) fn start(n: u16) -> Result<Self> {
        let mut workers =
            Self { sockets: Vec::new(), processes: Vec::new(), address: ([127, 0, 0, 1], 0).into() };
        for _ in 0..n {
            workers.open()?;
        }
        for id in 0..n {
            let process = workers.spawn(id)?;
            workers.processes.push(process);
        }
        Ok(workers)
    }

    fn open(&mut self) -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("socket")?;
        socket.set_reuse_address(true).context("SO_REUSEADDR")?;
        socket.set_reuse_port(true).context("SO_REUSEPORT")?;
        socket.bind(&self.address.into()).context("bind")?;
        socket.listen(BACKLOG).context("listen")?;
        self.address = socket.local_addr()?.as_socket().context("an internet address")?;
        self.sockets.push(socket);
        Ok(())
    }

    fn spawn(&self, id: u16) -> Result<Child> {
        Command::new(std::env::current_exe().context("the benchmark's own file")?)
            .args(["worker", "--pin", "--own-port"])
            .env(WORKER_VARIABLE, id.to_string())
            .stdin(std::os::fd::OwnedFd::from(self.sockets[usize::from(id)].try_clone()?))
            .spawn()
            .context("cannot start a worker")
    }

    /// The sockets, by worker.
    pub(crate) fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// Where they listen together.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It has ended already, or it ends now.
            drop(process.kill());
            drop(process.wait());
        }
    }
}
