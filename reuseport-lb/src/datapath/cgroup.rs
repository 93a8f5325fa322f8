//! The control group that the program which counts connections is attached to: the one that all sockets are in.

use std::{fs::File, io};

use procfs::process::Process;

/// The root of the cgroup v2 hierarchy, as this process sees it.
///
/// # Minimum kernel version
///
/// 5.15 where it is mounted beside version 1: before, its sockets may belong to no group.
///
/// # Errors
///
/// It is mounted nowhere, or cannot be opened.
pub fn root() -> io::Result<File> {
    let mounts = Process::myself().and_then(|me| me.mountinfo()).map_err(io::Error::other)?;
    let root = mounts.into_iter().find(|mount| mount.fs_type == "cgroup2" && mount.root == "/");
    let root = root.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "cgroup v2 is not mounted"))?;
    File::open(root.mount_point)
}
