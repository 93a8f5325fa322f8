//! A client of the group that knows, for each connection, where it comes from and who answered it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};

use crate::{Netns, http};

/// What the built-in worker answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// The worker's number.
    pub worker: u16,
    /// Its process.
    pub pid: u32,
    /// What else it says; the built-in worker says nothing else.
    #[serde(default)]
    pub value: String,
}

/// Who connects, from where, and to whom.
#[derive(Clone, Debug)]
pub struct Client {
    server: SocketAddr,
    source: Option<SocketAddr>,
    netns: Option<Arc<Netns>>,
}

impl Client {
    /// A client in the thread's own namespace, with any source port.
    pub fn of(server: SocketAddr) -> Self {
        Self { server, source: None, netns: None }
    }

    /// The same client in another namespace.
    pub fn inside(self, netns: &Arc<Netns>) -> Self {
        Self { netns: Some(Arc::clone(netns)), ..self }
    }

    /// The same client with this source address and port.
    ///
    /// In a namespace of its own every address of 127.0.0.0/8 may be the source of a connection to 127.0.0.1.
    pub fn from(self, source: SocketAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Makes the connection, and sends nothing on it.
    pub async fn connect(&self) -> io::Result<Connection> {
        let socket = match &self.netns {
            None => self.socket(),
            Some(netns) => netns.within(|| self.socket()),
        }?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(self.server).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream })
    }

    fn socket(&self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.server), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        if let Some(source) = self.source {
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
        }
        Ok(socket)
    }

    /// One connection, one request, read to the end: what a browser without keep-alive does.
    pub async fn ask(&self, path: &str) -> io::Result<Answer> {
        self.connect().await?.ask_last(path).await
    }

    /// Makes a connection, learns who has it, and keeps it open.
    pub async fn hold(&self) -> io::Result<(Connection, Answer)> {
        let mut connection = self.connect().await?;
        let answer = connection.ask("/").await?;
        Ok((connection, answer))
    }

    /// The worker that answers this client. The connection leaves nothing behind, so that the same source port can
    /// be used again at once.
    pub async fn worker(&self) -> u16 {
        let (connection, answer) =
            self.hold().await.unwrap_or_else(|error| panic!("{:?} → {}: {error}", self.source, self.server));
        connection.reset();
        answer.worker
    }
}

/// The worker of each of these sources, one after the other.
pub async fn workers_of(client: &Client, sources: &[SocketAddr]) -> Vec<u16> {
    let mut workers = Vec::with_capacity(sources.len());
    for source in sources {
        workers.push(client.clone().from(*source).worker().await);
    }
    workers
}

/// `n` fixed sources that reach `worker` under a policy that hashes the flow.
pub async fn sources_reaching(client: &Client, worker: u16, n: usize) -> Vec<SocketAddr> {
    let mut found = Vec::with_capacity(n);
    for source in fixed_sources(4_000) {
        if found.len() == n {
            return found;
        }
        if client.clone().from(source).worker().await == worker {
            found.push(source);
        }
    }
    panic!("only {} of 4,000 sources reach worker {worker}", found.len());
}

/// Opens `n` connections, one after the other, and says which worker has each.
pub async fn hold(client: &Client, n: usize) -> Vec<(Connection, u16)> {
    let mut held = Vec::with_capacity(n);
    for _ in 0..n {
        let (connection, answer) = client.hold().await.unwrap_or_else(|error| panic!("{client:?}: {error}"));
        held.push((connection, answer.worker));
    }
    held
}

/// An open connection. Dropping it closes it in the usual way.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// One request and its answer; the connection stays open.
    pub async fn ask(&mut self, path: &str) -> io::Result<Answer> {
        self.send(path).await?;
        self.receive().await
    }

    /// The last request and its answer, read to the end of the connection.
    pub async fn ask_last(&mut self, path: &str) -> io::Result<Answer> {
        http::send_get(&mut self.stream, path, true).await?;
        let answer = self.receive().await?;
        self.expect_end().await?;
        Ok(answer)
    }

    /// Sends a request and does not wait.
    pub async fn send(&mut self, path: &str) -> io::Result<()> {
        http::send_get(&mut self.stream, path, false).await
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// Also when the header `x-worker` and the body name different workers.
    pub async fn receive(&mut self) -> io::Result<Answer> {
        let response = http::receive(&mut self.stream).await?;
        let answer: Answer = serde_json::from_slice(&response.body)?;
        let header = response.header("x-worker").and_then(|value| value.parse().ok());
        if response.status != 200 || header != Some(answer.worker) {
            return Err(io::Error::other(format!("not an answer of the built-in worker: {response:?}")));
        }
        Ok(answer)
    }

    /// Ends this side, and waits until the server has ended its side too.
    pub async fn half_close(mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        self.expect_end().await
    }

    /// Waits for `time` without a request. Says whether the server has kept the connection open all the while, or else
    /// ended it in order.
    ///
    /// # Errors
    /// When it was reset, and when the server says something without being asked.
    pub async fn idle(&self, time: Duration) -> io::Result<bool> {
        match timeout(time, self.stream.peek(&mut [0])).await {
            Err(_) => Ok(true),
            Ok(Ok(0)) => Ok(false),
            Ok(Ok(_)) => Err(io::Error::other("an answer without a request")),
            Ok(Err(error)) => Err(error),
        }
    }

    /// Whether the other host has refused what was sent last: it arrived when the server had closed already, and no
    /// process has read it. To be asked after an error.
    pub async fn was_refused(&self, error: &io::Error) -> bool {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => true,
            // The reset follows the end of the stream after a round trip. Without one, the time is up soon enough.
            io::ErrorKind::UnexpectedEof => {
                sleep(Duration::from_millis(200)).await;
                !matches!(self.stream.take_error(), Ok(None))
            }
            _ => false,
        }
    }

    /// Waits until the server closes, and takes nothing but that.
    pub async fn expect_end(&mut self) -> io::Result<()> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest).await? {
            0 => Ok(()),
            n => Err(io::Error::other(format!("{n} bytes more than announced"))),
        }
    }

    /// Ends the connection with a reset, now.
    ///
    /// By `connect` to nowhere. `SO_LINGER` would reset at the last `close`, and a process that another test is just
    /// starting has a copy of this test's descriptors until its `exec`.
    pub fn reset(self) {
        rustix::net::connect_unspec(&self.stream).expect("connect to nowhere");
    }

    /// This side's address and port.
    pub fn source(&self) -> SocketAddr {
        self.stream.local_addr().expect("the local address")
    }
}

/// `n` sources on the loopback that are the same each time: address and port, all different.
///
/// The ports are below 32768, where the kernel's own choice begins, so nobody else takes one.
pub fn fixed_sources(n: u16) -> Vec<SocketAddr> {
    const PER_BLOCK: u16 = 250;
    (0..n)
        .map(|i| {
            let [block, host] =
                [i / PER_BLOCK, 1 + i % PER_BLOCK].map(|part| u8::try_from(part).expect("below 256"));
            (Ipv4Addr::new(127, 77, block, host), 20_000 + i % 12_000).into()
        })
        .collect()
}
