//! The two toolchains that can build the BPF programs, and which one is here.
//!
//! Rust's own releases have no compiled `core` for the BPF targets. Debian has one. Everybody else compiles it from
//! `rust-src`, which only nightly cargo does.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    command::{self, probe},
    record::Identity,
    workspace::Workspace,
};

/// Where Debian puts its tools. Never looked up in `PATH`, where rustup's proxies come first.
const DEBIAN_BIN: &str = "/usr/bin";
/// The version of `bpf-linker` that goes with Debian's compiler. Pinned, since the committed object depends on it.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// The target of the BPF programs: little-endian, as are all hosts that aya supports.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Where `rust-src` lies in a toolchain.
const RUST_SRC: &str = "lib/rustlib/src/rust";

/// A toolchain that is complete: compiler, `core` for BPF, linker.
pub(crate) struct Toolchain {
    kind: Kind,
    linker: PathBuf,
    /// `llvm-strip`, which takes the DWARF out and leaves the BTF in. Without it the object is only larger.
    pub(crate) strip: Option<PathBuf>,
}

/// Where compiler and `core` come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Debian's packages, with a compiled `core`.
    Debian,
    /// rustup's nightly, with `rust-src`.
    Nightly,
}

impl Toolchain {
    /// The toolchain that is here, if one is complete. Debian's comes first: the committed object is built by it.
    pub(crate) fn find(workspace: &Workspace) -> Option<Self> {
        Self::debian(workspace).or_else(|| Self::nightly(workspace))
    }

    fn debian(workspace: &Workspace) -> Option<Self> {
        let linker = find_linker(workspace, |version| version == LINKER_VERSION)?;
        let strip = debian_strip()?;
        has_debian_compiler().then_some(Self { kind: Kind::Debian, linker, strip: Some(strip) })
    }

    fn nightly(workspace: &Workspace) -> Option<Self> {
        let linker = find_linker(workspace, |_| true)?;
        let sysroot = nightly_sysroot()?;
        let strip = command::find("llvm-strip");
        has_core_sources(&sysroot).then_some(Self { kind: Kind::Nightly, linker, strip })
    }

    /// Cargo for the BPF target, with `subcommand` (`build`, `clippy` or `metadata`) and everything that depends on the
    /// toolchain.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo;
        match self.kind {
            Kind::Debian => {
                cargo = match subcommand {
                    // Cargo would find rustup's proxy for this one.
                    "clippy" => Command::new(debian("cargo-clippy")),
                    _ => Command::new(debian("cargo")),
                };
                cargo.arg(subcommand).env("CARGO", debian("cargo")).env("RUSTC", debian("rustc"));
                // aya-ebpf needs the unstable feature `asm_experimental_arch`.
                cargo.env("RUSTC_BOOTSTRAP", "1");
            }
            Kind::Nightly => {
                cargo = Command::new("rustup");
                cargo.args(["run", "nightly", "cargo", subcommand]);
                if subcommand != "metadata" {
                    cargo.arg("-Zbuild-std=core");
                }
                cargo.env_remove("CARGO").env_remove("RUSTC");
            }
        }
        cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        // What the cargo that runs this task has set for its own toolchain, and wrappers that may not know this one.
        for name in [
            "LD_LIBRARY_PATH",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            cargo.env_remove(name);
        }
        cargo
    }

    /// Whether `cargo clippy` is here for this toolchain.
    pub(crate) fn has_clippy(&self) -> bool {
        match self.kind {
            Kind::Debian => has_debian_clippy(),
            Kind::Nightly => nightly_sysroot()
                .is_some_and(|sysroot| command::is_executable(&sysroot.join("bin/cargo-clippy"))),
        }
    }

    /// The source of the toolchain.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The sources of `core`, when it is built from them.
    pub(crate) fn core_sources(&self) -> Option<PathBuf> {
        match self.kind {
            Kind::Debian => None,
            Kind::Nightly => nightly_sysroot().map(|sysroot| sysroot.join(RUST_SRC)),
        }
    }

    /// Everything about the toolchain that the bytes of the object depend on.
    pub(crate) fn identity(&self) -> Result<Identity> {
        let linker = probe(&self.linker, &["--version"]).context("cannot run bpf-linker")?;
        let (rustc, core, llvm);
        match self.kind {
            Kind::Debian => {
                rustc = probe(debian("rustc"), &["--version"]);
                let sources = match rustc_release(&debian("rustc")) {
                    // LLVM copies the lines of the sources that it finds into the BTF.
                    Some(release) if Path::new(&format!("/usr/src/rustc-{release}")).exists() => {
                        "with sources"
                    }
                    _ => "without sources",
                };
                core = format!("compiled, {sources}");
                let package =
                    format!("libllvm{}", debian_llvm_major().context("cannot ask rustc for its LLVM")?);
                let version = probe("dpkg-query", &["--show", "--showformat=${Version}", &package])
                    .with_context(|| format!("cannot ask dpkg for the version of {package}"))?;
                llvm = format!("{package} {version}");
            }
            Kind::Nightly => {
                rustc = probe("rustup", &["run", "nightly", "rustc", "--version"]);
                core = "from rust-src".to_owned();
                llvm = "of bpf-linker".to_owned();
            }
        }
        let rustc = rustc.context("cannot run rustc")?;
        Ok(Identity { rustc, core, bpf_linker: linker, llvm, host: env::consts::ARCH.to_owned() })
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            Kind::Debian => "Debian's rustc",
            Kind::Nightly => "rustup's nightly",
        };
        write!(f, "{name} and {}", self.linker.display())
    }
}

