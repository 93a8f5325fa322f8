//! The harness itself, tried against plain `SO_REUSEPORT` listeners: what the other tests rely on.

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use reuseport_lb_tests::{
    BpfStats, Client, Load, Netns, binary, eventually, fixed_sources, in_netns,
    netns::Neighbour,
    process::{Process, kill_and_wait},
    run,
    status::tally,
    within,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const WORKERS: u16 = 4;

/// Stands in for the daemon's built-in workers. Dropping it closes all listeners and connections.
struct Servers {
    _tasks: JoinSet<()>,
}

impl Servers {
    fn start(address: SocketAddr) -> Self {
        let mut tasks = JoinSet::new();
        for id in 0..WORKERS {
            tasks.spawn(serve(listener(address), id));
        }
        Self { _tasks: tasks }
    }
}

fn listener(address: SocketAddr) -> TcpListener {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_reuse_address(true).expect("SO_REUSEADDR");
    socket.set_reuse_port(true).expect("SO_REUSEPORT");
    socket.set_nonblocking(true).expect("O_NONBLOCK");
    socket.bind(&address.into()).expect("bind");
    socket.listen(1024).expect("listen");
    TcpListener::from_std(socket.into()).expect("a listener")
}

async fn serve(listener: TcpListener, id: u16) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accept");
        connections.spawn(answer(stream, id));
    }
}

/// Answers every request of a connection, and closes when the client does or asks for it.
async fn answer(mut stream: TcpStream, id: u16) {
    let body = format!(r#"{{"worker":{id},"pid":{}}}"#, std::process::id());
    let response =
        format!("HTTP/1.1 200 OK\r\nX-Worker: {id}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut request = Vec::new();
    while stream.read_buf(&mut request).await.is_ok_and(|bytes| bytes > 0) {
        if request.ends_with(b"\r\n\r\n") {
            let close = String::from_utf8_lossy(&request).contains("Connection: close");
            if stream.write_all(response.as_bytes()).await.is_err() || close {
                return;
            }
            request.clear();
        }
    }
}

/// Connections to local port 8080 in one of the states of `include/net/tcp_states.h`, as the kernel lists them.
fn sockets_in_state(state: &str) -> usize {
    ["tcp", "tcp6"]
        .map(|table| {
            fs::read_to_string(format!("/proc/thread-self/net/{table}")).expect("the table of TCP sockets")
        })
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(":1F90")) && fields.nth(1) == Some(state)
        })
        .count()
}

const ESTABLISHED: &str = "01";
const SYN_RECV: &str = "03";

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 8080).into()
}

