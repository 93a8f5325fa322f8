//! What workers say of themselves: systemd's [notify protocol], from the service manager's side.
//!
//! All workers of a group send to one socket. Whose a message is, the kernel says: each carries its sender's process id.
//! What is no message is left alone, whoever sends it, as long and as often as he likes.
//!
//! [notify protocol]: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html

use std::{
    fs, io,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileTypeExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::Mode,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg, sockopt},
    process::{Pid, getpgid},
};
use tokio::{io::Interest, net::UnixDatagram};

use crate::{
    config::values::MAX_DURATION,
    group::{Notice, Sign},
};

/// The longest message; systemd takes no longer one either.
const MAX_MESSAGE_BYTES: usize = 4096;

/// The longest path of a socket, which the kernel keeps in 108 bytes with a zero at the end.
const MAX_PATH_BYTES: usize = 107;

/// Workers may be any user, and may all write to it.
const SOCKET_MODE: Mode = Mode::from_raw_mode(0o666);

/// The socket that the workers of a group send to. Dropping it removes its file.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

/// A message, and who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's process id.
    pub pid: u32,
    /// The process group that it is in, if it still is there: a worker's own children may speak for it.
    pub group: Option<u32>,
    /// What it says.
    pub notice: Notice,
}

impl NotifySocket {
    /// Makes the socket. A file that an earlier daemon has left there is replaced.
    ///
    /// # Errors
    ///
    /// The kernel's; the path is too long; something that is no socket has this name.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if path.as_os_str().as_bytes().len() > MAX_PATH_BYTES {
            return Err(io::Error::other(
                "the path is too long for a socket; choose a shorter one with --control",
            ));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("it exists and is not a socket")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let socket = Self { socket: UnixDatagram::bind(path)?, path: path.to_owned() };
        rustix::fs::chmod(path, SOCKET_MODE)?;
        sockopt::set_socket_passcred(&socket.socket, true)?;
        Ok(socket)
    }

    /// The socket that an earlier daemon has made there and handed over, with what waits in it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn resume(handed: OwnedFd, path: &Path) -> io::Result<Self> {
        Ok(Self { socket: UnixDatagram::from_std(handed.into())?, path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next message. Cancel-safe.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub async fn receive(&self) -> io::Result<Message> {
        loop {
            let received = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await?;
            if let Some(message) = received {
                return Ok(message);
            }
        }
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the notify socket");
        }
    }
}

/// Takes one datagram: none when it is no message, or the kernel does not say whose it is.
fn receive(socket: &UnixDatagram) -> io::Result<Option<Message>> {
    let mut bytes = [0; MAX_MESSAGE_BYTES];
    // There is room for credentials and for nothing else, so descriptors that come along are closed by the kernel.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    let sender = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid),
        _ => None,
    });
    let is_whole = !received.flags.contains(ReturnFlags::TRUNC);
    let notice = bytes.get(..received.bytes).filter(|_| is_whole).and_then(parse);
    Ok(sender.zip(notice).map(|(pid, notice)| Message { pid: id(pid), group: group_of(pid), notice }))
}

fn id(pid: Pid) -> u32 {
    pid.as_raw_pid().unsigned_abs()
}

fn group_of(pid: Pid) -> Option<u32> {
    getpgid(Some(pid)).ok().map(id)
}

/// Understands a message: none when it says nothing that is known here.
///
/// Lines that are not known, such as `MAINPID=` and `FDSTORE=1`, are passed over, and so are those whose value makes no
/// sense; the others count.
pub fn parse(bytes: &[u8]) -> Option<Notice> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut notice = Notice::default();
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        match (name, value) {
            ("READY", "1") => notice.ready = true,
            ("RELOADING", "1") => notice.reloading = true,
            ("STOPPING", "1") => notice.stopping = true,
            ("WATCHDOG", "1") => notice.watchdog = Some(Sign::Alive),
            ("WATCHDOG", "trigger") => notice.watchdog = Some(Sign::Broken),
            ("WATCHDOG_USEC", _) => {
                notice.watchdog_interval = microseconds(value).filter(|interval| !interval.is_zero());
            }
            ("EXTEND_TIMEOUT_USEC", _) => notice.extend_timeout = microseconds(value),
            ("STATUS", _) => notice.status = Some(value.to_owned()),
            _ => {}
        }
    }
    (notice != Notice::default()).then_some(notice)
}

