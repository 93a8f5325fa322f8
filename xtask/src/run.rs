//! Builds everything and becomes `reuseport-lb`.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::{Context as _, Result};

use crate::{
    bpf, command,
    setup::{self, Needs},
    test,
    workspace::Workspace,
};

/// Builds the BPF programs and the daemon, and replaces this process by it, so that signals and the exit status are
/// its own.
pub(crate) fn run(workspace: &Workspace, release: bool, args: Vec<OsString>) -> Result<()> {
    if !command::is_root()? {
        // Before the minutes of building.
        command::sudo()?;
    }
    let (toolchain, _) = setup::ensure(workspace, Needs::build())?;
    let object = bpf::build(workspace, &toolchain)?;
    let daemon = test::build_daemon(workspace, Some(&object), release)?;
    let error = command::as_root(&daemon)?.args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", daemon.display()))
}
