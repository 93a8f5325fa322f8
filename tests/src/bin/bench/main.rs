//! The benchmarks: what steering costs and what it gains, measured on the running kernel. `cargo xtask bench` builds
//! and runs them.

mod cluster;
mod control;
mod counters;
mod docs;
mod events;
mod generator;
mod goals;
mod group;
mod machine;
mod peers;
mod plots;
mod process;
mod runtime;
mod samples;
mod short;
mod spread;
mod steering;
mod tables;
mod traffic;
mod unwell;
mod worker;
mod workers;

use std::{fmt::Display, fs, num::NonZeroU32, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use serde::Serialize;

use crate::goals::{Goal, Goals};

/// A proxy has two descriptors for each of 10,000 connections, and HAProxy wants room for as many again.
const OPEN_FILES: u64 = 131_072;

/// Benchmarks of reuseport-lb against a real kernel.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
struct Command {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Write the measured part of docs/BENCHMARKS.md, and its plots, from the results.
    Docs {
        /// Where the results are.
        #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
        output: PathBuf,
        /// Where the page is.
        #[arg(long, value_name = "FOLDER", default_value = "docs")]
        docs: PathBuf,
    },
    /// A worker; the benchmarks start it.
    #[command(hide = true)]
    Worker(worker::Options),
}

#[derive(Args, Debug)]
struct Options {
    /// What to measure; everything unless something is named.
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    #[command(flatten)]
    scale: Scale,
    /// The BPF object to compare with and to measure by.
    #[arg(long, value_name = "FILE", env = "REUSEPORT_LB_BENCH_OBJECT")]
    object: Option<PathBuf>,
    /// Where to write the results as JSON.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench")]
    output: PathBuf,
}

/// How much to measure.
#[derive(Args, Clone, Copy, Debug)]
struct Scale {
    /// Measure less, for a first look.
    #[arg(long)]
    quick: bool,
    /// Measure next to nothing, only to see that it can be measured.
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// How often to measure each figure, in place of each scenario's own number.
    #[arg(long, value_name = "N")]
    rounds: Option<NonZeroU32>,
}

impl Scale {
    /// What it takes of something: usually, when it must be quick, and when it must only be seen to work.
    fn of<T>(self, full: T, quick: T, smoke: T) -> T {
        match self {
            Self { smoke: true, .. } => smoke,
            Self { quick: true, .. } => quick,
            _ => full,
        }
    }

    /// The rounds, unless the user wants so many.
    fn rounds(self, full: u32, quick: u32) -> u32 {
        self.rounds.map_or_else(|| self.of(full, quick, 1), NonZeroU32::get)
    }

    /// All of these sizes, or the first when something must only be seen to work.
    fn sizes(self, sizes: &[u16]) -> &[u16] {
        if self.smoke { &sizes[..1] } else { sizes }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Short connections: rate and latency
    Short,
    /// Open connections: how evenly they lie
    Spread,
    /// A slow worker, a hung one, and one with a heavy tail
    Unwell,
    /// Failed connections while workers are killed, drained and restarted, and policies switched
    Events,
    /// How long commands take, and what the daemon takes
    Control,
    /// Run time of each BPF program above an empty one
    Runtime,
}

fn main() -> ExitCode {
    match perform(&Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(command: &Command) -> Result<()> {
    let Command { part, options } = command;
    match part {
        Some(Part::Worker(options)) => return worker::run(options),
        Some(Part::Docs { output, docs }) => return docs::write(output, docs),
        None => {}
    }
    raise_file_limit()?;
    // What else the machine does should disturb as little as can be. The workers and proxies inherit it.
    setpriority_process(None, -20).context("setpriority")?;

    let scenarios: &[Scenario] =
        if options.scenarios.is_empty() { Scenario::value_variants() } else { &options.scenarios };
    let object = || options.object.as_deref().context("no --object: run `cargo xtask bench`");
    for scenario in scenarios {
        match scenario {
            Scenario::Short => {
                let report = short::measure(options.scale)?;
                publish(options, "short", &report, &report.goals())?;
            }
            Scenario::Spread => {
                let report = spread::measure(options.scale)?;
                publish(options, "spread", &report, &report.goals())?;
            }
            Scenario::Unwell => {
                let report = unwell::measure(options.scale)?;
                publish(options, "unwell", &report, &report.goals())?;
            }
            Scenario::Events => {
                let report = events::measure(options.scale)?;
                publish(options, "events", &report, &report.goals())?;
            }
            Scenario::Control => {
                let report = control::measure(options.scale, object()?)?;
                publish(options, "control", &report, &report.goals())?;
            }
            Scenario::Runtime => {
                let report = runtime::measure(options.scale, object()?)?;
                publish(options, "runtime", &report, &report.goals())?;
            }
        }
    }
    Ok(())
}

/// Raises the limit of open files as far as it goes, and as far as anything here needs.
fn raise_file_limit() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = maximum.map(|maximum| maximum.max(OPEN_FILES));
    // Not even root may raise the maximum everywhere.
    setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: wanted })
        .or_else(|_| setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }))
        .context("cannot raise the limit of open files")
}

/// Prints a result, and writes it down.
fn publish(options: &Options, name: &str, report: &(impl Display + Serialize), goals: &[Goal]) -> Result<()> {
    println!("## {name}\n\n{report}");
    if !goals.is_empty() {
        println!("{}\n", Goals(goals));
    }
    let path = options.output.join(name).with_extension("json");
    fs::write(&path, serde_json::to_string_pretty(report)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("bench: wrote {}", path.display());
    Ok(())
}
