//! The built-in worker: a small HTTP/1.1 server, for trying and testing.
//!
//! | request | answer |
//! | --- | --- |
//! | any | `{"worker":2,"pid":123}`, with the header `x-worker: 2` |
//! | `/slow?ms=N` | the same, after N milliseconds; other connections are served meanwhile |
//! | `/burn?ms=N` | the same, after N milliseconds of computing, during which the whole worker does nothing else |
//! | `/hang` | the same; afterwards the worker accepts no connection for good, and goes on with those it has |
//!
//! N is at most an hour; anything else is answered with status 400.
//!
//! It speaks systemd's notify protocol: ready, stopping, what it is doing, and the watchdog.
//!
//! On SIGTERM it accepts what waits in its accept queue already, answers what is open, closes what is idle, and exits
//! with status 0. After `/hang` it leaves the queue alone even then. SIGINT does nothing: that is the daemon's to
//! decide.

use std::{
    convert::Infallible,
    io,
    net::{TcpListener as StdTcpListener, TcpStream as StdTcpStream},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sd_notify::NotifyState;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};

use crate::{group::WorkerId, worker::WORKER_VARIABLE};

/// The longest `ms`: enough for any test, and a slip of the finger does not block a worker for days.
const LONGEST: Duration = Duration::from_secs(3_600);

/// How long to wait after a failed accept. Most often the worker is out of file descriptors, and only time helps.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How long a connection without any request may keep a worker from ending: a client sends its request right after it
/// has connected, so one round trip, and one lost packet.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Why the built-in worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was not started by the daemon.
    #[error("{WORKER_VARIABLE} is not set to a worker's number; the daemon starts this command")]
    NoWorker,
    /// It got no socket.
    #[error("no listening socket in LISTEN_FDS")]
    NoSocket,
    /// What it got is no TCP socket.
    #[error("the socket in LISTEN_FDS cannot be used")]
    Socket(#[source] io::Error),
    /// Out of file descriptors or memory.
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
}

/// Serves the socket in `LISTEN_FDS` until SIGTERM.
///
/// Puts the socket into non-blocking mode. That mode belongs to the open file description, which is the daemon's and
/// the next worker's too; it stays when this worker ends.
///
/// # Errors
///
/// See [`Error`]; all of them before the first connection is accepted.
pub fn main() -> Result<(), Error> {
    let id = std::env::var(WORKER_VARIABLE).ok().and_then(|id| id.parse().ok()).ok_or(Error::NoWorker)?;
    let socket = listenfd::ListenFd::from_env().take_tcp_listener(0).map_err(Error::Socket)?;
    let socket = socket.ok_or(Error::NoSocket)?;
    // One thread: a group has a worker a CPU, or a thousand of them.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(run(socket, Worker::new(id)))
}

async fn run(socket: StdTcpListener, worker: Worker) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
    // Having a handler is what makes the process live on.
    let _interrupt = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;

    socket.set_nonblocking(true).map_err(Error::Socket)?;
    let listener = TcpListener::from_std(socket).map_err(Error::Socket)?;
    let worker = Arc::new(worker);
    say(&[NotifyState::Ready, NotifyState::Status("serving")]);
    if let Some(interval) = sd_notify::watchdog_enabled() {
        drop(tokio::spawn(feed_watchdog(interval)));
    }

    tokio::select! {
        () = accept(&listener, &worker) => {
            terminate.recv().await;
        }
        _ = terminate.recv() => {}
    }

    say(&[NotifyState::Stopping, NotifyState::Status("finishing open connections")]);
    worker.stopping.send_replace(true);
    if !*worker.hung.borrow() {
        accept_waiting(listener, &worker).await.map_err(Error::Socket)?;
    }
    // Every open connection holds a receiver.
    worker.stopping.closed().await;
    Ok(())
}

/// Tells the daemon, if it wants to know.
fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        eprintln!("reuseport-lb: cannot notify the daemon: {error}");
    }
}

/// Twice in each interval, as systemd's manual has it. A worker that computes misses it, since it has but one thread.
async fn feed_watchdog(interval: Duration) {
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        ticks.tick().await;
        say(&[NotifyState::Watchdog]);
    }
}

/// Accepts until `/hang`.
async fn accept(listener: &TcpListener, worker: &Arc<Worker>) {
    let mut hung = worker.hung.subscribe();
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            // The worker owns the sender, so this cannot end for another reason.
            _ = hung.changed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                failing = false;
                worker.open(stream);
            }
            Err(error) => worker.accept_failed(&error, &mut failing).await,
        }
    }
}

