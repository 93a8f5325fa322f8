//! Programs that tests make and run.
//!
//! A file that is open for writing somewhere cannot be run ("Text file busy"), and a process that another test is just
//! starting has a copy of this test's descriptors until its `exec`. So a program is written by a process of its own.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// Makes a copy of a program that everybody may run.
pub fn copy(from: &Path, to: &Path) {
    install(from, to, &[]);
}

/// Makes a program of these bytes that everybody may run.
pub fn write(to: &Path, bytes: &[u8]) {
    install(Path::new("/dev/stdin"), to, bytes);
}

fn install(from: &Path, to: &Path, input: &[u8]) {
    let mut command = Command::new("install");
    command.arg("--mode=755").args([from, to]).stdin(Stdio::piped());
    let mut child = command.spawn().expect("the command `install` (Debian: coreutils)");
    child.stdin.take().expect("a pipe").write_all(input).expect("`install` reads");
    let status = child.wait().expect("wait");
    assert!(status.success(), "`install` to {}: {status}", to.display());
}
