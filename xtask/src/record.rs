//! The committed object, and the file beside it that says where it came from.

use std::fs;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{bpf, digest, toolchain::Toolchain, workspace::Workspace};

/// The committed object, below the workspace's root.
const OBJECT: &str = "reuseport-lb/bpf/programs.bpf.o";
/// The record, below the workspace's root.
const RECORD: &str = "reuseport-lb/bpf/programs.toml";
/// The first lines of the record.
const HEADER: &str =
    "# Where programs.bpf.o came from. Written by `cargo xtask build-ebpf`, read by `--check`.\n\n";

/// The contents of the record.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Over the sources, what they depend on, and how they are built.
    source_digest: String,
    /// Over the object.
    object_sha256: String,
    toolchain: Identity,
}

/// Everything outside the repository that the bytes of the object depend on.
#[derive(Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// What `rustc --version` prints.
    pub(crate) rustc: String,
    /// Where `core` comes from.
    pub(crate) core: String,
    /// What `bpf-linker --version` prints.
    pub(crate) bpf_linker: String,
    /// The LLVM that `bpf-linker` uses.
    pub(crate) llvm: String,
    /// The architecture that the object was built on; it chooses aya-ebpf's bindings.
    pub(crate) host: String,
}

/// Builds the object and writes it and its record into the repository.
pub(crate) fn write(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let source_digest = digest::of_sources(workspace)?;
    let object = fs::read(bpf::build(workspace, toolchain)?).context("cannot read the object just built")?;
    let record =
        Record { source_digest, object_sha256: digest::sha256(&object), toolchain: toolchain.identity()? };
    let text = HEADER.to_owned() + &toml::to_string(&record).context("cannot write TOML")?;

    let (object_path, record_path) = (workspace.path(OBJECT), workspace.path(RECORD));
    if let Some(folder) = object_path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    // The record last: an object without its record fails the check.
    fs::write(&object_path, &object).with_context(|| format!("cannot write {OBJECT}"))?;
    fs::write(&record_path, text).with_context(|| format!("cannot write {RECORD}"))?;
    eprintln!("xtask: wrote {OBJECT} ({} bytes) and {RECORD}", object.len());
    Ok(())
}

/// Fails when the committed object is not what the committed sources give.
pub(crate) fn check(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let remedy = "run `cargo xtask build-ebpf` and commit both files";
    let text = fs::read_to_string(workspace.path(RECORD)).with_context(|| format!("{RECORD}: {remedy}"))?;
    let Record { source_digest, object_sha256, toolchain: recorded } =
        toml::from_str(&text).with_context(|| format!("{RECORD}: {remedy}"))?;

    if source_digest != digest::of_sources(workspace)? {
        bail!("{OBJECT} is older than the sources of the BPF programs: {remedy}");
    }
    let committed = fs::read(workspace.path(OBJECT)).with_context(|| format!("{OBJECT}: {remedy}"))?;
    if object_sha256 != digest::sha256(&committed) {
        bail!("{OBJECT} is not the one that {RECORD} tells of: {remedy}");
    }
    // Built in any case: the sources must build with this toolchain too.
    let fresh = fs::read(bpf::build(workspace, toolchain)?).context("cannot read the object just built")?;
    let present = toolchain.identity()?;
    if present != recorded {
        eprintln!(
            "xtask: {OBJECT} has the digest of its sources; its bytes were not compared, since the toolchains differ"
        );
        let recorded = toml::Table::try_from(&recorded).context("cannot write TOML")?;
        for (part, here) in toml::Table::try_from(&present).context("cannot write TOML")? {
            match recorded.get(&part) {
                Some(there) if *there != here => eprintln!("  {part}: {here} here, recorded {there}"),
                _ => {}
            }
        }
    } else if fresh == committed {
        eprintln!("xtask: {OBJECT} is, byte for byte, what its sources give");
    } else {
        bail!("{OBJECT} is not what its sources give with the recorded toolchain: {remedy}");
    }
    Ok(())
}
