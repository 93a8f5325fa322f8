//! The control socket as a file: one daemon owns it, and nobody may connect who has no business with it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        unix::net::UnixListener as StdUnixListener,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    io::Errno,
    net::sockopt::socket_peercred,
    process::getegid,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

use super::access::Access;

/// How many connections may wait to be accepted. Clients that do not block, as the usual runtimes' do not, are refused
/// at once where there is no room, so there is more than a daemon that is busy for a moment needs.
const BACKLOG: i32 = 1024;

/// How long another daemon may hold the folder's lock. It holds it for a handful of system calls, so whoever holds
/// it longer is no daemon of ours.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A listening control socket. Dropping it removes its file.
#[derive(Debug)]
pub struct ControlSocket {
    pub(super) listener: UnixListener,
    pub(super) access: Access,
    path: PathBuf,
    file: FileId,
}

/// What tells our file from another one that took its name.
type FileId = (u64, u64);

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A daemon answers there.
    #[error("{} is in use by another reuseport-lb{}; end it first, or name another socket with --control",
        path.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The daemon's process, unless it is in a namespace that this one cannot see.
        pid: Option<i32>,
    },
    /// Something else has this name, and is left alone.
    #[error("{} exists and is not a socket; remove it, or name another path with --control", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The path ends in no name, such as `/` or `..`.
    #[error("{} names no file", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// Another process keeps the folder locked.
    #[error("{} is locked by another process", folder.display())]
    Locked {
        /// The socket's folder.
        folder: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BindError {
    fn io(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

/// Makes the control socket, for those whom `access` names, listening from the first moment that its name exists.
///
/// The folder is made when it is missing. A socket whose daemon is gone is replaced.
///
/// # Errors
///
/// [`BindError`]; nothing has changed then, except that the folder may have been made.
///
/// # Panics
///
/// Outside a Tokio runtime.
pub fn bind(path: &Path, access: Access) -> Result<ControlSocket, BindError> {
    let name_missing = || BindError::NoName { path: path.to_owned() };
    path.file_name().ok_or_else(name_missing)?;
    let folder = match path.parent().ok_or_else(name_missing)? {
        folder if folder.as_os_str().is_empty() => Path::new("."),
        folder => folder,
    };
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(BindError::io("make", folder))?;

    // Two daemons that start at once would both find a stale socket, and both replace it. The lock is on the folder,
    // since a lock file would stay behind, and it ends with `_lock`, when our socket already listens.
    let _lock = lock(folder)?;
    check_free(path)?;

    // A crash between `bind` and `rename` leaves this name behind; whoever gets our process id next removes it.
    let unnamed = folder.join(format!(".{}", std::process::id()));
    remove_if_exists(&unnamed).map_err(BindError::io("remove", &unnamed))?;
    let listener = listen(&unnamed, &access)
        .map_err(BindError::io("make the control socket", path))
        .inspect_err(|_| {
            // The first error is the one to tell; a hidden name that stays harms nobody.
            drop(remove_if_exists(&unnamed));
        })?;
    let renamed = fs::symlink_metadata(&unnamed).and_then(|made| fs::rename(&unnamed, path).map(|()| made));
    match renamed {
        Ok(made) => Ok(ControlSocket { listener, access, path: path.to_owned(), file: file_id(&made) }),
        Err(e) => {
            // As above.
            drop(remove_if_exists(&unnamed));
            Err(BindError::io("make the control socket", path)(e))
        }
    }
}

/// The control socket at `path` that this process had before it became this program, now for those whom `access` names.
///
/// # Errors
///
/// A system call failed; the socket has gone then.
///
/// # Panics
///
/// Outside a Tokio runtime.
pub fn resume(handed: OwnedFd, path: &Path, access: Access) -> Result<ControlSocket, BindError> {
    let failed = BindError::io("go on with", path);
    let socket = || -> io::Result<ControlSocket> {
        let listener = UnixListener::from_std(handed.into())?;
        let found = fs::symlink_metadata(path)?;
        let (mode, group) = access.file();
        let group = group.unwrap_or_else(|| getegid().as_raw());
        if found.gid() != group {
            std::os::unix::fs::chown(path, None, Some(group))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode.as_raw_mode()))?;
        Ok(ControlSocket { listener, access, path: path.to_owned(), file: file_id(&found) })
    };
    socket().map_err(failed)
}

#[expect(clippy::disallowed_methods, reason = "flock has no time-out; nothing else runs yet")]
fn lock(folder: &Path) -> Result<File, BindError> {
    let handle = File::open(folder).map_err(BindError::io("open", folder))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(handle),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => return Err(BindError::Locked { folder: folder.to_owned() }),
            Err(e) => return Err(BindError::io("lock", folder)(e.into())),
        }
    }
}

/// Whether the name is free, or holds a socket that nobody listens on any more.
fn check_free(path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(BindError::io("look at", path)(e)),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    // Not blocking: a daemon that hangs, with a full backlog, would keep us waiting for ever.
    let connect = || -> io::Result<Socket> {
        let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        probe.connect(&SockAddr::unix(path)?)?;
        Ok(probe)
    };
    let in_use = |pid| Err(BindError::InUse { path: path.to_owned(), pid });
    match connect() {
        // The credentials are those of the process that called `listen`.
        Ok(probe) => in_use(socket_peercred(&probe).ok().map(|peer| peer.pid.as_raw_nonzero().get())),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => in_use(None),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => Err(BindError::io("find out who uses", path)(e)),
    }
}

