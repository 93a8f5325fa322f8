//! What a daemon hands to the program that it becomes by `exec`: open descriptors, each with what it is.
//!
//! They travel as messages (`SCM_RIGHTS`) in a socket whose other end is the new program's standard input. So none of
//! them ever lacks close-on-exec, and none can get into a worker; and if the new program does not take them, the
//! kernel closes them with that socket.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ffi::{CString, NulError, OsString},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::Path,
};

use nix::unistd::execve;
use rustix::{
    io::fcntl_dupfd_cloexec,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
        socketpair, sockopt,
    },
    stdio::{dup2_stdin, stdin},
};
use serde::{Deserialize, Serialize};

use crate::worker::descriptors::OpenFiles;

/// Tells a program that something is handed to it: the variable has its process id.
pub const VARIABLE: &str = "REUSEPORT_LB_HANDED_OVER";

/// The version of what is handed over. It changes when another version would misunderstand it; kinds of descriptors may
/// come in without that.
pub const FORMAT: u32 = 1;

/// How many descriptors go in one message; the kernel takes 253.
const IN_ONE_MESSAGE: usize = 128;

/// The longest message: each descriptor is named by less than a path's length.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// What all messages together may take: those for 10,000 workers, and some.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The standard input of before.
    Stdin,
    /// The control socket.
    Control,
    /// The listening socket for metrics.
    Metrics,
    /// The socket for the notices of the group with these pins.
    Notices(String),
    /// A worker's listening socket, by cookie.
    Listener(u64),
    /// Where a stream of a process is read, 1 or 2.
    Output {
        /// The process.
        pid: u32,
        /// Its own number of the stream.
        stream: u8,
    },
}

/// What a daemon hands over.
#[derive(Debug)]
pub struct Outgoing<'a> {
    open_files: OpenFiles,
    descriptors: Vec<(Kind, BorrowedFd<'a>)>,
}

/// What a daemon has got from the one that it was; nothing where it was started in the usual way.
#[derive(Debug, Default)]
pub struct Incoming {
    /// The limit of open files that the first one was started with.
    pub open_files: Option<OpenFiles>,
    descriptors: BTreeMap<Kind, OwnedFd>,
}

/// One message. It names the descriptors that come with it, in order.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    open_files: OpenFiles,
    kinds: Vec<Kind>,
}

impl<'a> Outgoing<'a> {
    /// Nothing yet. `open_files` is what this daemon knows of its first limit.
    pub const fn new(open_files: OpenFiles) -> Self {
        Self { open_files, descriptors: Vec::new() }
    }

    /// Hands this one over, too.
    pub fn add(&mut self, kind: Kind, descriptor: &'a impl AsFd) {
        self.descriptors.push((kind, descriptor.as_fd()));
    }

    /// Becomes `program`, with these arguments, this process's environment, and all that is to be handed over. Returns
    /// only when that failed, with the reason; then all is as before.
    pub fn exec(self, program: &Path, args: &[OsString]) -> io::Error {
        let Err(error) = self.try_exec(program, args);
        error
    }

    fn try_exec(self, program: &Path, args: &[OsString]) -> io::Result<Infallible> {
        let line = line(program, args)?;
        let environment = environment()?;
        let before = fcntl_dupfd_cloexec(stdin(), 3)?;
        let (sender, receiver) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut outgoing = self;
        outgoing.add(Kind::Stdin, &before);
        outgoing.send(&sender)?;
        dup2_stdin(&receiver)?;
        // Not by `Command`, which lets SIGPIPE kill this process when it fails.
        let Err(error) = execve(&line[0], &line, &environment);
        dup2_stdin(&before)?;
        Err(error.into())
    }

    fn send(&self, to: &OwnedFd) -> io::Result<()> {
        // What is over the host's limit is cut to it, unless the process may do more.
        if sockopt::set_socket_send_buffer_size_force(to, MAX_BYTES).is_err() {
            sockopt::set_socket_send_buffer_size(to, MAX_BYTES)?;
        }
        for part in self.descriptors.chunks(IN_ONE_MESSAGE) {
            let kinds = part.iter().map(|(kind, _)| kind.clone()).collect();
            let bytes = serde_json::to_vec(&Message { open_files: self.open_files, kinds })?;
            let descriptors: Vec<_> = part.iter().map(|(_, descriptor)| *descriptor).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(IN_ONE_MESSAGE))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if bytes.len() > MAX_MESSAGE_BYTES
                || !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors))
            {
                return Err(io::ErrorKind::ArgumentListTooLong.into());
            }
            // Nobody receives yet, so there must be room.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            sendmsg(to, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        }
        Ok(())
    }
}

