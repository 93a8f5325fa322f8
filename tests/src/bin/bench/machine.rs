//! What the figures were measured on, and when.

use std::{fmt, fs, thread, time::SystemTime};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// The machine, and the time.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    date: String,
}

impl Machine {
    /// This machine, now.
    pub(crate) fn here() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel =
            fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
        Ok(Self {
            // Not every architecture names its model.
            cpu: model.map_or(std::env::consts::ARCH, |(_, model)| model).trim().to_owned(),
            cores: thread::available_parallelism().context("cannot count the cores")?.get(),
            kernel: kernel.trim().to_owned(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, kernel, date } = self;
        write!(f, "{cpu}, {cores} cores, Linux {kernel}, {date}")
    }
}
