//! Runs all tests as root, against a fresh BPF object.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    bpf, command,
    deb::{self, Compression},
    setup::{self, Needs},
    workspace::Workspace,
};

/// Where pinned programs and maps live.
const BPFFS: &str = "/sys/fs/bpf";
/// What `reuseport-lb/build.rs` reads: the object to embed in place of the committed one.
const OBJECT_VARIABLE: &str = "REUSEPORT_LB_BPF_OBJECT";
/// What the integration tests read: the daemon to start.
pub(crate) const DAEMON_VARIABLE: &str = "REUSEPORT_LB_BIN";
/// What the benchmarks read, and so does their test: the object to compare with.
pub(crate) const BENCH_OBJECT_VARIABLE: &str = "REUSEPORT_LB_BENCH_OBJECT";
/// What the test of the Debian package reads: the package to install.
const PACKAGE_VARIABLE: &str = "REUSEPORT_LB_DEB";
/// The test of the Debian package.
const PACKAGE_TEST: &str = "package";

/// What the test `chaos` reads: how long it takes, in seconds, and the seed.
const CHAOS_VARIABLES: [&str; 2] = ["REUSEPORT_LB_CHAOS_SECONDS", "REUSEPORT_LB_CHAOS_SEED"];

/// Builds everything from source and runs the test `chaos` for so long.
pub(crate) fn chaos(workspace: &Workspace, minutes: u64, seed: Option<u64>) -> Result<()> {
    let [seconds_variable, seed_variable] = CHAOS_VARIABLES;
    let mut variables = vec![(seconds_variable, (minutes * 60).to_string())];
    variables.extend(seed.map(|seed| (seed_variable, seed.to_string())));
    let args = ["--package=reuseport-lb-tests", "--test=chaos", "--", "--nocapture"].map(OsString::from);
    test(workspace, args.into(), &variables)
}

/// Builds everything from source and runs `cargo test` with `args`, and these environment variables.
pub(crate) fn test(workspace: &Workspace, args: Vec<OsString>, variables: &[(&str, String)]) -> Result<()> {
    let is_root = command::is_root()?;
    if !is_root {
        // Before the minutes of building.
        command::sudo()?;
    }
    let package = tests_package(&args);
    let needs = if package { Needs::test().with_package() } else { Needs::test() };
    let (toolchain, _) = setup::ensure(workspace, needs)?;
    let object = bpf::build(workspace, &toolchain)?;
    let daemon = build_daemon(workspace, Some(&object), false)?;
    mount_bpffs()?;

    let mut cargo = command::cargo();
    cargo
        .args(["test", "--locked", "--no-fail-fast"])
        .current_dir(&workspace.root)
        .env(OBJECT_VARIABLE, &object)
        .env(DAEMON_VARIABLE, &daemon)
        .envs(variables.iter().map(|(name, value)| (name, value)));
    if package {
        cargo.env(PACKAGE_VARIABLE, deb::of(workspace, &daemon, Compression::Fast)?);
    }
    let all = !chooses_packages(&args);
    if all {
        cargo.args(["--workspace", "--features=reuseport-lb-tests/bench"]);
    }
    if all || args.iter().any(|arg| arg.to_string_lossy().contains("bench")) {
        cargo.env(BENCH_OBJECT_VARIABLE, bpf::build_bench(workspace, &toolchain)?);
    }
    if !is_root {
        // Only what the compiler made runs as root, not the compiler.
        let triple = host_triple()?.replace('-', "_").to_uppercase();
        cargo.env(format!("CARGO_TARGET_{triple}_RUNNER"), "sudo -E --");
    }
    command::succeed(cargo.args(args))
}

/// Builds `reuseport-lb` with this BPF object in it, or else the committed one, and returns where it is.
pub(crate) fn build_daemon(workspace: &Workspace, object: Option<&Path>, release: bool) -> Result<PathBuf> {
    build_binary(workspace, object, &["--package=reuseport-lb", "--bin=reuseport-lb"], release)
}

/// Builds the one binary that `selection` names, with this BPF object in it or else the committed one, and returns
/// where it is.
pub(crate) fn build_binary(
    workspace: &Workspace,
    object: Option<&Path>,
    selection: &[&str],
    release: bool,
) -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo
        .args(["build", "--locked"])
        .args(selection)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(&workspace.root);
    match object {
        Some(object) => cargo.env(OBJECT_VARIABLE, object),
        None => cargo.env_remove(OBJECT_VARIABLE),
    };
    if release {
        cargo.arg("--release");
    }
    command::output(&mut cargo)?
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .with_context(|| format!("cargo built {} and did not say where it is", selection.join(" ")))
}

/// Whether the test of the Debian package is among those that `args` choose, so that there must be one.
fn tests_package(args: &[OsString]) -> bool {
    let args: Vec<_> = args.iter().filter_map(|arg| arg.to_str()).take_while(|arg| *arg != "--").collect();
    let chooses_others =
        args.iter().any(|arg| arg.starts_with("--test") || *arg == "--lib" || *arg == "--bins");
    let chosen = args.iter().any(|arg| *arg == PACKAGE_TEST || *arg == "--test=package");
    let crates_chosen = args.iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package"));
    let is_ours = !crates_chosen || args.iter().any(|arg| arg.ends_with("reuseport-lb-tests"));
    chosen || !chooses_others && is_ours
}

fn chooses_packages(args: &[OsString]) -> bool {
    args.iter()
        .map(OsString::as_os_str)
        .take_while(|arg| *arg != OsStr::new("--"))
        .filter_map(OsStr::to_str)
        .any(|arg| arg.starts_with("-p") || arg.starts_with("--package"))
}

pub(crate) fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let is_bpffs = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    };
    if mounts.lines().any(is_bpffs) {
        return Ok(());
    }
    eprintln!("xtask: mounting bpffs on {BPFFS}");
    command::succeed(command::as_root("mount")?.args(["-t", "bpf", "bpf", BPFFS]))
}

fn host_triple() -> Result<String> {
    let version = command::output(command::cargo().args(["--version", "--verbose"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("cargo does not say which host it runs on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_made_for_its_test_only() {
        let makes = |args: &[&str]| tests_package(&args.iter().map(OsString::from).collect::<Vec<_>>());
        for args in [
            &[][..],
            &["-p", "reuseport-lb-tests"],
            &["-p", "reuseport-lb-tests", "--test", "package"],
            &["--test=package"],
        ] {
            assert!(makes(args), "{args:?}");
        }
        for args in [
            &["-p", "reuseport-lb-tests", "--test", "draining"][..],
            &["-p", "reuseport-lb", "--lib"],
            &["--test=draining", "--", "package"],
        ] {
            assert!(!makes(args), "{args:?}");
        }
    }

    #[test]
    fn packages_are_chosen_before_the_dashes_only() {
        let chooses = |args: &[&str]| chooses_packages(&args.iter().map(OsString::from).collect::<Vec<_>>());
        for args in [&["-p", "xtask"][..], &["-pxtask"], &["drain", "--package=xtask", "--", "x"]] {
            assert!(chooses(args), "{args:?}");
        }
        for args in [&[][..], &["drain"], &["--", "-p"], &["--profile=release"]] {
            assert!(!chooses(args), "{args:?}");
        }
    }
}
