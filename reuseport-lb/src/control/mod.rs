//! The control interface: HTTP and JSON over a Unix socket.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/status` | | [`Status`] |
//! | `PUT /v1/groups/{group}/policy` | [`PolicySpec`] | [`PolicySpec`] |
//! | `PUT /v1/groups/{group}/workers/{id}/drain` | [`DrainRequest`] | [`WorkerStatus`] |
//! | `DELETE /v1/groups/{group}/workers/{id}/drain` | | [`WorkerStatus`] |
//! | `PUT /v1/groups/{group}/workers/{id}/start` | | [`WorkerStatus`] |
//! | `PUT /v1/groups/{group}/workers/{id}/weight` | [`WeightRequest`] | [`WorkerStatus`] |
//! | `POST /v1/groups/{group}/restart` | [`RestartRequest`] | [`OperationStatus`]; it has begun |
//! | `DELETE /v1/groups/{group}/restart` | | [`OperationStatus`]; no further worker is begun with |
//! | `PUT /v1/groups/{group}/scale` | [`ScaleRequest`] | [`OperationStatus`]; it has begun |
//! | `POST /v1/reload` | [`ReloadRequest`] | [`ReloadStatus`] |
//! | `POST /v1/upgrade` | [`UpgradeRequest`] | [`UpgradeStatus`]; the daemon is about to become another program |
//! | `POST /v1/detach` | | empty; the groups are left to the kernel, and the daemon ends |
//! | `POST /v1/shutdown` | | empty; the daemon has been told to end |
//! | `GET /metrics` | | the metrics of [`stats`](crate::stats), as text |
//!
//! `{group}` is a group's name, or `-` for the only group there is. An error is an [`ErrorBody`] with status 400
//! (malformed), 403 (not for this user), 404 (no such group, worker or route), 405 (not this method), 408 (the body did
//! not come in time), 409 (refused in the present state), 413 (a body over 16 KiB) or 500 (it failed). No body for `drain`,
//! `restart`, `reload` or `upgrade` means the default.
//!
//! [`PolicySpec`]: crate::policy::PolicySpec

pub mod access;
pub mod client;
#[cfg(test)]
mod fuzz;
pub mod metrics;
mod request;
mod routes;
pub mod server;
mod socket;
mod status;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use request::milliseconds;
pub use request::{
    DrainRequest, ErrorBody, ReloadRequest, ReloadStatus, RestartRequest, ScaleRequest, UpgradeRequest,
    UpgradeStatus, WeightRequest,
};
pub use status::{
    AtWorker, Connections, FailedWorker, FallbackReasons, GroupStatus, Mode, OperationState, OperationStatus,
    Outcomes, Protocol, Stalls, Status, TakenOver, WorkerStatus,
};

/// Where the control socket is unless the user names another place.
pub const DEFAULT_PATH: &str = "/run/reuseport-lb/control.sock";

/// What stands for the only group there is, in a path. No group has this name, since names begin with a letter or digit.
pub(crate) const ONLY_GROUP: &str = "-";
