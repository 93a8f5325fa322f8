//! What threads may do, and daemons that may do little.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use crate::{binary, program};

/// A thread's capabilities, each set as the kernel writes it, and `no_new_privs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// What it may get.
    pub permitted: u64,
    /// What it has.
    pub effective: u64,
    /// What it may keep over an `exec`, with files that say so.
    pub inheritable: u64,
    /// What it keeps over an `exec`.
    pub ambient: u64,
    /// What it can ever have.
    pub bounding: u64,
    /// Whether no `exec` gives it more.
    pub no_new_privs: bool,
}

impl Privileges {
    /// Those of each thread of a process.
    pub fn of_threads(pid: u32) -> Vec<Self> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the threads of a process");
        // A thread that has ended meanwhile has none.
        let statuses = threads
            .filter_map(|thread| fs::read_to_string(thread.expect("a thread").path().join("status")).ok());
        let all: Vec<Self> = statuses.map(|status| Self::parse(&status)).collect();
        assert!(!all.is_empty(), "process {pid} has no thread");
        all
    }

    fn parse(status: &str) -> Self {
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
        };
        let set = |name| u64::from_str_radix(value(name), 16).expect("a set of capabilities");
        Self {
            permitted: set("CapPrm"),
            effective: set("CapEff"),
            inheritable: set("CapInh"),
            ambient: set("CapAmb"),
            bounding: set("CapBnd"),
            no_new_privs: value("NoNewPrivs") == "1",
        }
    }
}

/// A set of capabilities, by their names: `CAP_BPF`.
pub fn capabilities(names: &[&str]) -> u64 {
    let one = |name: &&str| name.parse::<caps::Capability>().expect("a capability").bitmask();
    names.iter().map(one).fold(0, |set, one| set | one)
}

/// The words that run a command as this user and group, with just these capabilities: `CAP_BPF`.
pub fn as_user(uid: u32, capabilities: &[&str]) -> Vec<OsString> {
    let names =
        capabilities.iter().map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    let set = format!("-all{}", names.collect::<String>());
    let words = [
        "setpriv".into(),
        format!("--reuid={uid}"),
        format!("--regid={uid}"),
        "--clear-groups".into(),
        format!("--bounding-set={set}"),
        format!("--inh-caps={set}"),
        format!("--ambient-caps={set}"),
    ];
    words.map(OsString::from).into()
}

/// A copy in `folder` of the program under test that every user may run: the one in the target folder is below the
/// developer's home. The folder becomes this user's, if one is given.
pub fn program_for_all(folder: &Path, owner: Option<u32>) -> PathBuf {
    let copy = folder.join("program");
    if !copy.exists() {
        program::copy(binary(), &copy);
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("mode 0755");
    chown(folder, owner, owner).expect("another owner");
    copy
}
