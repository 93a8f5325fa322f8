//! The pins: what keeps the counting of connections alive without the daemon, and shows the maps to `bpftool`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::links::FdLink};
use rustix::mount::{MountFlags, mount};

use super::Error;

/// Where the BPF file system is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// A folder with pins; dropping it takes them away.
#[derive(Debug)]
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Pins all maps, and the link that counts connections, to `folder`.
    ///
    /// What is there already was left by a daemon that died, since a group has only one, and is taken away.
    pub(super) fn create(folder: &Path, ebpf: &Ebpf, tracking: Option<FdLink>) -> Result<Self, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Pin { path, source }
        };
        mount_bpffs(folder).map_err(failed(folder))?;
        if remove(folder).map_err(failed(folder))? {
            tracing::info!(folder = %folder.display(), "removed the pins of a daemon that died");
        }
        fs::create_dir_all(folder).map_err(failed(folder))?;
        // From here on, an error takes away what was made.
        let pins = Self { folder: folder.to_owned() };
        for (name, map) in ebpf.maps() {
            let path = folder.join(name.replace('.', "_"));
            map.pin(&path).map_err(|error| failed(&path)(io::Error::other(error)))?;
        }
        if let Some(link) = tracking {
            let path = folder.join(reuseport_lb_ebpf::names::TRACK_CONNECTIONS);
            link.pin(&path).map_err(|error| failed(&path)(io::Error::other(error)))?;
        }
        Ok(pins)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "cannot remove the pins");
        }
        // The folder of all groups goes with the last one; while others are in it, that fails, as it should.
        if let Some(parent) = self.folder.parent() {
            drop(fs::remove_dir(parent));
        }
    }
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
    if !folder.starts_with(BPFFS) || rustix::fs::statfs(BPFFS)?.f_type.cast_unsigned() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount("bpf", BPFFS, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)?;
    tracing::info!(path = BPFFS, "mounted the BPF file system");
    Ok(())
}
