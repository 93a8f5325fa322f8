//! Which listening sockets are one group.

use std::{io, net::SocketAddr};

use super::{Conflict, Listener, Owner, listeners, overlap, owners};

/// What the kernel tells groups on one address apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// Whether these are IPv6 sockets. One of these may listen on an IPv4 address, too.
    pub is_v6: bool,
    /// Whether they take IPv6 connections only.
    pub v6_only: bool,
    /// The user that they were made by.
    pub uid: u32,
}

impl Kind {
    /// The kind of a socket.
    pub const fn of(listener: &Listener) -> Self {
        Self { is_v6: listener.address.is_ipv6(), v6_only: listener.v6_only, uid: listener.uid }
    }
}

/// Whether a socket listens on exactly this address, and is not bound to a device: those have groups of their own.
pub fn is_at(listener: &Listener, listen: SocketAddr) -> bool {
    listener.device == 0
        && listener.address.port() == listen.port()
        && listener.address.ip().to_canonical() == listen.ip().to_canonical()
}

/// The sockets that listen at an address, and who else gets connections there.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// The sockets at the very address, by cookie, so that the oldest ones come first.
    pub members: Vec<Listener>,
    /// Sockets at overlapping addresses, or bound to a device, with their owners.
    pub others: Vec<Conflict>,
}

/// Looks at what listens at `listen` in the present network namespace.
///
/// # Errors
///
/// Those of [`listeners`].
pub fn present(listen: SocketAddr) -> io::Result<Present> {
    let (mut members, others): (Vec<_>, Vec<_>) =
        listeners(listen.port())?.into_iter().partition(|listener| is_at(listener, listen));
    members.sort_by_key(|listener| listener.cookie);
    let others: Vec<_> = others
        .into_iter()
        .filter_map(|listener| Some((overlap(listen.ip(), &listener)?, listener)))
        .collect();
    let inodes: Vec<_> = others.iter().map(|(_, listener)| listener.inode).collect();
    let holders = if inodes.is_empty() { vec![] } else { owners(&inodes) };
    let others = others
        .into_iter()
        .map(|(overlap, listener)| Conflict { owners: held(&holders, listener.inode), listener, overlap })
        .collect();
    Ok(Present { members, others })
}

/// Those of `owners` that hold the socket with this inode.
pub fn held(owners: &[Owner], inode: u32) -> Vec<Owner> {
    owners.iter().filter(|owner| owner.inode == inode).cloned().collect()
}
