//! What can be asked over the control socket, and how an answer looks.

use std::{error::Error, fmt::Display, time::Duration};

use axum::{
    Extension, Json, Router,
    body::{Body, HttpBody as _, to_bytes},
    extract::{FromRequestParts, Path as UrlPath, Request, State},
    http::{Method, StatusCode, Uri, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::access::Operator;
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
pub(super) const MAX_BODY_BYTES: usize = 16 * 1024;

/// How long a connection may stay silent: before a request, within its head, and within its body each. Everyone
/// who connects is on this host, so this is for a hand that types into `nc`, not for a network.
pub(super) const READ_PATIENCE: Duration = Duration::from_secs(10);

/// What can be asked.
pub(super) fn router(handle: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/groups/{group}/policy", put(set_policy))
        .route("/v1/groups/{group}/workers/{id}/drain", put(drain).delete(undrain))
        .route("/v1/groups/{group}/workers/{id}/start", put(start))
        .route("/v1/groups/{group}/workers/{id}/weight", put(set_weight))
        .route("/v1/groups/{group}/restart", post(restart).delete(cancel_restart))
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

async fn cancel_restart(
    State(daemon): State<Handle>,
    GroupPath(group): GroupPath,
) -> Result<Json<OperationStatus>, ApiError> {
    Ok(Json(daemon.ask(|reply| daemon::Request::CancelRestart(group, reply)).await?))
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
    operator: Option<Extension<Operator>>,
    request: Request,
) -> Result<(StatusCode, Json<UpgradeStatus>), ApiError> {
    let request: UpgradeRequest = read_optional_json(request).await?;
    if request.binary.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err(ApiError::malformed("binary is not an absolute path"));
    }
    if request.binary.is_some() && operator.is_some() {
        let why = "not permitted: which program the daemon becomes, root alone may say; leave --binary out, or run it with sudo";
        return Err(ApiError::new(StatusCode::FORBIDDEN, why.to_owned()));
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
