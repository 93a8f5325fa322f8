//! Processes, by number.

use std::{fs, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    thread::{CpuSet, sched_setaffinity},
};

/// A handle on a process that stays with this very process, whoever gets its number later.
#[derive(Debug)]
pub struct Process {
    /// The number that it has.
    pub pid: u32,
    handle: OwnedFd,
}

impl Process {
    /// The process with this number, or none when there is no such process.
    pub fn find(pid: u32) -> Option<Self> {
        match pidfd_open(to_pid(pid), PidfdFlags::empty()) {
            Ok(handle) => Some(Self { pid, handle }),
            Err(Errno::SRCH) => None,
            Err(error) => panic!("pidfd_open({pid}): {error}"),
        }
    }

    /// Sends a signal; a process that has ended takes it in silence.
    pub fn signal(&self, signal: Signal) {
        match rustix::process::pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => panic!("signal to {}: {error}", self.pid),
        }
    }

    /// Blocks until the process has ended, at most for `bound`. Says whether it has.
    pub fn ends_within(&self, bound: Duration) -> bool {
        let bound = Timespec::try_from(bound).expect("a bound that fits a timespec");
        let mut handle = [PollFd::new(&self.handle, PollFlags::IN)];
        retry_on_intr(|| poll(&mut handle, Some(&bound))).expect("poll on a pidfd") > 0
    }
}

/// Sends a signal to the process with this number, which must exist.
pub fn signal(pid: u32, signal: Signal) {
    kill_process(to_pid(pid), signal).unwrap_or_else(|error| panic!("kill {pid}: {error}"));
}

/// Kills a process and waits until it is gone: nothing is accepted by it after this returns.
pub fn kill_and_wait(pid: u32) {
    let process = Process::find(pid).unwrap_or_else(|| panic!("there is no process {pid}"));
    process.signal(Signal::KILL);
    assert!(process.ends_within(crate::PATIENCE), "process {pid} outlives SIGKILL");
}

/// The numbers of all processes on this machine.
pub fn all() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Lets the calling thread run on this CPU only.
pub fn pin_thread(cpu: u16) {
    let mut set = CpuSet::new();
    set.set(cpu.into());
    sched_setaffinity(None, &set).unwrap_or_else(|error| panic!("CPU {cpu}: {error}"));
}

fn to_pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap_or_else(|| panic!("{pid} is no process id"))
}
