//! The command line's end of the control socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use crate::{
    control::{
        DrainRequest, ErrorBody, ONLY_GROUP, OperationStatus, ReloadRequest, ReloadStatus, RestartRequest,
        ScaleRequest, Status, UpgradeRequest, UpgradeStatus, WeightRequest, WorkerStatus,
    },
    group::WorkerId,
    policy::PolicySpec,
};

/// How long the daemon may take to answer. It answers within milliseconds; starting a process on a host that swaps
/// takes longest.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take until another version is found to be fit, or not; the daemon waits for no more than 45 s.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(60);

/// The longest answer: the status of a hundred full groups, and some.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Talks to the daemon, with a connection of its own for each request.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    patience: Duration,
}

/// Why the daemon did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there.
    #[error(
        "no daemon is running at {}; start one with `sudo reuseport-lb`, or name its socket with --control",
        path.display()
    )]
    NoDaemon {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is another user's.
    #[error("not permitted to use {}; run as root (sudo)", path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// Connecting failed for another reason.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon took too long.
    #[error("the daemon at {} does not answer", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the connection to the daemon at {} broke", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what this version expects.
    #[error("the daemon at {} gave an answer that this version does not understand", path.display())]
    NotUnderstood {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The daemon said no; this is its own line.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Why.
        message: String,
    },
}

