//! The tasks of the workspace: `cargo xtask TASK`.

mod bench;
mod bpf;
mod command;
mod deb;
mod digest;
mod docs;
mod fuzz;
mod lint;
mod record;
mod run;
mod setup;
mod test;
mod toolchain;
mod verifier;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::Parser;

use crate::{setup::Needs, workspace::Workspace};

/// Tasks of the reuseport-lb workspace.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Install what is missing to build the BPF programs and to run the tests.
    Setup,
    /// Build the BPF programs from source and write the object that is committed.
    BuildEbpf {
        /// Write nothing; fail when the committed object is not what the committed sources give.
        #[arg(long)]
        check: bool,
    },
    /// Build everything from source and run `reuseport-lb` as root.
    Run {
        /// Build with optimisation.
        #[arg(long)]
        release: bool,
        /// What `reuseport-lb` gets.
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Build everything from source and run all tests as root, those against the kernel included.
    Test {
        /// What `cargo test` gets.
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Build everything from source and let everything happen to a group, as root, under load.
    Chaos {
        /// How long.
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// What the order of events depends on [default: chance; it is printed].
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Run the tests with random input, with more of it: configuration files, control requests, notify datagrams, state
    /// files.
    Fuzz {
        /// How many inputs each test gets.
        #[arg(long, default_value_t = 100_000)]
        cases: u32,
    },
    /// Build everything from source with optimisation and run the benchmarks as root.
    Bench {
        /// What the benchmarks get: SCENARIO…, --quick, --rounds N; or docs, which writes docs/BENCHMARKS.md.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Build the Debian package of a release, into target/debian.
    Deb,
    /// Print what the BPF programs cost the kernel's verifier, and fail beyond the recorded budget.
    Verifier {
        /// Write a new budget, with head-room above what was measured.
        #[arg(long)]
        record: bool,
    },
    /// Write docs/CLI.md and docs/METRICS.md from what the program says of itself.
    Docs {
        /// Write nothing; fail when a page is not what the program says.
        #[arg(long)]
        check: bool,
    },
    /// Check format, lints, documentation and the committed BPF object.
    Lint,
}

fn main() -> ExitCode {
    match perform(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup => {
            let (toolchain, changed) = setup::ensure(&workspace, Needs::all())?;
            if !changed {
                eprintln!("xtask: nothing to install; the BPF programs are built by {toolchain}");
            }
            Ok(())
        }
        Task::BuildEbpf { check } => {
            let (toolchain, _) = setup::ensure(&workspace, Needs::build())?;
            if check { record::check(&workspace, &toolchain) } else { record::write(&workspace, &toolchain) }
        }
        Task::Run { release, args } => run::run(&workspace, release, args),
        Task::Test { args } => test::test(&workspace, args, &[]),
        Task::Chaos { minutes, seed } => test::chaos(&workspace, minutes, seed),
        Task::Fuzz { cases } => fuzz::fuzz(&workspace, cases),
        Task::Bench { args } => bench::bench(&workspace, args),
        Task::Deb => deb::release(&workspace),
        Task::Verifier { record } => verifier::verifier(&workspace, record),
        Task::Docs { check } => {
            if check {
                docs::check(&workspace)
            } else {
                docs::write(&workspace)
            }
        }
        Task::Lint => lint::lint(&workspace),
    }
}
