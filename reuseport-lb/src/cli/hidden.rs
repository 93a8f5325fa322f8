//! Commands that nobody types: what the daemon starts itself as.

use std::{
    ffi::OsString,
    path::{self, Path, PathBuf},
};

use anyhow::Context as _;
use clap::Subcommand;

use super::{Command, env::Env, parse, render};
use crate::{
    config::source::{Loaded, control_path},
    daemon::{self, Rehearsal, Unfit},
    demo, handover,
    state::StateFile,
    worker::launcher,
};

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
    /// Say whether this version can go on where a running daemon is
    #[command(hide = true)]
    UpgradeCheck {
        /// The version of what it would be handed
        #[arg(long)]
        format: u32,
        /// The control socket that the daemon has
        #[arg(long)]
        daemon: PathBuf,
        /// The daemon's own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARG")]
        args: Vec<OsString>,
    },
}

impl Hidden {
    pub(super) fn run(self, env: &mut Env<'_>) -> anyhow::Result<()> {
        match self {
            Self::DemoWorker => demo::main().context("the built-in worker failed"),
            Self::WorkerExec { to_be, command } => {
                let (program, args) = command.split_first().context("no worker command")?;
                Err(launcher::exec(program, args, &to_be).into())
            }
            Self::UpgradeCheck { format, daemon, args } => {
                let rehearsal = rehearse(format, &daemon, args)?;
                Ok(render::json(env, &rehearsal)?)
            }
        }
    }
}

/// What this program would make of a daemon with these arguments, whose control socket is `present`.
fn rehearse(format: u32, present: &Path, args: Vec<OsString>) -> anyhow::Result<Rehearsal> {
    if format != handover::FORMAT {
        return Err(Unfit::Format { format }.into());
    }
    let (named, command) = parse([OsString::from("reuseport-lb")].into_iter().chain(args))?;
    let Loaded { control, daemon, groups } = match command {
        Command::Run(run) => run.load(named)?.0,
        Command::Adopt(adopt) => adopt.load(&control_path(named))?,
        _ => anyhow::bail!("these are not the arguments of a daemon"),
    };
    let wanted = path::absolute(control).context("cannot find the working folder")?;
    if wanted != present {
        return Err(Unfit::Control { wanted, present: present.to_owned() }.into());
    }
    let state_file = StateFile::of(present).context("cannot find out which boot this is")?;
    Ok(daemon::rehearse(&groups, daemon.bpf_log, &state_file)?)
}
