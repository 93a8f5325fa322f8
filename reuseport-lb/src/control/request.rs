//! What is asked for, and what is answered but for the status.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{config::difference::Change, group::WorkerId};

/// How to drain a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// End the process once it is drained, or once `timeout_ms` has passed.
    #[serde(default)]
    pub stop: bool,
    /// How long its connections may take to finish before `stop` ends the process all the same, in milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Drain even the last eligible worker; new connections are then refused.
    #[serde(default)]
    pub force: bool,
}

/// Which workers to restart, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartRequest {
    /// One worker; without it, all that are not stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// How many at the same time; 1 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u16>,
    /// How long each may take to finish its connections, and as long again to end, in milliseconds; 30 s without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Another number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// 1 to 1,024.
    pub workers: u16,
    /// How long those that go may take to finish their connections, and as long again to end, in milliseconds; 30 s
    /// without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A worker's new weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightRequest {
    /// 1 to 256.
    pub weight: u16,
}

/// Asks for the configuration file to be read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReloadRequest {
    /// Only say what would change.
    pub dry_run: bool,
}

/// What was different.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// Whether nothing was changed, since that was asked for.
    pub dry_run: bool,
    /// What was changed, or would be.
    pub changes: Vec<Change>,
}

/// Asks the daemon to become another program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpgradeRequest {
    /// The program, by its absolute path; without it, the daemon's own, as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
}

/// What the daemon is about to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStatus {
    /// The program.
    pub binary: PathBuf,
    /// Its version.
    pub version: String,
    /// The number of the daemon that it will be; when `status` has it, the upgrade is done.
    pub generation: u64,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One line: what failed, why, and what to do.
    pub error: String,
}

/// A time as requests have it. Too long a one is none; the command line takes no more than a year.
pub(crate) fn milliseconds(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis()).ok()
}
