//! Installs what is missing.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command,
    toolchain::{self, Kind, LINKER_VERSION, Toolchain},
    workspace::Workspace,
};

/// The version of `cargo-deb` that makes the Debian package.
const CARGO_DEB_VERSION: &str = "3.8.0";

/// The module of nginx that the benchmarks need, where Debian has it.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// What a task needs beside a toolchain that builds the BPF programs.
#[derive(Clone, Copy)]
pub(crate) struct Needs {
    /// `ip` and `sysctl`, which the tests make their networks with.
    network_tools: bool,
    /// Clippy for the BPF target.
    clippy: bool,
    /// What makes and tests the Debian package.
    package: bool,
    /// The servers that the tests steer.
    servers: bool,
    /// HAProxy and nginx, which the benchmarks compare with.
    proxies: bool,
}

impl Needs {
    pub(crate) const fn all() -> Self {
        Self { network_tools: true, clippy: true, package: true, servers: true, proxies: false }
    }

    pub(crate) const fn build() -> Self {
        Self { network_tools: false, clippy: false, package: false, servers: false, proxies: false }
    }

    pub(crate) const fn test() -> Self {
        Self { network_tools: true, servers: true, ..Self::build() }
    }

    pub(crate) const fn package() -> Self {
        Self { package: true, ..Self::build() }
    }

    /// The same, and the package.
    pub(crate) const fn with_package(self) -> Self {
        Self { package: true, ..self }
    }

    pub(crate) const fn bench() -> Self {
        Self { network_tools: true, proxies: true, ..Self::build() }
    }

    pub(crate) const fn lint() -> Self {
        Self { clippy: true, ..Self::build() }
    }
}

/// Makes sure that everything needed is here. Returns the toolchain, and whether something had to be installed; says
/// nothing when not.
pub(crate) fn ensure(workspace: &Workspace, needs: Needs) -> Result<(Toolchain, bool)> {
    let mut apt = Apt { updated: false };
    let mut changed = false;
    let toolchain = match Toolchain::find(workspace) {
        Some(toolchain) => toolchain,
        None if is_debian() => {
            changed = true;
            install_debian_toolchain(workspace, &mut apt)?;
            Toolchain::find(workspace)
                .context("Debian's packages and bpf-linker are installed, and do not work together")?
        }
        None => bail!("{}", missing_nightly(workspace)),
    };

    if needs.clippy && !toolchain.has_clippy() {
        match toolchain.kind() {
            Kind::Debian => {
                changed = true;
                apt.install(&["rust-web-clippy"])?;
            }
            Kind::Nightly => {
                bail!("clippy for the BPF target is missing: rustup component add clippy --toolchain nightly")
            }
        }
    }
    let mut missing = vec![];
    for (needed, program, package) in [
        (needs.network_tools, "ip", "iproute2"),
        (needs.network_tools, "sysctl", "procps"),
        (needs.package, "dpkg-shlibdeps", "dpkg-dev"),
        (needs.package, "strip", "binutils"),
        (needs.package, "xz", "xz-utils"),
        (needs.package && needs.network_tools, "systemctl", "systemd"),
        (needs.servers || needs.proxies, "nginx", "nginx"),
        (needs.servers || needs.proxies, "haproxy", "haproxy"),
        (needs.servers, "go", "golang-go"),
        (needs.servers, "gunicorn", "gunicorn"),
        (needs.servers, "uvicorn", "uvicorn"),
        (needs.servers, "node", "nodejs"),
    ] {
        if needed && command::find(program).is_none() {
            missing.push(package);
        }
    }
    if needs.proxies && !Path::new(STREAM_MODULE).exists() {
        missing.push("libnginx-mod-stream");
    }
    if !missing.is_empty() {
        if !is_debian() {
            bail!("programs are missing; install {}", missing.join(", "));
        }
        changed = true;
        let _quiet = (needs.servers || needs.proxies).then(NoStarts::begin).transpose()?;
        apt.install(&missing)?;
    }
    if needs.package && cargo_deb().is_none() {
        changed = true;
        eprintln!("xtask: building cargo-deb {CARGO_DEB_VERSION}: about a minute");
        command::succeed(
            command::cargo()
                // Without its own compression of packages, which takes longest to build; dpkg-deb's xz serves.
                .args(["install", "cargo-deb", "--quiet", "--locked", "--no-default-features"])
                .args(["--version", CARGO_DEB_VERSION]),
        )?;
    }
    Ok((toolchain, changed))
}

/// Where `cargo-deb` is, in the version that is tested.
pub(crate) fn cargo_deb() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))?;
    let installed = home.join("bin/cargo-deb");
    let candidates = [command::is_executable(&installed).then_some(installed), command::find("cargo-deb")];
    candidates.into_iter().flatten().find(|program| {
        command::probe(program, &["--version"]).is_some_and(|version| version.ends_with(CARGO_DEB_VERSION))
    })
}