fn microseconds(value: &str) -> Option<Duration> {
    value.parse().ok().map(|n| Duration::from_micros(n).min(MAX_DURATION))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::group::{Action, Group, Ready, Seen, Supervision, WorkerId};

    #[test]
    fn messages_are_understood() {
        let none = Notice::default;
        for (text, expected) in [
            ("READY=1", Notice { ready: true, ..none() }),
            ("READY=1\nSTATUS=up\n", Notice { ready: true, status: Some("up".into()), ..none() }),
            ("RELOADING=1\nMONOTONIC_USEC=5", Notice { reloading: true, ..none() }),
            ("STOPPING=1", Notice { stopping: true, ..none() }),
            ("WATCHDOG=1", Notice { watchdog: Some(Sign::Alive), ..none() }),
            ("WATCHDOG=trigger", Notice { watchdog: Some(Sign::Broken), ..none() }),
            ("WATCHDOG_USEC=20000000", Notice { watchdog_interval: Some(Duration::from_secs(20)), ..none() }),
            (
                "EXTEND_TIMEOUT_USEC=18446744073709551615",
                Notice { extend_timeout: Some(MAX_DURATION), ..none() },
            ),
            ("STATUS=a=b ä", Notice { status: Some("a=b ä".into()), ..none() }),
            ("STATUS=", Notice { status: Some(String::new()), ..none() }),
            ("x\n=\nREADY=1\nWATCHDOG_USEC=0", Notice { ready: true, ..none() }),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_says_nothing_is_no_message() {
        for bytes in [
            b"".as_slice(),
            b"\n\n",
            b"READY",
            b"READY=0",
            b"ready=1",
            b" READY=1",
            b"READY=1\xff",
            b"MAINPID=1",
            b"FDSTORE=1",
            b"BARRIER=1",
            b"WATCHDOG_USEC=-1",
            b"WATCHDOG_USEC=1e9",
            b"EXTEND_TIMEOUT_USEC=99999999999999999999",
        ] {
            assert_eq!(parse(bytes), None, "{}", String::from_utf8_lossy(bytes));
        }
    }

    /// Half of them random bytes, half of them near to real messages.
    fn datagram() -> impl Strategy<Value = Vec<u8>> {
        let words = prop::sample::select(vec![
            "READY",
            "RELOADING",
            "STOPPING",
            "WATCHDOG",
            "WATCHDOG_USEC",
            "EXTEND_TIMEOUT_USEC",
            "STATUS",
            "MAINPID",
            "FDSTORE",
            "=",
            "==",
            "1",
            "0",
            "-1",
            "trigger",
            "18446744073709551615",
            "99999999999999999999",
            "\n",
            "\0",
            "\r",
            " ",
            "é",
            "\u{1b}[2J",
        ]);
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            prop::collection::vec(words, 0..40).prop_map(|words| words.concat().into_bytes()),
        ]
    }

    proptest! {
        #![proptest_config(crate::fuzz::config(2_000))]

        /// Whatever comes, nothing panics; what is no message changes nothing, and what is one changes that worker and
        /// what it may change of it.
        #[test]
        fn any_datagrams_do_what_they_may_or_nothing(datagrams in prop::collection::vec(datagram(), 1..8), notify: bool) {
            let now = std::time::Instant::now();
            let ready = if notify { Ready::Notify } else { Ready::Exec };
            let supervision =
                Supervision { ready, watchdog: Some(Duration::from_secs(1)), ..Supervision::default() };
            let policy = crate::policy::Policy::Hash.into();
            let mut group = Group::new(2, policy, Duration::ZERO, supervision, now);
            for action in group.advance(now, |_| Seen::default()) {
                match action {
                    Action::Open(id) => group.opened(id),
                    Action::Start(id) => group.started(id, 100 + u32::from(id.0), now),
                    _ => {}
                }
            }
            let other = format!("{:?}", group.worker(WorkerId(1)));
            for bytes in &datagrams {
                let before = format!("{group:?}");
                match parse(bytes) {
                    Some(notice) => group.notified(WorkerId(0), notice, now),
                    None => prop_assert_eq!(&format!("{group:?}"), &before),
                }
                group.advance(now + Duration::from_millis(1), |_| Seen::default());
                group.next_deadline(now);
                group.desired();
            }
            prop_assert_eq!(format!("{:?}", group.worker(WorkerId(1))), other, "the other worker");
            let worker = group.worker(WorkerId(0)).expect("worker 0");
            prop_assert_eq!(worker.pid(), Some(100));
            let fits = |status: &String| status.chars().count() <= 200 && !status.chars().any(char::is_control);
            prop_assert!(worker.said.status.as_ref().is_none_or(fits));
        }
    }

    #[tokio::test]
    async fn the_kernel_says_whose_a_message_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notify");
        drop(std::os::unix::net::UnixDatagram::bind(&path).expect("a socket that is left over"));
        let socket = NotifySocket::bind(&path).expect("a socket");
        let sender = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        sender.connect(&path).expect("the path");
        for bytes in [b"".as_slice(), b"nonsense", &[0xff; 100], &[b'x'; MAX_MESSAGE_BYTES + 1]] {
            sender.send(bytes).expect("room");
        }
        let long = [b"READY=1\n".as_slice(), &[b'x'; MAX_MESSAGE_BYTES]].concat();
        sender.send(&long).expect("room");
        sender.send(b"STATUS=here").expect("room");
        let message = socket.receive().await.expect("a message");
        assert_eq!(message.pid, std::process::id());
        assert_eq!(message.notice.status.as_deref(), Some("here"), "what is too long is left alone");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notify");
        fs::write(&path, "precious").expect("a file");
        NotifySocket::bind(&path).expect_err("a file");
        assert_eq!(fs::read(&path).expect("the file"), b"precious");
        NotifySocket::bind(&folder.path().join("x".repeat(120))).expect_err("too long");
    }
}
