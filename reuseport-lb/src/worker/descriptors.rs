//! The limit of open files: the daemon needs more than most systems allow at first, and its workers must not notice.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// The descriptors that the daemon needs whatever it runs: the control socket and its clients.
const BASE: u64 = 560;

/// The descriptors that the daemon needs for each group: programs and maps.
const EACH_GROUP: u64 = 80;

/// The descriptors that the daemon needs for each worker: its socket, its process, its two streams, and all of them once
/// more while it is started.
const EACH_WORKER: u64 = 8;

/// The limit of open files that a daemon needs for groups of so many workers each.
pub fn needed(workers: impl IntoIterator<Item = u16>) -> u64 {
    let each = |workers: u16| EACH_GROUP + EACH_WORKER * u64::from(workers);
    BASE + workers.into_iter().map(each).sum::<u64>()
}

/// The limit of open files that this process was started with.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct OpenFiles {
    // None: there was no limit.
    original: Option<u64>,
}

impl OpenFiles {
    /// As it is now.
    pub fn now() -> Self {
        Self { original: getrlimit(Resource::Nofile).current }
    }

    /// Raises this process's limit to what groups of so many workers each need, as far as the hard limit allows.
    pub fn raise(self, workers: impl IntoIterator<Item = u16>) {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let wanted = needed(workers);
        if current.is_none_or(|current| current >= wanted) {
            return;
        }
        let current = Some(maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current, maximum }) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }

    /// The limit that workers are to be given back, where this process has another one now.
    pub fn for_workers(self) -> Option<u64> {
        self.original.filter(|_| getrlimit(Resource::Nofile).current != self.original)
    }
}

/// Puts the soft limit of this process back.
pub(super) fn restore_limit(before: u64) -> std::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(before), maximum })?)
}

/// Sets both limits of this process. Raising the hard limit needs `CAP_SYS_RESOURCE`.
pub(super) fn set_limit(limit: u64) -> std::io::Result<()> {
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })?)
}
