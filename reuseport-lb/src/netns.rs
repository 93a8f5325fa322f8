//! Network namespaces: the daemon's own, or another one that its sockets are to be in.

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub struct Netns {
    /// None for the one that the thread is in anyway.
    other: Option<File>,
    inode: u32,
}

impl Netns {
    /// The namespace that `path` names, such as `/proc/123/ns/net` or `/run/netns/blue`; without a path, that of the
    /// calling thread.
    ///
    /// # Errors
    ///
    /// There is no such file (`ENOENT`), it is no network namespace (`EINVAL`), or it may not be entered (`EPERM`, without
    /// `CAP_SYS_ADMIN`).
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let own = inode(&File::open(OWN)?)?;
        let Some(path) = path else { return Ok(Self { other: None, inode: own }) };
        let file = File::open(path)?;
        let inode = inode(&file)?;
        let netns = Self { other: Some(file), inode };
        // Now, rather than in the middle of something.
        netns.within(|| ())?;
        Ok(if inode == own { Self { other: None, inode } } else { netns })
    }

    /// The namespace's inode, which tells it from all others that exist at the same time.
    pub const fn inode(&self) -> u32 {
        self.inode
    }

    /// Does something in this namespace: sockets that it makes and processes that it starts are there.
    ///
    /// # Errors
    ///
    /// It cannot be entered; then nothing was done.
    ///
    /// # Panics
    ///
    /// When there is no way back: everything that followed would happen in the wrong place.
    pub fn within<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        let Some(other) = &self.other else { return Ok(act()) };
        let back = Back(File::open(OWN)?);
        enter(other)?;
        let done = act();
        drop(back);
        Ok(done)
    }
}

/// Brings the thread back, even out of a panic.
struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.0) {
            panic!("cannot go back to the own network namespace: {error}");
        }
    }
}

fn enter(netns: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn inode(netns: &File) -> io::Result<u32> {
    u32::try_from(netns.metadata()?.ino()).map_err(|_| io::Error::from_raw_os_error(nix::libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_one_needs_no_way() {
        let own = Netns::open(None).unwrap();
        let named = Netns::open(Some(Path::new("/proc/thread-self/ns/net"))).unwrap();
        assert_eq!(own.inode(), named.inode());
        assert_eq!(named.within(|| 7).unwrap(), 7);
    }

    #[test]
    fn what_is_none_is_refused() {
        assert_eq!(Netns::open(Some(Path::new("/nonexistent"))).unwrap_err().kind(), io::ErrorKind::NotFound);
        let other_kind = Netns::open(Some(Path::new("/proc/self/ns/pid"))).unwrap_err();
        assert_eq!(other_kind.kind(), io::ErrorKind::InvalidInput);
    }
}
