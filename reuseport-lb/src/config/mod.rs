//! What the user asked for, as one validated value.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use crate::policy::PolicySpec;

/// The most workers that one group takes.
pub const MAX_WORKERS: u16 = reuseport_lb_ebpf::limits::MAX_WORKERS as u16;

/// A group to run, with its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// The group's name, in `status` and for `--group`.
    pub name: String,
    /// Where the group listens.
    pub listen: SocketAddr,
    /// How many workers it has, 1 to [`MAX_WORKERS`].
    pub workers: u16,
    /// The policy at the start.
    pub policy: PolicySpec,
    /// What each worker runs.
    pub command: WorkerCommand,
    /// How long workers may take to finish when the group is shut down.
    pub grace: Duration,
    /// The length of each worker's accept queue.
    pub backlog: u32,
    /// The seed of the flow hash. Hosts with the same seed and workers pick alike.
    pub hash_seed: u64,
}

/// What a worker runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerCommand {
    /// The built-in worker, for trying and testing.
    BuiltIn,
    /// A server that takes its listening socket as systemd hands it over.
    Program {
        /// The program, found on `PATH` already.
        program: PathBuf,
        /// Its arguments.
        args: Vec<OsString>,
    },
}
