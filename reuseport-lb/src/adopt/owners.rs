//! Who holds a socket, and who takes connections from it.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, fs,
};

use procfs::process::{FDTarget, Process, all_processes};

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The socket's inode.
    pub inode: u32,
    /// The process id.
    pub pid: u32,
    /// The process that started it, or whoever took its place.
    pub parent: u32,
    /// One of its descriptors for the socket.
    pub descriptor: i32,
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
    sorted(processes.flatten().filter_map(|process| owned_by(&process, &wanted)).flatten().collect())
}

/// The same among these processes only, which costs no more than they have descriptors.
pub fn owners_among(pids: impl IntoIterator<Item = u32>, inodes: &[u32]) -> Vec<Owner> {
    let wanted: HashSet<_> = inodes.iter().copied().collect();
    let processes = pids.into_iter().filter_map(|pid| Process::new(pid.try_into().ok()?).ok());
    sorted(processes.filter_map(|process| owned_by(&process, &wanted)).flatten().collect())
}

fn sorted(mut owners: Vec<Owner>) -> Vec<Owner> {
    owners.sort_by_key(|owner| (owner.pid, owner.inode));
    owners.dedup_by_key(|owner| (owner.pid, owner.inode));
    owners
}

/// What `process` holds of the wanted inodes, or none if it ended or may not be looked at.
fn owned_by(process: &Process, wanted: &HashSet<u32>) -> Option<Vec<Owner>> {
    // A process often holds a socket more than once.
    let held: BTreeMap<u32, i32> = process
        .fd()
        .ok()?
        .flatten()
        .filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some((u32::try_from(inode).ok()?, descriptor.fd)),
            _ => None,
        })
        .filter(|(inode, _)| wanted.contains(inode))
        .collect();
    if held.is_empty() {
        return None;
    }
    let pid = process.pid().unsigned_abs();
    let stat = process.stat().ok()?;
    let owner = |(inode, descriptor)| Owner {
        inode,
        pid,
        parent: stat.ppid.unsigned_abs(),
        descriptor,
        command: stat.comm.clone(),
    };
    Some(held.into_iter().map(owner).collect())
}

impl Owner {
    /// Whether the process is seen to take connections from the socket: it has the socket in an epoll instance, or one
    /// of its threads sleeps in `accept`.
    ///
    /// A process that waits by `poll` or io_uring is not seen to, nor is one that does something else at the moment.
    pub fn accepts(&self) -> bool {
        self.waits_by_epoll() || self.sleeps_in_accept()
    }

    fn waits_by_epoll(&self) -> bool {
        let Ok(process) = Process::new(self.pid.cast_signed()) else { return false };
        let Ok(descriptors) = process.fd() else { return false };
        descriptors
            .flatten()
            .filter(|descriptor| matches!(&descriptor.target, FDTarget::AnonInode(kind) if kind == "[eventpoll]" || kind == "eventpoll"))
            .filter_map(|descriptor| fs::read_to_string(format!("/proc/{}/fdinfo/{}", self.pid, descriptor.fd)).ok())
            .any(|info| watches(&info, self.inode))
    }

    fn sleeps_in_accept(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        tasks.filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok()).any(|call| {
            accepting(&call).is_some_and(|descriptor| {
                let link = fs::read_link(format!("/proc/{}/fd/{descriptor}", self.pid));
                link.is_ok_and(|link| link.as_os_str() == format!("socket:[{}]", self.inode).as_str())
            })
        })
    }
}

/// Whether an epoll instance has the socket with this inode, by what `fdinfo` says of it.
fn watches(fdinfo: &str, inode: u32) -> bool {
    fdinfo.lines().filter(|line| line.starts_with("tfd:")).any(|line| {
        let value =
            line.split_once("ino:").map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
        value.is_some_and(|value| u64::from_str_radix(value, 16) == Ok(inode.into()))
    })
}