fn line(program: &Path, args: &[OsString]) -> Result<Vec<CString>, NulError> {
    let words = [program.as_os_str()].into_iter().chain(args.iter().map(OsString::as_os_str));
    words.map(|word| CString::new(word.to_owned().into_vec())).collect()
}

fn environment() -> Result<Vec<CString>, NulError> {
    let others = std::env::vars_os().filter(|(name, _)| name != VARIABLE);
    let ours = (OsString::from(VARIABLE), OsString::from(std::process::id().to_string()));
    let variable = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec())
    };
    others.chain([ours]).map(variable).collect()
}

/// Takes what was handed to this process, if something was, and puts its standard input back.
///
/// # Errors
///
/// Standard input is not what it should be, or not all of it could be taken.
pub fn receive() -> io::Result<Incoming> {
    let is_for_us = std::env::var(VARIABLE).is_ok_and(|pid| pid == std::process::id().to_string());
    if !is_for_us {
        return Ok(Incoming::default());
    }
    let mut incoming = receive_from(stdin())?;
    if let Some(before) = incoming.take(&Kind::Stdin) {
        dup2_stdin(before)?;
    }
    Ok(incoming)
}

fn receive_from(from: BorrowedFd<'_>) -> io::Result<Incoming> {
    let mut incoming = Incoming::default();
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(IN_ONE_MESSAGE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Ok(incoming);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::other("the limit of open files is too low"));
        }
        let Message { open_files, kinds } = serde_json::from_slice(&bytes[..received.bytes])?;
        incoming.open_files = Some(open_files);
        let descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        incoming.descriptors.extend(kinds.into_iter().zip(descriptors.flatten()));
    }
}

impl Incoming {
    /// Whether something was handed over.
    pub const fn is_something(&self) -> bool {
        self.open_files.is_some()
    }

    /// Takes one out.
    pub fn take(&mut self, kind: &Kind) -> Option<OwnedFd> {
        self.descriptors.remove(kind)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn what_is_sent_is_received_and_known_by_its_kind() {
        let files: Vec<File> = (0..300).map(|_| tempfile::tempfile().expect("a file")).collect();
        let kinds = (0..300_u32).map(|pid| Kind::Output { pid, stream: 1 });
        let mut outgoing = Outgoing::new(OpenFiles::now());
        for (kind, file) in kinds.zip(&files) {
            outgoing.add(kind, file);
        }
        outgoing.add(Kind::Notices("tcp-0-0-0-0-80-1".into()), &files[7]);
        let (sender, receiver) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("a pair");
        outgoing.send(&sender).expect("room");
        drop(sender);
        let mut incoming = receive_from(receiver.as_fd()).expect("messages");
        assert!(incoming.is_something());
        let inode = |file: OwnedFd| File::from(file).metadata().expect("metadata").ino();
        for (pid, file) in (0..).zip(&files) {
            let received = incoming.take(&Kind::Output { pid, stream: 1 }).expect("it was sent");
            let flags = rustix::io::fcntl_getfd(&received).expect("flags");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            assert_eq!(inode(received), file.metadata().expect("metadata").ino());
        }
        assert!(incoming.take(&Kind::Notices("tcp-0-0-0-0-80-1".into())).is_some());
        assert!(incoming.descriptors.is_empty());
        assert!(incoming.take(&Kind::Control).is_none());
    }

    #[test]
    fn without_the_word_nothing_is_taken() {
        assert!(!receive().expect("nothing").is_something());
    }

    #[test]
    fn a_program_that_cannot_be_run_leaves_all_as_it_was() {
        let before = File::from(stdin().try_clone_to_owned().expect("standard input"));
        let error = Outgoing::new(OpenFiles::now()).exec(Path::new("/nonexistent/program"), &[]);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let after = File::from(stdin().try_clone_to_owned().expect("standard input"));
        let inode = |file: &File| file.metadata().expect("metadata").ino();
        assert_eq!(inode(&before), inode(&after));
    }
}
