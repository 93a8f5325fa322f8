//! Workers that the benchmark starts itself, on a group that it makes itself.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
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
        let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut sockets = Vec::new();
        for _ in 0..n {
            let socket = open(address)?;
            address = socket.local_addr()?.as_socket().context("an internet address")?;
            sockets.push(socket);
        }
        // From here on, an error takes away what was made.
        let mut workers = Self { sockets, processes: Vec::new(), address };
        for id in 0..n {
            let socket = workers.sockets[usize::from(id)].try_clone()?;
            workers.processes.push(spawn(id, socket)?);
        }
        Ok(workers)
    }

    /// Closes this process's handles on the sockets: from now on a socket ends with its worker.
    pub(crate) fn let_go(&mut self) {
        self.sockets.clear();
    }

    /// Kills a worker, and starts it again with a new socket.
    pub(crate) fn replace(&mut self, id: u16) -> Result<()> {
        let process = &mut self.processes[usize::from(id)];
        process.kill().context("SIGKILL")?;
        process.wait().context("wait")?;
        let socket = open(self.address)?;
        self.processes[usize::from(id)] = spawn(id, socket)?;
        Ok(())
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

fn open(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("socket")?;
    socket.set_reuse_address(true).context("SO_REUSEADDR")?;
    socket.set_reuse_port(true).context("SO_REUSEPORT")?;
    socket.bind(&address.into()).context("bind")?;
    socket.listen(BACKLOG).context("listen")?;
    Ok(socket)
}

fn spawn(id: u16, socket: Socket) -> Result<Child> {
    Command::new(std::env::current_exe().context("the benchmark's own file")?)
        .args(["worker", "--pin", "--own-port"])
        .env(WORKER_VARIABLE, id.to_string())
        .stdin(OwnedFd::from(socket))
        .spawn()
        .context("cannot start a worker")
}
