//! The benchmarks: what steering costs, measured on the running kernel. `cargo xtask bench` builds and runs them.

mod counters;
mod group;
mod machine;
mod runtime;
mod samples;
mod traffic;

use std::{fs, num::NonZeroU32, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Benchmarks of reuseport-lb against a real kernel.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Options {
    /// What to measure.
    #[arg(value_enum, default_value = "runtime")]
    scenario: Scenario,
    /// Measure less, for a first look.
    #[arg(long)]
    quick: bool,
    /// How often to measure each figure; the median is what counts.
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroU32,
    /// The BPF object with programs that do nothing.
    #[arg(long, value_name = "FILE")]
    baseline: PathBuf,
    /// Where to write the results as JSON.
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scenario {
    /// Run time of each BPF program above an empty one
    Runtime,
}

fn main() -> ExitCode {
    match perform(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(options: &Options) -> Result<()> {
    // A group of 1,024 needs more open files than the usual limit.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("cannot raise the limit of open files")?;

    let (name, json) = match options.scenario {
        Scenario::Runtime => {
            let report = runtime::measure(options)?;
            println!("{report}");
            ("runtime.json", serde_json::to_string_pretty(&report)?)
        }
    };
    let path = options.output.join(name);
    fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("bench: wrote {}", path.display());
    Ok(())
}
