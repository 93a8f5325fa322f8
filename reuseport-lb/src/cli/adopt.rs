//! `adopt`

use std::{net::SocketAddr, path::Path};

use clap::Args;

use super::{env::Env, run, serve::serve};
use crate::config::{
    flags::{DaemonFlags, SteeringFlags},
    source::Loaded,
    values,
};

/// Steer the connections of servers that run already, until Ctrl-C
///
/// Every socket that listens at the address with SO_REUSEPORT is a worker, whoever opened it; those that are opened and
/// closed later are followed. The servers notice nothing, and go on as before when this ends.
#[derive(Debug, Args)]
pub(super) struct Adopt {
    // Not a doc comment, to which brackets are links.
    #[arg(long, help = "Where the servers listen: ADDRESS:PORT, [ADDRESS]:PORT, :PORT or PORT", value_name = "ADDRESS", value_parser = values::listen_address)]
    listen: SocketAddr,
    #[command(flatten)]
    steering: SteeringFlags,
    /// The group's name
    #[arg(long, value_name = "GROUP", default_value = "default", value_parser = values::group_name)]
    name: String,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Adopt {
    pub(super) async fn run(self, control: &Path, env: &mut Env<'_>) -> anyhow::Result<()> {
        serve(self.load(control)?, None, env).await
    }

    /// What is to be run.
    pub(super) fn load(self, control: &Path) -> anyhow::Result<Loaded> {
        let Self { listen, steering, name, daemon } = self;
        let spec = steering.adopt(name, listen).map_err(run::wrong)?;
        Ok(Loaded { control: control.to_owned(), daemon: daemon.settings(), groups: vec![spec] })
    }
}
