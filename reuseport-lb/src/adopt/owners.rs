//! Who holds a socket.

use std::{collections::HashSet, fmt};

use procfs::process::{FDTarget, Process, all_processes};

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The socket's inode.
    pub inode: u32,
    /// The process id.
    pub pid: u32,
    /// The name of the process as `ps -o comm` shows it, of 15 characters at most.
    pub command: String,
}

/// Such as `nginx (pid 123)`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

/// The processes that hold one of the sockets with these inodes, by process id: one entry a process and socket.
///
/// Reads the descriptors of every process once, so ask for all inodes together. Leaves out what cannot be seen: the
/// processes of other users without `CAP_SYS_PTRACE`, of other process namespaces, and those that end meanwhile.
pub fn owners(inodes: &[u32]) -> Vec<Owner> {
    let wanted: HashSet<_> = inodes.iter().copied().collect();
    let Ok(processes) = all_processes() else {
        return vec![];
    };
    let mut owners: Vec<_> =
        processes.flatten().filter_map(|process| owned_by(&process, &wanted)).flatten().collect();
    owners.sort_by_key(|owner| (owner.pid, owner.inode));
    owners
}

/// What `process` holds of the wanted inodes, or none if it ended or may not be looked at.
fn owned_by(process: &Process, wanted: &HashSet<u32>) -> Option<Vec<Owner>> {
    // A process often holds a socket more than once.
    let held: HashSet<_> = process
        .fd()
        .ok()?
        .flatten()
        .filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => u32::try_from(inode).ok(),
            _ => None,
        })
        .filter(|inode| wanted.contains(inode))
        .collect();
    if held.is_empty() {
        return None;
    }
    let pid = process.pid().unsigned_abs();
    let command = process.stat().ok()?.comm;
    Some(held.into_iter().map(|inode| Owner { inode, pid, command: command.clone() }).collect())
}
