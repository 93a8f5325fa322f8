//! What a process takes: CPU, memory, system calls.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader, maps::PerCpuArray, programs::RawTracePoint};
use nix::{time::clock_getcpuclockid, unistd::Pid};

/// The program and the map that count system calls, and the global that says whose.
const PROGRAM: &str = "count_syscalls";
const MAP: &str = "SYSCALLS";
const PROCESS: &str = "COUNTED_PROCESS";

/// Counts the system calls of one process, in the kernel, at the entry of each.
pub(crate) struct Syscalls {
    // Its link counts for as long as this lives.
    ebpf: Ebpf,
}

impl Syscalls {
    /// Begins to count. The process is known by its number in the host's own PID namespace.
    ///
    /// # Minimum kernel version
    ///
    /// 4.17, for raw tracepoints.
    pub(crate) fn of(pid: u32, object: &Path) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .override_global(PROCESS, &pid, true)
            .load_file(object)
            .with_context(|| format!("cannot load {}", object.display()))?;
        let program: &mut RawTracePoint = ebpf.program_mut(PROGRAM).context(PROGRAM)?.try_into()?;
        program.load()?;
        program.attach("sys_enter")?;
        Ok(Self { ebpf })
    }

    /// How many there were so far.
    pub(crate) fn count(&self) -> Result<u64> {
        let counts: PerCpuArray<_, u64> = self.ebpf.map(MAP).context(MAP)?.try_into()?;
        Ok(counts.get(&0, 0)?.iter().sum())
    }
}

/// The CPU time that a process has taken so far, to the nanosecond, of all threads that it has or has had.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into()?)).context("the clock of a process")?;
    Ok(clock.now().context("the CPU time of a process")?.into())
}

/// Which part of a CPU a process takes, from one moment to another.
#[derive(Debug)]
pub(crate) struct CpuShare {
    pid: u32,
    start: Instant,
    before: Duration,
}

impl CpuShare {
    pub(crate) fn from_now_on(pid: u32) -> Result<Self> {
        Ok(Self { pid, start: Instant::now(), before: cpu_time(pid)? })
    }

    /// In per cent of one CPU.
    pub(crate) fn percent(&self) -> Result<f64> {
        let time = cpu_time(self.pid)? - self.before;
        Ok(100.0 * time.as_secs_f64() / self.start.elapsed().as_secs_f64())
    }
}

/// The resident memory of a process.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Memory {
    /// All of it, in MiB.
    pub(crate) resident_mib: f64,
    /// What is nobody else's and no file's.
    pub(crate) anonymous_mib: f64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let mib = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context(name.to_owned())?;
            Ok(kib.trim().parse::<f64>()? / 1024.0)
        };
        Ok(Self { resident_mib: mib("VmRSS")?, anonymous_mib: mib("RssAnon")? })
    }
}
