//! Everything that can be said about the sources without running them.

use anyhow::{Context as _, Result, bail};

use crate::{
    bpf, command, docs, record,
    setup::{self, Needs},
    workspace::Workspace,
};

/// Runs all checks, the quick ones first. The first that fails ends the task.
pub(crate) fn lint(workspace: &Workspace) -> Result<()> {
    let cargo = |args: &[&str]| {
        let mut cargo = command::cargo();
        cargo.args(args).current_dir(&workspace.root);
        cargo
    };
    check_inheritance(workspace)?;
    command::succeed(&mut cargo(&["fmt", "--all", "--check"]))
        .context("run `cargo fmt --all` (`rustup component add rustfmt` when it is missing)")?;

    let (toolchain, _) = setup::ensure(workspace, Needs::lint())?;
    record::check(workspace, &toolchain)?;
    bpf::clippy(workspace, &toolchain)?;
    command::succeed(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--features=reuseport-lb-tests/bench",
        "--locked",
        "--",
        "-Dwarnings",
    ]))?;
    command::succeed(
        cargo(&["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-Dwarnings"),
    )?;
    docs::check(workspace)
}

/// Cargo does not say when a member forgets the workspace's lints: they are then simply off.
fn check_inheritance(workspace: &Workspace) -> Result<()> {
    let manifest = workspace.toml("Cargo.toml")?;
    let members = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("members")?.as_array())
        .context("no workspace.members in Cargo.toml")?;
    for member in members {
        let member = member.as_str().context("workspace.members in Cargo.toml must be strings")?;
        let manifest = workspace.toml(format!("{member}/Cargo.toml"))?;
        let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace")?.as_bool());
        if inherits != Some(true) {
            bail!("{member}/Cargo.toml lacks `[lints] workspace = true`");
        }
    }
    Ok(())
}
