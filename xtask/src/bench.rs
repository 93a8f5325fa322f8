//! Runs the benchmarks as root, against a fresh BPF object.

use std::{ffi::OsString, fs};

use anyhow::{Context as _, Result};

use crate::{
    bpf, command,
    setup::{self, Needs},
    test,
    workspace::Workspace,
};

/// Builds the BPF programs and the benchmarks, and runs these with `args`. They write JSON below the target folder.
pub(crate) fn bench(workspace: &Workspace, args: Vec<OsString>) -> Result<()> {
    if !command::is_root()? {
        // Before the minutes of building.
        command::sudo()?;
    }
    let (toolchain, _) = setup::ensure(workspace, Needs::test())?;
    let object = bpf::build(workspace, &toolchain)?;
    let baseline = bpf::build_bench(workspace, &toolchain)?;
    let bench =
        test::build_binary(workspace, Some(&object), ["--package=reuseport-lb-tests", "--bin=bench"], true)?;
    test::mount_bpffs()?;

    let output = workspace.target.join("bench");
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let mut bench = command::as_root(bench)?;
    command::succeed(bench.arg("--baseline").arg(baseline).arg("--output").arg(output).args(args))
}
