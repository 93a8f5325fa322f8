//! Listening sockets of other processes: which there are, whose they are, which are in our way, and how to get a handle
//! on one.

mod listeners;
mod members;
mod owners;
mod take;

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

pub use listeners::{Connection, Listener, Queue, connections, listeners, queue_depths};
pub use members::{Kind, Present, held, is_at, present};
pub use owners::{Owner, descends, owners, owners_among, serving};
pub use take::{TakeError, take};

/// A listening socket that gets, or would get, connections to an address of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The socket.
    pub listener: Listener,
    /// How its address relates to ours.
    pub overlap: Overlap,
    /// The processes that hold it, by id. Empty when none can be seen: in another process namespace, or gone meanwhile.
    pub owners: Vec<Owner>,
}

/// How the address of a listening socket relates to ours.
///
/// Whichever it is, the kernel refuses ours (`EADDRINUSE`) unless both sockets have `SO_REUSEPORT` and belong to the
/// same user. The kernel's rule is [`inet_csk_bind_conflict`]; the tests hold this module against it. If it does not
/// refuse, they share the connections like this:
///
/// [`inet_csk_bind_conflict`]: https://github.com/torvalds/linux/blob/v6.18/net/ipv4/inet_connection_sock.c
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Overlap {
    /// The very same address: our socket would join its group.
    Same,
    /// It listens on more addresses than ours, and loses those to our address.
    Wider,
    /// It listens on fewer addresses than ours, and goes on getting theirs.
    Narrower,
}

/// Such as `0.0.0.0:8080 is taken by nginx (pid 123)`.
impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listener: Listener { address, uid, .. }, overlap: _, owners } = self;
        write!(f, "{address} is taken by ")?;
        match owners.as_slice() {
            [] => write!(f, "a process of user {uid} that cannot be seen from here"),
            [only] => only.fmt(f),
            [first, second] => write!(f, "{first} and {second}"),
            [first, others @ ..] => write!(f, "{first} and {} other processes", others.len()),
        }
    }
}

/// The listening sockets of the present network namespace that are in the way of listening on `listen`: those that
/// listen on the same port at an overlapping address, in the order of [`Overlap`].
///
/// `[::]` counts as dual-stack here, so IPv4 sockets are in its way too. Sockets that are bound to a device are in the
/// way of ours, which is bound to none. Not seen: sockets that are bound and do not listen; the bind will tell.
///
/// # Errors
///
/// Those of [`listeners`].
pub fn conflicts(listen: SocketAddr) -> io::Result<Vec<Conflict>> {
    let mut found: Vec<_> = listeners(listen.port())?
        .into_iter()
        .filter_map(|listener| Some((overlap(listen.ip(), &listener)?, listener)))
        .collect();
    found.sort_by_key(|(overlap, listener)| (*overlap, listener.address));

    let inodes: Vec<_> = found.iter().map(|(_, listener)| listener.inode).collect();
    // Every process's descriptors would have to be read to learn about none.
    let owners = if inodes.is_empty() { vec![] } else { owners(&inodes) };
    let conflict = |(overlap, listener): (_, Listener)| Conflict {
        owners: held(&owners, listener.inode),
        listener,
        overlap,
    };
    Ok(found.into_iter().map(conflict).collect())
}

/// Whether groups on these addresses would be in each other's way.
pub fn overlaps(one: SocketAddr, other: SocketAddr) -> bool {
    let listener = Listener {
        address: other,
        inode: 0,
        uid: 0,
        cookie: 0,
        v6_only: false,
        device: 0,
        queue: Queue::default(),
    };
    one.port() == other.port() && overlap(one.ip(), &listener).is_some()
}

/// The IPv4 addresses that a socket listens on.
#[derive(Clone, Copy)]
enum V4 {
    None,
    One(Ipv4Addr),
    All,
}

/// The IPv4 addresses behind an address of either family.
fn v4(address: IpAddr, v6_only: bool) -> V4 {
    let address = match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) if v6_only => None,
        IpAddr::V6(address) if address.is_unspecified() => Some(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    };
    match address {
        None => V4::None,
        Some(address) if address.is_unspecified() => V4::All,
        Some(address) => V4::One(address),
    }
}

/// How the address of `listener` relates to `ours`, the ports being the same.
fn overlap(ours: IpAddr, listener: &Listener) -> Option<Overlap> {
    let theirs = listener.address.ip();
    // The kernel calls a socket of one IPv6 address IPv6-only whatever it was told.
    let any = |address: IpAddr| address.is_ipv6() && address.is_unspecified();
    if ours == theirs && !(any(theirs) && listener.v6_only) {
        return Some(Overlap::Same);
    }
    let native =
        |address: IpAddr| matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_none());
    if native(ours) && native(theirs) {
        return match (any(ours), any(theirs)) {
            (true, _) => Some(Overlap::Narrower),
            (false, true) => Some(Overlap::Wider),
            (false, false) => None,
        };
    }
    match (v4(ours, false), v4(theirs, listener.v6_only)) {
        (V4::None, _) | (_, V4::None) => None,
        (V4::All, V4::All) if any(ours) => Some(Overlap::Narrower),
        (V4::All, V4::All) if any(theirs) => Some(Overlap::Wider),
        (V4::All, V4::All) => Some(Overlap::Same),
        (V4::All, V4::One(_)) => Some(Overlap::Narrower),
        (V4::One(_), V4::All) => Some(Overlap::Wider),
        (V4::One(ours), V4::One(theirs)) => (ours == theirs).then_some(Overlap::Same),
    }
}
