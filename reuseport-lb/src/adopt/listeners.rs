//! Listening TCP sockets and their connections, by `NETLINK_SOCK_DIAG`, as `ss -tn` sees them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

/// The kernel sends at most 32 KiB a datagram ([`netlink_recvmsg`]); twice that leaves no doubt.
///
/// [`netlink_recvmsg`]: https://github.com/torvalds/linux/blob/v6.18/net/netlink/af_netlink.c
const RECEIVE_BYTES: usize = 64 << 10;

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// The socket's inode, by which a process that holds it can be found.
    pub inode: u32,
    /// The effective user id of whoever made it. Only sockets of one user share a reuseport group.
    pub uid: u32,
    /// The number that `SO_COOKIE` and `bpf_get_socket_cookie` give: no other socket since boot has it.
    pub cookie: u64,
    /// Whether it takes IPv6 connections only. False for an IPv4 socket.
    pub v6_only: bool,
    /// The index of the device that it is bound to, or 0 for none.
    pub device: u32,
    /// Its accept queue.
    pub queue: Queue,
}

/// A connection that a process has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its own address.
    pub local: IpAddr,
    /// The socket's inode.
    pub inode: u32,
    /// The socket's cookie.
    pub cookie: u64,
}

/// An accept queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// How many connections wait in it.
    pub depth: u32,
    /// How many it takes: the backlog of `listen`, at most `net.core.somaxconn`. The kernel takes one more than that.
    pub limit: u32,
}

/// The listening TCP sockets, IPv4 and IPv6, of the calling thread's network namespace on `port`.
///
/// One look at each socket, not a snapshot: a socket that is opened or closed meanwhile may be missing.
///
/// Needs no privilege. Minimum kernel version: 3.3, with `CONFIG_INET_DIAG`.
///
/// # Errors
///
/// The kernel's: `ENOENT` when it has no `inet_diag`, `EMFILE` when the process has no descriptor left.
pub fn listeners(port: u16) -> io::Result<Vec<Listener>> {
    let mut listeners: Vec<Listener> = sockets(port, StateFlags::LISTEN)?.iter().map(listener).collect();
    // Sockets that come and go while the kernel walks its table can make it come by one twice.
    listeners.sort_by_key(|listener| (listener.address, listener.cookie));
    listeners.dedup_by_key(|listener| listener.cookie);
    Ok(listeners)
}

/// The accept queues of the listening sockets on `port`, by cookie.
///
/// # Errors
///
/// Those of [`listeners`].
pub fn queue_depths(port: u16) -> io::Result<HashMap<u64, Queue>> {
    Ok(listeners(port)?.into_iter().map(|listener| (listener.cookie, listener.queue)).collect())
}

/// The connections, IPv4 and IPv6, of the calling thread's network namespace whose own port is `port`, and which a
/// process has accepted.
///
/// # Errors
///
/// Those of [`listeners`].
pub fn connections(port: u16) -> io::Result<Vec<Connection>> {
    let states = StateFlags::ESTABLISHED
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::LAST_ACK
        | StateFlags::CLOSING;
    let accepted = |response: &&InetResponse| response.header.inode != 0;
    Ok(sockets(port, states)?.iter().filter(accepted).map(connection).collect())
}

/// What the kernel says of the sockets with this own port that are in one of these states.
fn sockets(port: u16, states: StateFlags) -> io::Result<Vec<InetResponse>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;

    let mut found = Vec::new();
    // One request asks for one family.
    for (family, mut id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        id.source_port = port;
        dump(&socket, family, id, states.clone(), &mut found)?;
    }
    Ok(found)
}

fn dump(
    socket: &Socket,
    family: u8,
    socket_id: SocketId,
    states: StateFlags,
    found: &mut Vec<InetResponse>,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    });
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(request));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut received = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        received.clear();
        socket.recv(&mut received, 0)?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            // The next message begins at a multiple of four.
            let length =
                usize::try_from(message.header.length).map_err(io::Error::other)?.next_multiple_of(4);
            rest = rest.get(length.max(1)..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(*response);
                }
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(()),
                NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(-done.code)),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::Overrun(_) => {
                    return Err(io::Error::other("the kernel lost part of its answer"));
                }
                _ => {}
            }
        }
    }
}

fn connection(response: &InetResponse) -> Connection {
    let InetResponse { header, nlas: _ } = response;
    Connection {
        local: header.socket_id.source_address,
        inode: header.inode,
        cookie: cookie(&header.socket_id),
    }
}

/// Two words, the low one first, each in the machine's byte order.
fn cookie(id: &SocketId) -> u64 {
    let [a, b, c, d, e, f, g, h] = id.cookie;
    let (low, high) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    u64::from(high) << 32 | u64::from(low)
}

fn listener(response: &InetResponse) -> Listener {
    let InetResponse { header, nlas } = response;
    let id = &header.socket_id;
    let mut address = SocketAddr::new(id.source_address, id.source_port);
    if let SocketAddr::V6(v6) = &mut address {
        // A link-local address means nothing without its device, and other addresses have no scope.
        if v6.ip().is_unicast_link_local() {
            *v6 = SocketAddrV6::new(*v6.ip(), v6.port(), 0, id.interface_id);
        }
    }
    Listener {
        address,
        inode: header.inode,
        uid: header.uid,
        cookie: cookie(id),
        v6_only: nlas.iter().any(|nla| matches!(nla, Nla::SkV6Only(true))),
        device: id.interface_id,
        queue: Queue { depth: header.recv_queue, limit: header.send_queue },
    }
}