/// The descriptor that a thread accepts from, by what `/proc/PID/task/TID/syscall` says of it.
fn accepting(syscall: &str) -> Option<u64> {
    let mut words = syscall.split_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    if number != nix::libc::SYS_accept && number != nix::libc::SYS_accept4 {
        return None;
    }
    u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}

/// Of the processes that hold a socket, the one to show as its worker.
///
/// A socket is often inherited by processes that do nothing with it: each worker of nginx has the sockets of all others.
/// So it is the one that is seen to take connections. Of several, or when none is seen to, it is the one that started
/// the others, or else the oldest number.
pub fn serving<'a>(holders: &'a [Owner]) -> Option<&'a Owner> {
    let accepting: Vec<&Owner> = match holders {
        [] | [_] => holders.iter().collect(),
        several => several.iter().filter(|holder| holder.accepts()).collect(),
    };
    let among: Vec<&'a Owner> = if accepting.is_empty() { holders.iter().collect() } else { accepting };
    let pids: HashSet<u32> = among.iter().map(|owner| owner.pid).collect();
    among.iter().find(|owner| !pids.contains(&owner.parent)).or(among.first()).copied()
}

/// Whether `pid` is `ancestor`, was started by it directly or by others, or is in the process group that it leads.
pub fn descends(pid: u32, ancestor: u32) -> bool {
    let mut next = pid;
    // A chain of processes that changes while it is read could lead anywhere, but not for ever.
    for _ in 0..64 {
        if next == ancestor {
            return true;
        }
        let Some(stat) = Process::new(next.cast_signed()).ok().and_then(|process| process.stat().ok()) else {
            return false;
        };
        if stat.pgrp == ancestor.cast_signed() {
            return true;
        }
        next = stat.ppid.unsigned_abs();
        if next <= 1 {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const FDINFO: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1057\n\
        tfd:        9 events: 80002019 data:     55d0a6c1f2e0  pos:0 ino:1f8a6 sdev:8\n\
        tfd:       11 events:       19 data:                0  pos:0 ino:10 sdev:8\n";

    #[test]
    fn reads_what_an_epoll_instance_has() {
        assert!(watches(FDINFO, 0x1f8a6));
        assert!(watches(FDINFO, 0x10));
        // That of the instance itself, in decimal.
        assert!(!watches(FDINFO, 1057));
        assert!(!watches("", 0));
    }

    #[test]
    fn reads_what_a_thread_waits_in() {
        let line = |number: i64| format!("{number} 0x3 0x0 0x0 0x80000 0x0 0x0 0x7ffc0 0x7f0\n");
        assert_eq!(accepting(&line(nix::libc::SYS_accept4)), Some(3));
        assert_eq!(accepting(&line(nix::libc::SYS_accept)), Some(3));
        assert_eq!(accepting(&line(nix::libc::SYS_read)), None);
        assert_eq!(accepting("running"), None);
        assert_eq!(accepting("-1 0x7ffc0 0x7f0"), None);
        assert_eq!(accepting(""), None);
    }

    fn owner(pid: u32, parent: u32) -> Owner {
        Owner { inode: 1, pid, parent, descriptor: 3, command: "server".into() }
    }

    #[test]
    fn of_several_the_one_that_started_the_others() {
        // Numbers that no process has, so none is seen to accept.
        let base = 2_000_000_000;
        let family = [owner(base + 1, base + 7), owner(base + 2, base + 7), owner(base + 7, 1)];
        assert_eq!(serving(&family).map(|owner| owner.pid), Some(base + 7));
        let strangers = [owner(base + 1, 1), owner(base + 2, 1)];
        assert_eq!(serving(&strangers).map(|owner| owner.pid), Some(base + 1));
        assert_eq!(serving(&[]), None);
    }

    #[test]
    fn knows_its_own_parents() {
        let me = std::process::id();
        assert!(descends(me, me));
        assert!(descends(me, nix::unistd::getppid().as_raw().unsigned_abs()));
        assert!(!descends(me, u32::MAX >> 1));
    }
}