/// Accepts what waits in the accept queue, until there is nothing more.
async fn accept_waiting(listener: TcpListener, worker: &Arc<Worker>) -> io::Result<()> {
    // Asks the kernel each time. Tokio's accept would believe that the queue is empty until its next poll.
    let listener = listener.into_std()?;
    let mut failing = false;
    loop {
        match listener.accept() {
            Ok((stream, _)) => worker.open(into_tokio(stream)?),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => worker.accept_failed(&error, &mut failing).await,
        }
    }
}

fn into_tokio(stream: StdTcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

/// What all connections of a worker share.
#[derive(Debug)]
struct Worker {
    id: WorkerId,
    body: Bytes,
    header: HeaderValue,
    hung: watch::Sender<bool>,
    stopping: watch::Sender<bool>,
}

impl Worker {
    fn new(id: WorkerId) -> Self {
        Self {
            id,
            body: format!(r#"{{"worker":{id},"pid":{}}}"#, std::process::id()).into(),
            header: id.0.into(),
            hung: watch::Sender::new(false),
            stopping: watch::Sender::new(false),
        }
    }

    fn open(self: &Arc<Self>, stream: TcpStream) {
        drop(tokio::spawn(Arc::clone(self).serve(stream, self.stopping.subscribe())));
    }

    /// Waits where trying again at once would fail again, and says so once a series.
    async fn accept_failed(&self, error: &io::Error, failing: &mut bool) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};

        if matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            return;
        }
        if !std::mem::replace(failing, true) {
            eprintln!("reuseport-lb: worker {}: cannot accept: {error}", self.id);
        }
        sleep(ACCEPT_RETRY).await;
    }

    /// Serves one connection until it is closed, or until the worker stops and the connection has been served.
    ///
    /// What goes wrong is the client's business: it sees its connection closed.
    async fn serve(self: Arc<Self>, stream: TcpStream, mut stopping: watch::Receiver<bool>) {
        let requested = AtomicBool::new(false);
        let service = service_fn(|request| {
            requested.store(true, Relaxed);
            let worker = Arc::clone(&self);
            async move { Ok::<_, Infallible>(worker.answer(&request).await) }
        });
        // A client may say that it has nothing more to send and still wait for its answer.
        let connection =
            http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);

        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => {}
        }

        if !requested.load(Relaxed) && timeout(FIRST_REQUEST, connection.as_mut()).await.is_ok() {
            return;
        }
        // `graceful_shutdown` closes a connection that has had no request, and an idle one, even if a request is
        // waiting to be read. So read first, also when time is up: a process that was not running all the while sees
        // that before it sees what has come.
        tokio::select! {
            biased;
            _ = connection.as_mut() => return,
            () = tokio::task::yield_now() => {}
        }
        connection.as_mut().graceful_shutdown();
        // Ends either way; the error, if any, is the client's.
        drop(connection.await);
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, body) = match self.act(request.uri().path(), request.uri().query()).await {
            Ok(()) => (StatusCode::OK, self.body.clone()),
            Err(why) => (StatusCode::BAD_REQUEST, format!(r#"{{"error":"{why}"}}"#).into()),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-worker", self.header.clone());
        if *self.stopping.borrow() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn act(&self, path: &str, query: Option<&str>) -> Result<(), &'static str> {
        match path {
            "/slow" => sleep(milliseconds(query)?).await,
            "/burn" => {
                let (started, time) = (Instant::now(), milliseconds(query)?);
                while started.elapsed() < time {
                    std::hint::spin_loop();
                }
            }
            "/hang" => {
                self.hung.send_replace(true);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The `ms` of a query.
fn milliseconds(query: Option<&str>) -> Result<Duration, &'static str> {
    let values = query.into_iter().flat_map(|query| query.split('&'));
    let value = values.filter_map(|pair| pair.strip_prefix("ms=")).next();
    value
        .and_then(|value| value.parse().ok())
        .map(Duration::from_millis)
        .filter(|time| *time <= LONGEST)
        .ok_or("ms must be a number of milliseconds, 3600000 (an hour) at most")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_milliseconds() {
        for (query, ms) in [("ms=0", 0), ("ms=20", 20), ("a=b&ms=7&c", 7), ("ms=3600000", 3_600_000)] {
            assert_eq!(milliseconds(Some(query)), Ok(Duration::from_millis(ms)), "{query}");
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for query in
            ["", "ms", "ms=", "ms=abc", "ms=-1", "ms=1.5", "ms=3600001", "ms=99999999999999999999", "xms=1"]
        {
            assert!(milliseconds(Some(query)).is_err(), "{query}");
        }
        assert!(milliseconds(None).is_err());
    }
}
