//! What adoption makes of IPv6 and of connections that are older than it.

use reuseport_lb::{control::GroupStatus, group::WorkerState};
use reuseport_lb_tests::{Client, Connection, GroupExt, Launch, Server, connections, in_netns};

const PORT: u16 = 8080;

fn client(ip: &str) -> Client {
    Client::of((ip.parse::<std::net::IpAddr>().expect("an address"), PORT).into())
}

/// Two servers at `listen` are steered for each of these clients.
async fn are_steered(listen: &str, clients: &[&str], netns: &std::sync::Arc<reuseport_lb_tests::Netns>) {
    let servers = [Server::perl(listen).await, Server::perl(listen).await];
    let daemon = Launch::adopt("round-robin").listen(listen).start(netns).await;
    assert_eq!(daemon.group().await.workers.len(), 2, "{daemon}");
    for ip in clients {
        let before = daemon.group().await.outcomes.selected;
        connections(&client(ip), 40, 2).await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_eq!(group.outcomes.selected - before, 40, "{ip} at {listen}: {group:#?}");
        assert_eq!(group.outcomes.fallback, 0, "{ip} at {listen}");
    }
    assert!(daemon.group().await.selected().iter().all(|count| *count > 0), "{daemon}");
    daemon.stop().await;
    for server in servers {
        server.kill().await;
    }
}

#[test]
fn ipv6_and_both_on_one_socket() {
    in_netns(async |netns| {
        are_steered("[::1]:8080", &["::1"], &netns).await;
        are_steered("[::]:8080", &["::1", "127.0.0.1"], &netns).await;
    });
}

/// Beside sockets that take IPv6 only, IPv4 is somebody else's.
#[test]
fn ipv6_only_beside_a_server_for_ipv4() {
    in_netns(async |netns| {
        netns.sysctl("net.ipv6.bindv6only", "1");
        let other = Server::perl("0.0.0.0:8080").await;
        let servers = [Server::perl("[::]:8080").await, Server::perl("[::]:8080").await];
        let daemon = Launch::adopt("round-robin").listen("[::]:8080").start(&netns).await;
        let mut pids: Vec<_> = daemon.group().await.workers.iter().filter_map(|worker| worker.pid).collect();
        pids.sort_unstable();
        let mut expected = [servers[0].pid(), servers[1].pid()];
        expected.sort_unstable();
        assert_eq!(pids, expected);

        connections(&client("::1"), 40, 2).await.assert_nothing_failed();
        let group = daemon.idle().await;
        assert_eq!((group.outcomes.selected, group.runs()), (40, 40), "{group:#?}");
        for _ in 0..10 {
            assert_eq!(client("127.0.0.1").ask("/").await.expect("an answer").pid, other.pid());
        }
        assert_eq!(daemon.group().await.runs(), 40, "our program does not run for it");
        daemon.stop().await;
    });
}

/// Opens connections and keeps them, each with the process that serves it.
async fn hold(client: &Client, n: usize) -> Vec<(Connection, u32)> {
    let mut held = Vec::new();
    for _ in 0..n {
        let (connection, answer) = client.hold().await.expect("a connection");
        held.push((connection, answer.pid));
    }
    held
}

/// How many of these each worker has.
fn by_worker(held: &[(Connection, u32)], group: &GroupStatus) -> Vec<u64> {
    let of = |worker: Option<u32>| held.iter().filter(|(_, pid)| Some(*pid) == worker).count() as u64;
    group.workers.iter().map(|worker| of(worker.pid)).collect()
}

/// Each is its worker's, for the policy, for a drain, and at its end; and so it stays when the daemon dies.
#[test]
fn connections_from_before_are_counted() {
    in_netns(async |netns| {
        let servers = Server::go("127.0.0.1:8080", 2).await;
        let client = client("127.0.0.1");
        let mut old = hold(&client, 12).await;
        let mut daemon = Launch::adopt("least-loaded").start(&netns).await;
        let group = daemon.group().await;
        let each = by_worker(&old, &group);
        assert_eq!((group.active(), each.iter().sum()), (each.clone(), 12_u64), "{group:#?}");
        assert_eq!((group.pending(), group.outcomes.selected), (vec![0, 0], 0), "{group:#?}");

        // New ones go to whoever has fewer of the old ones.
        let new = hold(&client, 12).await;
        daemon
            .wait("the load is even", |group| group.active() == [12, 12] && group.pending() == [0, 0])
            .await;
        for (connection, _) in &mut old {
            connection.ask("/").await.expect("it is still served");
        }
        drop(new);
        daemon.wait("the old ones are left", |group| group.active() == each).await;

        // Without a daemon, too.
        daemon.kill().await;
        let pid_0 = group.worker(0).pid;
        let (of_0, of_1): (Vec<_>, Vec<_>) = old.into_iter().partition(|(_, pid)| Some(*pid) == pid_0);
        drop(of_0);
        daemon.start_again(&[]).await;
        daemon.wait("those of worker 0 have ended", |group| group.active() == [0, each[1]]).await;

        // A worker that has one is not drained.
        daemon.tell(&["drain", "0", "--wait"]).await;
        daemon.tell(&["undrain", "0"]).await;
        daemon.tell(&["drain", "1"]).await;
        assert_eq!(daemon.group().await.worker(1).state, WorkerState::Draining);
        drop(of_1);
        daemon.wait("it is drained", |group| group.worker(1).state == WorkerState::Drained).await;
        assert_eq!(daemon.idle().await.active(), [0, 0]);
        daemon.stop().await;
        drop(servers);
    });
}

/// Each worker of nginx has the sockets of all others, and its connections alone.
#[test]
fn connections_from_before_are_counted_where_all_have_all_sockets() {
    in_netns(async |netns| {
        let (nginx, _) = Server::nginx().await;
        let old = hold(&client("127.0.0.1"), 16).await;
        for policy in ["least-loaded", "consistent-hash"] {
            let daemon = Launch::adopt(policy).start(&netns).await;
            let group = daemon.group().await;
            let each = by_worker(&old, &group);
            assert_eq!((group.active(), each.iter().sum()), (each.clone(), 16_u64), "{group:#?}");
            // The next one knows nothing of this one.
            daemon.stop().await;
        }
        let daemon = Launch::adopt("least-loaded").start(&netns).await;
        drop(old);
        daemon.wait("all are gone", |group| group.active() == [0; 4]).await;
        daemon.stop().await;
        nginx.end().await;
    });
}