/// Whether Debian's cargo, rustc and compiled `core` for BPF are here.
pub(crate) fn has_debian_compiler() -> bool {
    let Some(sysroot) = probe(debian("rustc"), &["--print=sysroot"]) else { return false };
    let library = Path::new(&sysroot).join("lib/rustlib").join(TARGET).join("lib");
    let has_core = library.read_dir().is_ok_and(|files| {
        files.flatten().any(|file| {
            let name = file.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libcore-") && name.ends_with(".rlib")
        })
    });
    has_core && command::is_executable(&debian("cargo"))
}

/// Whether Debian's clippy is here.
pub(crate) fn has_debian_clippy() -> bool {
    command::is_executable(&debian("cargo-clippy"))
}

/// The major version of the LLVM in Debian's rustc; `bpf-linker` must be built with the same.
pub(crate) fn debian_llvm_major() -> Option<String> {
    let version = probe(debian("rustc"), &["--version", "--verbose"])?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next().map(str::to_owned)
}

/// The `llvm-strip` of that LLVM.
pub(crate) fn debian_strip() -> Option<PathBuf> {
    let path = PathBuf::from(format!("/usr/lib/llvm-{}/bin/llvm-strip", debian_llvm_major()?));
    command::is_executable(&path).then_some(path)
}

/// The first `bpf-linker` that runs and whose version is wanted.
pub(crate) fn find_linker(workspace: &Workspace, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    cargo_home
        .map(|home| home.join("bin"))
        .into_iter()
        .chain([workspace.target.join("tools/bin")])
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("bpf-linker"))
        .find(|linker| {
            let version = probe(linker, &["--version"]);
            version.is_some_and(|version| wanted(version.trim_start_matches("bpf-linker ")))
        })
}

/// The folder of rustup's nightly. Never installs one.
pub(crate) fn nightly_sysroot() -> Option<PathBuf> {
    probe("rustup", &["toolchain", "list"])?
        .lines()
        .any(|line| line.starts_with("nightly-"))
        .then(|| probe("rustup", &["run", "nightly", "rustc", "--print=sysroot"]))?
        .map(PathBuf::from)
}

/// Whether the toolchain in this folder has `rust-src`.
pub(crate) fn has_core_sources(sysroot: &Path) -> bool {
    sysroot.join(RUST_SRC).join("library/core").is_dir()
}

fn rustc_release(rustc: &Path) -> Option<String> {
    let version = probe(rustc, &["--version", "--verbose"])?;
    version.lines().find_map(|line| line.strip_prefix("release: ")).map(str::to_owned)
}

fn debian(program: &str) -> PathBuf {
    Path::new(DEBIAN_BIN).join(program)
}
