//! The daemon's end of the control socket.
//!
//! Whatever comes in, the daemon lives on: bodies, connections and the time that each may take are bounded, and a
//! request that makes no sense is answered with an [`ErrorBody`](super::ErrorBody).

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;

use super::routes::{READ_PATIENCE, router};
pub use super::socket::{BindError, ControlSocket, bind, resume};
use crate::daemon::Handle;

/// The longest request head, which is also hyper's buffer of one connection; hyper takes no less than 8 KiB.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How many connections are served at the same time; more wait in the backlog. More than anybody opens by mistake,
/// and with the limits above and the time-outs below, those who never finish cost a few megabytes for a while.
const MAX_CONNECTIONS: usize = 512;

/// How long a client may leave an answer unread. A stopped `less` is fine: its pipe is not our socket.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// How long answers under way may take once the server is told to end.
const FINISH_PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait when no connection can be accepted, which means that file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the control socket until `shutdown` is done. Then the server's share of the socket goes, and answers that are
/// under way are given a second.
pub async fn serve(socket: Arc<ControlSocket>, handle: Handle, shutdown: impl Future<Output = ()>) {
    serve_on(socket, router(handle), MAX_CONNECTIONS, shutdown).await;
}

/// Where connections come from.
pub(super) trait Listener {
    type Stream: AsyncRead + AsyncWrite + Send + 'static;

    async fn accept(&self) -> io::Result<Self::Stream>;

    /// `router` as whoever is at the other end may use it.
    fn limit(&self, router: &Router, _: &Self::Stream) -> Router {
        router.clone()
    }
}

impl Listener for Arc<ControlSocket> {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }

    fn limit(&self, router: &Router, stream: &UnixStream) -> Router {
        self.access.limit(router, stream)
    }
}

/// Serves `router`, to at most `max_connections` at the same time, until `shutdown` is done.
pub(super) async fn serve_on<L: Listener>(
    socket: L,
    router: Router,
    max_connections: usize,
    shutdown: impl Future<Output = ()>,
) {
    let connections = Arc::new(Semaphore::new(max_connections));
    let graceful = GracefulShutdown::new();
    let http = http();

    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (permit, stream) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept(&socket, &connections) => accepted,
        };
        let service = TowerToHyperService::new(socket.limit(&router, &stream));
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream.as_mut().set_write_timeout_pinned(Some(WRITE_PATIENCE));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "a connection for control or metrics ended early");
            }
            drop(permit);
        });
    }
    drop(socket);
    if timeout(FINISH_PATIENCE, graceful.shutdown()).await.is_err() {
        tracing::debug!("connections for control or metrics were cut");
    }
}

async fn accept<L: Listener>(socket: &L, connections: &Arc<Semaphore>) -> (OwnedSemaphorePermit, L::Stream) {
    loop {
        let Ok(permit) = Arc::clone(connections).acquire_owned().await else {
            unreachable!("the semaphore is never closed");
        };
        match socket.accept().await {
            Ok(stream) => return (permit, stream),
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection for control or metrics");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How a connection is read.
pub(super) fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(READ_PATIENCE).max_buf_size(MAX_HEAD_BYTES);
    http
}

#[cfg(test)]
mod tests;
