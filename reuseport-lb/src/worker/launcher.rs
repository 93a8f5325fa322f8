//! The short life between the daemon's fork and the worker's own program.
//!
//! `LISTEN_PID` must be the process id of the program that takes the socket, or that program ignores it. The daemon
//! cannot know the id before the fork, and may not touch the environment between fork and exec. So it starts itself
//! with a hidden command, which knows its own id, and becomes the program by `exec`: the id stays.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt as _,
    process::{self, Command},
};

use super::descriptors;

/// Becomes `program` with `args`, with `LISTEN_PID` set to the present process id.
///
/// Signal mask and `SIGPIPE` are put back to what a program expects. Returns only if that failed, with the reason.
///
/// `open_files` is the limit of open files that the program is to have, where the daemon has raised its own.
pub fn exec(program: &OsStr, args: &[OsString], open_files: Option<u64>) -> io::Error {
    if let Some(Err(error)) = open_files.map(descriptors::restore_limit) {
        return error;
    }
    // `Command` looks the program up on PATH unless its name has a slash; the daemon gives a full path.
    Command::new(program).args(args).env("LISTEN_PID", process::id().to_string()).exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_missing_from_broken() {
        assert_eq!(exec("/nonexistent/program".as_ref(), &[], None).kind(), io::ErrorKind::NotFound);
        assert_eq!(exec("/etc/passwd".as_ref(), &[], None).kind(), io::ErrorKind::PermissionDenied);
    }
}