impl Client {
    /// A client for the daemon with the control socket at `path`. Nothing is connected yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), patience: PATIENCE }
    }

    /// The control socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything about everything.
    ///
    /// # Errors
    ///
    /// [`Error`]; this and all other requests.
    pub async fn status(&self) -> Result<Status, Error> {
        self.ask(Method::GET, "/v1/status", None::<&()>).await
    }

    /// The metrics, in Prometheus' own text format.
    pub async fn metrics(&self) -> Result<String, Error> {
        let text = self.send(Method::GET, "/metrics", Vec::new()).await?;
        String::from_utf8(text.into()).map_err(|e| self.broken(e))
    }

    /// Gives a group another policy. No group means the only one there is, here and below.
    pub async fn set_policy(&self, group: Option<&str>, policy: PolicySpec) -> Result<PolicySpec, Error> {
        let group = group.unwrap_or(ONLY_GROUP);
        self.ask(Method::PUT, &format!("/v1/groups/{group}/policy"), Some(&policy)).await
    }

    /// Makes the daemon run what its configuration file says now.
    pub async fn reload(&self, request: ReloadRequest) -> Result<ReloadStatus, Error> {
        self.ask(Method::POST, "/v1/reload", Some(&request)).await
    }

    /// Gives a worker no new connection from now on.
    pub async fn drain(
        &self,
        group: Option<&str>,
        worker: WorkerId,
        request: DrainRequest,
    ) -> Result<WorkerStatus, Error> {
        self.ask(Method::PUT, &worker_route(group, worker, "drain"), Some(&request)).await
    }

    /// Gives a worker new connections again, and starts it when it is down.
    pub async fn undrain(&self, group: Option<&str>, worker: WorkerId) -> Result<WorkerStatus, Error> {
        self.ask(Method::DELETE, &worker_route(group, worker, "drain"), None::<&()>).await
    }

    /// Starts a worker that is down.
    pub async fn start(&self, group: Option<&str>, worker: WorkerId) -> Result<WorkerStatus, Error> {
        self.ask(Method::PUT, &worker_route(group, worker, "start"), None::<&()>).await
    }

    /// Begins to exchange the processes of workers; [`status`](Self::status) tells how far that is.
    pub async fn restart(
        &self,
        group: Option<&str>,
        request: RestartRequest,
    ) -> Result<OperationStatus, Error> {
        let group = group.unwrap_or(ONLY_GROUP);
        self.ask(Method::POST, &format!("/v1/groups/{group}/restart"), Some(&request)).await
    }

    /// Restarts no further worker; [`status`](Self::status) tells when those under way are back.
    pub async fn cancel_restart(&self, group: Option<&str>) -> Result<OperationStatus, Error> {
        let group = group.unwrap_or(ONLY_GROUP);
        self.ask(Method::DELETE, &format!("/v1/groups/{group}/restart"), None::<&()>).await
    }

    /// Begins to make the workers more or fewer; [`status`](Self::status) tells how far that is.
    pub async fn scale(&self, group: Option<&str>, request: ScaleRequest) -> Result<OperationStatus, Error> {
        let group = group.unwrap_or(ONLY_GROUP);
        self.ask(Method::PUT, &format!("/v1/groups/{group}/scale"), Some(&request)).await
    }

    /// Gives a worker another weight, 1 to 256.
    pub async fn set_weight(
        &self,
        group: Option<&str>,
        worker: WorkerId,
        weight: u16,
    ) -> Result<WorkerStatus, Error> {
        self.ask(Method::PUT, &worker_route(group, worker, "weight"), Some(&WeightRequest { weight })).await
    }

    /// Makes the daemon become another program; [`status`](Self::status) tells when it has.
    pub async fn upgrade(&self, request: &UpgradeRequest) -> Result<UpgradeStatus, Error> {
        let patient = Self { patience: UPGRADE_PATIENCE, ..self.clone() };
        patient.ask(Method::POST, "/v1/upgrade", Some(request)).await
    }

    /// Tells the daemon to leave its groups to the kernel and to end.
    pub async fn detach(&self) -> Result<(), Error> {
        self.send(Method::POST, "/v1/detach", Vec::new()).await.map(drop)
    }

    /// Tells the daemon to end, as SIGTERM does. It has heard, but not ended, when this returns.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.send(Method::POST, "/v1/shutdown", Vec::new()).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        route: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|e| self.broken(e))?;
        let answer = self.send(method, route, body.unwrap_or_default()).await?;
        serde_json::from_slice(&answer)
            .map_err(|source| Error::NotUnderstood { path: self.path.clone(), source })
    }

    async fn send(&self, method: Method, route: &str, body: Vec<u8>) -> Result<Bytes, Error> {
        let body = Bytes::from(body);
        let exchange = async || self.exchange(method.clone(), route, body.clone()).await;
        let exchange = async {
            match exchange().await {
                // As when the daemon is just becoming another version. To look once more changes nothing.
                Err(Error::Broken { source, .. }) if method == Method::GET || is_unread(&*source) => {
                    exchange().await
                }
                done => done,
            }
        };
        let (status, answer) = timeout(self.patience, exchange)
            .await
            .map_err(|_| Error::Silent { path: self.path.clone() })??;
        if status.is_success() {
            return Ok(answer);
        }
        let message = match serde_json::from_slice(&answer) {
            Ok(ErrorBody { error }) => error,
            Err(_) => format!("the daemon answered {status}"),
        };
        Err(Error::Refused { status: status.as_u16(), message })
    }

    async fn exchange(&self, method: Method, route: &str, body: Bytes) -> Result<(StatusCode, Bytes), Error> {
        let request = Request::builder()
            .method(method)
            .uri(route)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| self.broken(e))?;
        let stream = UnixStream::connect(&self.path).await.map_err(|e| self.not_connected(e))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(e))?;
        // The set ends the connection's task when this function returns or is dropped.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let answer = sender.send_request(request).await.map_err(|e| self.broken(e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        Ok((status, body.map_err(|e| self.broken(e))?.to_bytes()))
    }

    fn not_connected(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused => {
                Error::NoDaemon { path }
            }
            io::ErrorKind::PermissionDenied => Error::NotPermitted { path },
            _ => Error::Connect { path, source },
        }
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Broken { path: self.path.clone(), source: source.into() }
    }
}

/// Whether a connection broke before the daemon had read all of the request, so that nothing was done.
///
/// A Unix socket that is closed with something unread in it resets the connection (net/unix/af_unix.c), and one that
/// is closed without says nothing but the end.
fn is_unread(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let kind = cause.downcast_ref().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe))
            || cause.downcast_ref().is_some_and(hyper::Error::is_canceled)
    })
}

fn worker_route(group: Option<&str>, worker: WorkerId, what: &str) -> String {
    let group = group.unwrap_or(ONLY_GROUP);
    format!("/v1/groups/{group}/workers/{worker}/{what}")
}

#[cfg(test)]
mod tests;
