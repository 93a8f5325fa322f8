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
            // Editors keep their own files beside ours.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if entry.file_type().with_context(|| format!("cannot read {}", path.display()))?.is_dir() {
                folders.push(path);
            } else {
                files.insert(path);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
        [workspace.package]
        edition = "2024"
        version = "0.1.0"
        [workspace.dependencies]
        direct = "1"
        [profile.bpf]
        lto = "off"
    "#;
    const LOCK: &str = r#"
        [[package]]
        name = "direct"
        version = "1.0.0"
        dependencies = ["twice 2.0.0"]
        [[package]]
        name = "twice"
        version = "1.0.0"
        [[package]]
        name = "twice"
        version = "2.0.0"
        checksum = "beef"
        [[package]]
        name = "unrelated"
        version = "1.0.0"
    "#;
    const FILES: [(&str, &str); 5] = [
        ("Cargo.toml", MANIFEST),
        ("Cargo.lock", LOCK),
        ("reuseport-lb-ebpf/Cargo.toml", "[dependencies]\ndirect.workspace = true"),
        ("reuseport-lb-ebpf/src/main.rs", "mod policy;"),
        ("reuseport-lb-ebpf/src/policy/mod.rs", "// one"),
    ];

    /// The digest of a workspace in a folder of its own, with one file replaced.
    fn digest_with(changed: &str, text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace { root: folder.path().to_owned(), target: folder.path().join("target") };
        for (path, text) in FILES.into_iter().chain([(changed, text)]) {
            let path = workspace.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        of_sources(&workspace).unwrap()
    }

    #[test]
    fn the_digest_is_that_of_the_inputs_and_of_nothing_else() {
        let original = digest_with("README.md", "x");
        for (path, text) in [
            ("README.md", "somewhere else".to_owned()),
            ("reuseport-lb-ebpf/src/.main.rs.swp", "x".to_owned()),
            (
                "Cargo.lock",
                LOCK.replace("\"unrelated\"\n        version = \"1", "\"unrelated\"\n        version = \"9"),
            ),
        ] {
            assert_eq!(digest_with(path, &text), original, "{path}");
        }
        for (path, text) in [
            ("reuseport-lb-ebpf/src/policy/mod.rs", "// two".to_owned()),
            ("reuseport-lb-ebpf/src/new.rs", "// new".to_owned()),
            ("reuseport-lb-ebpf/build.rs", "fn main() {}".to_owned()),
            ("Cargo.lock", LOCK.replace("beef", "cafe")),
            ("Cargo.toml", MANIFEST.replace("off", "fat")),
            ("Cargo.toml", MANIFEST.replace("0.1.0", "0.2.0")),
            (
                "Cargo.toml",
                MANIFEST.replace("direct = \"1\"", "direct = { version = \"1\", features = [\"x\"] }"),
            ),
        ] {
            assert_ne!(digest_with(path, &text), original, "{path}");
        }
    }

    #[test]
    fn dependencies_are_followed_to_the_version_that_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace { root: folder.path().to_owned(), target: folder.path().join("target") };
        fs::create_dir(folder.path().join(bpf::PACKAGE)).unwrap();
        fs::write(workspace.path("Cargo.lock"), LOCK).unwrap();
        fs::write(workspace.path("reuseport-lb-ebpf/Cargo.toml"), "[dependencies]\ndirect = \"1\"").unwrap();
        let found = dependencies(&workspace).unwrap();
        let names: Vec<_> =
            found.iter().map(|locked| (locked.name.as_str(), locked.version.as_str())).collect();
        assert_eq!(names, [("direct", "1.0.0"), ("twice", "2.0.0")]);
    }
}
