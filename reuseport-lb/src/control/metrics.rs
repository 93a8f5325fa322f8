//! Metrics over HTTP: at `/metrics` on the control socket, and, where the user asks for it, on a TCP address.
//!
//! The TCP address takes `GET /metrics` and nothing else. Whoever can connect there may read; so by default that is this
//! host.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::{TcpListener, TcpStream};

use super::{
    routes::{ApiError, no_route, wrong_method},
    server::{Listener, serve_on},
};
use crate::{
    daemon::{Handle, Request, RequestError},
    stats::{self, Format},
};

/// How many scrapes are served at the same time; more wait. One Prometheus makes one at a time.
const MAX_CONNECTIONS: usize = 32;

/// A listening TCP socket for metrics.
#[derive(Debug)]
pub struct MetricsSocket(TcpListener);

/// There is no socket for metrics.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}; choose another address with --metrics")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Listens on `address`, by the socket that was `handed` over where that does so. Must be called on a tokio runtime.
///
/// # Errors
///
/// The address is in use or not this host's, or the process may not use the port.
pub async fn bind(address: SocketAddr, handed: Option<OwnedFd>) -> Result<MetricsSocket, BindError> {
    let handed = handed.and_then(|socket| TcpListener::from_std(socket.into()).ok());
    match handed.filter(|socket| socket.local_addr().is_ok_and(|listens| listens == address)) {
        Some(socket) => Ok(MetricsSocket(socket)),
        None => TcpListener::bind(address)
            .await
            .map(MetricsSocket)
            .map_err(|source| BindError { address, source }),
    }
}

impl AsFd for MetricsSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener for Arc<MetricsSocket> {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        self.0.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves `GET /metrics` until `shutdown` is done.
pub async fn serve(socket: Arc<MetricsSocket>, handle: Handle, shutdown: impl Future<Output = ()>) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(handle);
    serve_on(socket, router, MAX_CONNECTIONS, shutdown).await;
}

/// Answers a scrape, in the format that it asks for.
pub(super) async fn metrics(State(daemon): State<Handle>, headers: HeaderMap) -> Result<Response, ApiError> {
    let status = daemon.ask(Request::Status).await?;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    let text = stats::render(status, format)
        .map_err(|error| RequestError::Failed(format!("cannot write: {error}")))?;
    Ok(([(header::CONTENT_TYPE, format.content_type())], text).into_response())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::oneshot,
    };

    use super::*;
    use crate::control::testing::{FakeDaemon, status};

    async fn answer(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("the server listens");
        let request = format!("{head}\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    }

    #[tokio::test]
    async fn over_tcp_one_may_read_metrics_and_nothing_else() {
        let socket = bind(([127, 0, 0, 1], 0).into(), None).await.expect("a port");
        let address = socket.0.local_addr().expect("an address");
        let taken = bind(address, None).await.expect_err("the port is in use");
        assert!(taken.to_string().contains("--metrics"), "{taken}");

        let handle = FakeDaemon::handle(status());
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(Arc::new(socket), handle, async { drop(ended.await) }));

        let plain = answer(address, "GET /metrics HTTP/1.1").await;
        assert!(plain.starts_with("HTTP/1.1 200 ") && plain.contains("text/plain; version=0.0.4"), "{plain}");
        assert!(plain.contains("\nreuseport_lb_worker_active_connections{"), "{plain}");
        let open = answer(
            address,
            "GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
        )
        .await;
        assert!(open.contains("application/openmetrics-text; version=1.0.0"), "{open}");
        assert!(open.ends_with("# EOF\n"), "{open}");

        for (request, expected) in [
            ("GET /v1/status", 404),
            ("POST /v1/shutdown", 404),
            ("PUT /v1/groups/-/workers/0/drain", 404),
            ("GET /", 404),
            ("POST /metrics", 405),
        ] {
            let told = answer(address, &format!("{request} HTTP/1.1")).await;
            assert!(told.starts_with(&format!("HTTP/1.1 {expected} ")), "{request}: {told}");
        }
        drop(end);
        server.await.expect("the server ends");
    }
}
