//! Where the parts of the workspace are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::command;

/// The workspace that this task belongs to.
pub(crate) struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target folder, wherever the user's configuration puts it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            target_directory: PathBuf,
            workspace_root: PathBuf,
        }

        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let json = command::output(command::cargo().args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--manifest-path",
            manifest,
        ]))?;
        let Metadata { target_directory, workspace_root } =
            serde_json::from_str(&json).context("cannot read what `cargo metadata` printed")?;
        Ok(Self { root: workspace_root, target: target_directory })
    }

    /// A file or folder of the workspace.
    pub(crate) fn path(&self, below_root: impl AsRef<Path>) -> PathBuf {
        self.root.join(below_root)
    }

    /// A TOML file of the workspace.
    pub(crate) fn toml(&self, below_root: impl AsRef<Path>) -> Result<toml::Table> {
        let path = self.path(below_root);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.parse().with_context(|| format!("cannot parse {}", path.display()))
    }
}
