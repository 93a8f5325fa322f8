//! Finding listening sockets.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result};
use reuseport_lb::adopt::{Overlap, conflicts, listeners, owners, queue_depths};
use rustix::net::sockopt::socket_cookie;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    namespace::{eventually, in_namespace},
    stage::Stage,
};

const PORT: u16 = 8080;
const BACKLOG: i32 = 77;

/// A socket, and whether it listens for IPv6 only.
fn bind(address: IpAddr, v6_only: bool, reuse_port: bool) -> std::io::Result<Socket> {
    let address = SocketAddr::new(address, PORT);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

#[test]
fn finds_every_listening_socket_of_the_port() -> Result<()> {
    in_namespace(|| {
        let v4 = bind("0.0.0.0".parse()?, false, true)?;
        let twin = bind("0.0.0.0".parse()?, false, true)?;
        let v6 = bind("::".parse()?, true, true)?;
        let one = bind("::1".parse()?, true, true)?;
        let other_port = std::net::TcpListener::bind("127.0.0.1:8081")?;

        let found = listeners(PORT)?;
        assert_eq!(found.len(), 4, "{found:#?}");
        for (socket, address, v6_only) in [
            (&v4, "0.0.0.0:8080", false),
            (&twin, "0.0.0.0:8080", false),
            (&v6, "[::]:8080", true),
            (&one, "[::1]:8080", true),
        ] {
            let cookie = socket_cookie(socket)?;
            let listener = found.iter().find(|listener| listener.cookie == cookie).context("not found")?;
            assert_eq!(listener.address, address.parse()?);
            assert_eq!(u64::from(listener.inode), rustix::fs::fstat(socket)?.st_ino);
            assert_eq!(listener.uid, rustix::process::geteuid().as_raw());
            assert_eq!(listener.v6_only, v6_only);
            assert_eq!(listener.device, 0);
            assert_eq!((listener.queue.depth, listener.queue.limit), (0, BACKLOG.unsigned_abs()));
        }
        let other = listeners(8081)?;
        assert_eq!(other.len(), 1);
        assert_eq!(other[0].cookie, socket_cookie(&other_port)?);
        assert_eq!(listeners(8082)?, []);
        Ok(())
    })
}

#[test]
fn finds_a_thousand_sockets() -> Result<()> {
    in_namespace(|| {
        let sockets: Vec<_> = (0..1_024)
            .map(|_| bind("::".parse()?, false, true).map_err(Into::into))
            .collect::<Result<_>>()?;
        let cookies: HashSet<_> = sockets.iter().map(socket_cookie).collect::<Result<_, _>>()?;
        let found = listeners(PORT)?;
        assert_eq!(found.len(), 1_024);
        assert_eq!(found.iter().map(|listener| listener.cookie).collect::<HashSet<_>>(), cookies);
        Ok(())
    })
}

#[test]
fn reads_the_depth_of_a_queue() -> Result<()> {
    in_namespace(|| {
        let socket = bind("127.0.0.1".parse()?, false, false)?;
        let cookie = socket_cookie(&socket)?;
        let address = SocketAddr::new("127.0.0.1".parse()?, PORT);
        let depth = |depth| {
            eventually(&format!("{depth} connections are queued"), || {
                let queue = queue_depths(PORT)?[&cookie];
                assert_eq!(queue.limit, BACKLOG.unsigned_abs());
                Ok((queue.depth == depth).then_some(()))
            })
        };
        let _clients: Vec<_> = (0..9).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
        depth(9)?;
        socket.accept()?;
        depth(8)
    })
}

#[test]
fn finds_the_processes_that_hold_a_socket() -> Result<()> {
    in_namespace(|| {
        let stage = Stage::new()?;
        let worker = stage.demo(0)?;
        crate::http::get(stage.address, "/")?;
        let inode = listeners(PORT)?[0].inode;
        let mine = std::net::TcpListener::bind("127.0.0.1:8081")?;
        let mine = u32::try_from(rustix::fs::fstat(&mine)?.st_ino)?;

        let found = owners(&[inode, mine]);
        let held: HashSet<_> = found.iter().map(|owner| (owner.inode, owner.pid)).collect();
        let me = std::process::id();
        assert_eq!(held, HashSet::from([(inode, me), (inode, worker.pid()), (mine, me)]));
        let of_worker = found.iter().find(|owner| owner.pid == worker.pid()).context("the worker")?;
        assert_eq!(of_worker.to_string(), format!("reuseport-lb (pid {})", worker.pid()));
        assert_eq!(owners(&[]), []);
        Ok(())
    })
}

#[test]
fn names_who_has_taken_an_address() -> Result<()> {
    in_namespace(|| {
        let listen = SocketAddr::new("0.0.0.0".parse()?, PORT);
        assert_eq!(conflicts(listen)?, []);
        let _socket = bind("127.0.0.1".parse()?, false, false)?;
        let found = conflicts(listen)?;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].overlap, Overlap::Narrower);
        let me = std::process::id();
        let name = procfs::process::Process::myself()?.stat()?.comm;
        assert_eq!(found[0].to_string(), format!("127.0.0.1:8080 is taken by {name} (pid {me})"));

        // Two threads are one process, and two processes are two.
        let mut two = found[0].clone();
        two.owners.push(two.owners[0].clone());
        assert!(two.to_string().ends_with(&format!("and {name} (pid {me})")), "{two}");
        two.owners.push(two.owners[0].clone());
        assert!(two.to_string().ends_with("and 2 other processes"), "{two}");
        two.owners.clear();
        assert!(two.to_string().contains("cannot be seen"), "{two}");
        Ok(())
    })
}

