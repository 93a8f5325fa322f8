//! Worker processes: starting them, handing each its listening socket, and seeing them end.
//!
//! The hand-over is [systemd's]: the socket is file descriptor 3, and the environment says so. Nothing in here
//! restarts anything; the group decides.
//!
//! [systemd's]: https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html

pub mod affinity;
pub mod descriptors;
pub mod exit;
pub mod launcher;
pub mod notify;
pub mod output;
pub mod process;

pub use exit::ExitStatus;
pub use process::{Launch, Process, Signal, StartError};

/// Tells a worker its number.
pub const WORKER_VARIABLE: &str = "REUSEPORT_LB_WORKER";

/// Tells a worker the name of its group.
pub const GROUP_VARIABLE: &str = "REUSEPORT_LB_GROUP";

/// The hidden command that runs a worker's program: `worker-exec -- PROGRAM [ARG]…`. See [`launcher`].
pub const EXEC_COMMAND: &str = "worker-exec";

/// The hidden command that is the built-in worker. See [`crate::demo`].
pub const DEMO_COMMAND: &str = "demo-worker";
