//! The kernel's own account of what programs ran, and for how long.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::{AddAssign, Sub},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya::{
    programs::{ProgramFd, loaded_programs},
    sys::{Stats, enable_stats},
};

/// The most bytes that the kernel keeps of a program's name: `BPF_OBJ_NAME_LEN` less the terminator.
const NAME_BYTES: usize = 15;

/// The programs that this process has loaded, with their counters on.
#[derive(Debug)]
pub(crate) struct Counters {
    programs: BTreeMap<String, ProgramFd>,
    /// The kernel counts until this is closed.
    _counting: OwnedFd,
}

/// What one program did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Runs {
    pub(crate) runs: u64,
    pub(crate) time_ns: u64,
}

impl Runs {
    /// The mean length of a run.
    pub(crate) fn mean_ns(self) -> f64 {
        self.time_ns as f64 / self.runs as f64
    }
}

impl Sub for Runs {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { runs: self.runs - before.runs, time_ns: self.time_ns - before.time_ns }
    }
}

impl AddAssign for Runs {
    fn add_assign(&mut self, more: Self) {
        self.runs += more.runs;
        self.time_ns += more.time_ns;
    }
}

impl Counters {
    /// Lets the kernel count the runs of all programs, as `sysctl kernel.bpf_stats_enabled=1` does, and finds those
    /// of this process.
    ///
    /// # Minimum kernel version
    ///
    /// 5.8, for `BPF_ENABLE_STATS`.
    pub(crate) fn enable() -> Result<Self> {
        let counting = enable_stats(Stats::RunTime).context("cannot count the runs of programs")?;
        // Another process may have loaded programs of the same name, so only those that are open here count.
        let mut own = BTreeSet::new();
        for entry in fs::read_dir("/proc/self/fdinfo").context("cannot list the open files")? {
            // The folder's own descriptor is listed, and gone afterwards.
            let Ok(info) = entry.and_then(|entry| fs::read_to_string(entry.path())) else { continue };
            own.extend(field(&info, "prog_id"));
        }
        let mut programs = BTreeMap::new();
        for program in loaded_programs() {
            // One that was unloaded meanwhile is not ours.
            let Ok(program) = program else { continue };
            if own.contains(&u64::from(program.id()))
                && let Some(name) = program.name_as_str()
            {
                programs.insert(name.to_owned(), program.fd().context("cannot open a program")?);
            }
        }
        Ok(Self { programs, _counting: counting })
    }

    /// What the program of this name did since counting began.
    pub(crate) fn read(&self, name: &str) -> Result<Runs> {
        let known = &name[..name.len().min(NAME_BYTES)];
        let program = self.programs.get(known).with_context(|| format!("no program {name} is loaded"))?;
        let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
        let info = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let number = |name| field(&info, name).with_context(|| format!("no {name} in {path}"));
        Ok(Runs { runs: number("run_cnt")?, time_ns: number("run_time_ns")? })
    }
}

fn field(info: &str, name: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}
