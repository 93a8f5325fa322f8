//! Runs the benchmarks as root, against a fresh BPF object.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    bpf, command,
    setup::{self, Needs},
    test,
    workspace::Workspace,
};

/// The part of the benchmarks that measures nothing, and needs neither root nor a BPF toolchain.
const DOCS: &str = "docs";

/// Builds the BPF programs, the daemon and the benchmarks, and runs these with `args`. They write JSON below the target
/// folder.
pub(crate) fn bench(workspace: &Workspace, args: Vec<OsString>) -> Result<()> {
    let output = workspace.target.join("bench");
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    if args.first().is_some_and(|part| part == DOCS) {
        let mut docs = Command::new(build(workspace, None)?);
        docs.args(args).arg("--output").arg(output).arg("--docs").arg(workspace.path("docs"));
        return command::succeed(&mut docs);
    }
    if !command::is_root()? {
        // Before the minutes of building.
        command::sudo()?;
    }
    let (toolchain, _) = setup::ensure(workspace, Needs::bench())?;
    let object = bpf::build(workspace, &toolchain)?;
    let bench_object = bpf::build_bench(workspace, &toolchain)?;
    let daemon = test::build_daemon(workspace, Some(&object), true)?;
    let bench = build(workspace, Some(&object))?;
    test::mount_bpffs()?;

    let mut bench = command::as_root(bench)?;
    bench.arg("--output").arg(output).args(args);
    command::succeed(bench.env(test::DAEMON_VARIABLE, daemon).env(test::BENCH_OBJECT_VARIABLE, bench_object))
}

fn build(workspace: &Workspace, object: Option<&Path>) -> Result<PathBuf> {
    let selection = ["--package=reuseport-lb-tests", "--bin=bench", "--features=bench"];
    test::build_binary(workspace, object, &selection, true)
}
