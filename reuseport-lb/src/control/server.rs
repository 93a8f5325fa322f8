//! The daemon's end of the control socket.
//!
//! Whatever comes in, the daemon lives on: bodies, connections and the time that each may take are bounded, and a
//! request that makes no sense is answered with an [`ErrorBody`].

use std::{error::Error, fmt::Display, io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, HttpBody as _, to_bytes},
    extract::{FromRequestParts, Path as UrlPath, Request, State},
    http::{Method, StatusCode, Uri, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use http_body_util::LengthLimitError;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;

pub use super::socket::{BindError, ControlSocket, bind, resume};
use crate::{
    config::values,
    control::{
        DrainRequest, ErrorBody, OperationStatus, ReloadRequest, ReloadStatus, RestartRequest, ScaleRequest,
        Status, UpgradeRequest, UpgradeStatus, WeightRequest, WorkerStatus, metrics,
    },
    daemon::{self, Handle, RequestError},
    group::{WEIGHT_RANGE, WorkerId},
    policy::{HashOn, PolicySpec},
};

/// The longest body. The longest one with a meaning has less than a hundred bytes.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// The longest request head, which is also hyper's buffer of one connection; hyper takes no less than 8 KiB.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How many connections are served at the same time; more wait in the backlog. More than anybody opens by mistake,
/// and with the limits above and the time-outs below, those who never finish cost a few megabytes for a while.
const MAX_CONNECTIONS: usize = 512;

/// How long a connection may stay silent: before a request, within its head, and within its body each. Everyone
/// who connects is on this host, so this is for a hand that types into `nc`, not for a network.
const READ_PATIENCE: Duration = Duration::from_secs(10);

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

/// What can be asked.
pub(super) fn router(handle: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/groups/{group}/policy", put(set_policy))
        .route("/v1/groups/{group}/workers/{id}/drain", put(drain).delete(undrain))
        .route("/v1/groups/{group}/workers/{id}/start", put(start))
        .route("/v1/groups/{group}/workers/{id}/weight", put(set_weight))
        .route("/v1/groups/{group}/restart", post(restart))
        .route("/v1/groups/{group}/scale", put(scale))
        .route("/v1/reload", post(reload))
        .route("/v1/upgrade", post(upgrade))
        .route("/v1/shutdown", post(shutdown))
        .route("/v1/detach", post(detach))
        .route("/metrics", get(metrics::metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(handle)
}

async fn status(State(daemon): State<Handle>) -> Result<Json<Status>, ApiError> {
    Ok(Json(daemon.ask(daemon::Request::Status).await?))
}

async fn set_policy(
    State(daemon): State<Handle>,
    GroupPath(group): GroupPath,
    request: Request,
) -> Result<Json<PolicySpec>, ApiError> {
    let PolicySpec { name, hash_on, balance_factor } = read_json(request).await?;
    // The default stands in each answer, so what `GET` gave may be `PUT` back whether the policy hashes or not.
    let hash_on = (hash_on != HashOn::default()).then_some(hash_on);
    let policy = values::policy(name, hash_on, balance_factor).map_err(ApiError::malformed)?;
    Ok(Json(daemon.ask(|reply| daemon::Request::SetPolicy(group, policy, reply)).await?))
}

async fn drain(
    State(daemon): State<Handle>,
    WorkerPath(group, id): WorkerPath,
    request: Request,
) -> Result<Json<WorkerStatus>, ApiError> {
    let drain: DrainRequest = read_optional_json(request).await?;
    check_timeout(drain.timeout_ms)?;
    Ok(Json(daemon.ask(|reply| daemon::Request::Drain(group, id, drain, reply)).await?))
}

async fn undrain(
    State(daemon): State<Handle>,
    WorkerPath(group, id): WorkerPath,
) -> Result<Json<WorkerStatus>, ApiError> {
    Ok(Json(daemon.ask(|reply| daemon::Request::Undrain(group, id, reply)).await?))
}

async fn start(
    State(daemon): State<Handle>,
    WorkerPath(group, id): WorkerPath,
) -> Result<Json<WorkerStatus>, ApiError> {
    Ok(Json(daemon.ask(|reply| daemon::Request::Start(group, id, reply)).await?))
}

async fn restart(
    State(daemon): State<Handle>,
    GroupPath(group): GroupPath,
    request: Request,
) -> Result<Json<OperationStatus>, ApiError> {
    let restart: RestartRequest = read_optional_json(request).await?;
    check_timeout(restart.timeout_ms)?;
    Ok(Json(daemon.ask(|reply| daemon::Request::Restart(group, restart, reply)).await?))
}

async fn scale(
    State(daemon): State<Handle>,
    GroupPath(group): GroupPath,
    request: Request,
) -> Result<Json<OperationStatus>, ApiError> {
    let scale: ScaleRequest = read_json(request).await?;
    check_timeout(scale.timeout_ms)?;
    Ok(Json(daemon.ask(|reply| daemon::Request::Scale(group, scale, reply)).await?))
}

fn check_timeout(timeout_ms: Option<u64>) -> Result<(), ApiError> {
    match timeout_ms {
        Some(ms) if Duration::from_millis(ms) > values::MAX_DURATION => {
            Err(ApiError::malformed("timeout_ms is more than a year"))
        }
        _ => Ok(()),
    }
}

async fn set_weight(
    State(daemon): State<Handle>,
    WorkerPath(group, id): WorkerPath,
    request: Request,
) -> Result<Json<WorkerStatus>, ApiError> {
    let WeightRequest { weight } = read_json(request).await?;
    if !WEIGHT_RANGE.contains(&weight) {
        let (low, high) = (WEIGHT_RANGE.start(), WEIGHT_RANGE.end());
        return Err(ApiError::malformed(format!("weight {weight} cannot be: a weight is {low} to {high}")));
    }
    Ok(Json(daemon.ask(|reply| daemon::Request::SetWeight(group, id, weight, reply)).await?))
}

async fn reload(State(daemon): State<Handle>, request: Request) -> Result<Json<ReloadStatus>, ApiError> {
    let request: ReloadRequest = read_optional_json(request).await?;
    Ok(Json(daemon.ask(|reply| daemon::Request::Reload(request, reply)).await?))
}

async fn upgrade(
    State(daemon): State<Handle>,
    request: Request,
) -> Result<(StatusCode, Json<UpgradeStatus>), ApiError> {
    let request: UpgradeRequest = read_optional_json(request).await?;
    if request.binary.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err(ApiError::malformed("binary is not an absolute path"));
    }
    let begun = daemon.ask(|reply| daemon::Request::Upgrade(request, reply)).await?;
    Ok((StatusCode::ACCEPTED, Json(begun)))
}

async fn detach(State(daemon): State<Handle>) -> Result<StatusCode, ApiError> {
    daemon.ask(daemon::Request::Detach).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn shutdown(State(daemon): State<Handle>) -> Result<StatusCode, ApiError> {
    daemon.ask(daemon::Request::Shutdown).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError(StatusCode::NOT_FOUND, format!("there is no {method} {}", uri.path()))
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}

/// An answer that is an [`ErrorBody`].
#[derive(Debug)]
pub(super) struct ApiError(StatusCode, String);

impl ApiError {
    pub(super) const fn new(status: StatusCode, why: String) -> Self {
        Self(status, why)
    }

    fn malformed(why: impl Display) -> Self {
        Self(StatusCode::BAD_REQUEST, why.to_string())
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let status = match error {
            RequestError::NotFound(_) => StatusCode::NOT_FOUND,
            RequestError::Invalid(_) => StatusCode::BAD_REQUEST,
            RequestError::Refused(_) => StatusCode::CONFLICT,
            RequestError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self(status, error) = self;
        (status, Json(ErrorBody { error })).into_response()
    }
}

/// The group of a path.
struct GroupPath(daemon::GroupName);

impl<S: Send + Sync> FromRequestParts<S> for GroupPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let UrlPath(group) =
            UrlPath::<String>::from_request_parts(parts, state).await.map_err(ApiError::malformed)?;
        Ok(Self(group_name(group)))
    }
}

/// The group and the worker of a path.
struct WorkerPath(daemon::GroupName, WorkerId);

impl<S: Send + Sync> FromRequestParts<S> for WorkerPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let UrlPath((group, id)) = UrlPath::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(ApiError::malformed)?;
        let id =
            id.parse().map_err(|_| ApiError(StatusCode::NOT_FOUND, format!("there is no worker '{id}'")))?;
        Ok(Self(group_name(group), id))
    }
}

