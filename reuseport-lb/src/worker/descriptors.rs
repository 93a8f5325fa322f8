//! The limit of open files: the daemon needs more than most systems allow at first, and its workers must not notice.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The descriptors that the daemon needs whatever the number of workers: programs, maps, the control socket and its
/// clients.
const BASE: u64 = 640;

/// The descriptors that the daemon needs for each worker: its socket, its process, and both once more while it is
/// started.
const EACH: u64 = 4;

/// Raises this process's limit to what a group of `workers` needs, as far as the hard limit allows. Gives the limit
/// that was there before, which is the workers', if it had to.
pub fn raise_limit(workers: u16) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = BASE + EACH * u64::from(workers);
    let before = current.filter(|current| *current < wanted)?;
    let current = Some(maximum.map_or(wanted, |maximum| maximum.min(wanted)));
    match setrlimit(Resource::Nofile, Rlimit { current, maximum }) {
        Ok(()) => Some(before),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            None
        }
    }
}

/// Puts the soft limit of this process back.
pub(super) fn restore_limit(before: u64) -> std::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(before), maximum })?)
}
