//! Builds the BPF programs from source.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{
    command, digest,
    toolchain::{TARGET, Toolchain},
    workspace::Workspace,
};

/// The package and its binary.
pub(crate) const PACKAGE: &str = "reuseport-lb-ebpf";
/// The profile in the workspace's `Cargo.toml`.
pub(crate) const PROFILE: &str = "bpf";
/// The arguments that choose what is built.
pub(crate) const SELECTION: [&str; 5] = [
    "--package=reuseport-lb-ebpf",
    "--bin=reuseport-lb-ebpf",
    "--features=programs",
    "--profile=bpf",
    "--target=bpfel-unknown-none",
];
/// The arguments that choose what is built for the benchmarks: the same, and programs that do nothing.
const BENCH_SELECTION: [&str; 5] =
    [SELECTION[0], SELECTION[1], "--features=programs,bench", SELECTION[3], SELECTION[4]];
/// Makes `bpf-linker` keep the types: the kernel wants them for the maps, the verifier shows the source lines.
pub(crate) const LINK_BTF: &str = "-Clink-arg=--btf";
/// Between flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// Builds the object and returns where it is. The file keeps its time stamp when nothing changed in it, so that what
/// embeds it is not built again.
pub(crate) fn build(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    build_selection(workspace, toolchain, SELECTION, "programs.bpf.o")
}

/// Builds the object that the benchmarks compare with, in the same way, and returns where it is.
pub(crate) fn build_bench(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    build_selection(workspace, toolchain, BENCH_SELECTION, "bench.bpf.o")
}

fn build_selection(
    workspace: &Workspace,
    toolchain: &Toolchain,
    selection: [&str; 5],
    file: &str,
) -> Result<PathBuf> {
    let mut cargo = toolchain.cargo("build");
    command::succeed(configure(&mut cargo, workspace, toolchain, selection)?)
        .context("the BPF programs do not build")?;

    let folder = workspace.target.join("bpf");
    let built = folder.join(TARGET).join(PROFILE).join(PACKAGE);
    let stripped = folder.join("object.new");
    match &toolchain.strip {
        Some(strip) => {
            let mut strip = Command::new(strip);
            command::succeed(strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(&built))?;
        }
        None => {
            fs::copy(&built, &stripped).with_context(|| format!("cannot copy {}", built.display()))?;
        }
    }

    let object = folder.join(file);
    if fs::read(&object).ok() == Some(fs::read(&stripped).context("cannot read the object just built")?) {
        fs::remove_file(&stripped).context("cannot remove the object just built")?;
    } else {
        fs::rename(&stripped, &object).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(object)
}

/// Runs clippy on all programs, those of the benchmarks too, for the BPF target, and on the library part that they use.
pub(crate) fn clippy(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let mut cargo = toolchain.cargo("clippy");
    command::succeed(configure(&mut cargo, workspace, toolchain, BENCH_SELECTION)?.args([
        "--lib",
        "--",
        "-Dwarnings",
    ]))
}

fn configure<'c>(
    cargo: &'c mut Command,
    workspace: &Workspace,
    toolchain: &Toolchain,
    selection: [&str; 5],
) -> Result<&'c mut Command> {
    let mut rustflags = vec![
        LINK_BTF.to_owned(),
        // Which of aya-ebpf's bindings of the kernel's `pt_regs` to take.
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
    ];
    rustflags.extend(remap_paths(workspace, toolchain)?);
    Ok(cargo
        .arg("--locked")
        .args(selection)
        .arg("--target-dir")
        .arg(workspace.target.join("bpf"))
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join(SEPARATOR))
        .current_dir(&workspace.root))
}

/// Flags that replace each path of this machine by one that is the same everywhere. The last one that fits counts.
fn remap_paths(workspace: &Workspace, toolchain: &Toolchain) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        manifest_path: PathBuf,
    }

    let json = command::output(toolchain.cargo("metadata").current_dir(&workspace.root).args([
        "--format-version=1",
        "--locked",
        "--features=reuseport-lb-ebpf/programs",
        "--filter-platform",
        TARGET,
    ]))?;
    let Metadata { packages } =
        serde_json::from_str(&json).context("cannot read what `cargo metadata` printed")?;
    let ours = digest::dependencies(workspace)?;

    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    // The dot, because LLVM copies the source lines into the BTF when it finds them, and the verifier then shows them:
    // cargo calls rustc, and rustc the linker, in the workspace's root.
    let mut flags = vec![remap(&workspace.root, ".")];
    flags.extend(toolchain.core_sources().map(|sources| remap(&sources, "/rust")));
    for Package { name, version, manifest_path } in packages {
        let Some(folder) = manifest_path.parent() else { continue };
        if ours.iter().any(|our| our.name == name && our.version == version) {
            flags.push(remap(folder, &format!("/crates/{name}-{version}")));
        }
    }
    Ok(flags)
}