fn group_name(in_path: String) -> daemon::GroupName {
    (in_path != super::ONLY_GROUP).then_some(in_path)
}

/// Reads a JSON body. The content type does not matter, since `curl --data` sends a wrong one.
async fn read_json<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    parse(&read_body(request.into_body()).await?)
}

/// Like [`read_json`], where no body means the default.
async fn read_optional_json<T: DeserializeOwned + Default>(request: Request) -> Result<T, ApiError> {
    let body = read_body(request.into_body()).await?;
    if body.is_empty() { Ok(T::default()) } else { parse(&body) }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|e| ApiError::malformed(format!("the body is not what it should be: {e}")))
}

async fn read_body(body: Body) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let why = format!("the body is longer than {MAX_BODY_BYTES} bytes");
        ApiError(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    // A client that waits for `100 Continue` gets to know before it sends anything.
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    match timeout(READ_PATIENCE, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(e)) if e.source().is_some_and(<dyn Error>::is::<LengthLimitError>) => Err(too_large()),
        Ok(Err(e)) => Err(ApiError::malformed(format!("the body cannot be read: {e}"))),
        Err(_) => Err(ApiError(StatusCode::REQUEST_TIMEOUT, "the body did not come in time".into())),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::{
        control::{client, testing::FakeDaemon},
        group::WorkerState,
        policy::Policy,
    };

    /// Sends bytes as they are, and gives the answer's status and body.
    async fn raw(socket: PathBuf, request: &[u8]) -> (u16, String) {
        let stream = UnixStream::connect(socket).await.expect("the server listens");
        let (mut from, mut to) = stream.into_split();
        // The server may answer, and close, before it has read everything.
        let sending = async {
            drop(to.write_all(request).await);
            to
        };
        let mut answer = Vec::new();
        let receiving = async {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut chunk).await {
                answer.extend_from_slice(&chunk[..length]);
            }
        };
        let both = async { tokio::join!(sending, receiving) };
        timeout(4 * READ_PATIENCE, both).await.expect("the server closes the connection");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no status in {head:?}")), body.to_owned())
    }

    async fn request(daemon: &FakeDaemon, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        raw(daemon.socket(), &[head.as_bytes(), body].concat()).await
    }

    fn error_of(body: &str) -> String {
        let ErrorBody { error } = serde_json::from_str(body).unwrap_or_else(|e| panic!("{body:?}: {e}"));
        assert!(!error.is_empty() && !error.contains('\n'), "{error:?} is not one line");
        error
    }

    #[tokio::test]
    async fn each_request_reaches_the_daemon() {
        let daemon = FakeDaemon::start();
        let client = daemon.client();
        assert_eq!(client.status().await.expect("status").groups[0].workers.len(), 3);

        let random = PolicySpec::from(Policy::Random);
        assert_eq!(client.set_policy(None, random).await.expect("policy"), random);
        assert_eq!(client.status().await.expect("status").groups[0].policy, random);

        let drained =
            client.drain(Some("default"), WorkerId(1), DrainRequest::default()).await.expect("drain");
        assert_eq!(drained.state, WorkerState::Draining);
        let back = client.undrain(Some("default"), WorkerId(1)).await.expect("undrain");
        assert_eq!(back.state, WorkerState::Active);
        assert_eq!(client.set_weight(None, WorkerId(1), 256).await.expect("weight").weight, 256);
        client.shutdown().await.expect("shutdown");
    }

    #[tokio::test]
    async fn curl_needs_no_content_type_and_drain_no_body() {
        let daemon = FakeDaemon::start();
        let (status, _) = request(&daemon, "PUT", "/v1/groups/-/workers/0/drain", b"").await;
        assert_eq!(status, 200);
        let (status, _) = request(&daemon, "PUT", "/v1/groups/-/policy", br#"{"name":"hash"}"#).await;
        assert_eq!(status, 200);
    }

    #[tokio::test]
    async fn what_makes_no_sense_gets_an_error_body() {
        let daemon = FakeDaemon::start();
        let policy = "/v1/groups/default/policy";
        let weight = "/v1/groups/default/workers/0/weight";
        let drain = "/v1/groups/default/workers/0/drain";
        let (restart, scale) = ("/v1/groups/default/restart", "/v1/groups/default/scale");
        let cases: &[(&str, &str, &[u8], u16)] = &[
            ("GET", "/", b"", 404),
            ("GET", "/v2/status", b"", 404),
            ("POST", "/v1/status", b"", 405),
            ("GET", "/v1/shutdown", b"", 405),
            ("GET", "/v1/reload", b"", 405),
            ("POST", "/v1/reload", br#"{"dry_run":1}"#, 400),
            ("POST", "/v1/reload", br#"{"now":true}"#, 400),
            ("PUT", policy, b"", 400),
            ("PUT", policy, b"{", 400),
            ("PUT", policy, b"[]", 400),
            ("PUT", policy, b"\xff\xfe", 400),
            ("PUT", policy, br#"{"name":"fastest"}"#, 400),
            ("PUT", policy, br#"{"name":"random","hash_on":"source"}"#, 400),
            ("PUT", policy, br#"{"name":"hash","hash_on":"source/33"}"#, 400),
            ("PUT", policy, br#"{"name":"hash","balance_factor":1.25}"#, 400),
            ("PUT", policy, br#"{"name":"consistent-hash","balance_factor":0.5}"#, 400),
            ("PUT", policy, br#"{"name":"consistent-hash","balance_factor":"1.25"}"#, 400),
            ("PUT", policy, br#"{"name":"consistent-hash","balance":1.25}"#, 400),
            ("PUT", weight, br#"{"weight":0}"#, 400),
            ("PUT", weight, br#"{"weight":257}"#, 400),
            ("PUT", weight, br#"{"weight":70000}"#, 400),
            ("PUT", weight, br#"{"weight":-1}"#, 400),
            ("PUT", weight, br#"{"weight":1,"wait":true}"#, 400),
            ("PUT", drain, br#"{"stop":1}"#, 400),
            ("PUT", drain, br#"{"timeout_ms":18446744073709551615}"#, 400),
            ("POST", restart, br#"{"worker":"all"}"#, 400),
            ("POST", restart, br#"{"parallel":0}"#, 400),
            ("POST", restart, br#"{"parallel":-1}"#, 400),
            ("POST", restart, br#"{"workers":[1]}"#, 400),
            ("POST", restart, br#"{"worker":7}"#, 404),
            ("POST", restart, br#"{"timeout_ms":18446744073709551615}"#, 400),
            ("GET", restart, b"", 405),
            ("PUT", scale, b"", 400),
            ("PUT", scale, br#"{"workers":0}"#, 400),
            ("PUT", scale, br#"{"workers":1025}"#, 400),
            ("PUT", scale, br#"{"workers":65536}"#, 400),
            ("PUT", scale, br#"{"workers":2,"timeout_ms":18446744073709551615}"#, 400),
            ("PUT", "/v1/groups/default/workers/0/start", b"", 409),
            ("PUT", "/v1/groups/default/workers/two/drain", b"", 404),
            ("PUT", "/v1/groups/default/workers/-1/drain", b"", 404),
            ("PUT", "/v1/groups/default/workers/70000/drain", b"", 404),
            ("PUT", "/v1/groups/default/workers/7/drain", b"", 404),
            ("PUT", "/v1/groups/%ff/workers/0/drain", b"", 400),
            ("PUT", "/v1/groups/other/workers/0/drain", b"", 404),
            ("PUT", policy, &[b' '; MAX_BODY_BYTES + 1], 413),
            ("PUT", policy, &[b'['; MAX_BODY_BYTES], 400),
        ];
        for (method, path, body, expected) in cases {
            let (status, answer) = request(&daemon, method, path, body).await;
            assert_eq!(status, *expected, "{method} {path} {:?}: {answer}", String::from_utf8_lossy(body));
            error_of(&answer);
        }
        daemon.client().status().await.expect("the daemon lives on");
    }

    #[tokio::test]
    async fn what_the_daemon_refuses_is_told_in_its_words() {
        let daemon = FakeDaemon::start();
        let client = daemon.client();
        client.drain(None, WorkerId(0), DrainRequest::default()).await.expect("worker 1 is left");
        let refused =
            client.drain(None, WorkerId(1), DrainRequest::default()).await.expect_err("the last one");
        let client::Error::Refused { status: 409, message } = refused else { panic!("{refused:?}") };
        assert_eq!(message, "worker 1 is the last one; --force drains it");
    }

    #[tokio::test]
    async fn huge_and_broken_requests_do_no_harm() {
        let daemon = FakeDaemon::start();
        let huge = vec![b'x'; 8 * 1024 * 1024];
        let (status, answer) = request(&daemon, "PUT", "/v1/groups/-/policy", &huge).await;
        assert_eq!(status, 413);
        error_of(&answer);

        let chunked = [
            b"PUT /v1/groups/-/policy HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n",
            b"10000\r\n".as_slice(),
            &[b' '; 0x10000],
            b"\r\n0\r\n\r\n",
        ]
        .concat();
        assert_eq!(raw(daemon.socket(), &chunked).await.0, 413);

        let long_head = [b"GET /v1/status HTTP/1.1\r\nx: ".as_slice(), &huge[..100_000]].concat();
        assert_eq!(raw(daemon.socket(), &long_head).await.0, 431);
        assert_eq!(raw(daemon.socket(), b"\x16\x03\x01\x02\x00hello\r\n\r\n").await.0, 400);
        daemon.client().status().await.expect("the daemon lives on");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_make_room_for_others() {
        let daemon = FakeDaemon::start();
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = UnixStream::connect(daemon.socket()).await.expect("there is room");
            stream.write_all(b"GET /v1/sta").await.expect("the server reads");
            idle.push(stream);
        }
        daemon.client().status().await.expect("the idle ones are cut before the client loses patience");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_comes_is_given_up() {
        let daemon = FakeDaemon::start();
        let head =
            b"PUT /v1/groups/-/policy HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{";
        assert_eq!(raw(daemon.socket(), head).await.0, 408);
    }

    #[tokio::test]
    async fn the_socket_goes_when_the_server_ends() {
        let mut daemon = FakeDaemon::start();
        let socket = daemon.socket();
        let _idle = UnixStream::connect(&socket).await.expect("the server listens");
        daemon.client().status().await.expect("the server answers");
        timeout(Duration::from_secs(5), daemon.stop()).await.expect("the idle connection holds nothing up");
        assert!(!socket.exists());
    }
}