fn install_debian_toolchain(workspace: &Workspace, apt: &mut Apt) -> Result<()> {
    if !toolchain::has_debian_compiler() {
        apt.install(&["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"])?;
    }
    let major =
        toolchain::debian_llvm_major().context("cannot ask Debian's rustc for the version of its LLVM")?;
    if toolchain::find_linker(workspace, |version| version == LINKER_VERSION).is_none() {
        let (llvm, polly) = (format!("llvm-{major}-dev"), format!("libpolly-{major}-dev"));
        apt.install(&[&llvm, &polly, "zlib1g-dev", "libzstd-dev", "libxml2-dev"])?;
        install_linker(workspace, &major)?;
    }
    if toolchain::debian_strip().is_none() {
        apt.install(&[&format!("llvm-{major}")])?;
    }
    Ok(())
}

fn install_linker(workspace: &Workspace, llvm_major: &str) -> Result<()> {
    let mut cargo = command::cargo();
    cargo
        .args(["install", "bpf-linker", "--quiet", "--locked", "--no-default-features"])
        .args(["--version", LINKER_VERSION])
        .arg(format!("--features=llvm-{llvm_major}"))
        // Without it the build script takes the wrong folder for the libraries.
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm_major}"));
    let mut place = "cargo's folder for programs".to_owned();
    if toolchain::find_linker(workspace, |_| true).is_some() {
        // The other version, which somebody wanted, stays.
        let tools = workspace.target.join("tools");
        place = tools.join("bin").display().to_string();
        cargo.arg("--root").arg(tools);
    }
    eprintln!(
        "xtask: building bpf-linker {LINKER_VERSION} with LLVM {llvm_major} into {place}: about a minute"
    );
    command::succeed(&mut cargo)
}

/// Debian's packages.
struct Apt {
    /// Whether the lists of packages are fresh.
    updated: bool,
}

impl Apt {
    fn install(&mut self, packages: &[&str]) -> Result<()> {
        eprintln!("xtask: installing Debian's packages {}", packages.join(", "));
        if !self.updated {
            command::succeed(Self::get()?.arg("update"))?;
            self.updated = true;
        }
        // `--no-remove`: Debian's package of rustup excludes that of rustc, and who has it would lose it.
        command::succeed(
            Self::get()?.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages),
        )
        .context("Debian's packages cannot be installed; the other way is rustup's nightly with rust-src")
    }

    fn get() -> Result<Command> {
        let mut apt = command::as_root("apt-get")?;
        apt.arg("-qq")
            .arg("-o=Dpkg::Use-Pty=0")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        // Progress is not what the task was asked for.
        apt.stdout(Stdio::null());
        Ok(apt)
    }
}

/// Keeps Debian's packages from starting the servers that they bring, for as long as it lives.
struct NoStarts {
    /// Whether there was no policy before.
    made: bool,
}

impl NoStarts {
    /// What Debian asks before it starts a service, at boot or by hand.
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn begin() -> Result<Self> {
        let made = !Path::new(Self::POLICY).exists();
        if made {
            let script = format!("printf '#!/bin/sh\\nexit 101\\n' > {0} && chmod 755 {0}", Self::POLICY);
            command::succeed(command::as_root("sh")?.args(["-c", &script]))?;
        }
        Ok(Self { made })
    }
}

impl Drop for NoStarts {
    fn drop(&mut self) {
        let removed = || command::succeed(command::as_root("rm")?.args(["-f", Self::POLICY]));
        if self.made
            && let Err(error) = removed()
        {
            eprintln!("xtask: {} is left over: {error:#}", Self::POLICY);
        }
    }
}

fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "ID=debian") && command::find("apt-get").is_some()
}

/// Says what rustup's way lacks here, and the command that brings it.
fn missing_nightly(workspace: &Workspace) -> String {
    if command::find("rustup").is_none() {
        return "building the BPF programs takes Debian 12, or rustup (https://rustup.rs)".to_owned();
    }
    let (mut lacks, mut commands) = (vec![], vec![]);
    match toolchain::nightly_sysroot() {
        None => {
            lacks.push("rustup's nightly with rust-src");
            commands.push("rustup toolchain install nightly --profile minimal --component rust-src,clippy");
        }
        Some(sysroot) if !toolchain::has_core_sources(&sysroot) => {
            lacks.push("rust-src of rustup's nightly");
            commands.push("rustup component add rust-src clippy --toolchain nightly");
        }
        Some(_) => {}
    }
    if toolchain::find_linker(workspace, |_| true).is_none() {
        lacks.push("bpf-linker");
        if command::find("cargo-binstall").is_none() {
            commands.push("cargo install cargo-binstall --locked");
        }
        commands.push("cargo binstall --no-confirm bpf-linker");
    }
    format!("building the BPF programs lacks {}; get it by\n  {}", lacks.join(" and "), commands.join(" && "))
}
