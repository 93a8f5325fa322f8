//! The pins: what keeps the counting of connections alive without the daemon, what a later daemon takes over, and what
//! shows the maps to `bpftool`.
//!
//! A group has a folder, and in it one folder for each daemon that had the group, by number. Normally that is one. While
//! one daemon takes over from another there are two, each complete in itself; the state file says which one holds.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::links::{FdLink, PinnedLink},
};
use rustix::mount::{MountFlags, mount};

use super::{Error, trackers::Links};

/// Where the BPF file system is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The pins of one daemon for one group. Dropping it takes them away, and, once [`Pins::settle`] has been called, all
/// of the group's.
#[derive(Debug)]
pub(super) struct Pins {
    group: PathBuf,
    generation: u64,
    settled: bool,
}

impl Pins {
    /// Pins all maps and these links, each under its name, to a folder of their own in the folder `group`.
    ///
    /// What earlier daemons pinned there stays as it is.
    pub(super) fn create(group: &Path, ebpf: &Ebpf, links: Links) -> Result<Self, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Pin { path, source }
        };
        mount_bpffs(group).map_err(failed(group))?;
        fs::create_dir_all(group).map_err(failed(group))?;
        let last = generations(group).map_err(failed(group))?.into_iter().max();
        let generation = last.map_or(1, |last| last + 1);
        // From here on, an error takes away what was made.
        let pins = Self { group: group.to_owned(), generation, settled: false };
        let folder = pins.folder();
        fs::create_dir(&folder).map_err(failed(&folder))?;
        for (name, map) in ebpf.maps() {
            let path = folder.join(file_name(name));
            map.pin(&path).map_err(|error| failed(&path)(io::Error::other(error)))?;
        }
        for (name, link) in links {
            let path = folder.join(file_name(name));
            link.pin(&path).map_err(|error| failed(&path)(io::Error::other(error)))?;
        }
        Ok(pins)
    }

    /// The number of the folder with these pins.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    fn folder(&self) -> PathBuf {
        self.group.join(self.generation.to_string())
    }

    /// From now on these are the group's pins: all others are taken away.
    pub(super) fn settle(&mut self) {
        self.settled = true;
        for other in generations(&self.group).unwrap_or_default() {
            let folder = self.group.join(other.to_string());
            if other != self.generation
                && let Err(error) = remove(&folder)
            {
                tracing::warn!(folder = %folder.display(), %error, "cannot remove the pins of an earlier daemon");
            }
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let folder = if self.settled { self.group.clone() } else { self.folder() };
        if let Err(error) = remove(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove the pins");
        }
        // The folders above go with the last one; while others are in them, that fails, as it should.
        for parent in folder.ancestors().skip(1).take(if self.settled { 1 } else { 2 }) {
            drop(fs::remove_dir(parent));
        }
    }
}

/// What an earlier daemon has pinned for a group.
#[derive(Debug)]
pub(super) struct Earlier {
    group: PathBuf,
    generation: u64,
}

impl Earlier {
    pub(super) fn new(group: &Path, generation: u64) -> Self {
        Self { group: group.to_owned(), generation }
    }

    /// Where a map or link is pinned, if it is.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        let path = self.group.join(self.generation.to_string()).join(file_name(name));
        path.exists().then_some(path)
    }

    /// A link, if it is pinned.
    pub(super) fn link(&self, name: &str) -> Option<FdLink> {
        Some(PinnedLink::from_pin(self.path(name)?).ok()?.into())
    }
}

/// Everything pinned for a group under this name.
pub(super) fn everywhere(group: &Path, name: &str) -> Vec<PathBuf> {
    let folders = generations(group).unwrap_or_default().into_iter();
    folders
        .map(|generation| group.join(generation.to_string()).join(file_name(name)))
        .filter(|path| path.exists())
        .collect()
}

/// Removes everything pinned for a group that no daemon has; says whether there was something.
pub(super) fn clear(group: &Path) -> Result<bool, Error> {
    remove(group).map_err(|source| Error::Pin { path: group.to_owned(), source })
}

/// The BPF file system refuses names with dots.
fn file_name(name: &str) -> String {
    name.replace('.', "_")
}

/// The numbers of the folders in a group's folder; none when there is no such folder.
fn generations(group: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    Ok(found)
}

/// Removes a folder with its pins, and says whether it was there.
fn remove(folder: &Path) -> io::Result<bool> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Mounts the BPF file system where `folder` needs it and nobody has: systemd does at boot, containers do not.
fn mount_bpffs(folder: &Path) -> io::Result<()> {
    if !folder.starts_with(BPFFS) || !is_missing_bpffs() {
        return Ok(());
    }
    mount("bpf", BPFFS, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
    tracing::info!(path = BPFFS, "mounted the BPF file system");
    Ok(())
}

/// Whether the BPF file system is not mounted where it is by convention.
pub(super) fn is_missing_bpffs() -> bool {
    !rustix::fs::statfs(BPFFS).is_ok_and(|found| found.f_type.cast_unsigned() == BPF_FS_MAGIC)
}
