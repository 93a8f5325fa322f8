//! Commands that nobody types: what the daemon starts itself as.

use std::ffi::OsString;

use anyhow::Context as _;
use clap::Subcommand;

use crate::{demo, worker::launcher};

#[derive(Debug, Subcommand)]
pub(super) enum Hidden {
    /// Be the built-in worker
    #[command(hide = true)]
    DemoWorker,
    /// Finish the hand-off of the socket, then become the worker's program
    #[command(hide = true)]
    WorkerExec {
        #[command(flatten)]
        to_be: launcher::Become,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
}

impl Hidden {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::DemoWorker => demo::main().context("the built-in worker failed"),
            Self::WorkerExec { to_be, command } => {
                let (program, args) = command.split_first().context("no worker command")?;
                Err(launcher::exec(program, args, &to_be).into())
            }
        }
    }
}
