//! `completions` and `man`

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, env::Env};

/// Print the completions of a shell
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, env: &mut Env<'_>) -> anyhow::Result<()> {
        // clap_complete panics when it cannot write; memory can always be written.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "reuseport-lb", &mut script);
        env.out.write_all(&script)?;
        Ok(())
    }
}

/// Print a page for man(1): `reuseport-lb man drain | man -l -`
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The command that the page is about; without it, the program
    command: Option<String>,
}

impl Man {
    pub(super) fn run(self, env: &mut Env<'_>) -> anyhow::Result<()> {
        let mut program = Cli::command();
        program.build();
        let page = match &self.command {
            None => program,
            Some(name) => {
                let found = program.find_subcommand(name).filter(|command| !command.is_hide_set());
                found.with_context(|| format!("there is no command {name}"))?.clone()
            }
        };
        clap_mangen::Man::new(page).render(&mut *env.out)?;
        Ok(())
    }
}