/// Everything that an address may look like.
const ADDRESSES: [&str; 9] = [
    "0.0.0.0",
    "127.0.0.1",
    "127.0.0.2",
    "::",
    "::1",
    "fd00::1",
    "::ffff:127.0.0.1",
    "::ffff:127.0.0.2",
    "::ffff:0.0.0.0",
];

#[test]
fn sees_a_conflict_exactly_where_the_kernel_does() -> Result<()> {
    in_namespace(|| {
        let added = std::process::Command::new("ip")
            .args(["address", "add", "fd00::1/128", "dev", "lo", "nodad"])
            .status()?;
        assert!(added.success());
        for theirs in ADDRESSES {
            for v6_only in [false, true] {
                let theirs: IpAddr = theirs.parse()?;
                let Ok(_socket) = bind(theirs, v6_only, false) else {
                    assert!(v6_only && theirs.to_canonical().is_ipv4(), "{theirs} should be fine");
                    continue;
                };
                for ours in ADDRESSES {
                    let ours: IpAddr = ours.parse()?;
                    let found = conflicts(SocketAddr::new(ours, PORT))?;
                    match bind(ours, false, false) {
                        Ok(_) => assert_eq!(found, [], "{ours} beside {theirs}, v6only {v6_only}"),
                        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                            assert_eq!(found.len(), 1, "{ours} against {theirs}, v6only {v6_only}");
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Ok(())
    })
}

/// Whether the next connection to `to` goes to the socket that was opened last.
fn takes(to: &str, last: &Socket) -> Result<bool> {
    let cookie = socket_cookie(last)?;
    let _client = TcpStream::connect(SocketAddr::new(to.parse()?, PORT))?;
    let waiting = eventually("the connection is queued", || {
        let queues = queue_depths(PORT)?;
        Ok(queues.into_iter().find(|(_, queue)| queue.depth > 0).map(|(cookie, _)| cookie))
    })?;
    Ok(waiting == cookie)
}

#[test]
fn the_narrower_address_gets_the_connections() -> Result<()> {
    for (theirs, ours, overlap, to) in [
        ("127.0.0.1", "0.0.0.0", Overlap::Narrower, "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1", Overlap::Wider, "127.0.0.1"),
        ("::1", "::", Overlap::Narrower, "::1"),
        ("::", "::1", Overlap::Wider, "::1"),
        ("127.0.0.1", "::", Overlap::Narrower, "127.0.0.1"),
        ("::", "127.0.0.1", Overlap::Wider, "127.0.0.1"),
        ("0.0.0.0", "::", Overlap::Narrower, "127.0.0.1"),
        ("::", "0.0.0.0", Overlap::Wider, "127.0.0.1"),
    ] {
        in_namespace(move || {
            let _first = bind(theirs.parse()?, false, true)?;
            let found = conflicts(SocketAddr::new(ours.parse()?, PORT))?;
            assert_eq!(found.len(), 1, "{ours} against {theirs}");
            assert_eq!(found[0].overlap, overlap, "{ours} against {theirs}");
            let second = bind(ours.parse()?, false, true)?;
            let ours_takes = takes(to, &second)?;
            assert_eq!(ours_takes, overlap == Overlap::Wider, "{ours} against {theirs}");
            Ok(())
        })?;
    }
    Ok(())
}
