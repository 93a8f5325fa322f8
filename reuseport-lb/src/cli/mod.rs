//! The command line: one file a command. Nouns read, verbs write.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use self::env::Env;
use crate::{
    config::{flags::GroupFlags, source::control_path},
    control,
};

mod adopt;
mod check;
mod detach;
mod doctor;
mod drain;
mod env;
mod failure;
mod generate;
mod hidden;
mod logging;
mod metrics;
mod operation;
mod policy;
mod progress;
mod reload;
mod render;
mod restart;
mod run;
mod scale;
mod serve;
mod shutdown;
mod signals;
mod start_lines;
mod status;
mod stop;
mod target;
#[cfg(test)]
mod testing;
mod top;
mod undrain;
mod upgrade;
mod weight;

/// Steers the connections of a SO_REUSEPORT group to the worker that a policy picks
///
/// Without a command, `run`: see `reuseport-lb run --help` for its options.
#[derive(Debug, Parser)]
#[command(name = "reuseport-lb", version, subcommand_required = true, max_term_width = 110)]
#[command(
    override_usage = "reuseport-lb [run] [OPTIONS] [-- COMMAND [ARG]...]\n       reuseport-lb <COMMAND>"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
struct Global {
    // Optional, so that it is known whether it was given: a configuration file may name another one.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "REUSEPORT_LB_CONTROL",
        hide_env_values = true,
        help = format!("The daemon's control socket [default: {}]", control::DEFAULT_PATH)
    )]
    control: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Run>),
    Adopt(adopt::Adopt),
    Check(check::Check),
    Status(status::Status),
    Policy(policy::Policy),
    Drain(drain::Drain),
    Undrain(undrain::Undrain),
    Weight(weight::Weight),
    Metrics(metrics::Metrics),
    Top(top::Top),
    Doctor(doctor::Doctor),
    Restart(restart::Restart),
    Scale(scale::Scale),
    Stop(stop::Stop),
    Start(stop::Start),
    Reload(reload::Reload),
    Upgrade(upgrade::Upgrade),
    Detach(detach::Detach),
    Shutdown(shutdown::Shutdown),
    Completions(generate::Completions),
    Man(generate::Man),
    #[command(flatten)]
    Hidden(hidden::Hidden),
}

/// The program: reads the command line and does what it says.
///
/// The exit status is 0 when that was done, 1 when it failed, 2 when the command line was wrong.
pub fn main() -> ExitCode {
    Env::with_process(|env| ExitCode::from(main_in(env, std::env::args_os())))
}

fn main_in(env: &mut Env<'_>, args: impl IntoIterator<Item = OsString>) -> u8 {
    let done = parse(args).and_then(|(control, command)| match command {
        // These are the workers' own, and make their own runtime where they need one.
        Command::Hidden(command) => command.run(env),
        command => runtime()?.block_on(command.run(control, env)),
    });
    finish(env, done)
}

fn parse(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<(Option<PathBuf>, Command)> {
    let matches = command().try_get_matches_from(with_command(args))?;
    let Cli { global: Global { control }, command } = Cli::from_arg_matches(&matches)?;
    Ok((control, command))
}

/// What describes a group has no place beside a file that does. As a conflict of each such option, so that the error
/// names those that were given.
fn command() -> clap::Command {
    Cli::command().mut_subcommand("run", |run| {
        let described = GroupFlags::augment_args(clap::Command::new("group"));
        let described: Vec<_> = described.get_arguments().map(|arg| arg.get_id().clone()).collect();
        run.mut_args(|arg| if described.contains(arg.get_id()) { arg.conflicts_with("config") } else { arg })
    })
}

/// Puts `run` where no command stands: before the first option that is not everybody's, or at the end.
fn with_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.into_iter().collect();
    let mut at = 1;
    while let Some(arg) = args.get(at) {
        match arg.to_str() {
            Some("--control") => at += 2,
            Some(arg) if arg.starts_with("--control=") => at += 1,
            Some("-h" | "--help" | "-V" | "--version") => return args,
            Some(arg) if arg.starts_with('-') => break,
            _ => return args,
        }
    }
    // Beyond the end, `--control` has no value, and clap has something to say.
    if at <= args.len() {
        args.insert(at, "run".into());
    }
    args
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn finish(env: &mut Env<'_>, done: anyhow::Result<()>) -> u8 {
    match done.and_then(|()| Ok(env.out.flush()?)) {
        Ok(()) => 0,
        Err(e) => failure::report(env, &e),
    }
}

impl Command {
    async fn run(self, named: Option<PathBuf>, env: &mut Env<'_>) -> anyhow::Result<()> {
        let control = &control_path(named.clone());
        match self {
            Self::Run(command) => command.run(named, env).await,
            Self::Adopt(command) => command.run(control, env).await,
            Self::Check(command) => command.run(env),
            Self::Status(command) => command.run(control, env).await,
            Self::Policy(command) => command.run(control, env).await,
            Self::Drain(command) => command.run(control, env).await,
            Self::Undrain(command) => command.run(control, env).await,
            Self::Weight(command) => command.run(control, env).await,
            Self::Metrics(command) => command.run(control, env).await,
            Self::Top(command) => command.run(control, env).await,
            Self::Doctor(command) => command.run(control, env).await,
            Self::Restart(command) => command.run(control, env).await,
            Self::Scale(command) => command.run(control, env).await,
            Self::Stop(command) => command.run(control, env).await,
            Self::Start(command) => command.run(control, env).await,
            Self::Reload(command) => command.run(control, env).await,
            Self::Upgrade(command) => command.run(control, env).await,
            Self::Detach(command) => command.run(control, env).await,
            Self::Shutdown(command) => command.run(control, env).await,
            Self::Completions(command) => command.run(env),
            Self::Man(command) => command.run(env),
            Self::Hidden(command) => command.run(env),
        }
    }
}

#[cfg(test)]
mod tests;
