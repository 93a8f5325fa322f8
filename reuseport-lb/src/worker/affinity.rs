//! The CPUs that workers run on.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this process may run on, in ascending order.
///
/// # Errors
///
/// The kernel's: `EINVAL` where it may have more than 1,024 CPUs.
pub fn allowed() -> io::Result<Vec<u16>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .filter_map(|cpu| u16::try_from(cpu).ok())
        .collect())
}

/// Lets this process run on one CPU only, and what it becomes or starts too.
///
/// # Errors
///
/// The kernel's: `EINVAL` when the CPU is offline, or was taken away from the process by its cgroup.
pub(super) fn pin(cpu: u16) -> io::Result<()> {
    let mut set = CpuSet::new();
    if usize::from(cpu) >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    set.set(cpu.into());
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_pinned_has_that_cpu_alone() {
        // In a thread of its own, so that no other test is pinned.
        let pinned = std::thread::spawn(|| {
            let last = *allowed().expect("the CPUs of this process").last().expect("one at least");
            pin(last).expect("an allowed CPU");
            (last, allowed().expect("the CPU"))
        });
        let (cpu, left) = pinned.join().expect("a thread that does not panic");
        assert_eq!(left, [cpu]);
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_refused() {
        pin(u16::MAX).expect_err("no kernel has so many");
    }
}
