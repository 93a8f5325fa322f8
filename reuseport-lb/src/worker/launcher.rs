//! The short life between the daemon's fork and the worker's own program.
//!
//! `LISTEN_PID` must be the process id of the program that takes the socket, or that program ignores it. The daemon
//! cannot know the id before the fork, and may not touch the environment between fork and exec. So it starts itself
//! with a hidden command, which knows its own id, and becomes the program by `exec`: the id stays.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt as _,
    process::{self, Command},
};

/// The exit status of the hidden command when the program does not exist. The shells' number.
pub const NOT_FOUND: u8 = 127;

/// The exit status of the hidden command when the program exists and cannot be run. The shells' number.
pub const NOT_EXECUTABLE: u8 = 126;

/// Becomes `program` with `args`, with `LISTEN_PID` set to the present process id.
///
/// Signal mask and `SIGPIPE` are put back to what a program expects. Returns only if that failed, with the reason; see
/// [`failure_status`] for the exit status that goes with it.
pub fn exec(program: OsString, args: Vec<OsString>) -> io::Error {
    // `Command` looks the program up on PATH unless its name has a slash; the daemon gives a full path.
    Command::new(program).args(args).env("LISTEN_PID", process::id().to_string()).exec()
}

/// The exit status that tells the daemon why [`exec`] failed: [`NOT_FOUND`] or [`NOT_EXECUTABLE`].
pub fn failure_status(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_missing_from_broken() {
        assert_eq!(failure_status(&exec("/nonexistent/program".into(), vec![])), NOT_FOUND);
        assert_eq!(failure_status(&exec("/etc/passwd".into(), vec![])), NOT_EXECUTABLE);
        assert_eq!(failure_status(&exec("/".into(), vec![])), NOT_EXECUTABLE);
    }
}
