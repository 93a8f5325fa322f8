//! What is told of listening sockets: who begins and ceases to listen, and which program picks among them.

use crate::assert_layout;

/// The value of the one element of map `WATCHED`: whose coming and going is told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// The port, in the host's byte order; 0 for none.
    pub port: u32,
    /// The inode of the network namespace; 0 for any, where the kernel's BTF does not say where it is kept.
    pub netns: u32,
}

assert_layout!(Watched, size: 8, align: 4, fields: { port: u32, netns: u32 });

/// A socket has begun or ceased to listen.
///
/// It is told before the kernel has made the socket part of its group, or after it was taken out: a sign to look, not
/// what is to be seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenEvent {
    /// The socket.
    pub cookie: u64,
    /// The process that did it, as the first process namespace numbers it.
    pub pid: u32,
    /// 1 when it listens now, 0 when it does no more.
    pub listens: u32,
}

assert_layout!(ListenEvent, size: 16, align: 8, fields: { cookie: u64, pid: u32, listens: u32 });

/// A listening socket, and the program that picks for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// The socket.
    pub cookie: u64,
    /// Its port.
    pub port: u32,
    /// 1 when a program picks, else 0.
    pub attached: u32,
    /// The program's id, 0 for a classic one.
    pub program: u32,
    /// Nothing.
    pub unused: u32,
}

assert_layout!(Attached, size: 24, align: 8, fields: {
    cookie: u64,
    port: u32,
    attached: u32,
    program: u32,
    unused: u32,
});
