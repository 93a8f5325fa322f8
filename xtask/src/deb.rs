//! The Debian package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    bpf, command, docs,
    setup::{self, Needs},
    test,
    workspace::Workspace,
};

/// How well a package is compressed.
pub(crate) enum Compression {
    /// For one that is installed by a test, and thrown away.
    Fast,
    /// For one that is given away.
    Best,
}

/// Builds the release, and the package of it.
pub(crate) fn release(workspace: &Workspace) -> Result<()> {
    let (toolchain, _) = setup::ensure(workspace, Needs::package())?;
    let object = bpf::build(workspace, &toolchain)?;
    let daemon = test::build_daemon(workspace, Some(&object), true)?;
    let package = of(workspace, &daemon, Compression::Best)?;
    eprintln!("xtask: wrote {}", package.display());
    Ok(())
}

/// Makes the package of a program that is built already, and returns where it is.
pub(crate) fn of(workspace: &Workspace, daemon: &Path, compression: Compression) -> Result<PathBuf> {
    stage(workspace, daemon)?;
    let folder = workspace.target.join("debian");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut cargo_deb = Command::new(setup::cargo_deb().context("cargo-deb is not installed")?);
    cargo_deb
        .args(["--package=reuseport-lb", "--no-build", "--no-strip", "--no-dbgsym", "--quiet", "--locked"])
        .arg("--output")
        .arg(&folder)
        .current_dir(&workspace.root);
    if let Compression::Fast = compression {
        cargo_deb.arg("--fast");
    }
    let printed = command::output(&mut cargo_deb)?;
    let path = printed.lines().last().context("cargo-deb did not say where the package is")?;
    Ok(workspace.path(path))
}

/// Puts the program, and what it prints of itself, where `reuseport-lb/Cargo.toml` has the package take it from.
fn stage(workspace: &Workspace, daemon: &Path) -> Result<()> {
    let folder = workspace.target.join("release/package");
    let man = folder.join("man");
    if folder.exists() {
        // A page of a command that is no more must not get into the package.
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(&man).with_context(|| format!("cannot make {}", man.display()))?;
    let put = |path: &Path, text: String| {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    command::succeed(
        Command::new("strip").arg("--strip-all").arg("-o").arg(folder.join("reuseport-lb")).arg(daemon),
    )?;
    for (shell, name) in
        [("bash", "reuseport-lb.bash"), ("zsh", "_reuseport-lb"), ("fish", "reuseport-lb.fish")]
    {
        put(&folder.join(name), docs::printed(daemon, &["completions", shell])?)?;
    }
    put(&man.join("reuseport-lb.1"), docs::printed(daemon, &["man"])?)?;
    for name in docs::commands(&docs::printed(daemon, &["--help"])?) {
        put(&man.join(format!("reuseport-lb-{name}.1")), docs::printed(daemon, &["man", name])?)?;
    }
    Ok(())
}