fn listen(path: &Path, access: &Access) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // `bind` gives the new name the mode of the socket's own inode, so there is no moment in which others may
    // connect, whatever the umask: `unix_bind_bsd` in net/unix/af_unix.c.
    let private = Mode::RUSR | Mode::WUSR;
    fchmod(&socket, private)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let (mode, group) = access.file();
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group)?;
    }
    // After the group: what the mode allows is for this group and no other.
    if mode != private {
        fs::set_permissions(path, fs::Permissions::from_mode(mode.as_raw_mode()))?;
    }
    socket.listen(BACKLOG)?;
    UnixListener::from_std(StdUnixListener::from(socket))
}

fn file_id(file: &fs::Metadata) -> FileId {
    (file.dev(), file.ino())
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl ControlSocket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Someone may have put another file there, which is not ours to remove. No daemon replaces a socket that
        // still listens, as this one does here, so nothing can come between the two calls.
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|found| file_id(&found) == self.file);
        if is_ours && let Err(e) = remove_if_exists(&self.path) {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove the control socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("the folder");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[tokio::test]
    async fn the_socket_is_private_and_goes_with_its_owner() {
        let folder = folder();
        let path = folder.path().join("made/on/the/way/control.sock");
        let socket = bind(&path, Access::default()).expect("nothing is in the way");
        let mode = fs::metadata(&path).expect("the socket").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(names(path.parent().expect("a parent")), ["control.sock"]);
        drop(socket);
        assert_eq!(names(path.parent().expect("a parent")), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_second_daemon_is_refused_and_told_by_whom() {
        let folder = folder();
        let path = folder.path().join("control.sock");
        let socket = bind(&path, Access::default()).expect("nothing is in the way");
        let refused = bind(&path, Access::default()).expect_err("the first one listens");
        let ours = i32::try_from(std::process::id()).expect("process ids are positive");
        assert!(matches!(refused, BindError::InUse { pid: Some(pid), .. } if pid == ours), "{refused:?}");
        drop(socket);
        bind(&path, Access::default()).expect("the first one is gone");
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_is_not_taken_for_a_dead_one() {
        let folder = folder();
        let path = folder.path().join("control.sock");
        let _socket = bind(&path, Access::default()).expect("nothing is in the way");
        let fill = || {
            let filler = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            filler.connect(&SockAddr::unix(&path)?).map(|()| filler)
        };
        let mut waiting = Vec::new();
        let full = loop {
            match fill() {
                Ok(filler) => waiting.push(filler),
                Err(e) => break e,
            }
            assert!(waiting.len() < 10_000, "the backlog has no end");
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let refused = bind(&path, Access::default()).expect_err("the first one listens");
        assert!(matches!(refused, BindError::InUse { pid: None, .. }), "{refused:?}");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let folder = folder();
        let path = folder.path().join("control.sock");
        drop(StdUnixListener::bind(&path).expect("a socket"));
        let leftover = folder.path().join(format!(".{}", std::process::id()));
        drop(StdUnixListener::bind(leftover).expect("a socket that a crash left"));
        let _socket = bind(&path, Access::default()).expect("nobody listens");
        assert_eq!(names(folder.path()), ["control.sock"]);
        bind(&path, Access::default()).expect_err("now somebody does");
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = folder();
        let path = folder.path().join("control.sock");
        fs::write(&path, "precious").expect("a file");
        assert!(matches!(bind(&path, Access::default()), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).expect("the file"), "precious");
        fs::remove_file(&path).expect("the file");

        let elsewhere = folder.path().join("elsewhere");
        drop(StdUnixListener::bind(&elsewhere).expect("a socket"));
        std::os::unix::fs::symlink(&elsewhere, &path).expect("a link");
        assert!(matches!(bind(&path, Access::default()), Err(BindError::NotASocket { .. })));
        assert!(matches!(bind(Path::new("/"), Access::default()), Err(BindError::NoName { .. })));
        assert!(matches!(bind(&folder.path().join(".."), Access::default()), Err(BindError::NoName { .. })));
    }

    #[tokio::test]
    async fn another_file_under_our_name_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("control.sock");
        let socket = bind(&path, Access::default()).expect("nothing is in the way");
        fs::remove_file(&path).expect("the socket");
        fs::write(&path, "precious").expect("a file");
        drop(socket);
        assert_eq!(fs::read_to_string(&path).expect("the file"), "precious");
    }

    #[tokio::test]
    async fn of_many_that_start_at_once_one_wins() {
        let folder = folder();
        let path = folder.path().join("control.sock");
        drop(StdUnixListener::bind(&path).expect("a socket for all to find stale"));
        let starting: Vec<_> = (0..16)
            .map(|_| {
                let path = path.clone();
                tokio::task::spawn_blocking(move || bind(&path, Access::default()))
            })
            .collect();
        let mut won = Vec::new();
        for attempt in starting {
            match attempt.await.expect("bind does not panic") {
                Ok(socket) => won.push(socket),
                Err(e) => assert!(matches!(e, BindError::InUse { .. }), "{e:?}"),
            }
        }
        assert_eq!(won.len(), 1);
    }

    #[tokio::test]
    async fn a_folder_locked_for_good_is_an_error_and_not_a_hang() {
        let folder = folder();
        let path = folder.path().join("control.sock");
        let held = File::open(folder.path()).expect("the folder");
        flock(&held, FlockOperation::LockExclusive).expect("the lock");
        assert!(matches!(bind(&path, Access::default()), Err(BindError::Locked { .. })));
        drop(held);
        bind(&path, Access::default()).expect("the lock is free");
    }
}
