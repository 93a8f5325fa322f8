//! `run`

use std::path::{self, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{env::Env, failure::WrongUsage, serve::serve};
use crate::config::{
    flags::{DaemonFlags, GroupFlags, SpecError},
    source::{Loaded, Source, control_path},
    values,
};

/// Start the workers of groups, and steer their connections until Ctrl-C
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Run the groups that this file describes, instead of one that options describe
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    config: Option<PathBuf>,
    /// The group's name
    #[arg(long, value_name = "GROUP", default_value = "default", value_parser = values::group_name)]
    name: String,
    #[command(flatten)]
    group: GroupFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Run {
    /// `control` is the control socket that the command line names.
    pub(super) async fn run(self, control: Option<PathBuf>, env: &mut Env<'_>) -> anyhow::Result<()> {
        let (loaded, source) = self.load(control)?;
        serve(loaded, source, env).await
    }

    /// What is to be run, and the file that says so.
    pub(super) fn load(self, control: Option<PathBuf>) -> anyhow::Result<(Loaded, Option<Source>)> {
        let Self { config, name, group, daemon: flags } = self;
        Ok(if let Some(path) = config {
            let source = Source {
                path: path::absolute(path).context("cannot find the working folder")?,
                control,
                flags,
            };
            (source.load()?, Some(source))
        } else {
            let spec = group.spec(name).map_err(wrong)?;
            let control = control_path(control);
            (Loaded { control, daemon: flags.settings(), groups: vec![spec] }, None)
        })
    }
}

/// Whether the command line was wrong, or what it names is not there.
pub(super) fn wrong(error: SpecError) -> anyhow::Error {
    match error {
        SpecError::Policy(_) | SpecError::NotPinned | SpecError::Weights { .. } => {
            WrongUsage(error.to_string()).into()
        }
        SpecError::Command(_) => error.into(),
    }
}
