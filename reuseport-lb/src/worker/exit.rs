//! How a worker's process ended.

use std::fmt;

use rustix::process::WaitIdStatus;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal.
    Killed {
        /// The signal's number.
        signal: i32,
        /// Whether it left a core dump.
        core_dumped: bool,
    },
    /// Nobody told: an earlier daemon started it, and only a parent is told.
    Unknown,
}

impl ExitStatus {
    /// Whether the worker ended by itself and with status 0.
    pub const fn success(self) -> bool {
        matches!(self, Self::Exited(0))
    }
}

impl From<&WaitIdStatus> for ExitStatus {
    fn from(status: &WaitIdStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, Some(signal)) => Self::Killed { signal, core_dumped: status.dumped() },
            // A stopped or continued process, for which nobody asked.
            (None, None) => Self::Unknown,
        }
    }
}

/// Such as `exited with status 3` or `killed by SIGKILL`.
impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed { signal, core_dumped } => {
                match nix::sys::signal::Signal::try_from(signal) {
                    Ok(named) => write!(f, "killed by {named}")?,
                    Err(_) => write!(f, "killed by signal {signal}")?,
                }
                if core_dumped { f.write_str(" (core dumped)") } else { Ok(()) }
            }
            Self::Unknown => f.write_str("ended; how is not known, since an earlier daemon had started it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_a_worker_ended() {
        let killed = |signal, core_dumped| ExitStatus::Killed { signal, core_dumped }.to_string();
        assert_eq!(ExitStatus::Exited(3).to_string(), "exited with status 3");
        assert_eq!(killed(9, false), "killed by SIGKILL");
        assert_eq!(killed(11, true), "killed by SIGSEGV (core dumped)");
        assert_eq!(killed(40, false), "killed by signal 40");
        assert!(ExitStatus::Unknown.to_string().starts_with("ended; "));
        assert!(ExitStatus::Exited(0).success());
        assert!(!ExitStatus::Exited(1).success());
    }
}