#[test]
fn namespaces_do_not_see_each_other() {
    in_netns(async |_| {
        let servers = Servers::start(loopback());
        Client::of(loopback()).ask("/").await.expect("an answer in the own namespace");

        let other = std::sync::Arc::new(Netns::new());
        let error = Client::of(loopback()).inside(&other).ask("/").await.expect_err("nobody listens there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        drop(servers);
    });
}

#[test]
fn a_namespace_ends_its_processes() {
    in_netns(async |own| {
        let netns = Netns::new();
        let mut child = netns.within(|| Command::new("sleep").arg("1000").spawn()).expect("sleep");
        assert_eq!(netns.processes(), [child.id()]);
        assert!(own.processes().is_empty(), "a child of another namespace is not ours");

        let process = Process::find(child.id()).expect("the child");
        assert!(!process.ends_within(Duration::ZERO));
        drop(netns);
        assert!(process.ends_within(Duration::ZERO));
        assert!(!child.wait().expect("wait").success());
        assert!(Process::find(child.id()).is_none());
    });
}

#[test]
fn a_killed_process_is_gone_at_once() {
    in_netns(async |netns| {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        kill_and_wait(child.id());
        child.wait().expect("wait");
        assert!(netns.processes().is_empty());
    });
}

#[test]
fn parameters_are_a_namespace_s_own() {
    in_netns(async |netns| {
        let read = || fs::read_to_string("/proc/sys/net/ipv4/tcp_retries2").expect("the parameter");
        let before = read();
        let other = Netns::new();
        other.sysctl("net.ipv4.tcp_retries2", "3");
        assert_eq!(read(), before);
        netns.sysctl("net.ipv4.tcp_retries2", "2");
        assert_eq!(read().trim(), "2");
    });
}

#[test]
fn a_source_can_be_used_again_at_once_and_keeps_its_worker() {
    in_netns(async |_| {
        let servers = Servers::start(loopback());
        let mut workers = Vec::new();
        for source in fixed_sources(300) {
            let client = Client::of(loopback()).from(source);
            let (connection, answer) = client.hold().await.expect("an answer");
            assert_eq!(connection.source(), source);
            connection.reset();
            // The kernel's hash too gives the same worker for the same tuple while the group stays.
            assert_eq!(client.worker().await, answer.worker);
            workers.push(answer.worker);
        }
        assert!(tally(WORKERS, workers).iter().all(|count| *count > 0), "one worker got everything");
        drop(servers);
    });
}

#[test]
fn connections_end_in_each_way() {
    in_netns(async |_| {
        let servers = Servers::start(loopback());
        let client = Client::of(loopback());
        let hold = async || client.hold().await.expect("an answer").0;
        let (first, second, third) = (hold().await, hold().await, hold().await);
        assert_eq!(sockets_in_state(ESTABLISHED), 3);
        drop(first);
        second.reset();
        third.half_close().await.expect("the server closes too");
        eventually("all are closed", async || match sockets_in_state(ESTABLISHED) {
            0 => Ok(()),
            n => Err(format!("{n} are open")),
        })
        .await;
        drop(servers);
    });
}

#[test]
fn load_accounts_for_every_connection() {
    in_netns(async |_| {
        let servers = Servers::start(loopback());
        let load = Load::start(&Client::of(loopback()), 8);
        load.more(500).await;
        load.pause().await;
        assert_eq!(sockets_in_state(ESTABLISHED), 0, "nothing is in flight during a pause");

        let resumed = Instant::now();
        load.resume();
        load.more(100).await;
        let account = load.stop().await;
        account.assert_nothing_failed();
        assert!(account.total() >= 600);
        assert_eq!(tally(WORKERS, account.answers()).iter().sum::<u64>(), account.total());
        let after = account.started_after(resumed).count() as u64;
        assert!(
            (100..=account.total() - 500).contains(&after),
            "{after} after the pause of {}",
            account.total()
        );
        drop(servers);
    });
}

#[test]
fn load_notices_what_fails() {
    in_netns(async |_| {
        let servers = Servers::start(loopback());
        let load = Load::start(&Client::of(loopback()), 8);
        load.more(100).await;
        drop(servers);
        load.more(50).await;
        let account = load.stop().await;
        assert!(account.failures().len() >= 42, "only {} failures", account.failures().len());
        assert!(account.failures().iter().any(|record| {
            record.result.as_ref().is_err_and(|error| error.to_lowercase().contains("refused"))
        }));
    });
}

#[test]
fn two_hosts_on_a_link() {
    in_netns(async |netns| {
        let neighbour = Neighbour::join(&netns);
        for (address, source) in
            [(Neighbour::HERE_V4, Neighbour::THERE_V4), (Neighbour::HERE_V6, Neighbour::THERE_V6)]
        {
            let server = SocketAddr::new(address.parse().expect("an address"), 8080);
            let servers = Servers::start(server);
            let client = Client::of(server).inside(&neighbour.netns);
            let (connection, _) = client.hold().await.expect("an answer");
            assert_eq!(connection.source().ip().to_string(), source);
            drop(servers);
        }
    });
}

#[test]
fn two_hundred_handshakes_wait_for_the_other_host() {
    in_netns(async |netns| {
        let neighbour = Neighbour::join(&netns);
        let server = SocketAddr::new(Neighbour::HERE_V4.parse().expect("an address"), 8080);
        let servers = Servers::start(server);
        neighbour.deaf(&netns);

        let client = Client::of(server).inside(&neighbour.netns);
        let mut handshakes = JoinSet::new();
        for _ in 0..200 {
            let client = client.clone();
            handshakes.spawn(async move { client.connect().await });
        }
        eventually("all are in flight", async || match sockets_in_state(SYN_RECV) {
            200 => Ok(()),
            n => Err(format!("{n} are in flight")),
        })
        .await;
        assert_eq!(sockets_in_state(ESTABLISHED), 0);

        neighbour.answers(&netns);
        let mut connections = Vec::new();
        while let Some(connection) = within("a handshake ends", handshakes.join_next()).await {
            connections.push(connection.expect("a task").expect("a connection"));
        }
        assert_eq!(connections.len(), 200);
        eventually("all are established here too", async || match sockets_in_state(ESTABLISHED) {
            200 => Ok(()),
            n => Err(format!("{n} are established")),
        })
        .await;
        drop(servers);
    });
}

#[test]
fn handshakes_that_nobody_finishes_are_given_up() {
    in_netns(async |netns| {
        netns.sysctl("net.ipv4.tcp_synack_retries", "0");
        let neighbour = Neighbour::join(&netns);
        let server = SocketAddr::new(Neighbour::HERE_V4.parse().expect("an address"), 8080);
        let servers = Servers::start(server);
        neighbour.deaf(&netns);

        let client = Client::of(server).inside(&neighbour.netns);
        let handshake = tokio::spawn(async move { client.connect().await });
        eventually("it is in flight", async || match sockets_in_state(SYN_RECV) {
            1 => Ok(()),
            n => Err(format!("{n} are in flight")),
        })
        .await;
        handshake.abort();
        eventually("it is given up", async || match sockets_in_state(SYN_RECV) {
            0 => Ok(()),
            n => Err(format!("{n} are in flight")),
        })
        .await;
        drop(servers);
    });
}

#[test]
fn a_silent_peer_times_out() {
    in_netns(async |netns| {
        netns.sysctl("net.ipv4.tcp_retries2", "1");
        let neighbour = Neighbour::join(&netns);
        let server = SocketAddr::new(Neighbour::HERE_V4.parse().expect("an address"), 8080);
        let servers = Servers::start(server);
        let (mut connection, _) =
            Client::of(server).inside(&neighbour.netns).hold().await.expect("a connection");
        neighbour.deaf(&netns);
        connection.send("/").await.expect("a request");
        eventually("the server gives up", async || match sockets_in_state(ESTABLISHED) {
            0 => Ok(()),
            n => Err(format!("{n} are open")),
        })
        .await;
        drop((connection, servers));
    });
}

#[test]
fn counting_of_runs_is_turned_on_and_back() {
    let read = || fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").expect("the parameter");
    let stats = BpfStats::enable();
    assert_eq!(read().trim(), "1");
    drop(stats);
    // Whatever it is now, another one can be had: the lock was given back.
    drop(BpfStats::enable());
}

#[test]
fn a_command_s_failure_is_told_whole() {
    in_netns(async |_| {
        let output = run(&["sh", "-c", "echo out; echo err >&2; exit 3"]).await;
        assert_eq!(output.status.code(), Some(3));
        let text = output.to_string();
        for part in ["sh -c", "exit status: 3", "out\n", "err\n"] {
            assert!(text.contains(part), "“{part}” is missing in:\n{text}");
        }
    });
}

#[test]
fn there_is_a_program_to_test() {
    assert!(binary().is_file());
}
