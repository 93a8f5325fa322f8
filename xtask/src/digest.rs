//! One digest over everything in the repository that the BPF object is made from.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{bpf, workspace::Workspace};

/// A package in `Cargo.lock`.
#[derive(Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Locked {
    pub(crate) name: String,
    pub(crate) version: String,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes everything");
        hex
    })
}

/// The digest over the sources of the programs, what they depend on, and how they are built.
///
/// It is the same on every machine: line by line the name of an input, and its digest or value.
pub(crate) fn of_sources(workspace: &Workspace) -> Result<String> {
    let mut inputs = String::new();
    for path in sources(workspace)? {
        let bytes =
            fs::read(workspace.path(&path)).with_context(|| format!("cannot read {}", path.display()))?;
        writeln!(inputs, "file {} {}", path.display(), sha256(bytes))?;
    }
    for Locked { name, version, checksum, dependencies: _ } in dependencies(workspace)? {
        writeln!(inputs, "crate {name} {version} {}", checksum.unwrap_or_default())?;
    }
    let manifest = workspace.toml("Cargo.toml")?;
    let at = |keys: &[&str]| {
        keys.iter()
            .try_fold(None, |at: Option<&toml::Value>, key| {
                Some(Some(match at {
                    None => manifest.get(*key)?,
                    Some(value) => value.get(*key)?,
                }))
            })
            .flatten()
            .map(ToString::to_string)
            .with_context(|| format!("no {} in Cargo.toml", keys.join(".")))
    };
    // Edition and version go into the symbols' names.
    writeln!(inputs, "edition {}", at(&["workspace", "package", "edition"])?)?;
    writeln!(inputs, "version {}", at(&["workspace", "package", "version"])?)?;
    writeln!(inputs, "profile {}", at(&["profile", bpf::PROFILE])?)?;
    for name in direct_dependencies(workspace)? {
        writeln!(inputs, "dependency {name} {}", at(&["workspace", "dependencies", &name])?)?;
    }
    for flag in bpf::SELECTION.into_iter().chain([bpf::LINK_BTF]) {
        writeln!(inputs, "flag {flag}")?;
    }
    Ok(sha256(inputs))
}

/// What the programs depend on, directly or not, as `Cargo.lock` has it.
pub(crate) fn dependencies(workspace: &Workspace) -> Result<BTreeSet<Locked>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Locked>,
    }

    let Lock { package } = workspace.toml("Cargo.lock")?.try_into().context("cannot read Cargo.lock")?;
    let mut found = BTreeSet::new();
    let mut wanted = direct_dependencies(workspace)?;
    while let Some(wish) = wanted.pop() {
        // `name`, or `name version` when there are several.
        let mut words = wish.split(' ');
        let (name, version) = (words.next(), words.next());
        let mut matching = package
            .iter()
            .filter(|package| name == Some(package.name.as_str()))
            .filter(|package| version.is_none_or(|version| version == package.version));
        let (Some(locked), None) = (matching.next(), matching.next()) else {
            bail!("Cargo.lock does not have exactly one package `{wish}`");
        };
        if found.insert(locked.clone()) {
            wanted.extend(locked.dependencies.iter().cloned());
        }
    }
    Ok(found)
}

fn direct_dependencies(workspace: &Workspace) -> Result<Vec<String>> {
    let manifest = workspace.toml(Path::new(bpf::PACKAGE).join("Cargo.toml"))?;
    let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
    Ok(dependencies.into_iter().flat_map(toml::Table::keys).cloned().collect())
}

/// The files of the package that cargo compiles, sorted, with paths below the workspace's root.
fn sources(workspace: &Workspace) -> Result<BTreeSet<PathBuf>> {
    let package = Path::new(bpf::PACKAGE);
    let mut files = BTreeSet::from([package.join("Cargo.toml")]);
    let build_script = package.join("build.rs");
    if workspace.path(&build_script).exists() {
        files.insert(build_script);
    }
    let mut folders = vec![package.join("src")];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(workspace.path(&folder))
            .with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
            let path = folder.join(entry.file_name());
            if entry.file_type().with_context(|| format!("cannot read {}", path.display()))?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.insert(path);
            }
        }
    }
    Ok(files)
}
